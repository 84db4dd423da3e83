"""Detectors and the mask head."""

from panoptic_detr.models.cells import cell_centres
from panoptic_detr.models.detr import build_detr
from panoptic_detr.models.mask_head import MaskHead
from panoptic_detr.models.panoptic_detr import PanopticDETR

__all__ = ["MaskHead", "PanopticDETR", "build_detr", "cell_centres", "cpu", "deformable"]
