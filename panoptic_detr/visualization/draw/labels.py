"""Where a label goes: deep inside its segment, on free ground, covering little of others; or at the corner of its box.

`text.draw_plate` draws it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from panoptic_detr.visualization.draw.text import default_font_size, draw_plate, line_width, plate_size

Color = tuple[int, int, int]

_PLACING_SIDE = 400  # labels are placed on a copy of the id map whose long side is at most about this


@dataclass(frozen=True)
class Wish:
    """A label that wants a place."""

    segment: int  # index into the map, from 1
    sizes: tuple[tuple[int, int], ...]  # (height, width) in pixels of the plate for each wording, the preferred one first


@dataclass(frozen=True)
class Place:
    """A label's place."""

    segment: int  # index into the map, from 1
    wording: int  # which of the wish's sizes it is for
    top_left: tuple[int, int]  # (y, x) of the plate in pixels
    anchor: tuple[int, int]  # (y, x) of the point of the segment that it names
    inside: bool  # the plate's centre lies in the segment; otherwise a line leads from the plate to the anchor


def place_labels(index_map: np.ndarray, wishes: Sequence[Wish]) -> list[Place]:
    """Find a place for every label that has one; no two plates overlap.

    A plate is centred on the pixel of its segment that is deepest inside (distance transform) and lets it cover most of its own
    segment, among those where it touches no other plate. If there is none, shorter wordings are tried, then places beside the
    segment. A label without any place is left out.

    Args:
        index_map: (H, W) unsigned; 0 is void, i the i-th segment.
        wishes: in the order of their rank.
    """
    step = max(1, round(max(index_map.shape) / _PLACING_SIDE))
    small = index_map[step // 2 :: step, step // 2 :: step] if min(index_map.shape) > step else index_map[::step, ::step]
    ground = _Ground(np.ascontiguousarray(small))
    places = []
    for wish in wishes:
        slack = int(step > 1)  # plates do not start on whole steps
        sizes = tuple((-(-height // step) + slack, -(-width // step) + slack) for height, width in wish.sizes)
        found = ground.place(wish.segment, sizes)
        if found is not None:
            places.append(_enlarged(found, wish, step, index_map.shape))
    return places


def outlines(index_map: np.ndarray) -> np.ndarray:
    """True on pixels with a right, left, upper or lower neighbour of another segment; (H, W) bool."""
    edges = np.zeros(index_map.shape, dtype=bool)
    across, down = index_map[:, 1:] != index_map[:, :-1], index_map[1:] != index_map[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges


def draw_boxes(
    picture: np.ndarray,
    boxes_cxcywh: np.ndarray,
    colors: Sequence[Color],
    names: Sequence[str],
    *,
    font_size: int | None = None,
    dashed: bool = False,
) -> None:
    """Draw boxes, then their names, none over another, in place; a name without room is left out.

    Args:
        picture: (H, W, 3) uint8 RGB.
        boxes_cxcywh: (N, 4), fractions of the picture.
        colors: N times red, green, blue.
        names: N times what to write at the upper left corner; "" for nothing.
        font_size: in pixels; by default it follows from the picture's size.
        dashed: broken lines, a little thicker, instead of whole ones.
    """
    height, width = picture.shape[:2]
    center, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    corners = np.concatenate([center - half, center + half], axis=1) * (width, height, width, height)  # (N, 4)
    rows = corners.round().astype(int).tolist()
    size = default_font_size(picture.shape) if font_size is None else font_size
    for row, color in zip(rows, colors, strict=True):
        _draw_outline(picture, row, color, max(4, size // 2) if dashed else 0)
    taken: list[tuple[int, int, int, int]] = []
    for (x0, y0, _, _), color, name in zip(rows, colors, names, strict=True):
        if not name:
            continue
        plate = plate_size(name, size)
        left = int(np.clip(x0, 0, max(0, width - plate[1])))
        top = _free_row(max(0, y0 - plate[0]), left, plate, taken, height)
        if top is not None:
            draw_plate(picture, (top, left), name, size, color)


class _Ground:
    """The id map, how deep inside its segment each pixel lies, and what plates occupy already."""

    def __init__(self, index_map: np.ndarray) -> None:
        self.index_map = index_map
        free = np.pad((~outlines(index_map)).astype(np.uint8), 1)  # the picture's edge counts as an outline
        self.depth = cv2.distanceTransform(free, cv2.DIST_L2, 3)[1:-1, 1:-1] + 0.5
        self.taken = np.zeros(index_map.shape, np.uint8)

    def place(self, segment: int, sizes: Sequence[tuple[int, int]]) -> Place | None:
        """Find a place among the wordings' sizes and take it; None if there is none."""
        mask = self.index_map == segment
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if not len(rows):
            return None
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        fitting = [(wording, size) for wording, size in enumerate(sizes) if self._fits(size)]
        for find in (self._inside, self._beside):
            for wording, size in fitting:
                found = find(segment, mask, window, wording, size)
                if found is not None:
                    y, x = found.top_left
                    self.taken[y : y + size[0], x : x + size[1]] = 1
                    return found
        return None

    def _fits(self, size: tuple[int, int]) -> bool:
        return size[0] <= self.index_map.shape[0] and size[1] <= self.index_map.shape[1]

    def _inside(
        self, segment: int, mask: np.ndarray, window: tuple[slice, slice], wording: int, size: tuple[int, int]
    ) -> Place | None:
        """The best plate whose centre lies in the segment."""
        ys, xs = np.nonzero(mask[window])
        ys, xs = ys + window[0].start, xs + window[1].start
        tops, lefts = self._corners(ys, xs, size)
        free = _box_sums(self.taken, tops, lefts, size) == 0
        if not free.any():
            return None
        own = _box_sums(mask.view(np.uint8), tops, lefts, size) / (size[0] * size[1])
        depth = self.depth[ys, xs]
        score = np.where(free, own + depth / depth.max(), -1.0)
        best = int(score.argmax())
        anchor = (int(ys[best]), int(xs[best]))
        return Place(segment, wording, (int(tops[best]), int(lefts[best])), anchor, inside=True)

    def _beside(
        self, segment: int, mask: np.ndarray, window: tuple[slice, slice], wording: int, size: tuple[int, int]
    ) -> Place | None:
        """The free plate nearest to the segment's deepest point, at most three plates away."""
        depth = np.where(mask[window], self.depth[window], 0)
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        anchor = (int(y) + window[0].start, int(x) + window[1].start)
        reach_y, reach_x = 3 * size[0], size[1]
        height, width = self.index_map.shape
        ys, xs = np.mgrid[
            max(0, anchor[0] - reach_y) : min(height, anchor[0] + reach_y + 1),
            max(0, anchor[1] - reach_x) : min(width, anchor[1] + reach_x + 1),
        ].reshape(2, -1)
        tops, lefts = self._corners(ys, xs, size)
        free = _box_sums(self.taken, tops, lefts, size) == 0
        if not free.any():
            return None
        away = np.hypot((ys - anchor[0]) / size[0], (xs - anchor[1]) / size[1])
        best = int(np.where(free, away, np.inf).argmin())
        return Place(segment, wording, (int(tops[best]), int(lefts[best])), anchor, inside=False)

    def _corners(self, ys: np.ndarray, xs: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Top-left corners of plates centred on pixels, pushed inside the picture."""
        tops = np.clip(ys - size[0] // 2, 0, self.index_map.shape[0] - size[0])
        lefts = np.clip(xs - size[1] // 2, 0, self.index_map.shape[1] - size[1])
        return tops, lefts


def _box_sums(mask: np.ndarray, tops: np.ndarray, lefts: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """How many set pixels lie in each of many rectangles of one size."""
    total = cv2.integral(mask)  # (h + 1, w + 1)
    bottoms, rights = tops + size[0], lefts + size[1]
    return total[bottoms, rights] - total[tops, rights] - total[bottoms, lefts] + total[tops, lefts]


def _enlarged(place: Place, wish: Wish, step: int, shape: tuple[int, ...]) -> Place:
    """A place found on the reduced map in pixels of the whole one."""
    height, width = wish.sizes[place.wording]
    top = min(place.top_left[0] * step, shape[0] - height)
    left = min(place.top_left[1] * step, shape[1] - width)
    anchor = (min(place.anchor[0] * step + step // 2, shape[0] - 1), min(place.anchor[1] * step + step // 2, shape[1] - 1))
    return Place(place.segment, place.wording, (max(0, top), max(0, left)), anchor, place.inside)


def _draw_outline(picture: np.ndarray, corners: Sequence[int], color: Color, dash: int) -> None:
    """Draw a rectangle (x0, y0, x1, y1), in place, in dashes so many pixels long, or whole for 0."""
    height, width = picture.shape[:2]
    thick = line_width(picture.shape)
    if not dash:
        cv2.rectangle(picture, tuple(corners[:2]), (corners[2] - 1, corners[3] - 1), color, thick)
        return
    x0, y0, x1, y1 = np.clip(corners, 0, (width - 1, height - 1) * 2).tolist()
    for start in range(x0, x1, 2 * dash):
        for y in (y0, y1):
            cv2.line(picture, (start, y), (min(start + dash, x1), y), color, thick + 1)
    for start in range(y0, y1, 2 * dash):
        for x in (x0, x1):
            cv2.line(picture, (x, start), (x, min(start + dash, y1)), color, thick + 1)


def _free_row(top: int, left: int, size: tuple[int, int], taken: list[tuple[int, int, int, int]], bottom: int) -> int | None:
    """The first row from `top` down at which a plate of (height, width) meets no other; it is then added to `taken`.

    Those are the (top, left, bottom, right) of the plates so far; `bottom` is the number of rows of the picture.
    """
    height, width = size
    for row in range(top, bottom - height + 1):
        if all(row >= b or row + height <= t or left >= r or left + width <= x for t, x, b, r in taken):
            taken.append((row, left, row + height, left + width))
            return row
    return None
