"""Panoptic quality as a pure thing: overlaps, matching, counts, scores, kinds of errors; no files, no models."""

from panoptic_detr.quality.error_kinds import NO_ERRORS, ErrorCounts
from panoptic_detr.quality.overlaps import Regions
from panoptic_detr.quality.panoptic_quality import PanopticQuality, State
from panoptic_detr.quality.result import PanopticQualityResult

__all__ = ["NO_ERRORS", "ErrorCounts", "PanopticQuality", "PanopticQualityResult", "Regions", "State"]
