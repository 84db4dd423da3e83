"""Backbones: ResNet, the small one, timm's."""

from panoptic_detr.models.backbones.build import build_backbone
from panoptic_detr.models.backbones.resnet import (
    Backbone,
    FrozenBatchNorm2d,
    NormalizedConv2d,
    NormKind,
    conv_norm_pairs,
    resize_padding_mask,
)

__all__ = [
    "Backbone",
    "FrozenBatchNorm2d",
    "NormKind",
    "NormalizedConv2d",
    "build_backbone",
    "conv_norm_pairs",
    "resize_padding_mask",
]
