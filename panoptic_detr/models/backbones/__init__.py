"""Backbones: ResNet, the small one, timm's."""

from panoptic_detr.models.backbones.build import build_backbone
from panoptic_detr.models.backbones.resnet import Backbone, FrozenBatchNorm2d, NormKind, Stages, resize_padding_mask

__all__ = ["Backbone", "FrozenBatchNorm2d", "NormKind", "Stages", "build_backbone", "resize_padding_mask"]
