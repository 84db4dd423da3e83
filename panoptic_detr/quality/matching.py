"""Who matches whom in an image.

Everything that says "right" or "wrong" of a segment (scores, the error view, the report) reads it from `match_segments`.
"""

from dataclasses import dataclass

import numpy as np

from panoptic_detr.quality.overlaps import BoundaryOverlaps, Overlaps


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


def match_segments(overlaps: Overlaps, boundaries: BoundaryOverlaps | None = None) -> Matching:
    """Match the segments of an image (Kirillov et al. 2019, section 4.1, with panopticapi's crowds).

    A pair of one category matches if its IoU, without the prediction's pixels on void, exceeds 0.5 (then it is the only
    one of both). Crowds neither match nor count. An unmatched prediction of which more than half lies on void and on the crowd
    of its class is ignored; of several crowds of one class in an image the last one listed is that crowd, as in panopticapi.

    With `boundaries` the IoU of a pair is the smaller one of masks and boundaries (Cheng et al., CVPR 2021, section 5).
    """
    matched = overlaps.same_class & (2 * overlaps.intersections > overlaps.unions)
    if boundaries is not None:
        matched &= 2 * boundaries.intersections > boundaries.unions
    truth, prediction = np.nonzero(matched)
    missed, unmatched = ~overlaps.iscrowd, np.ones(len(overlaps.prediction_categories), dtype=bool)
    missed[truth], unmatched[prediction] = False, False
    on_ignored_ground = overlaps.on_void.copy()
    crowds = {int(overlaps.truth_categories[row]): row for row in np.flatnonzero(overlaps.iscrowd)}
    for category_id, row in crowds.items():
        on_ignored_ground += np.where(overlaps.prediction_categories == category_id, overlaps.intersections[row], 0)
    ignored = unmatched & (2 * on_ignored_ground > overlaps.prediction_areas)
    ious = overlaps.intersections[truth, prediction] / overlaps.unions[truth, prediction]
    if boundaries is not None:
        ious = np.minimum(ious, boundaries.intersections[truth, prediction] / boundaries.unions[truth, prediction])
    return Matching(truth, prediction, ious, missed, unmatched & ~ignored, ignored)
