"""Large pictures by tiles that overlap, joined to one map.

Each tile is predicted by itself. Of the pixels that two tiles share, each keeps the half that is nearer to it. Two things, one
of each tile, are one where their masks agree in the overlap: an IoU of at least 0.5 there, whatever their class; the larger
piece, which shows more of the thing, decides about that. Stuff of one class is one segment all over the picture, as in COCO's
format.

Memory, besides the model's: what two rows of tiles share and a few tiles, at most 12 * width * tile bytes; the map lies in
memory up to 8192 x 8192 pixels and in a temporary file above.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from panoptic_detr.errors import InputError
from panoptic_detr.inference.flow import PictureModel
from panoptic_detr.inference.rasters import Raster, id_store, release, strips
from panoptic_detr.panoptic import Dropped, PanopticSegmentation, Segment
from panoptic_detr.segment_maps import measure, with_ids

SAME = 0.5  # least IoU of two things in an overlap that are one

_NONE = Segment(0, 0, False, 0.0, 0, (0, 0, 0, 0))


class Span(NamedTuple):
    """A tile along one axis: where it begins and ends, and the part of it that is kept."""

    start: int
    stop: int
    first: int
    last: int

    @property
    def whole(self) -> slice:
        """The tile's pixels in the picture."""
        return slice(self.start, self.stop)

    @property
    def kept(self) -> slice:
        """The kept pixels in the picture."""
        return slice(self.first, self.last)

    @property
    def inside(self) -> slice:
        """The kept pixels in the tile."""
        return slice(self.first - self.start, self.last - self.start)


def spans(length: int, tile: int, overlap: int) -> list[Span]:
    """Tiles of one size that cover an axis, the last one moved back to end with it; neighbours share `overlap` or more."""
    if length <= tile:
        return [Span(0, length, 0, length)]
    starts = [*range(0, length - tile, tile - overlap), length - tile]
    cuts = [0, *((before + tile + after) // 2 for before, after in pairwise(starts)), length]
    return [Span(start, start + tile, *cuts[i : i + 2]) for i, start in enumerate(starts)]


def usual_overlap(tile: int) -> int:
    """Pixels that neighbouring tiles share if nobody says: 256, or half of a smaller tile."""
    return min(256, tile // 2)


class Tiled:
    """A model for pictures of any size, called as the model that it is made of.

    Args:
        model: what predicts a tile.
        tile: side of a tile in pixels; pictures that are not larger are predicted whole.
        overlap: least number of pixels that neighbours share; `usual_overlap` by default. A thing is found well if it fits
            into it.
        scratch: folder for maps that do not fit the memory; the system's own by default.

    Raises:
        InputError: a tile or an overlap that makes no sense.
    """

    batch_size = 1

    def __init__(
        self, model: PictureModel, *, tile: int = 1024, overlap: int | None = None, scratch: Path | None = None
    ) -> None:
        overlap = usual_overlap(tile) if overlap is None else overlap
        if tile < 32 or not 2 <= overlap <= tile // 2:
            raise InputError(f"tiles have at least 32 pixels and overlap by 2 to half of them, but got {tile} and {overlap}")
        self.model, self.tile, self.overlap, self.scratch = model, tile, overlap, scratch
        self.categories = model.categories

    def __call__(self, pictures: Sequence[np.ndarray | Raster], /) -> list[PanopticSegmentation]:
        """The maps of pictures, each as large as its picture."""
        return [self._predict(Raster.of(picture)) for picture in pictures]

    def _predict(self, raster: Raster) -> PanopticSegmentation:
        ids, pieces = id_store(raster.shape, self.scratch), _Pieces()
        columns, rows = (spans(length, self.tile, self.overlap) for length in (raster.shape[1], raster.shape[0]))
        above: list[np.ndarray] = []  # of each tile of the row above, the part that this row shares
        for row, following in zip(rows, [*rows[1:], rows[-1]], strict=True):
            shared, left = above, None
            above = []
            for column, numbers in enumerate(self._row(raster, row, columns, pieces)):
                span = columns[column]
                if left is not None:
                    width = columns[column - 1].stop - span.start
                    pieces.join(left[:, -width:], numbers[:, :width])
                if shared:
                    pieces.join(shared[column], numbers[: len(shared[column])])
                kept = numbers[row.inside, span.inside]
                ids[row.kept, span.kept] = kept
                pieces.count(kept, row.first, span.first)
                above.append(numbers[following.start - row.start :].copy())
                left = numbers
            release(ids)
        return self._finish(ids, pieces)

    def _row(self, raster: Raster, rows: Span, columns: Sequence[Span], pieces: "_Pieces") -> Iterator[np.ndarray]:
        """The tiles of a row as (h, w) int32 numbers of pieces; several go through the model together."""
        for start in range(0, len(columns), self.model.batch_size):
            windows = [raster.window(rows.whole, span.whole) for span in columns[start : start + self.model.batch_size]]
            yield from (pieces.add(result) for result in self.model(windows))

    def _finish(self, ids: np.ndarray, pieces: "_Pieces") -> PanopticSegmentation:
        """Turn numbers of pieces into ids of segments, a strip at a time."""
        table, segments = pieces.segments()
        for part in strips(ids.shape):
            ids[part] = table[ids[part]]
        release(ids)
        return PanopticSegmentation(ids, segments, self.categories, pieces.dropped)


@dataclass
class _Pieces:
    """What was found in all tiles: pieces by number, from 1, and which of them are one.

    Attributes:
        found: the segment of each piece, as its tile has it; number 0 is void.
        parent: of each piece another one of the same thing, or itself.
        areas: kept pixels of each piece.
        boxes: left, top, right and bottom of what is kept.
        stuff: the piece of each category of stuff.
        dropped: the query with the best score of those that scored too low.
    """

    found: list[Segment] = field(default_factory=lambda: [_NONE])
    parent: list[int] = field(default_factory=lambda: [0])
    areas: Counter[int] = field(default_factory=Counter)
    boxes: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    stuff: dict[int, int] = field(default_factory=dict)
    dropped: list[Dropped] = field(default_factory=list)

    def add(self, result: PanopticSegmentation) -> np.ndarray:
        """Take in a tile; its map with a number in place of each id."""
        numbers = {segment.id: self._number(segment) for segment in result.segments}
        low = [dropped for dropped in result.dropped if dropped.reason == "low score"]
        self.dropped = sorted([*self.dropped, *low], key=lambda dropped: -dropped.score)[:1]
        return with_ids(result.segment_map, numbers)

    def _number(self, segment: Segment) -> int:
        known = self.stuff.get(segment.category_id)
        if known is not None and not segment.isthing:
            self.found[known] = _larger(self.found[known], segment)
            return known
        number = len(self.found)
        self.found.append(segment)
        self.parent.append(number)
        if not segment.isthing:
            self.stuff[segment.category_id] = number
        return number

    def join(self, one: np.ndarray, other: np.ndarray) -> None:
        """Make things one that agree where two tiles overlap: (h, w) numbers of the same pixels in both."""
        both = (one > 0) & (other > 0)
        if not both.any():
            return
        in_one, in_other = (dict(zip(*_counts(part), strict=True)) for part in (one, other))
        pairs, shared = np.unique(np.stack([one[both], other[both]]), axis=1, return_counts=True)
        for (a, b), count in zip(pairs.T.tolist(), shared.tolist(), strict=True):
            if self._is_thing(a) and self._is_thing(b) and count >= SAME * (in_one[a] + in_other[b] - count):
                self.parent[self.root(b)] = self.root(a)

    def root(self, number: int) -> int:
        """The piece that stands for all that are one with this one."""
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number

    def count(self, kept: np.ndarray, top: int, left: int) -> None:
        """Measure the kept part of a tile, whose corner is at (top, left) of the picture."""
        for number, (area, (x, y, width, height)) in measure(kept).items():
            box = (left + x, top + y, left + x + width, top + y + height)
            self.areas[number] += area
            self.boxes[number] = _around(self.boxes.get(number, box), box)

    def segments(self) -> tuple[np.ndarray, list[Segment]]:
        """The id of each piece, and the segments."""
        pieces_of: dict[int, list[int]] = {}
        for number in sorted(self.areas):
            pieces_of.setdefault(self.root(number), []).append(number)
        table, segments = np.zeros(len(self.found), np.int32), []
        for segment_id, numbers in enumerate(pieces_of.values(), start=1):
            table[numbers] = segment_id
            segments.append(self._segment(segment_id, numbers))
        return table, segments

    def _segment(self, segment_id: int, numbers: Sequence[int]) -> Segment:
        box, largest = self.boxes[numbers[0]], self.found[numbers[0]]
        for number in numbers[1:]:
            box, largest = _around(box, self.boxes[number]), _larger(largest, self.found[number])
        left, top, right, bottom = box
        place = (left, top, right - left, bottom - top)
        area = sum(self.areas[number] for number in numbers)
        return Segment(segment_id, largest.category_id, largest.isthing, largest.score, area, place)

    def _is_thing(self, number: int) -> bool:
        return self.found[number].isthing


def _counts(part: np.ndarray) -> tuple[list[int], list[int]]:
    numbers, counts = np.unique(part, return_counts=True)
    return numbers.tolist(), counts.tolist()


def _larger(one: Segment, other: Segment) -> Segment:
    return other if other.area > one.area else one


def _around(one: tuple[int, int, int, int], other: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    return min(one[0], other[0]), min(one[1], other[1]), max(one[2], other[2]), max(one[3], other[3])
