"""From the overlaps of an image to what PQ is made of: who matches whom, what counts, and why the rest does not.

Everything that says "right" or "wrong" of a segment (scores, the error view, the report) reads it from `match_segments`.

Sums are exact: a matched pair's IoU, as a float64, lies in (0.5, 1] and is therefore a whole number of 2**-53. Counts hold that
whole number, so adding images, processes or machines in any order gives bit-identical scores, and the state never grows with
the number of images.
"""

from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import numpy as np

from panoptic_detr.quality.overlaps import Overlaps

IOU_UNIT = 2**53
BAD_MASK_IOU = 0.25


@dataclass(frozen=True)
class Matching:
    """What became of the G true and the P predicted segments of an image, by panopticapi's definition."""

    truth: np.ndarray  # (K,) index of the true segment of each matched pair
    prediction: np.ndarray  # (K,) index of the predicted one
    ious: np.ndarray  # (K,) float64 in (0.5, 1], void left out of the union
    missed: np.ndarray  # (G,) bool, false negatives
    extra: np.ndarray  # (P,) bool, false positives
    ignored: np.ndarray  # (P,) bool, neither right nor wrong

    @property
    def quality(self) -> float:
        """PQ of the image with all classes together: sum of IoU / (TP + FP / 2 + FN / 2); 1 if there is nothing to find."""
        size = len(self.ious) + 0.5 * self.missed.sum() + 0.5 * self.extra.sum()
        return float(self.ious.sum() / size) if size else 1.0


def match_segments(overlaps: Overlaps) -> Matching:
    """Match the segments of an image (Kirillov et al. 2019, section 4.1, with panopticapi's crowds).

    A pair of one category matches if its IoU, without the prediction's pixels on void, exceeds 0.5 (then it is the only
    one of both). Crowds neither match nor count. An unmatched prediction of which more than half lies on void and on the crowd
    of its class is ignored; of several crowds of one class in an image the last one listed is that crowd, as in panopticapi.
    """
    truth, prediction = np.nonzero(overlaps.same_class & (2 * overlaps.intersections > overlaps.unions))
    missed, unmatched = ~overlaps.iscrowd, np.ones(len(overlaps.prediction_categories), dtype=bool)
    missed[truth], unmatched[prediction] = False, False
    on_ignored_ground = overlaps.on_void.copy()
    crowds = {int(overlaps.truth_categories[row]): row for row in np.flatnonzero(overlaps.iscrowd)}
    for category_id, row in crowds.items():
        on_ignored_ground += np.where(overlaps.prediction_categories == category_id, overlaps.intersections[row], 0)
    ignored = unmatched & (2 * on_ignored_ground > overlaps.prediction_areas)
    ious = overlaps.intersections[truth, prediction] / overlaps.unions[truth, prediction]
    return Matching(truth, prediction, ious, missed, unmatched & ~ignored, ignored)


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
    """

    classes: dict[int, ClassCounts] = field(default_factory=dict)
    lost: dict[int, ErrorCounts] = field(default_factory=dict)
    extra: dict[int, ErrorCounts] = field(default_factory=dict)

    def merge(self, other: "PanopticCounts") -> None:
        """Add the counts of another image or process."""
        for category_id, counts in other.classes.items():
            _add(self.classes, category_id, counts)
        for mine, theirs in ((self.lost, other.lost), (self.extra, other.extra)):
            for category_id, errors in theirs.items():
                _add(mine, category_id, errors)


def count_segments(overlaps: Overlaps, matching: Matching | None = None) -> PanopticCounts:
    """Count what was matched, and name the cause of every false negative and false positive (`ErrorCounts`)."""
    matching = matching or match_segments(overlaps)
    counts = PanopticCounts()
    matched = zip(overlaps.truth_categories[matching.truth].tolist(), matching.ious.tolist(), strict=True)
    for category_id, iou in matched:
        _add(counts.classes, category_id, ClassCounts(tp=1, iou_units=int(iou * IOU_UNIT)))
    lost_causes, extra_causes = _causes(overlaps, matching)
    for category_id, cause in zip(overlaps.truth_categories[matching.missed].tolist(), lost_causes, strict=True):
        _add(counts.classes, category_id, ClassCounts(fn=1))
        _add(counts.lost, category_id, cause)
    for category_id, cause in zip(overlaps.prediction_categories[matching.extra].tolist(), extra_causes, strict=True):
        _add(counts.classes, category_id, ClassCounts(fp=1))
        _add(counts.extra, category_id, cause)
    return counts


def _causes(overlaps: Overlaps, matching: Matching) -> tuple[list[ErrorCounts], list[ErrorCounts]]:
    """The cause of every missed and of every extra segment, in order, as a count of one."""
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


def _first_causes(applies: np.ndarray) -> list[ErrorCounts]:
    """From (causes but the last, N) bool, whether each applies, a count of one for each segment."""
    always = np.ones((1, applies.shape[1]), dtype=bool)
    return [_ONE_EACH[cause] for cause in np.concatenate([applies, always]).argmax(0).tolist()]


Counts = TypeVar("Counts", ClassCounts, ErrorCounts)


def _add(totals: dict[int, Counts], category_id: int, counts: Counts) -> None:
    mine = totals.get(category_id)
    totals[category_id] = counts if mine is None else type(counts)(*map(sum, zip(mine, counts, strict=True)))
