"""From the overlaps of an image to the integers that PQ is made of.

Sums are exact: a matched pair's IoU, as a float64, lies in (0.5, 1] and is therefore a whole number of 2**-53. Counts hold that
whole number, so adding images, processes or machines in any order gives bit-identical scores, and the state never grows with
the number of images.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from panoptic_detr.quality.overlaps import Overlaps

IOU_UNIT = 2**53


class ClassCounts(NamedTuple):
    """What PQ needs to know of one category.

    Attributes:
        tp: matched pairs.
        fp: predicted segments without a match.
        fn: true segments without a match.
        iou_units: sum of the matched pairs' IoU in units of 2**-53.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou_units: int = 0

    def plus(self, other: "ClassCounts") -> "ClassCounts":
        """The counts of both."""
        return ClassCounts(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_units + other.iou_units)

    @property
    def iou(self) -> float:
        """Sum of the matched pairs' IoU, correctly rounded."""
        return self.iou_units / IOU_UNIT


NOTHING = ClassCounts()


@dataclass
class PanopticCounts:
    """Counts by category id.

    Attributes:
        classes: only categories that occurred; `of` gives zeros for the others.
    """

    classes: dict[int, ClassCounts] = field(default_factory=dict)

    def of(self, category_id: int) -> ClassCounts:
        """The counts of a category."""
        return self.classes.get(category_id, NOTHING)

    def add(self, category_id: int, counts: ClassCounts) -> None:
        """Add to the counts of a category."""
        self.classes[category_id] = self.of(category_id).plus(counts)

    def merge(self, other: "PanopticCounts") -> None:
        """Add the counts of another image or process."""
        for category_id, counts in other.classes.items():
            self.add(category_id, counts)


def count_segments(overlaps: Overlaps) -> PanopticCounts:
    """Match the segments of an image and count, by panopticapi's definition.

    A pair of one category matches if its IoU, without the prediction's pixels on void, exceeds 0.5 (then it is the only
    one of both). Crowds neither match nor count. An unmatched prediction of which more than half lies on void and on the crowd
    of its class is ignored; of several crowds of one class in an image the last one listed is that crowd, as in panopticapi.

    Args:
        overlaps: pixels of every pair.

    Returns:
        The counts of every category in the image.
    """
    true_index, predicted_index = match_segments(overlaps)
    ious = overlaps.intersections[true_index, predicted_index] / overlaps.unions[true_index, predicted_index]
    missed = _others(len(overlaps.truth_categories), true_index) & ~overlaps.iscrowd
    extra = _others(len(overlaps.prediction_categories), predicted_index) & ~ignored_predictions(overlaps)
    counts = PanopticCounts()
    for category_id, iou in zip(overlaps.truth_categories[true_index].tolist(), ious.tolist(), strict=True):
        counts.add(category_id, ClassCounts(tp=1, iou_units=int(iou * IOU_UNIT)))
    for category_id in overlaps.prediction_categories[extra].tolist():
        counts.add(category_id, ClassCounts(fp=1))
    for category_id in overlaps.truth_categories[missed].tolist():
        counts.add(category_id, ClassCounts(fn=1))
    return counts


def match_segments(overlaps: Overlaps) -> tuple[np.ndarray, np.ndarray]:
    """Indices (K,) of the matched true segments and (K,) of their predictions."""
    true_index, predicted_index = np.nonzero(overlaps.same_class & (2 * overlaps.intersections > overlaps.unions))
    return true_index, predicted_index


def ignored_predictions(overlaps: Overlaps) -> np.ndarray:
    """Predictions of which more than half lies on void and on the crowd of their class: (P,) bool."""
    ignored = overlaps.on_void.copy()
    crowds = {int(overlaps.truth_categories[row]): row for row in np.flatnonzero(overlaps.iscrowd)}
    for category_id, row in crowds.items():
        ignored += np.where(overlaps.prediction_categories == category_id, overlaps.intersections[row], 0)
    return 2 * ignored > overlaps.prediction_areas


def _others(count: int, chosen: np.ndarray) -> np.ndarray:
    """(count,) bool, False at the chosen indices."""
    others = np.ones(count, dtype=bool)
    others[chosen] = False
    return others
