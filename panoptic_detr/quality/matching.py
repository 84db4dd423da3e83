"""Who matches whom in an image.

Everything that says "right" or "wrong" of a segment (scores, the error view, the report) reads it from `match_segments`.
"""

from dataclasses import dataclass

import numpy as np

from panoptic_detr.quality.boundaries import BoundaryOverlaps
from panoptic_detr.quality.overlaps import Overlaps, sums


@dataclass(frozen=True)
class Matching:
    """What became of G true and P predicted segments, by panopticapi's definition."""

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
    """Match the segments of images (Kirillov et al. 2019, section 4.1, with panopticapi's crowds).

    A pair of one category matches if its IoU, without the prediction's pixels on void, exceeds 0.5 (then it is the only
    one of both). Crowds neither match nor count. An unmatched prediction of which more than half lies on void and on the crowd
    of its class is ignored; of several crowds of one class in an image the last one listed is that crowd, as in panopticapi.

    With `boundaries` the IoU of a pair is the smaller one of masks and boundaries (Cheng et al., CVPR 2021, section 5).
    """
    matched = overlaps.same_class & (2 * overlaps.intersections > overlaps.unions)
    if boundaries is not None:
        matched &= 2 * boundaries.intersections > boundaries.unions
    truth, prediction = overlaps.truth[matched], overlaps.prediction[matched]
    missed, unmatched = ~overlaps.iscrowd, np.ones(len(overlaps.prediction_categories), dtype=bool)
    missed[truth], unmatched[prediction] = False, False
    ignored = unmatched & (2 * (overlaps.on_void + _on_crowds(overlaps)) > overlaps.prediction_areas)
    ious = overlaps.intersections[matched] / overlaps.unions[matched]
    if boundaries is not None:
        ious = np.minimum(ious, boundaries.intersections[matched] / boundaries.unions[matched])
    return Matching(truth, prediction, ious, missed, unmatched & ~ignored, ignored)


def _on_crowds(overlaps: Overlaps) -> np.ndarray:
    """Pixels of each predicted segment on the crowd of its class: (P,)."""
    rows = np.flatnonzero(overlaps.iscrowd)
    places = zip(overlaps.truth_images[rows].tolist(), overlaps.truth_categories[rows].tolist(), strict=True)
    crowds = dict(zip(places, rows.tolist(), strict=True))  # by image and category
    meets = overlaps.equal_names & np.isin(overlaps.truth, list(crowds.values()))
    return sums(overlaps.prediction[meets], overlaps.intersections[meets], len(overlaps.prediction_areas))
