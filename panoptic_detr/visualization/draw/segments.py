"""Segments by themselves: one enlarged, each cut out, all as vector outlines that any browser or drawing program opens."""

import base64
from html import escape

import cv2
import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.images import Picture, as_rgb, encode_picture, fit
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.segment_maps import measure
from panoptic_detr.visualization.draw.layout import side_by_side, titled
from panoptic_detr.visualization.draw.overlay import LONGEST_SIDE, label_text, overlay
from panoptic_detr.visualization.draw.palette import Palette, segment_colors


def zoom(
    image: Picture,
    segmentation: PanopticSegmentation,
    segment_id: int,
    *,
    margin: float = 0.3,
    long_side: int = 640,
    palette: Palette = "distinct",
) -> np.ndarray:
    """One segment enlarged, with its surroundings dimmed: (h, w, 3) uint8 RGB.

    Args:
        image: path or array (see `as_rgb`).
        segmentation: where the segment is in.
        segment_id: its id in the segment map.
        margin: space around its box, as a fraction of the box's longer side.
        long_side: pixels of the result's longer side.
        palette: see `overlay`.

    Raises:
        PictureError: no such segment, or a picture of more than 16,384 pixels.
    """
    known = {
        s.id: (s, color.tolist()) for s, color in zip(segmentation.segments, segment_colors(segmentation, palette), strict=True)
    }
    measures = measure(segmentation.segment_map)
    if not 1 <= long_side <= LONGEST_SIDE:
        raise PictureError(f"the longer side must have 1 to {LONGEST_SIDE} pixels, but got {long_side}")
    if segment_id not in known or segment_id not in measures:
        raise PictureError(f"image {segmentation.image_id}: there is no segment {segment_id}; it has {sorted(known)}")
    (segment, color), (_, (left, top, width, height)) = known[segment_id], measures[segment_id]
    around = round(margin * max(width, height)) + 1
    window = (slice(max(0, top - around), top + height + around), slice(max(0, left - around), left + width + around))
    mask = (segmentation.segment_map[window] == segment_id).astype(np.uint8)
    factor = long_side / max(mask.shape)
    size = (max(1, round(mask.shape[1] * factor)), max(1, round(mask.shape[0] * factor)))
    picture = cv2.resize(as_rgb(image)[window], size, interpolation=cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA)
    mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    picture = np.where(mask[..., None] > 0, picture, (picture * 0.4 + 20).astype(np.uint8))
    shapes, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, shapes, -1, color, 2, cv2.LINE_AA)
    return titled(picture, label_text(segment, segmentation))


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
    measures = measure(segmentation.segment_map)
    for segment, color in zip(segmentation.segments, colors, strict=True):
        if segment.id not in measures:
            continue
        _, (left, top, width, height) = measures[segment.id]
        window = (slice(top, top + height), slice(left, left + width))
        mask = (segmentation.segment_map[window] == segment.id)[..., None]
        ground = (color * 0.25 + 12).astype(np.uint8)
        cells.append(_square(np.where(mask, picture[window], ground), cell, ground))
        titles.append(label_text(segment, segmentation))
    return side_by_side(cells, titles, columns=columns, gap=4) if cells else overlay(picture, segmentation)


def segment_path(mask: np.ndarray, *, offset: tuple[int, int] = (0, 0), tolerance: float = 0.0) -> str:
    """The outline of a mask, holes included, as SVG path data for the even-odd rule.

    The path runs along the pixels' edges, not through their centres, so that it encloses what the mask does.

    Args:
        mask: (H, W) bool or uint8.
        offset: (x, y) added to every point.
        tolerance: pixels by which points may be simplified away.
    """
    doubled = np.repeat(np.repeat(mask.astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    parts = []
    for contour in contours:
        points = (contour[:, 0] + 1) // 2  # pixel i covers 2i and 2i + 1: these become its edges i and i + 1
        if tolerance:
            points = cv2.approxPolyDP(points.astype(np.int32)[:, None], tolerance, True)[:, 0]
        points = _corners(points) + np.array(offset)
        parts.append("M" + "L".join(f"{x} {y}" for x, y in points.tolist()) + "Z")
    return "".join(parts)


def svg_overlay(
    segmentation: PanopticSegmentation,
    image: Picture | None = None,
    *,
    palette: Palette = "distinct",
    alpha: float = 0.5,
    tolerance: float = 0.5,
) -> str:
    """An SVG document with one path per segment; hovering one shows its class and score.

    Args:
        segmentation: what to draw.
        image: laid under the segments as an embedded JPEG; None for outlines alone.
        palette: see `overlay`.
        alpha: opacity of the fill.
        tolerance: pixels by which outlines may be simplified; 0 keeps every corner.
    """
    height, width = segmentation.segment_map.shape
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">']
    if image is not None:
        data = base64.b64encode(encode_picture(as_rgb(image), ".jpg", quality=85)).decode()
        parts.append(f'<image width="{width}" height="{height}" href="data:image/jpeg;base64,{data}"/>')
    for segment, (red, green, blue) in zip(segmentation.segments, segment_colors(segmentation, palette), strict=True):
        path = segment_path(segmentation.segment_map == segment.id, tolerance=tolerance)
        if path:
            paint = f'fill="rgb({red},{green},{blue})" stroke="rgb({red},{green},{blue})"'
            title = escape(label_text(segment, segmentation))
            parts.append(
                f'<path id="segment-{segment.id}" {paint} fill-opacity="{alpha:g}" fill-rule="evenodd" d="{path}">'
                f"<title>{title}</title></path>"
            )
    return "\n".join([*parts, "</svg>\n"])


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


def _corners(points: np.ndarray) -> np.ndarray:
    """Leave out repeated points and those on a straight line between their neighbours; (N, 2) to (M, 2)."""
    points = points[(points != np.roll(points, 1, axis=0)).any(1)] if len(points) > 1 else points
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turn = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return points[turn] if turn.sum() >= 3 else points
