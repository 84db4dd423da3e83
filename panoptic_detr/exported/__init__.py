"""Files that hold a model from pixels to the panoptic map: written with PyTorch, run without."""

__all__ = ["open", "parity", "runtime", "write"]
