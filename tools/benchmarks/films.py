"""Measure things that keep their ids: video panoptic quality of drawn films with and without tracking, and frames per second.

What VPQ is: `panoptic_detr.quality.FilmQuality`.
"""

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from panoptic_detr.data.scenes import make_film, scene_categories
from panoptic_detr.images import save_picture
from panoptic_detr.inference import Tracker, load_model
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import FilmQuality
from panoptic_detr.segment_maps import measure
from panoptic_detr.visualization.draw import overlay, side_by_side
from tools.benchmarks.measure import Figures


def run(
    *,
    checkpoint: Path | None = None,
    films: int = 10,
    frames: int = 12,
    size: int = 96,
    windows: Sequence[int] = (1, 2, 4, 8),
    output: Path | None = None,
) -> Figures:
    """Predict drawn films frame by frame, and follow their things.

    Args:
        checkpoint: of a model that was trained on drawn scenes; by default one that reads the truth and numbers it anew.
        films: how many.
        frames: of each.
        size: side in pixels.
        windows: numbers of frames of a tube.
        output: draw three frames of the film with the most things, tracked, into this picture.

    Returns:
        VPQ for each window with and without tracking, and milliseconds of a frame for the model and for tracking.
    """
    table, model = scene_categories(), None if checkpoint is None else load_model(checkpoint, device="cpu")
    draw, seconds, found = np.random.default_rng(0), {"model": 0.0, "tracking": 0.0}, []
    shown = []
    for index in range(films):
        tracker, pictures, truths, singles, tracked = Tracker(table), [], [], [], []
        for scene in make_film(index, frames=frames, size=size, split="val"):
            truths.append(truth_of(scene.segment_map, scene.segments_info))
            pictures.append(scene.image)
            before = time.perf_counter()
            singles.append(shuffled(truths[-1], draw) if model is None else model(scene.image))
            between = time.perf_counter()
            tracked.append(tracker.update(singles[-1]))
            seconds["model"] += between - before
            seconds["tracking"] += time.perf_counter() - between
        found.append((truths, singles, tracked))
        shown.append((pictures, tracked))
    if output is not None:
        draw_frames(*max(shown, key=lambda film: sum(len(frame.segments) for frame in film[1])), output)
    alone, followed = (vpq([(film[0], film[side]) for film in found], windows) for side in (1, 2))
    rows = [{"frames": k, "alone": alone[k], "tracked": followed[k]} for k in windows]
    return {"rows": rows, "milliseconds": {name: 1000 * value / films / frames for name, value in seconds.items()}}


def draw_frames(pictures: Sequence[np.ndarray], frames: Sequence[PanopticSegmentation], output: Path) -> None:
    """Draw the first frame of a film, the middle and the last one; things have the colour of their id."""
    chosen = (0, len(frames) // 2, len(frames) - 1)
    drawn = [overlay(pictures[i], frames[i], scale=3, show_scores=False, shade_by_id=True) for i in chosen]
    save_picture(output, side_by_side(drawn, [f"frame {i + 1}" for i in chosen]), quality=80)


def vpq(
    films: Sequence[tuple[Sequence[PanopticSegmentation], Sequence[PanopticSegmentation]]], windows: Sequence[int]
) -> dict[int, float]:
    """VPQ in points by windows of frames; each film is its true frames and its predicted ones."""
    quality = FilmQuality(scene_categories(), windows=windows)
    for index, (truths, results) in enumerate(films):
        for truth, result in zip(truths, results, strict=True):
            quality.update(str(index), result, truth)
    return {frames: 100 * result.all.pq for frames, result in quality.compute().windows.items()}


def truth_of(segment_map: np.ndarray, rows: Sequence[dict[str, int]]) -> PanopticSegmentation:
    """A drawn frame as a segmentation."""
    table = scene_categories()
    found = measure(segment_map)
    segments = [Segment(r["id"], r["category_id"], table.by_id[r["category_id"]].isthing, 1.0, *found[r["id"]]) for r in rows]
    return PanopticSegmentation(segment_map, segments, table)


def shuffled(truth: PanopticSegmentation, draw: np.random.Generator) -> PanopticSegmentation:
    """The truth with numbers that mean nothing, as those of a model."""
    order = draw.permutation(len(truth.segments)) + 1
    result = np.zeros(truth.segment_map.shape, np.int32)
    segments = []
    for number, segment in zip(order.tolist(), truth.segments, strict=True):
        result[truth.segment_map == segment.id] = number
        segments.append(Segment(number, segment.category_id, segment.isthing, 0.9, segment.area, segment.box))
    return PanopticSegmentation(result, segments, truth.categories)


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    times = ", ".join(f"{name} {value:.1f}" for name, value in result["milliseconds"].items())
    view = Table("VPQ over frames", "each frame by itself", "tracked", title=f"ms of a frame: {times}", title_justify="left")
    for row in result["rows"]:
        view.add_row(str(row["frames"]), f"{row['alone']:.1f}", f"{row['tracked']:.1f}")
    return [view]
