"""Pictures put together: side by side, one segment enlarged, a strip of all segments."""

from collections.abc import Sequence

import cv2
import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.images import Picture, as_rgb, fit
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.visualization.draw.overlay import default_font_size, index_of, label_text, overlay
from panoptic_detr.visualization.draw.palette import Palette, segment_colors
from panoptic_detr.visualization.draw.text import draw_text, shortened, text_mask

_PAPER, _INK = (255, 255, 255), (24, 24, 28)


def side_by_side(
    images: Sequence[np.ndarray], titles: Sequence[str] | None = None, *, columns: int | None = None, gap: int | None = None
) -> np.ndarray:
    """Set pictures in a row or grid on white, each under its title.

    Args:
        images: (H_i, W_i, 3) uint8 RGB each; smaller ones stand at the top of a cell of the largest size.
        titles: one per picture; cut where they are too long. None: no titles.
        columns: pictures in a row; by default all.
        gap: pixels between pictures; by default it follows from their size.

    Returns:
        (H, W, 3) uint8 RGB.

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


def zoom(
    image: Picture,
    segmentation: PanopticSegmentation,
    segment_id: int,
    *,
    margin: float = 0.3,
    long_side: int = 640,
    palette: Palette = "distinct",
) -> np.ndarray:
    """One segment enlarged, with its surroundings dimmed.

    Args:
        image: path or array (see `as_rgb`).
        segmentation: where the segment is in.
        segment_id: its id in the segment map.
        margin: space around its box, as a fraction of the box's longer side.
        long_side: pixels of the result's longer side.
        palette: see `overlay`.

    Returns:
        (h, w, 3) uint8 RGB.

    Raises:
        PictureError: no such segment.
    """
    index, rows, columns = _find(segmentation, segment_id)
    around = round(margin * max(rows[1] - rows[0], columns[1] - columns[0])) + 1
    height, width = segmentation.segment_map.shape
    window = (
        slice(max(0, rows[0] - around), min(height, rows[1] + around)),
        slice(max(0, columns[0] - around), min(width, columns[1] + around)),
    )
    picture = as_rgb(image)[window]
    mask = (segmentation.segment_map[window] == segment_id).astype(np.uint8)
    factor = long_side / max(mask.shape)
    size = (max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor)))
    picture = cv2.resize(picture, size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
    mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    picture = np.where(mask[..., None] > 0, picture, (picture * 0.4 + 20).astype(np.uint8))
    one = PanopticSegmentation(mask.astype(np.int32) * (index + 1), segmentation.segments, segmentation.categories)
    color = segment_colors(segmentation, palette)[index].tolist()
    shapes, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    picture = np.ascontiguousarray(picture)
    cv2.drawContours(picture, shapes, -1, color, 2, cv2.LINE_AA)
    return _titled(picture, label_text(segmentation.segments[index], one))


def mask_strip(
    image: Picture, segmentation: PanopticSegmentation, *, cell: int = 128, columns: int = 8, palette: Palette = "distinct"
) -> np.ndarray:
    """Every segment cut out by itself, under its class and score, in the order of the segments.

    Args:
        image: path or array (see `as_rgb`).
        segmentation: its segments; those without a pixel are left out.
        cell: pixels of a cut-out's longer side.
        columns: cut-outs in a row.
        palette: see `overlay`; the strip's background is a dark shade of the segment's colour.

    Returns:
        (H, W, 3) uint8 RGB; the plain image if there is no segment.
    """
    picture, cells, titles = as_rgb(image), [], []
    colors = segment_colors(segmentation, palette)
    for index, (rows, columns_) in _extents(index_of(segmentation), len(segmentation.segments)).items():
        window = (slice(*rows), slice(*columns_))
        mask = (segmentation.segment_map[window] == segmentation.segments[index].id)[..., None]
        ground = (colors[index] * 0.25 + 12).astype(np.uint8)
        cells.append(_square(np.where(mask, picture[window], ground), cell, ground))
        titles.append(label_text(segmentation.segments[index], segmentation))
    return side_by_side(cells, titles, columns=columns, gap=4) if cells else overlay(picture, segmentation)


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


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    return _cell(picture, title, (picture.shape[0], picture.shape[1]), default_font_size(picture.shape))


def _square(picture: np.ndarray, side: int, ground: np.ndarray) -> np.ndarray:
    """A picture with its longer side brought to `side`, centred on a square."""
    if max(picture.shape[:2]) < side:
        factor = side / max(picture.shape[:2])
        size = (max(1, round(picture.shape[1] * factor)), max(1, round(picture.shape[0] * factor)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_NEAREST)
    picture = fit(picture, side)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = ground
    top, left = (side - picture.shape[0]) // 2, (side - picture.shape[1]) // 2
    square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return square


def _find(segmentation: PanopticSegmentation, segment_id: int) -> tuple[int, tuple[int, int], tuple[int, int]]:
    """Index, row range and column range of a segment."""
    known = [segment.id for segment in segmentation.segments]
    mask = segmentation.segment_map == segment_id
    if segment_id not in known or not mask.any():
        raise PictureError(f"image {segmentation.image_id}: there is no segment {segment_id}; it has {sorted(known)}")
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return known.index(segment_id), (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _extents(index_map: np.ndarray, count: int) -> dict[int, tuple[tuple[int, int], tuple[int, int]]]:
    """Row and column range of every segment index that occurs."""
    from panoptic_detr.segment_maps import boxes_of

    boxes = boxes_of(index_map)
    return {i: ((y, y + h), (x, x + w)) for i in range(count) if i + 1 in boxes for x, y, w, h in [boxes[i + 1]]}
