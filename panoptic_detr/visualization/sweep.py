"""The same images at several thresholds: what is kept, and what that does to panoptic quality."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.visualization.draw import side_by_side


@dataclass(frozen=True)
class SweepStep:
    """The result at one threshold.

    Attributes:
        threshold: 0..1.
        picture: (H, W, 3) uint8 RGB, one image drawn at it.
        segments: kept segments of that image.
        pq: over all images, a fraction; None without ground truth.
        things, stuff: the same for things and stuff.
    """

    threshold: float
    picture: np.ndarray
    segments: int
    pq: float | None = None
    things: float | None = None
    stuff: float | None = None


def sweep_figure(steps: Sequence[SweepStep], *, columns: int = 3) -> np.ndarray:
    """Set the pictures in a grid by threshold, with the curve of PQ behind them.

    Args:
        steps: at least one; the curve needs two with a PQ.
        columns: pictures in a row.

    Returns:
        (H, W, 3) uint8 RGB.

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
    """PQ of all, things and stuff over the threshold, the best one marked.

    Args:
        steps: those with a PQ are drawn.
        size: (height, width) in pixels.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rated = [step for step in sorted(steps, key=lambda step: step.threshold) if step.pq is not None]
    figure = Figure(figsize=(size[1] / 100, size[0] / 100), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for name, color, style in (("pq", "#0072b2", "o-"), ("things", "#e69f00", "s--"), ("stuff", "#009e73", "^:")):
        values = [(step.threshold, 100 * value) for step in rated if (value := getattr(step, name)) is not None]
        if values:
            axes.plot(*zip(*values, strict=True), style, color=color, label={"pq": "all"}.get(name, name))
    best = max(rated, key=lambda step: step.pq or 0.0)
    axes.axvline(best.threshold, color="#888888", linewidth=1)
    axes.set(xlabel="threshold", ylabel="PQ (%)", ylim=(0, None))
    axes.legend(title=f"best {100 * (best.pq or 0.0):.1f} at {best.threshold:g}")
    axes.grid(alpha=0.3)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _title(step: SweepStep) -> str:
    count = f"{step.segments} segment{'' if step.segments == 1 else 's'}"
    return f"> {step.threshold:g}: {count}" + ("" if step.pq is None else f", PQ {100 * step.pq:.1f}")
