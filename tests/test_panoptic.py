"""A panoptic result as its user sees it."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

import panoptic_detr as pd
from panoptic_detr.errors import InputError
from panoptic_detr.panoptic import Dropped, PanopticSegmentation, Segment
from panoptic_detr.segment_maps import write_id_png

TABLE = pd.CategoryTable.from_coco(
    [{"id": 3, "name": "cat", "isthing": 1, "color": [9, 8, 7]}, {"id": 10, "name": "sky", "isthing": 0}]
)


@pytest.fixture
def result():
    segment_map = np.zeros((4, 6), np.int32)
    segment_map[:2, :3], segment_map[:, 4:] = 1, 2
    segments = [Segment(1, 3, True, 0.914, 6, (0, 0, 3, 2), 5), Segment(2, 10, False, 0.8, 8, (4, 0, 2, 4), 7)]
    dropped = [Dropped(1, "low score", 0.3), Dropped(2, "low score", 0.2), Dropped(3, "no object", 0.9)]
    return PanopticSegmentation(segment_map, segments, TABLE, dropped)


def test_three_lines_say_what_it_is(result):
    assert repr(result).splitlines() == [
        "PanopticSegmentation of 6 x 4 pixels",
        "2 segments: cat 0.91, sky 0.80",
        "3 other queries: 2 low score, 1 no object",
    ]
    nothing = PanopticSegmentation(np.zeros((2, 3), np.int32), [], TABLE)
    assert repr(nothing).endswith("0 segments: none\n0 other queries: none")


def test_segments_have_names_and_masks(result):
    assert [segment.name for segment in result.segments] == ["cat", "sky"]
    assert result.mask(result.segments[0]).sum() == result.mask(1).sum() == 6
    assert result.segments[0] == Segment(1, 3, True, 0.914, 6, (0, 0, 3, 2), 5)


def test_a_segment_that_is_not_there_is_told_with_those_that_are(result):
    with pytest.raises(ValueError, match=r"there is no segment 999999; the ids are 1, "):
        result.mask(999999)


@pytest.mark.parametrize(
    ("segment_map", "message"),
    [
        *((np.full((2, 3), value), "must hold integers, but is float64") for value in (np.nan, 1.0)),
        (np.ones((2, 3), bool), "must hold integers, but is bool"),
        (np.full((2, 3), "a"), "must hold integers, but is <U1"),
        (np.full((2, 3), -4), "image 17: segment ids must be 0 .void. to 2147483647, but the map has -4 to -4"),
        (np.full((2, 3), 2**40), "the map has 1099511627776 to 1099511627776"),
        (np.full((2, 3), 2**63, np.uint64), "the map has 9223372036854775808 to"),
        ([[1, 1], [1, 1]], "segment_map must be an array .H, W., but got"),
        (None, "segment_map must be an array .H, W., but got None"),
        (np.ones((2, 3, 1), int), "must be .H, W., but got"),
    ],
)
def test_a_map_is_of_whole_numbers_from_0(segment_map, message):
    with pytest.raises(InputError, match=message):
        PanopticSegmentation(segment_map, [], TABLE, image_id=17)


@pytest.mark.parametrize("changed", [{"segments": None}, {"segments": ["a"]}, {"dropped": 5}, {"categories": None}])
def test_what_a_segmentation_is_made_of_is_checked(result, changed):
    with pytest.raises(InputError, match=f"{next(iter(changed))} must be a"):
        replace(result, **changed)


@pytest.mark.parametrize("path", [None, "a\0b.png", "https://host/a.png"])
def test_only_a_path_is_saved_to(result, path):
    with pytest.raises(InputError, match=r"is (no path of a file|no name that a file can have|an address)"):
        result.save(path)


def test_notebooks_show_the_map(result):
    picture = cv2.imdecode(np.frombuffer(result._repr_png_(), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert picture.shape == (4, 6, 3)
    assert picture[0, 0].tolist() == [9, 8, 7]
    assert picture[3, 0].tolist() == [255, 255, 255]
    assert picture[1, 0].tolist() == [0, 0, 0]


def test_the_version_is_the_packages():
    assert pd.__version__.count(".") >= 2


def test_ground_truth_in_files_goes_into_panoptic_quality(tmp_path, result):
    result.save(tmp_path / "7.png")
    zero = np.where(result.segment_map == 2, 0, 1).astype(np.int32)
    write_id_png(tmp_path / "8.png", zero)
    rows = [
        result.to_coco(7, "7.png"),
        {
            "image_id": 8,
            "file_name": "8.png",
            "segments_info": [{"id": 0, "category_id": 10, "iscrowd": 0}, {"id": 1, "category_id": 3, "iscrowd": 1}],
        },
    ]
    (tmp_path / "gt.json").write_text(json.dumps({"annotations": rows, "categories": TABLE.to_coco()}))
    seven, eight = pd.read_panoptic(tmp_path / "gt.json", tmp_path)
    assert (seven.image_id, seven.segments) == (7, result.segments)
    assert [(s.category_id, s.area, s.box, s.iscrowd) for s in eight.segments] == [
        (10, 8, (4, 0, 2, 4), False),
        (3, 16, (0, 0, 4, 4), True),
    ]
    quality = pd.PanopticQuality(TABLE)
    for truth in pd.read_panoptic(tmp_path / "gt.json", tmp_path):
        quality.update(truth, truth)
    assert (quality.compute().images, quality.compute().stuff.pq) == (2, 1.0)
    (tmp_path / "results.json").write_text(json.dumps({"annotations": rows}))  # as other tools write them
    assert len(list(pd.read_panoptic(tmp_path / "results.json", tmp_path, TABLE))) == 2
    with pytest.raises(ValueError, match="give the table of the truth"):
        pd.read_panoptic(tmp_path / "results.json", tmp_path)
