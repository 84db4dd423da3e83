"""Pictures put together: side by side under titles, with a legend, charts."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.images import as_rgb
from panoptic_detr.visualization.draw.text import default_font_size, draw_text, shortened, text_mask

_PAPER, _INK = (255, 255, 255), (24, 24, 28)


def side_by_side(
    images: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, columns: int | None = None, gap: int | None = None
) -> np.ndarray:
    """Set pictures in a row or grid on white, each under its title: (H, W, 3) uint8 RGB.

    Args:
        images: (H_i, W_i, 3) uint8 RGB each; smaller ones stand at the top of a cell of the largest size.
        titles: one per picture; cut where they are too long. None: no titles.
        columns: pictures in a row; by default all.
        gap: pixels between pictures; by default it follows from their size.

    Raises:
        PictureError: no picture, or not as many titles as pictures.
    """
    pictures = [as_rgb(image) for image in images]
    if not pictures:
        raise PictureError("side_by_side needs at least one picture, but got none")
    if titles is not None and len(titles) != len(pictures):
        raise PictureError(f"side_by_side got {len(pictures)} pictures but {len(titles)} titles; pass one title per picture")
    height, width = max(p.shape[0] for p in pictures), max(p.shape[1] for p in pictures)
    size = round(1.15 * default_font_size((height, width)))
    space = max(2, size // 2) if gap is None else gap
    cells = [_cell(p, None if titles is None else titles[i], (height, width), size) for i, p in enumerate(pictures)]
    return _grid(cells, min(columns or len(cells), len(cells)), space)


def titled(picture: np.ndarray, title: str) -> np.ndarray:
    """A picture under its title."""
    return _cell(picture, title, (picture.shape[0], picture.shape[1]), default_font_size(picture.shape))


def legend_strip(
    items: Iterable[tuple[tuple[int, int, int], str]], shape: Sequence[int], *, stacked: bool = False
) -> np.ndarray:
    """A strip that explains colours, to go under a picture: (h, W, 3) uint8 RGB.

    Args:
        items: colours, and what they mean.
        shape: (H, W, ...) of the picture.
        stacked: each on a line of its own, rather than as many on a line as fit.
    """
    size, width = default_font_size(shape), shape[1]
    line, row, left = text_mask("X", size).shape[0] + size // 2, 0, size // 2
    places: list[tuple[int, int, tuple[int, int, int], str]] = []
    for color, text in items:
        needed = size + size // 2 + text_mask(text, size).shape[1] + size
        if places and (stacked or left + needed > width):
            row, left = row + 1, size // 2
        places.append((row * line, left, color, text))
        left += needed
    strip = np.full((line * (row + 1), width, 3), 18, np.uint8)
    for top, left, color, text in places:
        strip[top + line // 4 : top + line // 4 + size, left : left + size] = color
        draw_text(strip, (top + size // 4, left + size + size // 3), text, size)
    return strip


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    name: str  # in the legend
    color: str  # as matplotlib takes it
    style: str  # likewise
    x: Sequence[float]  # its places
    y: Sequence[float]  # its values
    deviation: Sequence[float] | None = None  # of the values, drawn as a band


def chart(
    curves: Sequence[Curve],
    labels: tuple[str, str],
    size: tuple[int, int],
    *,
    ticks: Sequence[float] | None = None,
    bottom: float | None = None,
    mark: tuple[float, str] | None = None,
) -> np.ndarray:
    """Curves as a picture: (height, width, 3) uint8 RGB.

    Args:
        curves: what to draw.
        labels: of the x and the y axis.
        size: (height, width) in pixels.
        ticks: places on the x axis; by default matplotlib's.
        bottom: where the y axis begins.
        mark: a place on the x axis for a line down, and the legend's title, which says why.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(size[1] / 100, size[0] / 100), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for curve in curves:
        axes.plot(curve.x, curve.y, curve.style, color=curve.color, label=curve.name)
        if curve.deviation is not None:
            low, high = np.subtract(curve.y, curve.deviation), np.add(curve.y, curve.deviation)
            axes.fill_between(curve.x, low, high, color=curve.color, alpha=0.2, linewidth=0)
    if mark is not None:
        axes.axvline(mark[0], color="#888888", linewidth=1)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    axes.set_ylim(bottom=bottom)
    if ticks is not None:
        axes.set_xticks(list(ticks))
    axes.legend(title=mark[1] if mark else None)
    axes.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _cell(picture: np.ndarray, title: str | None, shape: tuple[int, int], size: int) -> np.ndarray:
    """A picture at the top of a white cell of the given (height, width), under its title."""
    head = 0 if title is None else text_mask("X", size).shape[0] + size // 2
    cell = np.full((shape[0] + head, shape[1], 3), _PAPER, np.uint8)
    top, left = head, (shape[1] - picture.shape[1]) // 2
    cell[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    if title:
        draw_text(cell, (size // 4, 0), shortened(title, size, shape[1]), size, _INK)
    return cell


def _grid(cells: Sequence[np.ndarray], columns: int, gap: int) -> np.ndarray:
    """Cells of one size, row by row, on white."""
    height, width = cells[0].shape[:2]
    rows = -(-len(cells) // columns)
    grid = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), _PAPER, np.uint8)
    for index, cell in enumerate(cells):
        top, left = gap + index // columns * (height + gap), gap + index % columns * (width + gap)
        grid[top : top + height, left : left + width] = cell
    return grid
