"""Deformable DETR and H-DETR."""

from panoptic_detr.models.deformable.attention import Sampler, Shapes, has_triton, sample_with_grid, sample_with_triton
from panoptic_detr.models.deformable.detector import DeformableDETR, build_deformable_detr
from panoptic_detr.models.deformable.table import sample_with_table

__all__ = [
    "DeformableDETR",
    "Sampler",
    "Shapes",
    "build_deformable_detr",
    "has_triton",
    "sample_with_grid",
    "sample_with_table",
    "sample_with_triton",
    "triton",
]
