"""The measurements of many pictures, tiles and films measure what they say."""

import json

import numpy as np
import pytest

from panoptic_detr.inference import Share
from tools.benchmarks import films, predict, tiles


def test_many_pictures_by_parts_and_as_a_whole(tmp_path):
    predict.write_pictures(tmp_path / "pictures", 24, 48)
    times = predict.parts(None, tmp_path, False, 1)
    assert set(times) == {"reading", "model and merging", "drawing and writing", "total"}
    (tmp_path / "ready2-1").touch()  # the other process, which has as many pictures
    row = predict.one_share(None, tmp_path, Share(0, 2), False, 1)
    assert row["done"] == 12
    assert [count for count, _ in row["memory_mib"]] == list(range(1, 13))
    assert 0 < row["cpu_seconds"]
    assert min(mib for _, mib in row["memory_mib"]) > 10
    assert predict.join(tmp_path / "out2", False) > 0
    assert len(json.loads((tmp_path / "out2" / "predictions.json").read_text())["images"]) == 12
    figures = {"processes": 2, "pictures_per_second": 2.0, "cpu_ms": 3.0, "load": 1.0, "joining": 0.1, **row}
    told = {"pictures": 24, "size": 48, "parts": times, "rows": [figures]}
    assert [table.row_count for table in predict.tables(told)] == [4, 1]


def test_a_process_does_not_wait_for_ever_for_one_that_has_ended(tmp_path):
    with pytest.raises(TimeoutError, match=r"after 0\.01 s not all 2 processes are ready"):
        predict.meet(tmp_path, Share(0, 2), seconds=0.01)


def test_tiles_lose_nothing_where_the_model_reads_all():
    result = tiles.run(side=192, scene=64, tile=96, overlap=48)
    exact, noisy = result["rows"]
    assert exact["things"] > 8
    assert (exact["pq_whole"], exact["pq_tiles"], exact["cut"]) == (100, 100, 0)
    assert 40 < noisy["pq_whole"] < 100
    assert tiles.tables(result)[0].row_count == 2


def test_a_thing_in_two_pieces_is_cut():
    _, truth = tiles.mosaic_of(1, 64, 0)
    thing = next(segment for segment in truth.segments if segment.isthing)
    middle = thing.box[0] + thing.box[2] // 2
    pieces = np.where(truth.segment_map == thing.id, 900, truth.segment_map)
    pieces[:, :middle][truth.segment_map[:, :middle] == thing.id] = 901
    segments = [tiles.Segment(i, 1, True, 0.9, int((pieces == i).sum()), thing.box) for i in (900, 901)]
    result = tiles.PanopticSegmentation(pieces, segments, truth.categories)
    assert tiles.cut(thing, truth, result)
    assert not tiles.cut(thing, truth, truth)


def test_tubes_need_ids_that_stay():
    result = films.run(films=2, frames=4, size=48, windows=[1, 4])
    one, four = result["rows"]
    assert (one["alone"], one["tracked"]) == (100, 100)
    assert four["tracked"] > 80 > four["alone"]
    assert films.tables(result)[0].row_count == 2
