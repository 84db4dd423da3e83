import re
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import PictureError
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import PanopticQuality
from panoptic_detr.visualization.draw.layout import side_by_side
from panoptic_detr.visualization.draw.palette import segment_colors
from panoptic_detr.visualization.draw.segments import mask_strip, segment_path, svg_overlay, zoom
from panoptic_detr.visualization.errors import ERROR_COLORS, Entry, ErrorKind, compare, error_view
from panoptic_detr.visualization.report.images import Confusion, image_data

TABLE = CategoryTable.from_coco(
    [{"id": i, "name": name, "isthing": int(i < 4)} for i, name in enumerate(("cat", "dog", "<b>", "sky", "grass"), start=1)]
)
CAT, DOG, MARKUP, SKY, GRASS = 1, 2, 3, 4, 5


def segmentation(rows, classes, *, crowds=(), query=None):
    """A map from (id, top, bottom, left, right) rows; `classes` maps ids to category ids."""
    segment_map = np.zeros((100, 200), np.int32)
    for segment_id, top, bottom, left, right in rows:
        segment_map[top:bottom, left:right] = segment_id
    segments = [
        Segment(i, c, c < 4, 0.9, int((segment_map == i).sum()), (0, 0, 1, 1), query=query, iscrowd=i in crowds)
        for i, c in classes.items()
    ]
    return PanopticSegmentation(segment_map, segments, TABLE, image_id=5)


TRUTH = segmentation(
    [(1, 0, 50, 0, 200), (2, 60, 90, 10, 40), (3, 60, 90, 60, 90), (4, 60, 90, 110, 140), (5, 0, 20, 0, 40)],
    {1: SKY, 2: CAT, 3: CAT, 4: DOG, 5: CAT},
    crowds=(5,),
)
PREDICTION = segmentation(
    [
        (1, 0, 54, 0, 200),
        (2, 60, 90, 14, 44),
        (3, 60, 90, 60, 90),
        (6, 10, 30, 120, 180),
        (7, 65, 85, 160, 190),
        (8, 0, 20, 0, 40),
    ],
    {1: SKY, 2: CAT, 3: DOG, 6: DOG, 7: CAT, 8: CAT},
    query=3,
)


def test_planted_errors_are_named():
    kinds = compare(PREDICTION, TRUTH).kinds
    expected = {
        (45, 100): ErrorKind.CORRECT,
        (75, 25): ErrorKind.CORRECT,
        (75, 11): ErrorKind.BOUNDARY,  # the cat's edge that the shifted prediction misses
        (75, 75): ErrorKind.WRONG_CLASS,
        (75, 120): ErrorKind.MISSED,
        (20, 150): ErrorKind.EXTRA,  # a dog in the sky
        (52, 100): ErrorKind.IGNORED,  # predicted on void
        (75, 175): ErrorKind.IGNORED,
        (10, 10): ErrorKind.IGNORED,  # a group
    }
    assert {place: ErrorKind(kinds[place]) for place in expected} == expected


def test_matches_carry_the_iou_without_void():
    comparison = compare(PREDICTION, TRUTH)
    matching = comparison.matching
    assert list(zip(matching.truth, matching.prediction, strict=True)) == [(0, 0), (1, 1)]
    assert comparison.ious[1] == matching.ious[1] == pytest.approx(26 * 30 / (30 * 30), abs=1e-9)
    assert (comparison.nearest[2], comparison.ious[2]) == (2, 1)
    assert matching.extra[2]
    assert set(np.flatnonzero(matching.ignored)) == {4, 5}
    shares = comparison.shares()
    assert sum(v for kind, v in shares.items() if kind != ErrorKind.IGNORED) == pytest.approx(1)
    assert shares[ErrorKind.MISSED] == pytest.approx(900 / (kinds_rated := (comparison.kinds > 0).sum()), rel=1e-6)
    assert kinds_rated == 200 * 50 - 800 + 3 * 900


def test_several_crowds_of_a_class_are_matched_as_in_every_score():
    # A cat of 40 columns lies half and half on two groups of cats. Of several groups of a class the last one listed counts,
    # as in panopticapi: half of the cat's pixels are ignored ground, which is not more than half.
    truth = segmentation([(1, 0, 50, 0, 20), (2, 0, 50, 20, 40), (3, 60, 90, 0, 90)], {1: CAT, 2: CAT, 3: SKY}, crowds=(1, 2))
    prediction = segmentation([(1, 0, 50, 0, 40), (3, 60, 90, 0, 90)], {1: CAT, 3: SKY})
    quality = PanopticQuality(TABLE)
    quality.update(prediction, truth)
    comparison = compare(prediction, truth)
    assert quality.compute().per_class[CAT].fp == comparison.matching.extra.sum() == 1
    assert not comparison.matching.ignored.any()
    confusion = Confusion()
    image_data(
        Entry("a", np.zeros((100, 200, 3), np.uint8), truth, prediction),
        0,
        budget=10**6,
        palette="distinct",
        confusion=confusion,
    )
    assert confusion.counts == {("sky", "sky"): 1, ("", "cat"): 1}


def test_perfect_prediction_is_all_correct():
    kinds = compare(TRUTH, TRUTH).kinds
    assert set(np.unique(kinds)) == {ErrorKind.IGNORED, ErrorKind.CORRECT}


def test_nothing_predicted_is_all_missed():
    nothing = PanopticSegmentation(np.zeros((100, 200), np.int32), [], TABLE)
    assert set(np.unique(compare(nothing, TRUTH).kinds)) == {ErrorKind.IGNORED, ErrorKind.MISSED}
    assert set(np.unique(compare(PREDICTION, nothing).kinds)) == {ErrorKind.IGNORED}


def test_same_class_below_half_overlap_is_missed_not_wrong_class():
    quarter = segmentation([(1, 60, 90, 10, 20)], {1: CAT})
    whole = segmentation([(1, 60, 90, 10, 50)], {1: CAT})
    assert compare(quarter, whole).kinds[75, 15] == ErrorKind.MISSED


def test_error_view_colours_and_legend():
    image = np.full((100, 200, 3), 120, np.uint8)
    drawn = error_view(image, PREDICTION, TRUTH, legend=False)
    assert drawn.shape == image.shape
    for place, kind in {(75, 75): ErrorKind.WRONG_CLASS, (75, 120): ErrorKind.MISSED, (20, 150): ErrorKind.EXTRA}.items():
        expected = 0.2 * 0.8 * 120 + 0.8 * np.array(ERROR_COLORS[kind])
        assert np.abs(drawn[place] - expected).max() <= 1
    legend = error_view(image, PREDICTION, TRUTH)[100:]
    for color in ERROR_COLORS.values():
        assert (legend == color).all(-1).any()
    assert error_view(image, PREDICTION, TRUTH, legend=False, scale=2).shape == (200, 400, 3)


def test_sizes_must_agree():
    small = PanopticSegmentation(np.zeros((50, 50), np.int32), [], TABLE)
    with pytest.raises(PictureError, match=r"image 5: the predicted map is \(50, 50\), the true one \(100, 200\)"):
        compare(small, TRUTH)
    with pytest.raises(PictureError, match=r"the image is \(50, 50\)"):
        error_view(np.zeros((50, 50), np.uint8), PREDICTION, TRUTH)


def test_side_by_side_keeps_every_pixel_and_writes_titles():
    first, second = np.full((60, 90, 3), 10, np.uint8), np.full((40, 50, 3), 200, np.uint8)
    row = side_by_side([first, second], ["truth", "prediction"], gap=5)
    assert (row == 10).all(-1).sum() == 60 * 90
    assert (row == 200).all(-1).sum() >= 40 * 50
    assert row.shape[1] == 2 * 90 + 3 * 5
    head = row[5 : row.shape[0] - 5 - 60]
    assert head[:, 5:95].min() < 60, "the title is there"
    column = side_by_side([first, second], columns=1, gap=0)
    assert column.shape == (120, 90, 3)
    assert np.array_equal(column[:60], first)


def test_side_by_side_refuses_bad_input():
    with pytest.raises(PictureError, match="at least one picture"):
        side_by_side([])
    with pytest.raises(PictureError, match="got 1 pictures but 2 titles"):
        side_by_side([np.zeros((4, 4, 3), np.uint8)], ["a", "b"])


def test_zoom_shows_the_segment_and_dims_the_rest():
    image = np.full((100, 200, 3), 200, np.uint8)
    picture = zoom(image, TRUTH, 2, margin=0.5, long_side=300)
    assert picture.shape[1] == 300
    body = picture[-300:]
    assert (body[150, 150] == 200).all()
    assert (body[5, 5] == 100).all()
    color = segment_colors(TRUTH)[1]
    assert (body == color).all(-1).any(), "its outline has its colour"
    with pytest.raises(PictureError, match=r"there is no segment 99; it has \[1, 2, 3, 4, 5\]"):
        zoom(image, TRUTH, 99)
    with pytest.raises(PictureError, match=r"the longer side must have 1 to 16384 pixels, but got 20000"):
        zoom(image, TRUTH, 2, long_side=20000)


def test_mask_strip_has_one_cut_out_per_segment():
    image = np.zeros((100, 200, 3), np.uint8)
    image[60:90, 110:140] = (1, 2, 3)
    strip = mask_strip(image, TRUTH, cell=40, columns=3)
    assert (strip == (1, 2, 3)).all(-1).sum() == 40 * 40
    assert strip.shape[1] == 3 * 40 + 4 * 4
    empty = PanopticSegmentation(np.zeros((100, 200), np.int32), [], TABLE)
    assert mask_strip(image, empty).shape == image.shape


def polygons(path):
    return [np.array(re.findall(r"(-?\d+) (-?\d+)", part), dtype=np.float64) for part in path.split("Z") if part]


def area(points):
    x, y = points.T
    return 0.5 * (x @ np.roll(y, -1) - y @ np.roll(x, -1))


def test_svg_paths_enclose_the_mask_exactly():
    mask = np.zeros((20, 30), bool)
    mask[4:14, 5:25] = True
    mask[7:10, 10:15] = False
    outer, hole = sorted((abs(area(p)) for p in polygons(segment_path(mask))), reverse=True)
    assert (outer, hole) == (200, 15)
    assert polygons(segment_path(mask))[0].min(0).tolist() == [5, 4]
    single = np.zeros((5, 5), bool)
    single[2, 3] = True
    assert abs(area(polygons(segment_path(single, offset=(10, 0)))[0])) == 1


def test_simplified_svg_paths_stay_close():
    mask = np.zeros((200, 200), np.uint8)
    cv2.circle(mask, (100, 100), 80, 1, -1)
    exact, simple = segment_path(mask), segment_path(mask, tolerance=1.0)
    assert len(simple) < 0.5 * len(exact)
    assert abs(area(polygons(simple)[0])) == pytest.approx(mask.sum(), rel=0.02)


def test_svg_document_is_valid_and_escapes_names():
    marked = replace(TRUTH, segments=[replace(TRUTH.segments[1], category_id=MARKUP)])
    document = svg_overlay(marked, np.zeros((100, 200), np.uint8))
    root = ElementTree.fromstring(document)
    names = {"s": "http://www.w3.org/2000/svg"}
    assert root.get("viewBox") == "0 0 200 100"
    assert [title.text for title in root.findall(".//s:title", names)] == ["<b> 0.90"]
    assert root.find("s:image", names).get("href").startswith("data:image/jpeg;base64,")
    assert len(ElementTree.fromstring(svg_overlay(TRUTH)).findall("s:path", names)) == 5
