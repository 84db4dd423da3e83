"""Panoptic quality as a pure thing: overlaps, matching, counts, scores, kinds of errors; no files, no models."""

from panoptic_detr.quality.matching import NO_ERRORS, ErrorCounts, Matching, match_segments
from panoptic_detr.quality.overlaps import Overlaps, Regions, measure_overlaps
from panoptic_detr.quality.panoptic_quality import PanopticQuality, PanopticQualityResult, State

__all__ = [
    "NO_ERRORS",
    "ErrorCounts",
    "Matching",
    "Overlaps",
    "PanopticQuality",
    "PanopticQualityResult",
    "Regions",
    "State",
    "match_segments",
    "measure_overlaps",
]
