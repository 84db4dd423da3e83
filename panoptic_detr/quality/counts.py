"""From the matching of an image to what scores are made of: counts by class, the cause of every error, and what each costs.

Sums are exact: a matched pair's IoU, as a float64, lies in (0.5, 1] and is therefore a whole number of 2**-53. Counts hold that
whole number, so adding images, processes or machines in any order gives bit-identical scores, and the state never grows with
the number of images.
"""

from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple, TypeVar

import numpy as np

from panoptic_detr.quality.matching import Matching, match_segments
from panoptic_detr.quality.overlaps import Overlaps
from panoptic_detr.quality.points import CAUSES, IOU_UNIT, SIZES, Units, add_units, lost_units
from panoptic_detr.quality.semantic import PixelCounts, count_pixels

BAD_MASK_IOU = 0.25


class ClassCounts(NamedTuple):
    """What PQ needs to know of one category."""

    tp: int = 0  # matched pairs
    fp: int = 0  # predicted segments without a match
    fn: int = 0  # true segments without a match
    iou_units: int = 0  # sum of the matched pairs' IoU in units of 2**-53

    @property
    def iou(self) -> float:
        """Sum of the matched pairs' IoU, correctly rounded."""
        return self.iou_units / IOU_UNIT


class ErrorCounts(NamedTuple):
    """Errors of one class, or of all, by cause. The first cause that applies, in this order, is the cause."""

    wrong_class: int = 0  # a segment of another class overlaps it with IoU above 0.5: the region was found, its name is wrong
    merged: int = 0  # one prediction of the class covers more than half of each of several true segments of the class
    duplicated: int = 0  # several predictions of the class lie, each with more than half of its pixels, on one true segment
    bad_mask: int = 0  # a segment of the class overlaps it with IoU from 0.25 to 0.5
    missed: int = 0  # none of these; for predictions: nothing of the class is there

    @property
    def total(self) -> int:
        """All causes together."""
        return sum(self)


NO_ERRORS = ErrorCounts()
_ONE_EACH = tuple(ErrorCounts(**{cause: 1}) for cause in ErrorCounts._fields)


@dataclass
class PanopticCounts:
    """Counts by category id, of categories that occurred.

    Attributes:
        classes: what PQ is computed from.
        lost: causes of the true segments without a match; they add up to FN.
        extra: causes of the predicted segments without a match; they add up to FP.
        points: what they and the matched pairs cost (`points`).
        pixels: the same maps without instances (`semantic`).
    """

    classes: dict[int, ClassCounts] = field(default_factory=dict)
    lost: dict[int, ErrorCounts] = field(default_factory=dict)
    extra: dict[int, ErrorCounts] = field(default_factory=dict)
    points: dict[int, Units] = field(default_factory=dict)
    pixels: dict[int, PixelCounts] = field(default_factory=dict)

    def merge(self, other: "PanopticCounts") -> None:
        """Add the counts of another image or process."""
        for category_id, counts in other.classes.items():
            _add(self.classes, category_id, counts)
        for mine, theirs in ((self.lost, other.lost), (self.extra, other.extra)):
            for category_id, errors in theirs.items():
                _add(mine, category_id, errors)
        for category_id, units in other.points.items():
            add_units(self.points, category_id, units)
        for category_id, pixels in other.pixels.items():
            _add(self.pixels, category_id, pixels)


def count_segments(overlaps: Overlaps) -> PanopticCounts:
    """Count what was matched, and name the cause and the price of every false negative and false positive (`ErrorCounts`)."""
    matching = match_segments(overlaps)
    counts = PanopticCounts(count_classes(overlaps, matching), pixels=count_pixels(overlaps))
    lost_causes, extra_causes = _causes(overlaps, matching)
    for category_id, cause in zip(overlaps.truth_categories[matching.missed].tolist(), lost_causes, strict=True):
        _add(counts.lost, category_id, _ONE_EACH[cause])
    for category_id, cause in zip(overlaps.prediction_categories[matching.extra].tolist(), extra_causes, strict=True):
        _add(counts.extra, category_id, _ONE_EACH[cause])
    counts.points = lost_units(overlaps, matching, lost_causes, extra_causes)
    return counts


def price_by_cause(overlaps: Overlaps) -> dict[str, float]:
    """What the segments of an image cost, all classes together, by cause (`points`); 1/2 for a segment without a match."""
    units = count_segments(overlaps).points.values()
    sums = [sum(column) / IOU_UNIT for column in zip(*units, strict=True)] or [0.0] * len(CAUSES) * len(SIZES)
    return {cause: sum(sums[i * len(SIZES) : (i + 1) * len(SIZES)]) for i, cause in enumerate(CAUSES)}


def count_classes(overlaps: Overlaps, matching: Matching) -> dict[int, ClassCounts]:
    """What PQ is computed from, by category id, of what was matched."""
    counts: dict[int, ClassCounts] = {}
    for category_id, iou in zip(overlaps.truth_categories[matching.truth].tolist(), matching.ious.tolist(), strict=True):
        _add(counts, category_id, ClassCounts(tp=1, iou_units=int(iou * IOU_UNIT)))
    for category_id in overlaps.truth_categories[matching.missed].tolist():
        _add(counts, category_id, ClassCounts(fn=1))
    for category_id in overlaps.prediction_categories[matching.extra].tolist():
        _add(counts, category_id, ClassCounts(fp=1))
    return counts


def _causes(overlaps: Overlaps, matching: Matching) -> tuple[list[int], list[int]]:
    """The cause of every missed and of every extra segment, in order, as a place in `ErrorCounts`."""
    if not (matching.missed.any() or matching.extra.any()):
        return [], []
    # A true segment has pixels, so no union is 0.
    ious = overlaps.intersections / overlaps.unions  # (G, P)
    same_class = overlaps.same_class
    other_class = (overlaps.truth_categories[:, None] != overlaps.prediction_categories) & ~overlaps.iscrowd[:, None]
    covered = same_class & (2 * overlaps.intersections > overlaps.truth_areas[:, None])
    lying = same_class & (2 * overlaps.intersections > overlaps.prediction_areas - overlaps.on_void)
    tables = np.stack(
        [
            other_class & (ious > 0.5),
            covered & (covered.sum(0) > 1),
            lying & (lying.sum(1, keepdims=True) > 1),
            same_class & (ious >= BAD_MASK_IOU),
        ]
    )  # (causes but the last, G, P)
    lost, extra = (np.logical_or.reduce(tables, axis) for axis in (2, 1))
    return _first_causes(lost[:, matching.missed]), _first_causes(extra[:, matching.extra])


def _first_causes(applies: np.ndarray) -> list[int]:
    """From (causes but the last, N) bool, whether each applies, the first that does for each segment."""
    always = np.ones((1, applies.shape[1]), dtype=bool)
    return np.concatenate([applies, always]).argmax(0).tolist()


Counts = TypeVar("Counts", ClassCounts, ErrorCounts, PixelCounts)


def _add(totals: dict[int, Counts], category_id: int, counts: Counts) -> None:
    mine = totals.get(category_id)
    totals[category_id] = counts if mine is None else type(counts)(*map(add, mine, counts))
