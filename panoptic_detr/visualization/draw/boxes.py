"""Named boxes on a picture."""

from collections.abc import Sequence

import cv2
import numpy as np

from panoptic_detr.visualization.draw.overlay import default_font_size, line_width
from panoptic_detr.visualization.draw.text import draw_plate, free_row, plate_size


def draw_boxes(
    picture: np.ndarray, boxes_cxcywh: np.ndarray, colors: Sequence[tuple[int, int, int]], names: Sequence[str]
) -> None:
    """Draw boxes, then their names, none over another, in place; a name without room is left out.

    Args:
        picture: (H, W, 3) uint8 RGB.
        boxes_cxcywh: (N, 4), fractions of the picture.
        colors: N times red, green, blue.
        names: N times what to write at the upper left corner; "" for nothing.
    """
    height, width = picture.shape[:2]
    center, half = boxes_cxcywh[:, :2], boxes_cxcywh[:, 2:] / 2
    corners = np.concatenate([center - half, center + half], axis=1) * (width, height, width, height)  # (N, 4)
    rows = corners.round().astype(int).tolist()
    for (x0, y0, x1, y1), color in zip(rows, colors, strict=True):
        cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), color, line_width(picture.shape))
    size = default_font_size(picture.shape)
    taken: list[tuple[int, int, int, int]] = []
    for (x0, y0, _, _), color, name in zip(rows, colors, names, strict=True):
        if not name:
            continue
        plate = plate_size(name, size)
        left = int(np.clip(x0, 0, max(0, width - plate[1])))
        top = free_row(max(0, y0 - plate[0]), left, plate, taken, height)
        if top is not None:
            draw_plate(picture, (top, left), name, size, color)
