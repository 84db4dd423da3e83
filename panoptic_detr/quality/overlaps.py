"""Pixels shared by the true and the predicted segments of an image.

Every score of the room (PQ, error analysis) is read from these numbers; the maps themselves are looked at once. They are
piecewise constant, so pixels are counted by horizontal runs of equal (true, predicted) ids, and only pairs of segments that
meet are kept: an image of many thousands of segments needs no table of all pairs. Several images are counted like one
(`together`), which spares most of the time that NumPy takes for small arrays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from panoptic_detr.errors import EvaluationError
from panoptic_detr.id_runs import IdRuns, Names, are_kernels_loaded, join_maps, join_runs
from panoptic_detr.panoptic import PanopticSegmentation

LARGEST_TABLE, TABLE_PER_RUN = 2**16, 4  # pairs; runs of images with more, and more per run, are sorted to be counted
_LARGEST_ID = 2**31  # below which what is negative in a map is taken for none of the ids
_SMALL_IDS = 2**12  # up to which places are looked up in a table instead of searched for


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
        table = np.array(list(rows), dtype=np.int64).reshape(-1, 3)
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
class JointRuns:
    """Runs of pixels in reading order over which neither of two maps changes."""

    truth: np.ndarray  # (R,) int64 index of the true segment, G for void
    prediction: np.ndarray  # (R,) int64 index of the predicted one, P for void
    lengths: np.ndarray  # (R,) int64 pixels
    size: tuple[int, int]  # (H, W) of the maps

    def paint(self, values: np.ndarray) -> np.ndarray:
        """The (H, W) map that shows the value of each run: (R,)."""
        return values.repeat(self.lengths).reshape(self.size)


@dataclass(frozen=True)
class Overlaps:
    """How many pixels true and predicted segments share: K pairs that meet, of G true and P predicted segments."""

    truth: np.ndarray  # (K,) int64 index of the true segment of each pair, ascending
    prediction: np.ndarray  # (K,) int64 index of its predicted one, ascending where the true one is the same
    intersections: np.ndarray  # (K,) int64 pixels
    truth_areas: np.ndarray  # (G,) int64 pixels of each true segment
    prediction_areas: np.ndarray  # (P,) int64 pixels of each predicted segment, those on true void included
    on_void: np.ndarray  # (P,) int64 pixels of each predicted segment on true void
    truth_categories: np.ndarray  # (G,) int64 category ids
    prediction_categories: np.ndarray  # (P,) int64 category ids
    iscrowd: np.ndarray  # (G,) bool
    truth_images: np.ndarray  # (G,) int64 which image each true segment is of, from 0
    prediction_images: np.ndarray  # (P,) int64 which image each predicted one is of
    images: int = 1

    @classmethod
    def of_pairs(
        cls,
        rows: np.ndarray,
        columns: np.ndarray,
        pixels: np.ndarray,
        truth_categories: np.ndarray,
        prediction_categories: np.ndarray,
        iscrowd: np.ndarray,
    ) -> "Overlaps":
        """From the pixels of every pair that meets, row by row; row G is true void, column P predicted void."""
        void, nothing = len(truth_categories), len(prediction_categories)
        on_void, met = rows == void, (rows < void) & (columns < nothing)
        return cls(
            truth=rows[met],
            prediction=columns[met],
            intersections=pixels[met],
            truth_areas=sums(rows, pixels, void + 1)[:-1],
            prediction_areas=sums(columns, pixels, nothing + 1)[:-1],
            on_void=sums(columns[on_void], pixels[on_void], nothing + 1)[:-1],
            truth_categories=truth_categories,
            prediction_categories=prediction_categories,
            iscrowd=iscrowd,
            truth_images=np.zeros(void, np.int64),
            prediction_images=np.zeros(nothing, np.int64),
        )

    @cached_property
    def rated_areas(self) -> np.ndarray:
        """Pixels of each predicted segment without those on true void: (P,)."""
        return self.prediction_areas - self.on_void

    @cached_property
    def unions(self) -> np.ndarray:
        """Union of each pair, without the prediction's pixels on true void (Kirillov et al. 2019, section 4.2): (K,)."""
        return self.truth_areas[self.truth] + self.rated_areas[self.prediction] - self.intersections

    @cached_property
    def equal_names(self) -> np.ndarray:
        """Pairs of one category: (K,) bool."""
        return self.truth_categories[self.truth] == self.prediction_categories[self.prediction]

    @cached_property
    def rated(self) -> np.ndarray:
        """Pairs whose true segment is no crowd: (K,) bool."""
        return ~self.iscrowd[self.truth]

    @cached_property
    def same_class(self) -> np.ndarray:
        """Pairs of one category whose true segment is no crowd: (K,) bool."""
        return self.equal_names & self.rated

    @cached_property
    def classes(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(C,) ids of the categories that occur, and the place among them of each true (G,) and predicted (P,) segment's."""
        ids, places = np.unique(np.append(self.truth_categories, self.prediction_categories), return_inverse=True)
        return ids, places[: len(self.truth_categories)], places[len(self.truth_categories) :]


def together(parts: Sequence[Overlaps]) -> Overlaps:
    """Images as if they were one, of which each segment knows which it is of."""
    if len(parts) == 1:
        return parts[0]
    trues, predicted, images = (
        np.cumsum([0, *counts])
        for counts in zip(*((len(p.truth_areas), len(p.prediction_areas), p.images) for p in parts), strict=True)
    )

    def joined(name: str, starts: np.ndarray | None = None) -> np.ndarray:
        arrays = [getattr(part, name) for part in parts]
        return np.concatenate(arrays if starts is None else [a + start for a, start in zip(arrays, starts, strict=False)])

    return Overlaps(
        truth=joined("truth", trues),
        prediction=joined("prediction", predicted),
        intersections=joined("intersections"),
        truth_areas=joined("truth_areas"),
        prediction_areas=joined("prediction_areas"),
        on_void=joined("on_void"),
        truth_categories=joined("truth_categories"),
        prediction_categories=joined("prediction_categories"),
        iscrowd=joined("iscrowd"),
        truth_images=joined("truth_images", images),
        prediction_images=joined("prediction_images", images),
        images=int(images[-1]),
    )


def joint_runs(prediction: Regions, truth: Regions) -> JointRuns:
    """The runs of two maps of one size (H, W).

    Raises:
        EvaluationError: maps of different sizes, or an id in a map without a segment.
    """
    size = truth.pixels.shape
    if prediction.pixels.shape != size:
        raise EvaluationError(
            f"{prediction.where} is {_in_words(prediction.pixels.shape)}, but {truth.where} is {_in_words(size)}; "
            "predict at the size of the ground truth"
        )
    if isinstance(truth.pixels, IdRuns) and isinstance(prediction.pixels, IdRuns):
        rows, columns, lengths = join_runs(truth.pixels, _names(truth), prediction.pixels, _names(prediction))
    else:
        rows, columns, lengths = _join_maps(truth.segment_map, _names(truth), prediction.segment_map, _names(prediction))
    _check_listed(rows, truth)
    _check_listed(columns, prediction)
    return JointRuns(rows, columns, lengths, (size[0], size[1]))


def measure_overlaps(prediction: Regions, truth: Regions, runs: JointRuns | None = None) -> Overlaps:
    """Count the pixels that true and predicted segments of two maps (H, W) share; the truth may have crowds.

    Args:
        prediction: what a model says.
        truth: what the annotation says.
        runs: theirs, if they are known already.

    Raises:
        EvaluationError: maps of different sizes, an id in a map without a segment, or a segment without pixels.
    """
    runs = runs or joint_runs(prediction, truth)
    rows, columns, pixels = _count_pairs(runs, (len(truth) + 1, len(prediction) + 1))
    overlaps = Overlaps.of_pairs(rows, columns, pixels, truth.category_ids, prediction.category_ids, truth.iscrowd)
    _check_present(overlaps.truth_areas, truth)
    _check_present(overlaps.prediction_areas, prediction)
    return overlaps


def _count_pairs(runs: JointRuns, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and pixels of every pair that occurs, row by row, of a table (G + 1, P + 1) of all pairs."""
    codes, cells = runs.truth * shape[1] + runs.prediction, shape[0] * shape[1]
    if cells <= max(LARGEST_TABLE, TABLE_PER_RUN * len(codes)):
        counts = sums(codes, runs.lengths, cells)
        places = np.flatnonzero(counts)
        counts = counts[places]
    else:
        places, kinds = np.unique(codes, return_inverse=True)
        counts = sums(kinds, runs.lengths, len(places))
    return *np.divmod(places, shape[1]), counts


def sums(places: np.ndarray, pixels: np.ndarray, count: int) -> np.ndarray:
    """Sum of `pixels` by place: (count,) int64; float64 sums of pixel counts are exact below 2**53."""
    return np.bincount(places, pixels, count).astype(np.int64)


def _join_maps(truth: np.ndarray, names: Names, prediction: np.ndarray, other_names: Names) -> tuple[np.ndarray, ...]:
    """As `join_maps`, which does it where it is loaded."""
    known = all(0 <= ids[0] and ids[-1] < _LARGEST_ID for ids in (names[0], other_names[0]))
    if known and are_kernels_loaded() and truth.dtype == prediction.dtype == np.int32:
        return join_maps(truth, names, prediction, other_names)
    true_ids, predicted_ids, lengths = _joint_ids(truth.ravel(), prediction.ravel())
    return _places(true_ids, *names), _places(predicted_ids, *other_names), lengths


def _joint_ids(true_ids: np.ndarray, predicted_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """True id, predicted id and length of each run over which neither changes, from the ids of all pixels in reading order."""
    if true_ids.size == 0:
        return true_ids, predicted_ids, np.zeros(0, dtype=np.int64)
    changes = np.empty(true_ids.size, dtype=bool)
    changes[0] = True
    np.not_equal(true_ids[1:], true_ids[:-1], out=changes[1:])
    changes[1:] |= predicted_ids[1:] != predicted_ids[:-1]
    starts = np.flatnonzero(changes)
    return true_ids[starts], predicted_ids[starts], np.diff(starts, append=true_ids.size)


def _names(regions: Regions) -> Names:
    """The ids that a map may have, ascending, and the place of each among the segments, behind them for void."""
    known = regions.ids if (regions.ids == 0).any() else np.append(regions.ids, 0)
    order = np.argsort(known)
    return known[order], order


def _places(values: np.ndarray, known: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The place of each value; -1 where it is not known."""
    if known[-1] < _SMALL_IDS and known[0] >= 0 and values.dtype.itemsize <= 4:
        table = np.full(known[-1] + 2, -1)
        table[known] = places
        return table.take(values.astype(np.uint32), mode="clip")  # what is negative becomes large, which is none of them
    found = np.searchsorted(known, values)
    return np.where(known.take(found, mode="clip") == values, places.take(found, mode="clip"), -1)


def _check_listed(places: np.ndarray, regions: Regions) -> None:
    if places.min(initial=0) < 0:
        values = regions.segment_map.ravel()
        unknown = values[~np.isin(values, _names(regions)[0])][0]
        raise EvaluationError(
            f"{regions.where}: the map has pixels of id {unknown}, but no such segment is listed; "
            "list every id of the map in segments_info, or paint those pixels 0 (void)"
        )


def _check_present(areas: np.ndarray, regions: Regions) -> None:
    if (areas == 0).any():
        raise EvaluationError(
            f"{regions.where}: segment {regions.ids[np.argmin(areas)]} is listed but has no pixel in the map; "
            "leave it out of segments_info, or paint it"
        )


def _in_words(size: tuple[int, ...]) -> str:
    return " x ".join(map(str, size[::-1]))
