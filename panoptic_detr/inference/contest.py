"""The kept masks of one image compete for its pixels until every segment left is large enough."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from panoptic_detr.errors import MergeError
from panoptic_detr.inference.choose import Choice
from panoptic_detr.inference.winners import Axis, make_axis, winning_masks
from panoptic_detr.panoptic import DropReason, Segment

MOST_PIXELS = 2**31  # of a map in memory

# Pixels counted at a time.
_BAND_PIXELS = 1 << 20


@dataclass(frozen=True)
class Frame:
    """The three sizes of an image, (height, width) each: as the model saw it, with padding, and of the result."""

    size: tuple[int, int]
    padded: tuple[int, int]
    target: tuple[int, int]

    @classmethod
    def of(cls, size: Sequence[int], target: Sequence[int] | None, padded: Sequence[int] | None) -> "Frame":
        """Check the sizes; the result has the image's size and nothing is padded unless given."""
        inner = _pair("size", size)
        frame = cls(
            inner,
            inner if padded is None else _pair("padded_size", padded),
            inner if target is None else _pair("target_size", target),
        )
        if frame.padded[0] < inner[0] or frame.padded[1] < inner[1]:
            raise MergeError(f"padded_size {frame.padded} is smaller than size {inner}; padding only adds pixels")
        return frame

    def axes(self, cells: Tensor) -> tuple[Axis, Axis]:
        """Rows and columns of the result on the grid of (K, h, w) masks."""
        rows, columns = (
            make_axis(cells.shape[axis + 1], self.padded[axis], self.size[axis], self.target[axis], cells.device)
            for axis in (0, 1)
        )
        return rows, columns

    def crop(self, cells: Tensor) -> Tensor:
        """The cells of (K, h, w) whose centre lies on the image, not on padding."""
        height, width = (max(1, round(cells.shape[axis + 1] * self.size[axis] / self.padded[axis])) for axis in (0, 1))
        return cells[:, :height, :width]


class Contest:
    """The kept queries of one image on their way to a map: who wins which pixels, who drops out and why.

    Masks are called by their index 0..K-1.
    """

    def __init__(self, choice: Choice, cells: Tensor, frame: Frame, union: bool) -> None:
        self.queries = choice.queries
        self.scores = [choice.scores[query] for query in self.queries]
        self.categories = [category for query in self.queries if (category := choice.categories[query])]
        self.cells = cells  # (K, h, w)
        self.frame = frame
        self.union = union
        self.alive = list(range(len(self.queries)))
        self.fallen: dict[int, tuple[DropReason, int]] = {}  # mask: why, pixels it had
        self.leader: dict[int, int] = {}  # mask: the mask whose segment it belongs to
        self.area: dict[int, int] = {}  # mask: pixels won, in the result
        self.contenders: list[int] = []  # what the indices in `winners` stand for
        self.winners = np.zeros((0, 0), np.int16)
        self.rows, self.columns = frame.axes(cells)

    def drop_hidden(self, min_visible: float) -> None:
        """Drop things that show too little of their own mask."""
        inside = self.frame.crop(self.cells)
        pixels_per_cell = np.prod(self.frame.target) / np.prod(inside.shape[1:])
        things = [category.isthing for category in self.categories]
        for mask, won in hidden_things(inside, things, min_visible):
            self._drop(mask, "suppressed", round(won * pixels_per_cell))

    def settle(self, min_area: int) -> None:
        """Give every pixel to a mask, dropping small segments until there are none."""
        self.leader = self._leaders()
        while self.alive:
            self._compete()
            lost = self._losers(min_area)
            for mask, reason in lost.items():
                self._drop(mask, reason, self.area[mask])
            if not any(self.area[mask] for mask in lost):
                return

    def result(self) -> tuple[np.ndarray, list[Segment]]:
        """The (H, W) int32 map and its segments."""
        leaders = [mask for mask in self.alive if self.leader[mask] == mask]
        ids = {mask: index + 1 for index, mask in enumerate(leaders)}
        if not ids:
            return np.zeros(self.frame.target, np.int32), []
        lookup = np.array([ids[self.leader[mask]] if mask in self.alive else 0 for mask in self.contenders], np.int32)
        sampled = lookup[self.winners]  # (n, m)
        rows, columns = self.rows.spread.cpu().numpy(), self.columns.spread.cpu().numpy()
        segments = [self._segment(mask, ids[mask], _box(sampled == ids[mask], rows, columns)) for mask in leaders]
        return sampled.take(columns, axis=1).take(rows, axis=0), segments

    def _segment(self, mask: int, id: int, box: tuple[int, int, int, int]) -> Segment:
        category, area = self.categories[mask], self._total(mask)
        return Segment(id, category.id, category.isthing, self.scores[mask], area, box, self.queries[mask])

    def _leaders(self) -> dict[int, int]:
        """Every living mask's leader: itself, or for stuff the first living mask of its category."""
        first: dict[int, int] = {}
        return {
            mask: mask if self.categories[mask].isthing else first.setdefault(self.categories[mask].id, mask)
            for mask in self.alive
        }

    def _compete(self) -> None:
        self.contenders = list(self.alive)
        every = len(self.contenders) == len(self.cells)
        cells = self.cells if every else self.cells[self.contenders]
        self.winners = winning_masks(cells, self.rows, self.columns).cpu().numpy()
        counts = _count_pixels(self.winners, self.rows, self.columns, len(self.contenders))
        self.area = dict(zip(self.contenders, counts, strict=True))

    def _total(self, leader: int) -> int:
        return sum(self.area[mask] for mask in self.alive if self.leader[mask] == leader)

    def _losers(self, min_area: int) -> dict[int, DropReason]:
        lost: dict[int, DropReason] = {}
        for mask in self.alive:
            if self._total(self.leader[mask]) < max(1, min_area):
                lost[mask] = "small" if self.area[mask] else "covered"
            elif not self.union and self.leader[mask] != mask:
                lost[mask] = "suppressed"
        return lost

    def _drop(self, mask: int, reason: DropReason, area: int) -> None:
        self.alive.remove(mask)
        self.fallen[mask] = (reason, area)


def _pair(name: str, value: Sequence[int]) -> tuple[int, int]:
    try:
        numbers = [int(number) for number in value]
    except (TypeError, ValueError):
        raise MergeError(f"{name} must be (height, width) in pixels, but got {value!r}") from None
    if len(numbers) != 2 or min(numbers) < 1:
        raise MergeError(f"{name} must be (height, width) in pixels, at least 1 each, but got {tuple(numbers)}")
    if numbers[0] * numbers[1] > MOST_PIXELS:
        raise MergeError(f"{name} must have at most {MOST_PIXELS} pixels, but got {tuple(numbers)}")
    return numbers[0], numbers[1]


def _count_pixels(winners: np.ndarray, rows: Axis, columns: Axis, count: int) -> list[int]:
    """Pixels of the result that each of `count` masks wins; `winners` (n, m) holds the sampled pixels only."""
    down, across = rows.repeats().cpu().numpy(), columns.repeats().cpu().numpy()
    band = max(1, _BAND_PIXELS // max(1, len(across)))
    counts = np.zeros(count)
    for start in range(0, len(winners), band):
        weights = np.multiply.outer(down[start : start + band], across).astype(np.float64)
        counts += np.bincount(winners[start : start + band].ravel(), weights.ravel(), minlength=count)
    return [int(value) for value in counts]


def _box(mask: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> tuple[int, int, int, int]:
    """(left, top, width, height) in the result of an (n, m) mask of sampled pixels; `rows`, `columns` never decrease."""
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    x, right = np.searchsorted(columns, [left, left + width])
    y, bottom = np.searchsorted(rows, [top, top + height])
    return int(x), int(y), int(right - x), int(bottom - y)


def hidden_things(cells: Tensor, things: list[bool], min_visible: float) -> list[tuple[int, int]]:
    """Find the things to drop, the least visible first; each one dropped uncovers others before the next is judged.

    One at a time, because two copies of one object hide each other: the better half must stay. Judged on the mask grid,
    where this costs next to nothing.

    Args:
        cells: (K, h, w) float32 mask logits, without padding.
        things: K values, whether each mask belongs to a thing; stuff is never dropped.
        min_visible: least share of a thing's own mask (cells with a positive logit) in which it wins the argmax. A thing
            without any positive cell counts as invisible.

    Returns:
        (index, cells that it had won) of each dropped mask, in the order of dropping.
    """
    if not len(cells):
        return []
    cells = cells.flatten(1).clone()  # (K, h * w)
    positive = cells > 0
    own = positive.sum(1).clamp(min=1)  # (K,)
    candidates = torch.tensor(things, device=cells.device)  # (K,)
    best = cells.max(0).indices  # (h * w,)
    dropped = []
    while bool(candidates.any()):
        shown = torch.bincount(best[positive.gather(0, best[None])[0]], minlength=len(cells))  # (K,)
        visible = (shown / own).masked_fill(~candidates, torch.inf)
        worst = int(visible.argmin())
        if float(visible[worst]) >= min_visible:
            break
        lost = best == worst
        dropped.append((worst, int(lost.sum())))
        candidates[worst] = False
        cells[worst] = -torch.inf
        best[lost] = cells[:, lost].max(0).indices
    return dropped
