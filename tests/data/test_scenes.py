import errno
import json
import os
from functools import partial

import cv2
import numpy as np
import pytest
from plain_maps import areas, boxes_of

from panoptic_detr.commands import data as data_tool
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import SMALLEST_VISIBLE, make_scene, scene_categories, write_scenes
from panoptic_detr.data.scenes.films import write_films
from panoptic_detr.data.scenes.painting import SHAPES, TEXTURES, curved_front, pixel_grid, shape_area, shape_distance, texture
from panoptic_detr.errors import DataError
from panoptic_detr.segment_maps import read_id_png, write_id_png


def test_categories_are_four_things_and_four_stuff():
    table = scene_categories()
    assert [c.id for c in table.categories] == list(range(1, 9))
    assert [c.name for c in table.things] == list(SHAPES)
    assert [c.name for c in table.stuff] == list(TEXTURES)
    assert len({c.color for c in table.categories}) == 8


@pytest.mark.parametrize("size", [48, 96, 131])
def test_segments_info_is_what_the_map_shows(size):
    for index in range(25):
        scene = make_scene(index, size=size)
        assert scene.image.shape == (size, size, 3)
        assert scene.image.dtype == np.uint8
        assert scene.segment_map.dtype == np.int32
        found, boxes = areas(scene.segment_map), boxes_of(scene.segment_map)
        found.pop(0, None)
        assert found == {s["id"]: s["area"] for s in scene.segments_info}
        assert boxes == {s["id"]: tuple(s["bbox"]) for s in scene.segments_info}


def test_scenes_hold_what_they_promise():
    scenes = [make_scene(index, size=64) for index in range(300)]
    things, stuff, crowds, voids, classes = [], [], 0, 0, set()
    for scene in scenes:
        labels = [s["category_id"] for s in scene.segments_info]
        regions = [c for c in labels if c > 4]
        assert len(set(regions)) == len(regions)  # a stuff class is one segment
        things.append(sum(1 for s in scene.segments_info if s["category_id"] <= 4 and not s["iscrowd"]))
        stuff.append(len(regions))
        crowds += any(s["iscrowd"] for s in scene.segments_info)
        voids += bool((scene.segment_map == 0).any())
        classes.update(labels)
    assert classes == set(range(1, 9))
    assert set(things) <= set(range(6))
    assert sum(1 <= n <= 5 for n in things) > 0.97 * len(scenes)
    assert set(stuff) <= {1, 2, 3}
    assert sum(n >= 2 for n in stuff) > 0.97 * len(scenes)
    assert 0 < crowds < 0.08 * len(scenes)
    assert 0 < voids < 0.12 * len(scenes)


def test_occlusion_is_bounded():
    smallest = shape_area("circle", 0.10 * 96)
    segments = [segment for index in range(150) for segment in make_scene(index, size=96).segments_info]
    areas = [segment["area"] for segment in segments if segment["category_id"] <= 4 and not segment["iscrowd"]]
    assert min(areas) > 0.8 * SMALLEST_VISIBLE * smallest


def test_scene_depends_on_seed_split_and_index_only():
    first, again = make_scene(3, seed=1, size=64), make_scene(3, seed=1, size=64)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.segment_map, again.segment_map)
    assert first.segments_info == again.segments_info
    for other in (
        make_scene(4, seed=1, size=64),
        make_scene(3, seed=2, size=64),
        make_scene(3, seed=1, size=64, split="val"),
    ):
        assert not np.array_equal(first.image, other.image)


def test_written_set_is_the_same_for_any_number_of_workers(tmp_path):
    for workers in (1, 2):
        write_scenes(tmp_path / str(workers), 5, size=48, seed=3, split="val", workers=workers)
    one, two = (sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in "12")
    assert len(one) == 11
    assert [p.relative_to(tmp_path / "1") for p in one] == [p.relative_to(tmp_path / "2") for p in two]
    for a, b in zip(one, two, strict=True):
        assert a.read_bytes() == b.read_bytes()


def test_written_set_is_coco_panoptic(tmp_path):
    path = write_scenes(tmp_path, 6, size=48, workers=1)
    content = json.loads(path.read_text())
    assert [image["file_name"] for image in content["images"]] == [f"{i:06d}.png" for i in range(6)]
    dataset = CocoPanoptic.from_root(tmp_path, "train")
    assert dataset.categories.differences(scene_categories()) == []
    for i, annotation in enumerate(content["annotations"]):
        scene = make_scene(i, size=48)
        assert np.array_equal(dataset.image(i), scene.image)
        ids = read_id_png(tmp_path / "panoptic_train" / annotation["file_name"])
        assert np.array_equal(ids, scene.segment_map)
        assert ids.max() > 0xFFFF
        assert annotation["segments_info"] == scene.segments_info
        assert [s.area for s in dataset.truth(i).segments] == [s["area"] for s in annotation["segments_info"]]


def test_out_of_range_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"size >= 48.*got size 10"):
        make_scene(0, size=10)
    with pytest.raises(DataError, match="seed -1"):
        make_scene(0, seed=-1)
    with pytest.raises(DataError, match=r"<= 4096.*got size 100000"):
        make_scene(0, size=100000)
    for write in (write_scenes, partial(write_films, frames=2)):
        with pytest.raises(DataError, match="split 'a/b' is no folder name"):
            write(tmp_path, 2, split="a/b")
    with pytest.raises(DataError, match="count must be at least 1, but got 0"):
        write_scenes(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []


def test_failing_writes_leave_nothing(tmp_path, monkeypatch):
    def write(path, segment_map):
        if path.name == "000002.png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        write_id_png(path, segment_map)

    monkeypatch.setattr("panoptic_detr.data.scenes.dataset.write_id_png", write)
    with pytest.raises(OSError, match="000002"):
        write_scenes(tmp_path / "scenes", 4, size=48, workers=1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("angle", [0.0, 0.7, 4.0])
def test_shapes_have_their_area_and_keep_within_their_radius(kind, angle):
    x, y = pixel_grid(200)
    distance = shape_distance(kind, x - 100, y - 100, 60.0, angle)
    inside = distance < 0
    assert inside.sum() == pytest.approx(shape_area(kind, 60.0), rel=0.02)
    assert np.hypot(x - 100, y - 100)[inside].max() <= 60.5


def test_square_has_the_sides_that_its_radius_gives():
    x, y = pixel_grid(120)
    inside = shape_distance("square", x - 60, y - 60, 50.0, 0.3) < 0
    sides = cv2.minAreaRect(np.argwhere(inside).astype(np.float32))[1]
    assert sides == pytest.approx((50 * 2**0.5 - 1, 50 * 2**0.5 - 1), abs=1.5)  # from pixel centre to pixel centre


@pytest.mark.parametrize("kind", TEXTURES)
def test_textures_fill_their_range_and_differ_each_time(kind):
    rng = np.random.default_rng(0)
    first, second = texture(kind, rng, 96), texture(kind, rng, 96)
    for pattern in (first, second):
        assert pattern.shape == (96, 96)
        assert pattern.dtype == np.float32
        assert pattern.min() >= 0
        assert pattern.max() <= 1
        assert pattern.max() - pattern.min() > 0.9
    assert not np.allclose(first, second)


def test_front_leaves_the_share_it_is_asked_for():
    for seed in range(20):
        front = curved_front(np.random.default_rng(seed), 96, 0.3)
        assert (front < 0).mean() == pytest.approx(0.3, abs=0.03)


def test_tool_writes_scenes(tmp_path, capsys):
    assert data_tool.main(["scenes", str(tmp_path), "--count", "2", "--size", "48", "--split", "val", "--workers", "1"]) == 0
    assert "2 scenes of 48x48" in capsys.readouterr().out
    assert len(CocoPanoptic.from_root(tmp_path, "val")) == 2


def test_tool_lists_its_jobs(capsys):
    with pytest.raises(SystemExit) as caught:
        data_tool.main(["--help"])
    assert caught.value.code == 0
    assert "scenes" in capsys.readouterr().out
