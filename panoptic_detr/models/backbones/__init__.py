"""Backbones: ResNet, the small one, timm's."""

from panoptic_detr.models.backbones.build import build_backbone
from panoptic_detr.models.backbones.hub import HubId, check_repository, finder, hub_id, push_folder
from panoptic_detr.models.backbones.layout import LAYOUT, Layout, read_layout
from panoptic_detr.models.backbones.resnet import (
    RESNETS,
    Backbone,
    FrozenBatchNorm2d,
    NormKind,
    Stages,
    resize_padding_mask,
)

__all__ = [
    "LAYOUT",
    "RESNETS",
    "Backbone",
    "FrozenBatchNorm2d",
    "HubId",
    "Layout",
    "NormKind",
    "Stages",
    "build_backbone",
    "check_repository",
    "finder",
    "hub_id",
    "push_folder",
    "read_layout",
    "resize_padding_mask",
]
