"""Boundaries of segments, and how many of their pixels a true and a predicted segment share (Cheng et al., CVPR 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from panoptic_detr.id_runs import are_kernels_loaded, count_marks
from panoptic_detr.quality.overlaps import JointRuns, Overlaps, sums


@dataclass(frozen=True)
class BoundaryOverlaps:
    """Boundaries of the segments of an image: pixels that lie within some distance of their segment's outline.

    Attributes:
        intersections: (K,) pixels that are boundary of both segments of a pair.
        unions: (K,) pixels that are boundary of one of them, without the prediction's on true void.
    """

    intersections: np.ndarray
    unions: np.ndarray


def measure_boundaries(overlaps: Overlaps, runs: JointRuns, *, ratio: float = 0.02) -> BoundaryOverlaps:
    """Count the boundary pixels of every pair (Cheng et al., CVPR 2021, section 4).

    A pixel is boundary of its segment if a pixel of another id, void, or the end of the image is at most `d` rows and columns
    away; `d` is `ratio` of the image's diagonal, at least 1 pixel.

    Args:
        overlaps: of an image.
        runs: of the image.
        ratio: the paper's for COCO, by default.
    """
    reach = max(1, round(ratio * float(np.hypot(*runs.size))))
    void, nothing = len(overlaps.truth_areas), len(overlaps.prediction_areas)
    true, predicted = (_boundary(runs.paint(_small(index + 1)), reach) for index in (runs.truth, runs.prediction))
    rows, columns = runs.truth, runs.prediction
    of_truth, of_prediction, both = _count_marks(true, predicted, runs.lengths)
    areas = sums(rows, of_truth, void + 1)
    other_areas = sums(columns[rows < void], of_prediction[rows < void], nothing + 1)
    met = (rows < void) & (columns < nothing)
    pairs = np.searchsorted(overlaps.truth * nothing + overlaps.prediction, rows[met] * nothing + columns[met])
    shared = sums(pairs, both[met], len(overlaps.truth))
    return BoundaryOverlaps(shared, areas[overlaps.truth] + other_areas[overlaps.prediction] - shared)


def boundaries_together(parts: Sequence[BoundaryOverlaps]) -> BoundaryOverlaps:
    """Those of several images, for `overlaps.together`."""
    columns = (np.concatenate([getattr(part, name) for part in parts]) for name in ("intersections", "unions"))
    return BoundaryOverlaps(*columns)


def _small(numbers: np.ndarray) -> np.ndarray:
    """Numbers in the smallest type that OpenCV can erode."""
    return numbers.astype(np.uint8 if numbers.size and numbers.max() < 256 else np.float32)


def _boundary(index: np.ndarray, reach: int) -> np.ndarray:
    """Where an (H, W) map of numbers above 0 has another number, or ends, within `reach` pixels: (H, W) bool."""
    if not index.size:  # OpenCV wants a pixel at least
        return np.zeros(index.shape, dtype=bool)
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    lowest = cv2.erode(index, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    highest = cv2.dilate(index, kernel, borderType=cv2.BORDER_REPLICATE)
    return lowest != highest  # the number itself lies between them


def _count_marks(first: np.ndarray, second: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """As `count_marks`, which does it where it is loaded."""
    if are_kernels_loaded():
        return count_marks(first, second, lengths)
    parts, kinds, pixels = _split(lengths, (first.view(np.uint8) | (second.view(np.uint8) << 1)).ravel())
    chosen = (kinds % 2 == 1, kinds >= 2, kinds == 3)  # 1 the first, 2 the second, 3 both
    return np.stack([sums(parts[kind], pixels[kind], len(lengths)) for kind in chosen])


def _split(lengths: np.ndarray, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Place of its run, kind and length of each run of pixels over which (H * W,) kinds do not change either."""
    begins_run = np.zeros(kinds.size, dtype=bool)
    begins_run[np.cumsum(lengths) - lengths] = True
    changes = begins_run.copy()
    changes[1:] |= kinds[1:] != kinds[:-1]
    starts = np.flatnonzero(changes)
    return np.cumsum(begins_run[starts]) - 1, kinds[starts], np.diff(starts, append=kinds.size)
