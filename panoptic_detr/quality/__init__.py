"""Panoptic quality as a pure thing: overlaps, matching, counts, scores, films, kinds of errors; no files, no models."""

from panoptic_detr.quality.counts import NO_ERRORS, ErrorCounts, price_by_cause
from panoptic_detr.quality.films import WINDOWS, FilmQuality, FilmResult
from panoptic_detr.quality.intervals import FEW_IMAGES, Interval, difference_intervals, image_quality, interval_names, intervals
from panoptic_detr.quality.matching import Matching, match_segments
from panoptic_detr.quality.overlaps import JointRuns, Overlaps, Regions, joint_runs, measure_overlaps
from panoptic_detr.quality.panoptic_quality import PanopticQuality, PanopticQualityResult, State
from panoptic_detr.quality.points import CAUSES, MEANING, SIZES, Loss

__all__ = [
    "CAUSES",
    "FEW_IMAGES",
    "MEANING",
    "NO_ERRORS",
    "SIZES",
    "WINDOWS",
    "ErrorCounts",
    "FilmQuality",
    "FilmResult",
    "Interval",
    "JointRuns",
    "Loss",
    "Matching",
    "Overlaps",
    "PanopticQuality",
    "PanopticQualityResult",
    "Regions",
    "State",
    "difference_intervals",
    "image_quality",
    "interval_names",
    "intervals",
    "joint_runs",
    "match_segments",
    "measure_overlaps",
    "price_by_cause",
]
