"""Matching and losses, for every detector."""

from panoptic_detr.training.losses.criterion import Criterion, GlobalCounts, Losses, build_criterion
from panoptic_detr.training.losses.matcher import HungarianMatcher, Matches
from panoptic_detr.training.losses.regions import MaskLossKind

__all__ = ["Criterion", "GlobalCounts", "HungarianMatcher", "Losses", "MaskLossKind", "Matches", "build_criterion"]
