"""Matching and losses, for every detector."""

from panoptic_detr.training.losses.build import build_criterion, criterion_for
from panoptic_detr.training.losses.criterion import Criterion, GlobalCounts, Losses
from panoptic_detr.training.losses.mask_detr import MaskCriterion
from panoptic_detr.training.losses.matcher import HungarianMatcher, Matches

__all__ = [
    "Criterion",
    "GlobalCounts",
    "HungarianMatcher",
    "Losses",
    "MaskCriterion",
    "Matches",
    "build_criterion",
    "criterion_for",
]
