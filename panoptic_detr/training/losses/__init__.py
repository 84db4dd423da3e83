"""Matching and losses, for every detector."""

from panoptic_detr.training.losses.criterion import Criterion, GlobalCounts, Losses, build_criterion, criterion_for
from panoptic_detr.training.losses.matcher import HungarianMatcher, Matches

__all__ = ["Criterion", "GlobalCounts", "HungarianMatcher", "Losses", "Matches", "build_criterion", "criterion_for"]
