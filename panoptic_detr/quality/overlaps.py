"""Pixels shared by every true and every predicted segment of an image: one joint histogram of two id maps.

Every score of the room (PQ, error analysis) is read from this small table; the maps themselves are looked at once. Segment maps
are piecewise constant, so the histogram is taken over horizontal runs of equal (true, predicted) ids, not over pixels; the runs
are kept, so that what the table says of a pair can be painted where the pair is.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from panoptic_detr.errors import EvaluationError
from panoptic_detr.id_runs import IdRuns, join_runs
from panoptic_detr.panoptic import PanopticSegmentation

MOST_PAIRS = 2**26  # of true and predicted segments of an image: half a gigabyte for each table


@dataclass(frozen=True)
class Regions:
    """An id map with what its ids mean, as little as scoring needs.

    Id 0 is void, unless a segment with id 0 is listed (some tools number segments from 0): then it is that segment.
    """

    pixels: np.ndarray | IdRuns  # (H, W) integer ids
    ids: np.ndarray  # (S,) int64 ids of the segments
    category_ids: np.ndarray  # (S,) int64
    iscrowd: np.ndarray  # (S,) bool, for ground truth
    where: str = "the segment map"  # what to call the map in errors, for example "image 7" or a file

    @property
    def segment_map(self) -> np.ndarray:
        """The (H, W) id map."""
        return self.pixels.paint() if isinstance(self.pixels, IdRuns) else self.pixels

    @classmethod
    def of(cls, segmentation: PanopticSegmentation, where: str) -> "Regions":
        """The regions of a result or of a ground truth in memory."""
        rows = [(segment.id, segment.category_id, segment.iscrowd) for segment in segmentation.segments]
        return cls.from_rows(segmentation.segment_map, rows, where)

    @classmethod
    def from_rows(cls, pixels: np.ndarray | IdRuns, rows: Iterable[tuple[int, int, bool]], where: str) -> "Regions":
        """Regions from (id, category id, iscrowd) of each segment.

        Raises:
            EvaluationError: an id is listed twice.
        """
        table = np.array([(int(i), int(category), int(crowd)) for i, category, crowd in rows], dtype=np.int64).reshape(-1, 3)
        ids = table[:, 0]
        if len(ids) != len(set(ids.tolist())):
            values, counts = np.unique(ids, return_counts=True)
            raise EvaluationError(
                f"{where}: segment id {values[counts > 1][0]} is listed twice; every segment needs its own id"
            )
        return cls(pixels, ids, table[:, 1], table[:, 2] == 1, where)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Overlaps:
    """The joint histogram of a true and a predicted id map (G true, P predicted segments)."""

    pixels: np.ndarray  # (G + 1, P + 1) int64 pixels; the last row is true void, the last column predicted void
    truth_categories: np.ndarray  # (G,) int64 category ids
    prediction_categories: np.ndarray  # (P,) int64 category ids
    iscrowd: np.ndarray  # (G,) bool
    runs: np.ndarray  # (R,) int64, for each run of pixels in reading order its place in the flattened `pixels`
    lengths: np.ndarray  # (R,) int64 pixels of each run
    size: tuple[int, int]  # (H, W) of the maps

    def paint(self, values: np.ndarray) -> np.ndarray:
        """The (H, W) map that shows at every pixel the value of its pair, from (G + 1, P + 1) `values` like `pixels`."""
        return values.ravel()[self.runs].repeat(self.lengths).reshape(self.size)

    @cached_property
    def intersections(self) -> np.ndarray:
        """Pixels of each pair of segments: (G, P)."""
        return self.pixels[:-1, :-1]

    @cached_property
    def truth_areas(self) -> np.ndarray:
        """Pixels of each true segment: (G,)."""
        return self.pixels[:-1].sum(1)

    @cached_property
    def prediction_areas(self) -> np.ndarray:
        """Pixels of each predicted segment, those on true void included: (P,)."""
        return self.pixels[:, :-1].sum(0)

    @cached_property
    def on_void(self) -> np.ndarray:
        """Pixels of each predicted segment on true void: (P,)."""
        return self.pixels[-1, :-1]

    @cached_property
    def unions(self) -> np.ndarray:
        """Union of each pair, without the prediction's pixels on true void (Kirillov et al. 2019, section 4.2): (G, P)."""
        return self.truth_areas[:, None] + (self.prediction_areas - self.on_void) - self.intersections

    @cached_property
    def same_class(self) -> np.ndarray:
        """Pairs of one category whose true segment is no crowd: (G, P) bool."""
        return (self.truth_categories[:, None] == self.prediction_categories) & ~self.iscrowd[:, None]


@dataclass(frozen=True)
class BoundaryOverlaps:
    """Boundaries of the segments of an image: pixels that lie within some distance of their segment's outline.

    Attributes:
        intersections: (G, P) pixels that are boundary of both segments of a pair.
        unions: (G, P) pixels that are boundary of one of them, without the prediction's on true void.
    """

    intersections: np.ndarray
    unions: np.ndarray


def measure_boundaries(overlaps: Overlaps, *, ratio: float = 0.02) -> BoundaryOverlaps:
    """Count the boundary pixels of every pair (Cheng et al., CVPR 2021, section 4).

    A pixel is boundary of its segment if a pixel of another id, void, or the end of the image is at most `d` rows and columns
    away; `d` is `ratio` of the image's diagonal, at least 1 pixel.

    Args:
        overlaps: of the image.
        ratio: the paper's for COCO, by default.
    """
    reach = max(1, round(ratio * float(np.hypot(*overlaps.size))))
    places = np.indices(overlaps.pixels.shape)  # (2, G + 1, P + 1) index of the true segment, of the predicted one
    true, predicted = (_boundary(overlaps.paint(_small(places[side] + 1)), reach) for side in (0, 1))
    counts = _count_kinds(overlaps, true.view(np.uint8) | (predicted.view(np.uint8) << 1))  # 1 true, 2 predicted, 3 both
    of_truth, of_prediction = (counts[..., 3] + counts[..., kind] for kind in (1, 2))
    truth_areas, areas = of_truth[:-1].sum(1), of_prediction[:-1, :-1].sum(0)
    intersections = counts[:-1, :-1, 3]
    return BoundaryOverlaps(intersections, truth_areas[:, None] + areas - intersections)


def _small(numbers: np.ndarray) -> np.ndarray:
    """Numbers in the smallest type that OpenCV can erode."""
    return numbers.astype(np.uint8 if numbers.size and numbers.max() < 256 else np.float32)


def _boundary(index: np.ndarray, reach: int) -> np.ndarray:
    """Where an (H, W) map of numbers above 0 has another number, or ends, within `reach` pixels: (H, W) bool."""
    kernel = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    lowest = cv2.erode(index, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    return (lowest != index) | (cv2.dilate(index, kernel, borderType=cv2.BORDER_REPLICATE) != index)


def _count_kinds(overlaps: Overlaps, kinds: np.ndarray) -> np.ndarray:
    """Pixels of every pair and kind, (G + 1, P + 1, 4) int64, from (H, W) uint8 kinds below 4; by runs, which are few."""
    flat, begins_run = kinds.ravel(), np.zeros(kinds.size, dtype=bool)
    begins_run[np.cumsum(overlaps.lengths) - overlaps.lengths] = True
    changes = begins_run.copy()
    changes[1:] |= flat[1:] != flat[:-1]
    starts = np.flatnonzero(changes)
    runs = overlaps.runs[np.cumsum(begins_run[starts]) - 1]
    shape = (*overlaps.pixels.shape, 4)
    lengths = np.diff(starts, append=kinds.size)
    return np.bincount(4 * runs + flat[starts], lengths, int(np.prod(shape))).astype(np.int64).reshape(shape)


def measure_overlaps(prediction: Regions, truth: Regions) -> Overlaps:
    """Count the pixels of every pair of a true and a predicted segment of two maps (H, W); the truth may have crowds.

    Raises:
        EvaluationError: maps of different sizes, an id in a map without a segment, a segment without pixels, or more segments
            than a table of all pairs can have.
    """
    size = truth.pixels.shape
    if prediction.pixels.shape != size:
        raise EvaluationError(
            f"{prediction.where} is {_in_words(prediction.pixels.shape)}, but {truth.where} is {_in_words(size)}; "
            "predict at the size of the ground truth"
        )
    shape = (len(truth) + 1, len(prediction) + 1)
    if shape[0] * shape[1] > MOST_PAIRS:
        raise EvaluationError(
            f"{truth.where} has {len(truth)} segments and {prediction.where} {len(prediction)}: their {shape[0] * shape[1]} "
            f"pairs do not fit into memory ({MOST_PAIRS} do); cut the image and its prediction into parts, and score these"
        )
    true_ids, predicted_ids, lengths = _joint_runs(truth, prediction)
    rows, columns = _positions(true_ids, truth), _positions(predicted_ids, prediction)
    runs = rows * shape[1] + columns
    histogram = np.bincount(runs, weights=lengths, minlength=shape[0] * shape[1])
    overlaps = Overlaps(
        pixels=histogram.astype(np.int64).reshape(shape),  # float64 sums of pixel counts are exact below 2**53
        truth_categories=truth.category_ids,
        prediction_categories=prediction.category_ids,
        iscrowd=truth.iscrowd,
        runs=runs,
        lengths=lengths,
        size=(size[0], size[1]),
    )
    _check_present(overlaps.truth_areas, truth)
    _check_present(overlaps.prediction_areas, prediction)
    return overlaps


def _joint_runs(truth: Regions, prediction: Regions) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True id, predicted id and length of each run of pixels (in reading order) over which neither id changes."""
    if isinstance(truth.pixels, IdRuns) and isinstance(prediction.pixels, IdRuns):
        return join_runs(truth.pixels, prediction.pixels)
    true_ids, predicted_ids = truth.segment_map.ravel(), prediction.segment_map.ravel()
    if true_ids.size == 0:
        return true_ids, predicted_ids, np.zeros(0, dtype=np.int64)
    changes = np.empty(true_ids.size, dtype=bool)
    changes[0] = True
    np.not_equal(true_ids[1:], true_ids[:-1], out=changes[1:])
    changes[1:] |= predicted_ids[1:] != predicted_ids[:-1]
    starts = np.flatnonzero(changes)
    return true_ids[starts], predicted_ids[starts], np.diff(starts, append=true_ids.size)


def _positions(values: np.ndarray, regions: Regions) -> np.ndarray:
    """Index of each id among the segments, `len(regions)` for void."""
    known = regions.ids if (regions.ids == 0).any() else np.append(regions.ids, 0)
    order = np.argsort(known)
    ids = np.append(known[order], np.iinfo(np.int64).max)  # the sentinel keeps every search inside
    wanted = values.astype(np.int64)
    found = np.searchsorted(ids, wanted)
    unlisted = ids[found] != wanted
    if unlisted.any():
        raise EvaluationError(
            f"{regions.where}: the map has pixels of id {wanted[unlisted][0]}, but no such segment is listed; "
            "list every id of the map in segments_info, or paint those pixels 0 (void)"
        )
    return order[found]


def _check_present(areas: np.ndarray, regions: Regions) -> None:
    if (areas == 0).any():
        raise EvaluationError(
            f"{regions.where}: segment {regions.ids[np.argmin(areas)]} is listed but has no pixel in the map; "
            "leave it out of segments_info, or paint it"
        )


def _in_words(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size[::-1]))
