"""Which pictures are predicted, under which names, and what is written about them."""

import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_detr.errors import DataError
from panoptic_detr.inference.files import PictureFile, find_pictures
from panoptic_detr.inference.stream import PredictionFolder
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import read_id_png


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_and_folders_in_order(tmp_path):
    touch(tmp_path / "b" / "z.PNG", tmp_path / "b" / "a.jpg", tmp_path / "b" / "notes.txt", tmp_path / "b" / "in" / "c.jpg")
    touch(tmp_path / "one.webp")
    found = find_pictures([tmp_path / "one.webp", str(tmp_path / "b"), tmp_path / "gone.jpg"])
    assert [(f.path.name, f.image_id, f.name) for f in found] == [
        ("one.webp", 1, "one"),
        ("a.jpg", 2, "a"),
        ("z.PNG", 3, "z"),
        ("gone.jpg", 4, "gone"),
    ]


def test_names_are_unique_even_where_case_is_ignored():
    places = [Path("a/x.jpg"), Path("b/x.jpg"), Path("c/X.png"), Path("x_2.jpg")]
    assert [f.name for f in find_pictures(places)] == ["x", "x_2", "X_3", "x_2_2"]


def test_numbers_in_coco_names_are_the_image_ids():
    assert [f.image_id for f in find_pictures([Path("000000039769.jpg"), Path("000000000007.jpg")])] == [39769, 7]
    assert [f.image_id for f in find_pictures([Path("39.jpg"), Path("x/039.jpg")])] == [1, 2]
    assert [f.image_id for f in find_pictures([Path("39.jpg"), Path("x.jpg")])] == [1, 2]


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(DataError, match=r"no pictures in this folder \(looked for \.jpg"):
        find_pictures([tmp_path])


def test_what_is_written_is_coco_panoptic(tmp_path, table):
    segment_map = np.zeros((20, 30), np.int32)
    segment_map[2:6, 3:10] = 1
    segments = [Segment(1, 5, True, 0.75, 28, (3, 2, 7, 4), query=4)]
    folder = PredictionFolder(tmp_path / "out", table)
    file = PictureFile(Path("photos/cats.jpg"), 12, "cats")
    folder.add(file, np.zeros((20, 30, 3), np.uint8), PanopticSegmentation(segment_map, segments, table))
    written = json.loads(folder.finish().read_text())
    assert written["images"] == [{"id": 12, "file_name": "cats.jpg", "height": 20, "width": 30}]
    assert written["annotations"] == [
        {
            "image_id": 12,
            "file_name": "cats.png",
            "segments_info": [
                {
                    "id": 1,
                    "category_id": 5,
                    "isthing": 1,
                    "area": 28,
                    "bbox": [3, 2, 7, 4],
                    "iscrowd": 0,
                    "score": 0.75,
                    "query": 4,
                }
            ],
        }
    ]
    assert written["categories"] == table.to_coco()
    assert np.array_equal(read_id_png(tmp_path / "out" / "panoptic" / "cats.png"), segment_map)
    drawn = cv2.imread(str(tmp_path / "out" / "overlays" / "cats.jpg"))
    assert drawn.shape == (320, 480, 3)  # enlarged, so that labels fit
    assert drawn[32:96, 48:160].max() > 50
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["overlays", "panoptic", "predictions.json"]


def test_no_overlays(tmp_path, table):
    folder = PredictionFolder(tmp_path, table, overlays=False)
    empty = PanopticSegmentation(np.zeros((4, 4), np.int32), [], table)
    folder.add(PictureFile(Path("x.jpg"), 1, "x"), np.zeros((4, 4, 3), np.uint8), empty)
    assert not (tmp_path / "overlays").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path, table):
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match="out: the folder cannot be made"):
        PredictionFolder(tmp_path / "out", table)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_listed(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "in" / "a.jpg", tmp_path / "in" / "scan.1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert [f.path.name for f in find_pictures([tmp_path])] == ["a.jpg"]
    found = find_pictures([tmp_path], recursive=True)
    assert [(f.name, f.file_name) for f in found] == [("a", "a.jpg"), ("in/a", "in/a.jpg"), ("in/scan.1", "in/scan.1.jpg")]
