"""Why a prediction looks as it does: what became of every query, as a table and drawn."""

from collections import Counter
from dataclasses import dataclass

import cv2
import numpy as np
from rich.table import Table

from panoptic_detr.images import Picture
from panoptic_detr.panoptic import Dropped, DropReason, PanopticSegmentation
from panoptic_detr.visualization.draw import (
    Palette,
    default_font_size,
    display_name,
    draw_plate,
    draw_text,
    free_row,
    line_width,
    overlay,
    plate_size,
    text_mask,
)

# Okabe and Ito's colours; "no object" is left undrawn by default, there are too many.
REASON_COLORS: dict[DropReason, tuple[int, int, int]] = {
    "low score": (86, 180, 233),
    "covered": (230, 159, 0),
    "small": (240, 228, 66),
    "suppressed": (204, 121, 167),
    "merged": (0, 158, 115),
    "no category": (213, 94, 0),
    "no object": (150, 150, 150),
}
REASON_TEXTS = {
    "low score": "less probable than the threshold",
    "covered": "won no pixel against other masks",
    "small": "too few pixels",
    "suppressed": "shows too little of its own mask",
    "merged": "joined a stuff segment",
    "no category": "a label slot that means no category",
    "no object": "says that there is nothing",
}


@dataclass(frozen=True)
class Outcome:
    """What became of one query.

    Attributes:
        query: its index; None for a segment of the ground truth.
        kept: it is a segment of the result.
        outcome: "segment 3", or the reason for which it was dropped.
        name: its class, "" if it has none.
        score: probability of that class.
        area: pixels in the result, or when it was dropped.
    """

    query: int | None
    kept: bool
    outcome: str
    name: str
    score: float
    area: int


def explain(segmentation: PanopticSegmentation, *, no_object: bool = False) -> list[Outcome]:
    """List the outcomes: kept queries by area, then dropped ones by score.

    Args:
        segmentation: a prediction.
        no_object: also list the queries that say "no object".
    """
    kept = [
        Outcome(s.query, True, f"segment {s.id}", _name(segmentation, s.category_id), s.score, s.area)
        for s in sorted(segmentation.segments, key=lambda s: -s.area)
    ]
    dropped = [
        Outcome(d.query, False, _reason(d), _name(segmentation, d.category_id), d.score, d.area)
        for d in sorted(segmentation.dropped, key=lambda d: -d.score)
        if no_object or d.reason != "no object"
    ]
    return kept + dropped


def explain_table(segmentation: PanopticSegmentation, *, no_object: bool = False, title: str | None = None) -> Table:
    """The outcomes as a table for the terminal; the caption counts what is not listed."""
    silent = 0 if no_object else sum(d.reason == "no object" for d in segmentation.dropped)
    table = Table(title=title, caption=f"and {silent} queries that say 'no object'" if silent else None)
    for name in ("query", "outcome", "class"):
        table.add_column(name, justify="right" if name == "query" else "left")
    for name in ("score", "pixels"):
        table.add_column(name, justify="right")
    for row in explain(segmentation, no_object=no_object):
        query = "" if row.query is None else str(row.query)
        style = "bold" if row.kept else "dim" if row.outcome == "no object" else None
        table.add_row(query, row.outcome, row.name, f"{row.score:.3f}", f"{row.area:,}", style=style)
    return table


def draw_explanation(
    image: Picture,
    segmentation: PanopticSegmentation,
    boxes_cxcywh: np.ndarray | None = None,
    *,
    least_score: float = 0.05,
    most: int = 8,
    palette: Palette = "distinct",
    scale: int = 1,
) -> np.ndarray:
    """Draw the prediction with the boxes of dropped queries, one colour per reason, and a legend that counts the reasons.

    Args:
        image: path or array (see `as_rgb`).
        segmentation: a prediction.
        boxes_cxcywh: (Q, 4) boxes of all queries, fractions of the image; without them only the legend tells of dropped ones.
        least_score: dropped queries below it are counted but not drawn.
        most: so many dropped queries are drawn, those of the highest scores.
        palette: see `overlay`.
        scale: see `overlay`.

    Returns:
        (H * scale + legend, W * scale, 3) uint8 RGB.
    """
    picture = overlay(image, segmentation, palette=palette, scale=scale)
    size = default_font_size(picture.shape)
    drawn = [d for d in segmentation.dropped if d.score >= least_score and d.reason != "no object"]
    drawn = sorted(drawn, key=lambda d: -d.score)[: most if boxes_cxcywh is not None else 0]
    taken: list[tuple[int, int, int, int]] = []
    for dropped in drawn:
        text = f"{dropped.query}: {_name(segmentation, dropped.category_id)} {dropped.score:.2f}"
        _draw_box(
            picture,
            np.asarray(boxes_cxcywh)[dropped.query],
            REASON_COLORS[dropped.reason],
            text,
            max(8, round(0.8 * size)),
            taken,
        )
    return np.concatenate([picture, _legend(segmentation, picture.shape[1], size)])


def _draw_box(
    picture: np.ndarray,
    box: np.ndarray,
    color: tuple[int, int, int],
    text: str,
    size: int,
    taken: list[tuple[int, int, int, int]],
) -> None:
    """Draw a dashed box (cxcywh, fractions) and its text at the upper left corner, or below what is `taken`, in place."""
    height, width = picture.shape[:2]
    x0, y0 = round((box[0] - box[2] / 2) * width), round((box[1] - box[3] / 2) * height)
    x1, y1 = round((box[0] + box[2] / 2) * width), round((box[1] + box[3] / 2) * height)
    x0, y0, x1, y1 = (
        int(np.clip(v, 0, top)) for v, top in ((x0, width - 1), (y0, height - 1), (x1, width - 1), (y1, height - 1))
    )
    dash, thick = max(4, size // 2), line_width(picture.shape) + 1
    for start in range(x0, x1, 2 * dash):
        for y in (y0, y1):
            cv2.line(picture, (start, y), (min(start + dash, x1), y), color, thick)
    for start in range(y0, y1, 2 * dash):
        for x in (x0, x1):
            cv2.line(picture, (x, start), (x, min(start + dash, y1)), color, thick)
    plate = plate_size(text, size)
    left = int(np.clip(x0, 0, max(0, width - plate[1])))
    top = free_row(max(0, y0 - plate[0]), left, plate, taken, height)
    if top is not None:
        draw_plate(picture, (top, left), text, size, color)


def _legend(segmentation: PanopticSegmentation, width: int, size: int) -> np.ndarray:
    """A strip that counts kept and dropped queries, one line per reason."""
    counts = Counter(dropped.reason for dropped in segmentation.dropped)
    rows = [((255, 255, 255), f"{len(segmentation.segments)} kept")]
    rows += [(REASON_COLORS[r], f"{counts[r]} {r}: {REASON_TEXTS[r]}") for r in REASON_COLORS if counts[r]]
    line = text_mask("X", size).shape[0] + size // 3
    strip = np.full((line * len(rows) + size // 3, width, 3), 18, np.uint8)
    for index, (color, text) in enumerate(rows):
        top = index * line + size // 3
        strip[top + size // 5 : top + size // 5 + size, size // 2 : size // 2 + size] = color
        draw_text(strip, (top, 2 * size), text, size)
    return strip


def _name(segmentation: PanopticSegmentation, category_id: int | None) -> str:
    if category_id is None:
        return ""
    category = segmentation.categories.by_id.get(category_id)
    return f"class {category_id}" if category is None else display_name(category.name, category_id)


def _reason(dropped: Dropped) -> str:
    return f"merged into segment {dropped.into}" if dropped.reason == "merged" else dropped.reason
