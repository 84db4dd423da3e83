import io

import numpy as np
import pytest
from rich.console import Console

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import PictureError
from panoptic_detr.panoptic import Dropped, PanopticSegmentation, Segment
from panoptic_detr.visualization.explain import (
    REASON_COLORS,
    SweepStep,
    draw_explanation,
    explain,
    explain_table,
    pq_curve,
    sweep_figure,
)

TABLE = CategoryTable.from_coco([{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky-other-merged", "isthing": 0}])
SEGMENT_MAP = np.ones((100, 150), np.int32)
SEGMENT_MAP[60:, :50] = 2
PREDICTION = PanopticSegmentation(
    SEGMENT_MAP,
    [
        Segment(2, 1, True, 0.9, 2000, (0, 60, 50, 40), query=4),
        Segment(1, 2, False, 0.95, 13000, (0, 0, 150, 100), query=0),
    ],
    TABLE,
    dropped=[
        Dropped(1, "no object", 0.3),
        Dropped(2, "low score", 0.6, category_id=1),
        Dropped(3, "merged", 0.88, category_id=2, area=77, into=1),
        Dropped(5, "low score", 0.01, category_id=1),
    ],
)


def test_outcomes_are_listed_kept_first_then_by_score():
    rows = explain(PREDICTION)
    assert [(row.query, row.kept, row.outcome) for row in rows] == [
        (0, True, "segment 1"),
        (4, True, "segment 2"),
        (3, False, "merged into segment 1"),
        (2, False, "low score"),
        (5, False, "low score"),
    ]
    assert (rows[2].name, rows[2].area) == ("sky", 77)
    assert {row.query for row in explain(PREDICTION, no_object=True)} == set(range(6))


def test_the_table_says_it_and_counts_the_silent_ones():
    console = Console(width=100, file=io.StringIO())
    console.print(explain_table(PREDICTION, title="a.png"))
    text = console.file.getvalue()
    for part in ("a.png", "merged into segment 1", "13,000", "0.880", "1 queries that say 'no object'"):
        assert part in text


def test_boxes_of_dropped_queries_are_drawn_in_the_colour_of_their_reason():
    image = np.full((100, 150, 3), 128, np.uint8)
    boxes = np.tile([0.5, 0.5, 0.2, 0.2], (6, 1))
    boxes[2] = [0.7, 0.4, 0.4, 0.4]
    boxes[5] = [0.2, 0.2, 0.1, 0.1]
    drawn = draw_explanation(image, PREDICTION, boxes)
    body, legend = drawn[:100], drawn[100:]
    at = np.argwhere((body == REASON_COLORS["low score"]).all(-1))
    assert at[:, 0].min() < 18, "the stripe of its label stands above the box"
    at = at[at[:, 0] >= 19]
    assert abs(at[:, 0].min() - 20) <= 1
    assert abs(at[:, 1].min() - 75) <= 1
    assert abs(at[:, 0].max() - 60) <= 1
    assert abs(at[:, 1].max() - 135) <= 1
    assert (body == REASON_COLORS["merged"]).all(-1).any()
    for reason in ("low score", "merged", "no object"):
        assert (legend == REASON_COLORS[reason]).all(-1).any()
    assert not (legend == REASON_COLORS["covered"]).all(-1).any()
    without = draw_explanation(image, PREDICTION)[:100]
    assert not (without == REASON_COLORS["low score"]).all(-1).any()


def steps(*pairs):
    return [SweepStep(t, np.full((60, 80, 3), round(255 * t), np.uint8), 3, pq) for t, pq in pairs]


def test_sweep_sets_pictures_in_order_of_threshold_with_the_curve():
    figure = sweep_figure(steps((0.8, 0.4), (0.2, 0.5), (0.5, 0.6)), columns=4)
    places = [np.argwhere((figure == round(255 * t)).all(-1))[:, 1].mean() for t in (0.2, 0.5, 0.8)]
    assert places == sorted(places)
    assert figure.shape[1] > 4 * 320
    assert sweep_figure(steps((0.5, None))).shape[1] < 200, "no curve without PQ"
    with pytest.raises(PictureError, match="at least one threshold"):
        sweep_figure([])


def test_the_curve_marks_the_best_threshold():
    curve = pq_curve(steps((0.2, 0.1), (0.5, 0.9), (0.8, 0.2)), (240, 320))
    assert curve.shape == (240, 320, 3)
    line = np.argwhere(np.abs(curve.astype(int) - [0, 114, 178]).sum(-1) < 30)
    top = line[line[:, 0] == line[:, 0].min()][:, 1].mean()
    assert abs(top - line[:, 1].mean()) < 40, "the peak is in the middle"
