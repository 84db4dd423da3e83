"""Segments as vector outlines that any browser or drawing program opens."""

import base64
from html import escape

import cv2
import numpy as np

from panoptic_detr.images import Picture, as_rgb, encode_picture
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.visualization.draw.overlay import index_of, label_text
from panoptic_detr.visualization.draw.palette import Palette, segment_colors


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
    index_map = index_of(segmentation)
    for index, (segment, color) in enumerate(zip(segmentation.segments, segment_colors(segmentation, palette), strict=True)):
        path = segment_path(index_map == index + 1, tolerance=tolerance)
        if path:
            paint = f'fill="rgb({color[0]},{color[1]},{color[2]})" stroke="rgb({color[0]},{color[1]},{color[2]})"'
            title = escape(label_text(segment, segmentation))
            parts.append(
                f'<path id="segment-{segment.id}" {paint} fill-opacity="{alpha:g}" fill-rule="evenodd" d="{path}">'
                f"<title>{title}</title></path>"
            )
    return "\n".join([*parts, "</svg>\n"])


def _corners(points: np.ndarray) -> np.ndarray:
    """Leave out repeated points and those on a straight line between their neighbours; (N, 2) to (M, 2)."""
    points = points[(points != np.roll(points, 1, axis=0)).any(1)] if len(points) > 1 else points
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turn = before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]
    return points[turn] if turn.sum() >= 3 else points
