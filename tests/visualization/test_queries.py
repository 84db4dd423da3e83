import numpy as np
import pytest

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import PictureError, ShapeError
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.visualization.queries import (
    SMALL,
    TALL,
    WIDE,
    LayerScore,
    best_instance,
    box_colors,
    count_instances,
    draw_counts,
    draw_layer_scores,
    draw_query_boxes,
    instance_grid,
)

TABLE = CategoryTable.from_coco([{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}])
RED = (200, 30, 30)


def scene():
    """A grey image with a red thing of 12 x 8 pixels."""
    image, segment_map = np.full((40, 60, 3), 90, np.uint8), np.full((40, 60), 2, np.int32)
    image[10:22, 30:38], segment_map[10:22, 30:38] = RED, 1
    segments = [Segment(1, 1, True, 1.0, 96, (30, 10, 8, 12)), Segment(2, 2, False, 1.0, 2304, (0, 0, 60, 40))]
    return image, PanopticSegmentation(segment_map, segments, TABLE)


def count_red(picture):
    """A perfect counter: connected red regions are cats."""
    import cv2

    red = (np.abs(picture.astype(int) - RED).sum(-1) < 60).astype(np.uint8)
    number = cv2.connectedComponents(red)[0] - 1
    segments = [Segment(i + 1, 1, True, 0.9, 1, (0, 0, 1, 1), query=i) for i in range(number)]
    return PanopticSegmentation(np.zeros(picture.shape[:2], np.int32), segments, TABLE)


def test_centres_stand_where_the_boxes_are_in_the_colour_of_their_kind():
    boxes = np.array([[[0.25, 0.75, 0.1, 0.1], [0.5, 0.5, 0.9, 0.3]], [[0.25, 0.75, 0.1, 0.1], [0.5, 0.5, 0.3, 0.9]]])
    assert [tuple(c) for c in box_colors(boxes[:, 1])] == [WIDE, TALL]
    picture = draw_query_boxes(boxes, slots=[0], side=200)
    y, x = (axis.mean() for axis in np.nonzero((picture == SMALL).all(-1)))
    assert abs((x - (picture.shape[1] - 200) / 2) - 50) < 4
    assert abs((y - (picture.shape[0] - 200)) - 150) < 12
    assert draw_query_boxes(boxes).shape[1] > 2 * 160


def test_a_slot_shows_the_images_that_have_it():
    many = np.array([[0.25, 0.75, 0.1, 0.1], [0.5, 0.5, 0.9, 0.3]])
    few = np.array([[0.75, 0.25, 0.1, 0.1]])
    alone = draw_query_boxes([many], slots=[1])
    assert (draw_query_boxes([few, many, few], slots=[1]) == alone).all()
    both = draw_query_boxes(np.stack([many[:1], few]), slots=[0])
    assert (draw_query_boxes([many, few], slots=[0]) == both).all()
    with pytest.raises(PictureError, match="there is no query slot 1; this model has 1"):
        draw_query_boxes([few, few], slots=[1])


def test_bad_slots_and_shapes_are_named():
    with pytest.raises(PictureError, match="there is no query slot 5; this model has 2"):
        draw_query_boxes(np.zeros((3, 2, 4)), slots=[5])
    with pytest.raises(ShapeError, match=r"boxes_cxcywh\[0\] must be \(Q, 4\), but got \(4,\)"):
        draw_query_boxes(np.zeros((2, 4)))


def test_the_grid_has_a_copy_at_every_chosen_place():
    image, truth = scene()
    patch, mask, category_id = best_instance(image, truth)
    assert (patch.shape, mask.all(), category_id) == ((12, 8, 3), True, 1)
    shown = np.eye(4, dtype=bool)
    picture = instance_grid(patch, mask, shown, (160, 160), ground=128)
    for row in range(4):
        for column in range(4):
            centre = picture[20 + 40 * row, 20 + 40 * column].tolist()
            assert centre == (list(RED) if row == column else [128] * 3)


def test_a_perfect_counter_counts_perfectly():
    nothing = (np.zeros((40, 60, 3), np.uint8), PanopticSegmentation(np.zeros((40, 60), np.int32), [], TABLE))
    large = (np.kron(scene()[0], np.ones((4, 4, 1), np.uint8)), scene()[1])
    big_map = np.kron(large[1].segment_map, np.ones((4, 4), np.int32))
    segments = [Segment(1, 1, True, 1.0, 96 * 16, (120, 40, 32, 48))]
    scenes = [nothing, (large[0], PanopticSegmentation(big_map, segments, TABLE))] * 3
    present, found = count_instances(count_red, scenes, grid=5, repeats=2)
    assert present == [1, 2, 5, 8, 10, 12, 15, 18, 20, 22, 25]
    assert found.tolist() == [present, present]
    with pytest.raises(PictureError, match="at least one thing"):
        count_instances(count_red, [nothing])


def test_charts_show_their_curves():
    blue = [0, 114, 178]
    chart = draw_layer_scores([LayerScore(1, 0.1, 0.2), LayerScore(2, 0.5, 0.4)])
    line = np.argwhere(np.abs(chart.astype(int) - blue).sum(-1) < 30)
    left, right = line[line[:, 1] < 120], line[line[:, 1] > 340]
    assert left[:, 0].mean() > right[:, 0].mean() + 50, "AP rises"
    counts = draw_counts([1, 50, 100], np.array([[1, 40, 40], [1, 44, 60]]))
    assert counts.shape == (320, 420, 3)
    assert (np.abs(counts.astype(int) - blue).sum(-1) < 30).any()
    with pytest.raises(ShapeError, match="found must be"):
        draw_counts([1, 2], np.zeros((3, 3)))
