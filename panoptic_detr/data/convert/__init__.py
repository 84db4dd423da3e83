"""Converters: other annotations to COCO-panoptic, and back."""

from panoptic_detr.data.convert.formats import FORMATS

__all__ = ["FORMATS"]
