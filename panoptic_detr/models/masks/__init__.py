"""Mask-DETR: masks as a product of queries and pixels, learnt from the first step."""

from panoptic_detr.models.masks.detector import MaskDETR, ProductMasks, build_mask_detr

__all__ = ["MaskDETR", "ProductMasks", "build_mask_detr"]
