"""Scores as tables, JSON and CSV."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from panoptic_detr.evaluation.coco_ap import ApScores, ThingPrecision
from panoptic_detr.evaluation.tables import as_csv, as_json, class_rows, show_scores, write_scores
from panoptic_detr.quality.overlaps import Regions
from panoptic_detr.quality.panoptic_quality import PanopticQuality

CATEGORIES = [
    {"id": 2, "name": "cat [bold]", "isthing": 1},
    {"id": 3, "name": "犬", "isthing": 1},
    {"id": 7, "name": "sky", "isthing": 0},
]
BOXES = ApScores(0.5, 0.75, 0.25, None, 0.5, 1.0, 0.625, {2: 0.5, 3: None})


@pytest.fixture
def result():
    # Cats (2): one found, one called a dog. Sky: 6 of 7 pixels right. Dogs: one prediction, wrong.
    truth = Regions.from_rows(np.array([[1, 1, 2, 2, 3, 3, 3, 3, 3, 3, 3]]), [(1, 2, 0), (2, 2, 0), (3, 7, 0)], "truth")
    prediction = Regions.from_rows(
        np.array([[1, 1, 2, 2, 0, 3, 3, 3, 3, 3, 3]]), [(1, 2, 0), (2, 3, 0), (3, 7, 0)], "prediction"
    )
    quality = PanopticQuality(CATEGORIES)
    quality.update_regions(prediction, truth)
    quality.note("odd [red]", ["image 1"])
    return quality.compute()


def shown(result, things=None, per_class=False):
    stream = io.StringIO()
    show_scores(result, things, per_class=per_class, console=Console(file=stream, width=80))
    return stream.getvalue()


def cells(text, start):
    """Cells of the first line of a table that starts with a word."""
    return next(
        row for row in ([c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines()) if row and row[0] == start
    )


def test_groups_in_percent(result):
    text = shown(result)
    # cat: TP 1, FN 1: PQ = 1 / 1.5 = 66.7; dog: FP 1: 0; sky: IoU 6/7 = 85.7.
    assert cells(text, "All") == ["All", "50.8", "61.9", "55.6", "3"]
    assert cells(text, "Things") == ["Things", "33.3", "50.0", "33.3", "2"]
    assert cells(text, "Stuff") == ["Stuff", "85.7", "85.7", "100.0", "1"]
    assert "Panoptic quality, 1 images" in text
    assert "note: odd [red]: 1 (image 1)" in text
    assert "cat [" not in text


def test_classes_and_causes(result):
    text = shown(result, per_class=True)
    assert cells(text, "2") == ["2", "cat [bold]", "thing", "66.7", "100.0", "66.7", "1", "0", "1"]
    assert cells(text, "犬") == ["犬", "lost", "0", "0", "0", "0", "0", "0"]
    assert cells(text, "cat [bold]") == ["cat [bold]", "lost", "1", "0", "0", "0", "0", "1"]
    assert ["", "extra", "1", "0", "0", "0", "0", "1"] in [
        [c.strip() for c in line.split("│")[1:-1]] for line in text.splitlines()
    ]


def test_average_precision(result):
    text = shown(None, ThingPrecision(BOXES, None))
    assert cells(text, "boxes") == ["boxes", "50.0", "75.0", "25.0", "-", "50.0", "100.0", "62.5"]
    assert "masks" not in text
    assert cells(shown(result, ThingPrecision(BOXES, BOXES)), "masks")[1] == "50.0"


def test_json_says_everything(result):
    content = json.loads(json.dumps(as_json(result, ThingPrecision(BOXES, BOXES))))
    assert content["All"] == result.as_dict()["All"]
    cat = content["per_class"]["2"]
    assert (cat["name"], cat["pq"], cat["tp"], cat["fn"], cat["lost_wrong_class"]) == (
        "cat [bold]",
        pytest.approx(2 / 3),
        1,
        1,
        1,
    )
    assert content["notes"] == ["odd [red]: 1 (image 1)"]
    assert content["box_ap"]["small"] is None
    assert content["mask_ap"]["per_class"] == {"2": 0.5, "3": None}


def test_files(result, tmp_path):
    write_scores(tmp_path, result, ThingPrecision(BOXES, None))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ap.csv", "classes.csv", "scores.json"]
    rows = list(csv.DictReader((tmp_path / "classes.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["name"] for row in rows] == ["cat [bold]", "犬", "sky"]
    assert rows[1]["extra_wrong_class"] == "1"
    assert float(rows[2]["pq"]) == result.per_class[7].pq
    assert (tmp_path / "ap.csv").read_text() == "id,box_ap\n2,0.5\n3,\n"
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["Stuff"]["n"] == 1
    write_scores(tmp_path, result, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.csv", "scores.json"]


def test_rows_have_no_holes(result):
    header, *lines = as_csv(class_rows(result)).splitlines()
    assert len(lines) == 3
    assert all(line.count(",") == header.count(",") for line in lines)
    assert as_csv([]) == "\n"


def test_points_lost_and_scores_beside(result):
    text = shown(result)
    # Cat: D = 1.5, 1/2 to a wrong class: 33.3; dog: all of it, 100; sky: 1/7. The mean of three classes; of two things.
    assert cells(text, "wrong class") == ["wrong class", "44.4", "66.7", "0.0", "44.4", "0.0", "0.0"]
    assert cells(text, "outline") == ["outline", "4.8", "0.0", "14.3", "4.8", "0.0", "0.0"]
    assert cells(text, "100 - PQ") == ["100 - PQ", "49.2", "66.7", "14.3", "49.2", "0.0", "0.0"]
    assert "mIoU 45.2 · PQ-dagger 50.8" in text  # IoU of pixels: cat 2/4, dog 0, sky 6/7
    content = as_json(result)
    assert sum(map(sum, content["points_lost"]["All"].values())) == pytest.approx(1 - content["All"]["pq"])
    rows = {row["id"]: row for row in class_rows(result)}
    assert rows[3]["points_wrong_class"] == 1.0
    assert rows[7]["iou"] == pytest.approx(6 / 7)


def test_boundary_pq_and_intervals_where_they_were_asked_for():
    ids = np.array([[1, 1, 2, 2]])
    quality = PanopticQuality(CATEGORIES, per_image=True, boundary=True)
    regions = Regions.from_rows(ids, [(1, 2, False), (2, 7, False)], "map")
    quality.update_regions(regions, regions)
    result = quality.compute()
    assert "boundary PQ All 100.0" in shown(result)
    assert cells(shown(result), "All PQ") == ["All PQ", "100.0", "100.0", "100.0"]
    assert as_json(result)["intervals"]["Stuff PQ"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert as_json(result)["boundary"]["All"]["pq"] == 1.0
    assert class_rows(result)[0]["boundary_pq"] == 1.0
