"""Quality of films, whose segments keep their ids from frame to frame: VPQ, and STQ with its two parts.

**VPQ** (Kim et al., "Video Panoptic Segmentation", CVPR 2020): the frames of a window are one picture, in which what has one id
and class is one segment, a tube; PQ of the tubes of every window of k frames in a row is VPQ of k, and VPQ is the mean over
the k. With k = 1 it is PQ.

**STQ** (Weber et al., "STEP: Segmenting and Tracking Every Pixel", 2021): the geometric mean of AQ and SQ. AQ looks at things
only, and of tubes only at their pixels, not at their class: for tubes g, true, and p, predicted, of whole films that share TPA
pixels, the mean over g of sum over p of TPA / |g| * TPA / (|g| + |p| - TPA). Pixels on crowds of things do not count for p.
SQ is the mean IoU of the semantic view.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.quality.overlaps import Overlaps, Regions, sums
from panoptic_detr.quality.panoptic_quality import PanopticQuality, PanopticQualityResult, check_segmentations

WINDOWS = (1, 5, 10, 15)  # frames

Tube = tuple[int, int, bool]  # id, category id, iscrowd
Pixels = dict[tuple[Tube | None, Tube | None], int]  # of each pair of a true and a predicted tube; None is void


class AssociationQuality(NamedTuple):
    """How well the ids of things are kept."""

    total: float = 0.0  # sum over true tubes
    tubes: int = 0


@dataclass(frozen=True)
class FilmResult:
    """Scores of films, fractions; None where nothing has them.

    Attributes:
        windows: PQ of tubes by the number of frames of a window; without images where no film is that long.
        frames: PQ of the frames by themselves.
        films: how many there are.
        association: of things, as `aq` says it.
    """

    windows: dict[int, PanopticQualityResult]
    frames: PanopticQualityResult
    films: int
    association: AssociationQuality

    @property
    def vpq(self) -> float | None:
        """Mean VPQ over the windows that some film is long enough for."""
        scores = [result.all.pq for result in self.windows.values() if result.images]
        return sum(scores) / len(scores) if scores else None

    @property
    def aq(self) -> float | None:
        """Association quality."""
        return self.association.total / self.association.tubes if self.association.tubes else None

    @property
    def sq(self) -> float | None:
        """Segmentation quality: mean IoU of the semantic view."""
        return self.frames.mean_iou

    @property
    def stq(self) -> float | None:
        """Segmentation and tracking quality."""
        return None if self.aq is None or self.sq is None else float(np.sqrt(self.aq * self.sq))


@dataclass
class _Film:
    """A film so far: the last frames of it, and the pixels of its things' tubes."""

    name: str
    frames: deque[Pixels]  # as many as the longest window has
    count: int = 0  # of all frames
    shared: Pixels = field(default_factory=dict)


class FilmQuality:
    """Counts films, one after the other, each frame by frame in order.

    Args:
        categories: as of `PanopticQuality`.
        windows: numbers of frames of the tubes of VPQ.

    Raises:
        EvaluationError: no window, or one of less than a frame.
    """

    def __init__(self, categories: CategoryTable | Sequence[Mapping[str, object]], *, windows: Sequence[int] = WINDOWS) -> None:
        if not _are_windows(windows):
            raise EvaluationError(f"windows must be a list of numbers of frames, whole and 1 or more, but are {windows!r:.100}")
        self.categories, self.windows = CategoryTable.of(categories), tuple(sorted(set(windows)))
        self._frames = PanopticQuality(self.categories)
        self._windows = {frames: PanopticQuality(self.categories) for frames in self.windows}
        self._film: _Film | None = None
        self._films = 0
        self._association = AssociationQuality()

    def update(self, film: str, prediction: PanopticSegmentation, truth: PanopticSegmentation) -> None:
        """Count the next frame of a film; another name begins the next film.

        Raises:
            EvaluationError: as `PanopticQuality.update`.
        """
        check_segmentations(prediction, truth)
        where = f"film {film}, frame {1 + self._frames_of(film)}"
        self.update_regions(film, Regions.of(prediction, f"{where}, prediction"), Regions.of(truth, f"{where}, ground truth"))

    def update_regions(self, film: str, prediction: Regions, truth: Regions) -> Overlaps:
        """As `update`, of id maps with (id, category, crowd) rows; returns what was counted."""
        overlaps = self._frames.update_regions(prediction, truth, truth.where)
        if self._film is None or self._film.name != film:
            self._end_film()
            self._film = _Film(film, deque(maxlen=max(self._windows)))
            self._films += 1
        frame = _pixels(overlaps, prediction, truth)
        self._film.frames.append(frame)
        self._film.count += 1
        _add(self._film.shared, frame)
        for count, quality in self._windows.items():
            if len(self._film.frames) >= count:
                quality.count(_tubes(list(self._film.frames)[-count:]), truth.where)
        return overlaps

    def note(self, kind: str, examples: Iterable[str]) -> None:
        """As `PanopticQuality.note`; found in the notes of `frames`."""
        self._frames.note(kind, examples)

    def merge(self, other: "FilmQuality") -> None:
        """Add whole films that another one counted, over the same categories and windows.

        Raises:
            EvaluationError: `other` is no such thing.
        """
        if not isinstance(other, FilmQuality):
            raise EvaluationError(f"only another FilmQuality can be added, but got {other!r:.60}")
        if other.windows != self.windows:
            raise EvaluationError(f"scores over windows of {self.windows} and of {other.windows} frames cannot be added")
        self._end_film()
        other._end_film()
        self._frames.merge(other._frames)
        for count, quality in self._windows.items():
            quality.merge(other._windows[count])
        self._films += other._films
        (total, tubes), (more, others) = self._association, other._association
        self._association = AssociationQuality(total + more, tubes + others)

    def compute(self) -> FilmResult:
        """The scores of all films so far; the last one is then at its end."""
        self._end_film()
        windows = {count: quality.compute() for count, quality in self._windows.items()}
        return FilmResult(windows, self._frames.compute(), self._films, self._association)

    def _frames_of(self, film: str) -> int:
        return self._film.count if self._film is not None and self._film.name == film else 0

    def _end_film(self) -> None:
        if self._film is not None:
            things = {category.id for category in self._frames.categories.things}
            total, tubes = self._association
            found = _association(self._film.shared, things)
            self._association, self._film = AssociationQuality(total + found.total, tubes + found.tubes), None


def _are_windows(windows: object) -> bool:
    if not isinstance(windows, Sequence) or not windows:
        return False
    return all(isinstance(count, int | np.integer) and not isinstance(count, bool) and count >= 1 for count in windows)


def _pixels(overlaps: Overlaps, prediction: Regions, truth: Regions) -> Pixels:
    """Pixels that pairs share in a frame."""
    true, predicted = (
        list(zip(r.ids.tolist(), r.category_ids.tolist(), r.iscrowd.tolist(), strict=True)) for r in (truth, prediction)
    )
    pairs = zip(overlaps.truth.tolist(), overlaps.prediction.tolist(), overlaps.intersections.tolist(), strict=True)
    found: Pixels = {(true[row], predicted[column]): count for row, column, count in pairs}
    hidden = overlaps.truth_areas - sums(overlaps.truth, overlaps.intersections, len(true))  # on predicted void
    found |= {(tube, None): count for tube, count in zip(true, hidden.tolist(), strict=True) if count}
    return found | {(None, tube): count for tube, count in zip(predicted, overlaps.on_void.tolist(), strict=True) if count}


def _add(totals: Pixels, frame: Pixels) -> None:
    for pair, count in frame.items():
        totals[pair] = totals.get(pair, 0) + count


def _tubes(frames: Sequence[Pixels]) -> Overlaps:
    """The overlaps of tubes over some frames, as if these were one picture."""
    shared: Pixels = {}
    for frame in frames:
        _add(shared, frame)
    true, predicted = (list(dict.fromkeys(pair[side] for pair in shared if pair[side])) for side in (0, 1))
    rows, columns = ({tube: i for i, tube in enumerate([*side, None])} for side in (true, predicted))
    places = sorted((rows[one], columns[other], count) for (one, other), count in shared.items())
    table = np.array([tube for tube in (*true, *predicted) if tube], np.int64).reshape(-1, 3)
    rows_of, columns_of, pixels = np.array(places, np.int64).reshape(-1, 3).T
    one, other = table[: len(true)], table[len(true) :]
    return Overlaps.of_pairs(rows_of, columns_of, pixels, one[:, 1], other[:, 1], one[:, 2] == 1)


def _association(shared: Pixels, things: set[int]) -> AssociationQuality:
    """AQ of a film, from the pixels that tubes share in all of it."""
    sizes: dict[Tube, int] = {}
    others: dict[Tube, int] = {}
    pairs: dict[tuple[Tube, Tube], int] = {}
    for (true, predicted), count in shared.items():
        is_thing = true is not None and true[1] in things
        if is_thing and true is not None and true[2]:
            continue
        if predicted is not None and predicted[1] in things:
            others[predicted] = others.get(predicted, 0) + count
        if is_thing and true is not None:
            sizes[true] = sizes.get(true, 0) + count
            if predicted is not None and predicted[1] in things:
                pairs[true, predicted] = count
    terms = [(count / sizes[one]) * (count / (sizes[one] + others[other] - count)) for (one, other), count in pairs.items()]
    return AssociationQuality(float(np.sum(terms)), len(sizes))
