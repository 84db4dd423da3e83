"""What the visualize job does not draw is refused in one line, before anything is written."""

import json
from pathlib import Path

import pytest
from visualization.visualize_helpers import save_model, source, told

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands.visualize import main
from panoptic_detr.inference.predictor import Predictor

CHANGES = {
    "id": lambda row: {"id": row["id"] + 100},
    "name": lambda row: {"name": f"other {row['name']}"},
    "kind": lambda row: {"isthing": 1 - row["isthing"]},
}


@pytest.mark.parametrize("change", CHANGES)
def test_models_of_other_categories_are_refused(change, root, data, tmp_path, capsys, monkeypatch):
    rows = [{**row, **CHANGES[change](row)} for row in data.categories.to_coco()]
    model = save_model(CategoryTable.from_coco(rows), tmp_path / "other.pt")
    there = "none" if change == "id" else f"'{data.categories.categories[0].name}' ("
    monkeypatch.setattr(Predictor, "__call__", lambda *_: pytest.fail("predicted before"))
    jobs = [(job, "--model", model) for job in ("coco", "segments", "zoom", "sweep", "queries")]
    for job, *named in [*jobs, ("report", model)]:
        output = tmp_path / "new" / f"{job}.png"
        error = told(capsys, job, *named, *source(root, "--limit", 1, "--output", output))
        assert f"for the model, but {there}" in error
        assert "with the categories that it was trained on" in error
        assert not output.parent.exists(), "nothing is written"


BAD_OPTIONS = {
    "coco --limit 0": "'0' must be a whole number from 1",
    "coco --alpha nan": "'nan' must be a number from 0 to 1",
    "coco --threshold 2": "'2' must be a number from 0 to 1",
    "coco --scale 1.5": "'1.5' must be a whole number from 1",
    "coco --kind gif": "invalid choice: 'gif'",
    "zoom --side -3": "'-3' must be a whole number from 1",
    "sweep --model m --thresholds 0.1,zwei": "'zwei' must be a number from 0 to 1",
    "attention a.png --model m --points 1": "'1' must be x,y as fractions of the image below 1",
    "queries --model m --grid 0": "'0' must be a whole number from 1",
    "report": "the following arguments are required",
}


@pytest.mark.parametrize("line", BAD_OPTIONS)
def test_a_bad_option_is_one_clear_line(line, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([*line.split(), "--output", str(tmp_path)])
    error = capsys.readouterr().err
    assert end.value.code == 2
    assert BAD_OPTIONS[line] in error
    assert error.count("\n") == 1, "one line"
    assert f"panoptic-detr visualize {line.split()[0]}: " in error


def test_options_that_contradict_each_other_are_refused(root, results, checkpoint, tmp_path, capsys):
    place = source(root, "--output", tmp_path)
    assert "give one of them" in told(capsys, "coco", *place, "--pred-json", results, "--model", checkpoint)
    assert "give --pred-json too" in told(capsys, "segments", *place, "--pred-panoptic", tmp_path)
    assert "not of errors" in told(capsys, "coco", *place, "--pred-json", results, "--kind", "svg", "--show", "errors")
    assert "no side longer than" in told(capsys, "coco", *place, "--scale", 10**6)


def test_a_data_set_without_images_is_said(twins, capsys):
    path = twins / "annotations" / "panoptic_val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": [], "annotations": []}))
    assert "no image in this data set" in told(capsys, "coco", *source(twins, "--output", twins / "out"))


def test_bad_input_is_one_clear_line(root, data, results, tmp_path, capsys):
    place = source(root, "--output", tmp_path)
    assert "no image 12345 among its 3" in told(capsys, "coco", *place, "--image-ids", 12345)
    assert "gone.json: no such file" in told(capsys, "coco", *place, "--pred-json", tmp_path / "gone.json")
    assert "this is a folder; name the JSON itself, such as" in told(
        capsys, "coco", *place, "--pred-json", root / "annotations"
    )
    assert "drawing 'errors' needs both" in told(capsys, "coco", *place, "--show", "errors")
    assert "no image folder at" in told(capsys, "coco", "--root", tmp_path, "--split", "val", "--output", tmp_path)
    content = json.loads(Path(results).read_text())
    content["annotations"][0]["segments_info"][0]["category_id"] = 999
    del content["annotations"][1]
    broken = results.with_name("broken.json")
    broken.write_text(json.dumps(content))
    assert "category 999, unknown to the data set" in told(capsys, "coco", *place, "--pred-json", broken)
    assert "--image-ids names no image" in told(capsys, "coco", *place, "--image-ids", ",")
    missing = told(capsys, "coco", *place, "--pred-json", broken, "--image-ids", data.image_ids[1])
    assert "there is no result for it" in missing


def test_predictions_of_other_images_are_not_drawn(root, results, tmp_path, capsys):
    content = json.loads(results.read_text())
    for image in content["images"]:
        image["file_name"] = f"place_{image['id']}x.png"
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    (tmp_path / "panoptic").symlink_to(results.parent / "panoptic")
    for job in (("coco", "--pred-json", other), ("report", other)):
        error = told(capsys, *job, *source(root, "--output", tmp_path / job[0]))
        assert "these are predictions of other images: image 0 is 'place_0x.png' there but '000000.png' in" in error


def test_predictions_of_other_categories_are_not_drawn(root, results, tmp_path, capsys):
    content = json.loads(results.read_text())
    content["categories"] = [{**row, "name": f"other {row['id']}"} for row in content["categories"]]
    other = tmp_path / "other.json"
    other.write_text(json.dumps(content))
    (tmp_path / "panoptic").symlink_to(results.parent / "panoptic")
    error = told(capsys, "coco", "--pred-json", other, *source(root, "--output", tmp_path / "out"))
    assert "these are predictions of other categories: 1 is 'other 1' there but 'circle' in the truth" in error
