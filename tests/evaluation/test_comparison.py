"""Two sets of predictions held against each other, as the command shows them."""

import csv
import json
import re

import cv2
import numpy as np
import pytest

from panoptic_detr.commands import cli
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation import compare_predictions, comparison, comparison_table
from panoptic_detr.evaluation.comparison import difference_rows
from panoptic_detr.segment_maps import write_id_png


@pytest.fixture
def sides(tmp_path):
    """A truth of 24 images, each with a cat and sky, and two results: `a` misses every third cat, `b` image 7 as a whole."""
    ids = np.full((40, 60), 2, np.int32)
    ids[10:30, 10:30] = 1
    categories = [{"id": 1, "name": "cat [x]", "isthing": 1}, {"id": 5, "name": "sky", "isthing": 0}]
    rows = [{"id": 1, "category_id": 1}, {"id": 2, "category_id": 5}]
    for side in ("gt", "a", "b"):
        annotations = []
        (tmp_path / side).mkdir()
        for i in range(24):
            lost = side == "a" and i % 3 == 0
            if side == "b" and i == 7:
                continue
            write_id_png(tmp_path / side / f"{i}.png", np.where(ids == 1, 2, ids) if lost else ids)
            annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": rows[lost:]})
        content = {"annotations": annotations, "categories": categories}
        (tmp_path / f"{side}.json").write_text(json.dumps(content))
    return tmp_path


def test_differences_and_changes(sides):
    found = compare_predictions(sides / "gt.json", sides / "gt", sides / "a.json", sides / "b.json")
    first, second = found.results
    # a: 16 cats of 24, sky 2000 / 2400 in 8 images. b: 23 of both.
    assert first.per_class[1].pq == 16 / (16 + 8 / 2)
    assert second.per_class[1].pq == second.per_class[5].pq == 23 / (23 + 1 / 2)
    assert found.differences["cat [x]"].value == pytest.approx(23 / 23.5 - 16 / 20)
    assert found.differences["cat [x]"].is_real
    assert not found.differences["sky"].is_real
    assert found.changes[0] == ("7", 1.0, 0.0)
    assert found.summary() == "of 24 images the second is better on 8, worse on 1, equal on 15"


@pytest.mark.parametrize(("images", "real"), [(1, False), (9, False), (24, True)])
def test_no_difference_over_few_images_is_real(sides, images, real):
    content = json.loads((sides / "gt.json").read_text())
    content["annotations"] = content["annotations"][:images]
    (sides / "few.json").write_text(json.dumps(content))
    found = compare_predictions(sides / "few.json", sides / "gt", sides / "a.json", sides / "gt.json")
    (cats,) = [row for row in difference_rows(found) if row.category_id == 1]
    assert cats.interval.is_real
    assert cats.is_real == real
    assert ("too few to call a difference real" in found.summary()) == (not real)


def test_classes_of_one_name_or_of_a_groups_keep_their_own_differences(sides):
    for side in ("gt", "a", "b"):
        content = json.loads((sides / f"{side}.json").read_text())
        names = {1: "sky", 5: "All PQ", 6: "sky"}
        content["categories"] = [{"id": i, "name": name, "isthing": int(i == 1)} for i, name in names.items()]
        (sides / f"{side}.json").write_text(json.dumps(content))
    found = compare_predictions(sides / "gt.json", sides / "gt", sides / "a.json", sides / "b.json")
    assert {"sky (id 1)", "sky (id 6)", "All PQ", "All PQ (id 5)"} <= found.differences.keys()
    shown = [cell for cell in comparison_table(found).columns[0].cells if str(cell) == "All PQ"]
    assert len(shown) == 1  # the group, not the class, whose difference is not real
    rows = difference_rows(found)
    assert [(row.name, row.category_id) for row in rows[-2:]] == [("sky", 1), ("All PQ", 5)]
    for row in rows:
        assert row.interval.value == pytest.approx(row.second - row.first)


def test_the_command_says_and_draws_them(sides, capsys, monkeypatch):
    read, original = [], comparison.read_annotations
    monkeypatch.setattr(comparison, "read_annotations", lambda path, folder: read.append(path) or original(path, folder))
    truth = ["--gt-json", str(sides / "gt.json"), "--gt-folder", str(sides / "gt")]
    both = ["--compare", str(sides / "a.json"), str(sides / "b.json")]
    assert cli.main(["evaluate", *truth, *both, "--output", str(sides / "out")]) == 0
    text = capsys.readouterr().out
    assert re.search(r"│ cat \[x\] +│ +80\.0 │ +97\.9 │ +\+17\.9 │ +\+\S+ to +\S+ │ yes", text)
    assert "sky" not in text
    assert "pictures of the largest changes: 9 in" in text
    assert re.search(r"note on \S+b\.json: images without a prediction.*: 1 ", text)
    assert sorted(path.name for path in read) == ["a.json", "b.json", "gt.json"]
    pictures = sorted(path.name for path in (sides / "out").glob("*.png"))
    assert len(pictures) == 9
    with (sides / "out" / "differences.csv").open() as stream:
        rows = {row["name"]: row for row in csv.DictReader(stream)}
    assert len(rows) == 9 + 2
    cat = rows["cat [x]"]
    assert (cat["id"], cat["first"], cat["second"], cat["real"]) == ("1", "0.8", str(23 / 23.5), "1")
    assert float(cat["low"]) < float(cat["difference"]) == float(cat["second"]) - 0.8 < float(cat["high"])
    assert rows["Things SQ"]["id"] == ""
    changes = (sides / "out" / "changes.csv").read_text().splitlines()
    assert changes[:2] == ["image,first,second,difference", "7,1.0,0.0,-1.0"]
    assert len(changes) == 1 + 24
    assert pictures[0] == "change_01_-100.png"
    assert cv2.imread(str(sides / "out" / pictures[0])).shape[1] >= 3 * 60
    same = ["--compare", both[1], both[1], "--output", str(sides / "out")]
    assert cli.main(["evaluate", *truth, *same]) == 0
    assert not list((sides / "out").glob("*.png"))  # those of the comparison before are gone
    assert cli.main(["evaluate", *truth, *same, "--data.images", str(sides / "nowhere")]) == 1
    assert "nowhere is no folder" in capsys.readouterr().err
    assert cli.main(["evaluate", *truth, *both, "--per-class"]) == 0
    assert "sky" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "a.json", "b.json"], "--compare needs the truth of both: --gt-json and --gt-folder"),
        (
            ["best.pt", "--gt-json", "g", "--gt-folder", "g", "--compare", "a.json", "b.json"],
            "--compare scores the two JSONs that it names",
        ),
    ],
)
def test_a_wrong_command_line(options, message, capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", *options])
    assert message in capsys.readouterr().err


def test_predictions_of_nothing_are_named(sides):
    with pytest.raises(EvaluationError, match=r"no such file|there is no"):
        compare_predictions(sides / "gt.json", sides / "gt", sides / "a.json", sides / "c.json")
