"""Data sets in: COCO-panoptic files, transforms, batches, scenes, the doctor, converters."""

__all__ = ["coco", "convert", "doctor", "loading", "photographs", "scenes", "split", "transforms"]
