"""Detectors and the mask head."""

from panoptic_detr.models.backbones import Backbone
from panoptic_detr.models.detr import DETR, build_detr
from panoptic_detr.models.mask_head import MaskHead
from panoptic_detr.models.panoptic_detr import PanopticDETR
from panoptic_detr.models.position_encoding import cell_centres

__all__ = [
    "DETR",
    "Backbone",
    "MaskHead",
    "PanopticDETR",
    "backbones",
    "build_detr",
    "cell_centres",
    "cpu",
    "deformable",
    "masks",
    "settings",
    "tracing",
]
