"""Training of both stages."""

__all__ = ["losses", "optimizer", "stages", "step", "stopping"]
