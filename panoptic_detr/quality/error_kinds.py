"""What the errors are: why each true segment was lost and where each wrong prediction came from.

Read from the same joint histogram as PQ. Every true segment that counts as a false negative gets exactly one cause, every
predicted segment that counts as a false positive as well, so the causes of a class add up to its FN and FP. IoU is PQ's,
without pixels on void; crowds are left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from panoptic_detr.quality.counts import ignored_predictions, match_segments
from panoptic_detr.quality.overlaps import Overlaps

BAD_MASK_IOU = 0.25


class ErrorCounts(NamedTuple):
    """Errors of one class, or of all, by cause. The first cause that applies, in this order, is the cause.

    Attributes:
        wrong_class: a segment of another class overlaps it with IoU above 0.5: the region was found, its name is wrong.
        merged: one prediction of the class covers more than half of each of several true segments of the class.
        duplicated: several predictions of the class lie, each with more than half of its pixels, on one true segment.
        bad_mask: a segment of the class overlaps it with IoU from 0.25 to 0.5.
        missed: none of these; for predictions: nothing of the class is there.
    """

    wrong_class: int = 0
    merged: int = 0
    duplicated: int = 0
    bad_mask: int = 0
    missed: int = 0

    def plus(self, other: "ErrorCounts") -> "ErrorCounts":
        """The counts of both."""
        return ErrorCounts(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def total(self) -> int:
        """All causes together."""
        return sum(self)


NO_ERRORS = ErrorCounts()
_ONE_EACH = tuple(ErrorCounts(*(int(i == cause) for i in range(len(NO_ERRORS)))) for cause in range(len(NO_ERRORS)))


@dataclass
class PanopticErrors:
    """Errors by category id.

    Attributes:
        lost: causes of the true segments without a match; they add up to FN.
        extra: causes of the predicted segments without a match; they add up to FP.
    """

    lost: dict[int, ErrorCounts] = field(default_factory=dict)
    extra: dict[int, ErrorCounts] = field(default_factory=dict)

    def merge(self, other: "PanopticErrors") -> None:
        """Add the errors of another image or process."""
        for mine, theirs in ((self.lost, other.lost), (self.extra, other.extra)):
            for category_id, counts in theirs.items():
                mine[category_id] = mine.get(category_id, NO_ERRORS).plus(counts)


def find_errors(overlaps: Overlaps) -> PanopticErrors:
    """Name the cause of every false negative and false positive of an image (definitions: `ErrorCounts`)."""
    true_index, predicted_index = match_segments(overlaps)
    lost = ~overlaps.iscrowd
    lost[true_index] = False
    extra = ~ignored_predictions(overlaps)
    extra[predicted_index] = False
    errors = PanopticErrors()
    if not (lost.any() or extra.any()):
        return errors
    ious = overlaps.intersections / overlaps.unions  # (G, P); a true segment has pixels, so no union is 0
    other_class = (overlaps.truth_categories[:, None] != overlaps.prediction_categories) & ~overlaps.iscrowd[:, None]
    renamed = other_class & (ious > 0.5)
    poor = overlaps.same_class & (ious >= BAD_MASK_IOU)
    merging, pieces = _merging_pairs(overlaps), _pieces(overlaps)
    for axis, chosen, categories, counts in (
        (1, lost, overlaps.truth_categories, errors.lost),
        (0, extra, overlaps.prediction_categories, errors.extra),
    ):
        applies = np.stack([table.any(axis) for table in (renamed, merging, pieces, poor)] + [np.ones_like(chosen)])
        _count_causes(counts, categories[chosen].tolist(), applies.argmax(0)[chosen].tolist())
    return errors


def _merging_pairs(overlaps: Overlaps) -> np.ndarray:
    """Pairs of a true segment and the prediction that covers most of it and of another one of the class: (G, P) bool."""
    covered = overlaps.same_class & (2 * overlaps.intersections > overlaps.truth_areas[:, None])
    return covered & (covered.sum(0) > 1)


def _pieces(overlaps: Overlaps) -> np.ndarray:
    """Pairs of a true segment and one of several predictions that lie mostly on it: (G, P) bool."""
    lying = overlaps.same_class & (2 * overlaps.intersections > overlaps.prediction_areas - overlaps.on_void)
    return lying & (lying.sum(1) > 1)[:, None]


def _count_causes(counts: dict[int, ErrorCounts], category_ids: Iterable[int], causes: Iterable[int]) -> None:
    for category_id, cause in zip(category_ids, causes, strict=True):
        counts[category_id] = counts.get(category_id, NO_ERRORS).plus(_ONE_EACH[cause])
