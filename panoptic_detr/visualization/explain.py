"""Why a prediction looks as it does: what became of every query, as a table and drawn, and what other thresholds would give."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from panoptic_detr.errors import PictureError
from panoptic_detr.images import Picture
from panoptic_detr.panoptic import Dropped, DropReason, PanopticSegmentation
from panoptic_detr.visualization.draw import (
    Curve,
    Palette,
    chart,
    class_name,
    default_font_size,
    draw_boxes,
    legend_strip,
    overlay,
    side_by_side,
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
    """What became of one query."""

    query: int | None  # its index; None for a segment of the ground truth
    kept: bool  # it is a segment of the result
    outcome: str  # "segment 3", or the reason for which it was dropped
    name: str  # its class, "" if it has none
    score: float  # probability of that class
    area: int  # pixels in the result, or when it was dropped


def explain(segmentation: PanopticSegmentation, *, no_object: bool = False) -> list[Outcome]:
    """List the outcomes: kept queries by area, then dropped ones by score; with `no_object` those that say "no object" too."""
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
    if boxes_cxcywh is not None:
        drawn = [d for d in segmentation.dropped if d.score >= least_score and d.reason != "no object"]
        drawn = sorted(drawn, key=lambda d: -d.score)[:most]
        boxes = np.asarray(boxes_cxcywh)[[d.query for d in drawn]]
        names = [f"{d.query}: {_name(segmentation, d.category_id)} {d.score:.2f}" for d in drawn]
        small = max(8, round(0.8 * default_font_size(picture.shape)))
        draw_boxes(picture, boxes, [REASON_COLORS[d.reason] for d in drawn], names, font_size=small, dashed=True)
    counts = Counter(dropped.reason for dropped in segmentation.dropped)
    rows = [((255, 255, 255), f"{len(segmentation.segments)} kept")]
    rows += [(REASON_COLORS[r], f"{counts[r]} {r}: {REASON_TEXTS[r]}") for r in REASON_COLORS if counts[r]]
    return np.concatenate([picture, legend_strip(rows, picture.shape, stacked=True)])


@dataclass(frozen=True)
class SweepStep:
    """The result at one threshold."""

    threshold: float  # 0..1
    picture: np.ndarray  # (H, W, 3) uint8 RGB, one image drawn at it
    segments: int  # kept segments of that image
    pq: float | None = None  # over all images, a fraction; None without ground truth
    things: float | None = None  # the same for things
    stuff: float | None = None  # and for stuff


def sweep_figure(steps: Sequence[SweepStep], *, columns: int = 3) -> np.ndarray:
    """Set the pictures in a grid by threshold, behind them the curve of PQ where two steps have one: (H, W, 3) uint8 RGB.

    Raises:
        PictureError: no steps.
    """
    if not steps:
        raise PictureError("a threshold sweep needs at least one threshold, but got none")
    ordered = sorted(steps, key=lambda step: step.threshold)
    cells, titles = [step.picture for step in ordered], [_title(step) for step in ordered]
    if sum(step.pq is not None for step in ordered) >= 2:
        height, width = cells[0].shape[:2]
        cells.append(pq_curve(ordered, (max(height, 240), max(width, 320))))
        titles.append("PQ by threshold")
    return side_by_side(cells, titles, columns=min(columns, len(cells)))


def pq_curve(steps: Sequence[SweepStep], size: tuple[int, int]) -> np.ndarray:
    """PQ of all, things and stuff over the threshold, of steps that have one, the best marked: (height, width, 3) uint8 RGB."""
    rated = [step for step in sorted(steps, key=lambda step: step.threshold) if step.pq is not None]
    curves = []
    for name, color, style in (("pq", "#0072b2", "o-"), ("things", "#e69f00", "s--"), ("stuff", "#009e73", "^:")):
        values = [(step.threshold, 100 * value) for step in rated if (value := getattr(step, name)) is not None]
        if values:
            curves.append(Curve({"pq": "all"}.get(name, name), color, style, *zip(*values, strict=True)))
    best = max(rated, key=lambda step: step.pq or 0.0)
    why = f"best {100 * (best.pq or 0.0):.1f} at {best.threshold:g}"
    return chart(curves, ("threshold", "PQ (%)"), size, bottom=0, mark=(best.threshold, why))


def _name(segmentation: PanopticSegmentation, category_id: int | None) -> str:
    return "" if category_id is None else class_name(segmentation, category_id)


def _reason(dropped: Dropped) -> str:
    return f"merged into segment {dropped.into}" if dropped.reason == "merged" else dropped.reason


def _title(step: SweepStep) -> str:
    count = f"{step.segments} segment{'' if step.segments == 1 else 's'}"
    return f"> {step.threshold:g}: {count}" + ("" if step.pq is None else f", PQ {100 * step.pq:.1f}")
