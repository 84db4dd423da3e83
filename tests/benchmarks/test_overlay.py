"""The measurement of pictures draws what it says it draws."""

import numpy as np

from tools.benchmarks import __main__ as benchmark
from tools.benchmarks.overlay import run, scene, tables


def test_a_scene_is_tiled_by_its_segments():
    made = scene(np.random.default_rng(0), 20)
    assert made.segment_map.shape == (480, 640)
    assert len(made.segments) == 20
    assert sum(segment.area for segment in made.segments) == 480 * 640


def test_times_are_told_by_part():
    result = run(segments=3, pictures=1)
    names = ["fill", "fill, contours", "fill, contours, labels", "error view"]
    assert list(result["milliseconds"]) == names
    assert all(value > 0 for value in result["milliseconds"].values())
    assert tables(result)[0].row_count == len(names)
    assert benchmark.JOBS["overlay"].run is run
