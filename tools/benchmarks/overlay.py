"""Measure the panoptic picture: milliseconds of one core for fill, contours and labels, and for the error view."""

import cv2
import numpy as np
from rich.table import Table

from panoptic_detr.categories import CategoryTable
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.visualization.draw import overlay
from panoptic_detr.visualization.errors import error_view
from tools.benchmarks.measure import Figures, Stopwatch
from tools.benchmarks.pq import paint

CATEGORIES = CategoryTable.from_coco([{"id": i, "name": f"category {i}", "isthing": int(i <= 8)} for i in range(1, 14)])


def run(*, segments: int = 20, pictures: int = 10, seed: int = 0) -> Figures:
    """Time the panoptic picture of a 480 x 640 image.

    Args:
        segments: of each picture.
        pictures: how many to draw; the fastest counts.
        seed: of the pictures.

    Returns:
        `segments`, and `milliseconds` (CPU time of one core) by what was drawn.
    """
    rng, watch = np.random.default_rng(seed), Stopwatch("cpu")
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        for number in range(pictures + 1):
            truth, prediction = scene(rng, segments), scene(rng, segments)
            image = rng.integers(0, 256, (*truth.segment_map.shape, 3), dtype=np.uint8)
            if number == 0:  # fonts are loaded once per process
                overlay(image, truth)
                continue
            with watch.lap():
                with watch.part("fill"):
                    overlay(image, truth, contours=False, labels=False)
                with watch.part("fill, contours"):
                    overlay(image, truth, labels=False)
                with watch.part("fill, contours, labels"):
                    overlay(image, truth)
                with watch.part("error view"):
                    error_view(image, prediction, truth)
    finally:
        cv2.setNumThreads(threads)
    names = [name for name in watch.laps[0] if name != "total"]
    return {"segments": segments, "milliseconds": {name: 1000 * min(lap[name] for lap in watch.laps) for name in names}}


def scene(rng: np.random.Generator, count: int) -> PanopticSegmentation:
    """A map of 480 x 640 pixels, tiled by `count` segments with wavy borders."""
    segment_map = paint(rng.random((count, 2)), rng.normal(0, 0.03, (2, 6, 8))).astype(np.int32) + 1
    found = []
    for number, area in zip(*np.unique(segment_map, return_counts=True), strict=True):
        category = CATEGORIES.by_id[1 + int(number) % len(CATEGORIES.by_id)]
        found.append(Segment(int(number), category.id, category.isthing, 0.9, int(area), (0, 0, 1, 1), query=int(number)))
    return PanopticSegmentation(segment_map, found, CATEGORIES)


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    view = Table("480 x 640", "CPU ms", title=f"Pictures of {result['segments']} segments", title_justify="left")
    for name, value in result["milliseconds"].items():
        view.add_row(name, f"{value:.1f}")
    return [view]
