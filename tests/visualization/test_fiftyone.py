"""Data sets for FiftyOne: the folder says of every segment what our maps say; the app is asked for it, and may be missing."""

import base64
import io
import json
import sys
import zlib
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from panoptic_detr.commands.cli import run
from panoptic_detr.commands.visualize import main
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.errors import DataError
from panoptic_detr.inference import PictureFile, PredictionFolder
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.visualization.errors import Entry
from panoptic_detr.visualization.fiftyone import write_fiftyone


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    """Predictions: the truth, except that the first image lost its first thing."""
    folder = PredictionFolder(tmp_path_factory.mktemp("results"), data.categories, overlays=False)
    for i, image_id in enumerate(data.image_ids):
        truth, rows = data.truth(i), [replace(segment, score=0.75, query=3) for segment in data.truth(i).segments]
        gone = next(segment.id for segment in rows if segment.isthing) if i == 0 else 0
        kept = [segment for segment in rows if segment.id != gone]
        prediction = PanopticSegmentation(
            np.where(truth.segment_map == gone, 0, truth.segment_map), kept, data.categories, image_id=image_id
        )
        folder.add(PictureFile(data.image_path(i), image_id, f"p{i}"), data.image(i), prediction)
    return folder.finish()


def samples_of(folder):
    return json.loads((folder / "samples.json").read_text())["samples"]


def mask_of(label):
    return np.load(io.BytesIO(zlib.decompress(base64.b64decode(label["mask"]["$binary"]["base64"]))))


def painted(labels, shape):
    """The map that boxes and masks make, with each segment's index."""
    segment_map = np.zeros(shape, np.int32)
    for label in labels["detections"]:
        left, top, width, height = (
            round(part * side) for part, side in zip(label["bounding_box"], shape[::-1] * 2, strict=True)
        )
        segment_map[top : top + height, left : left + width][mask_of(label)] = label["index"]
    return segment_map


def test_masks_classes_and_errors_are_those_of_the_maps(root, data, results, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    given = ["--root", str(root), "--split", "val", "--pred-json", str(results), "--output", str(out)]
    assert main(["fiftyone", *given, "--no-app"]) == 0
    assert f"images: 3 in {out}; to open it anywhere: fiftyone app view --dataset-dir {out}" in capsys.readouterr().out
    samples = samples_of(out)
    for i, sample in enumerate(samples):
        truth = data.truth(i)
        assert (sample["filepath"], sample["tags"]) == (str(data.image_path(i).resolve()), ["val"])
        assert sample["image_id"] == str(data.image_ids[i])
        assert (painted(sample["ground_truth"], truth.segment_map.shape) == truth.segment_map).all()
        names = [data.categories.by_id[segment.category_id].name for segment in truth.segments]
        assert [label["label"] for label in sample["ground_truth"]["detections"]] == names
        assert [label["isthing"] for label in sample["ground_truth"]["detections"]] == [s.isthing for s in truth.segments]
        assert {(label["status"], label["confidence"], label["query"]) for label in sample["predictions"]["detections"]} == {
            ("correct", 0.75, 3)
        }
    statuses = [label["status"] for label in samples[0]["ground_truth"]["detections"]]
    assert statuses.count("missed") == 1
    assert set(statuses) <= {"found", "missed", "group, not rated"}
    assert samples[0]["pq"] < samples[1]["pq"] == 1.0
    ids = [label["_id"]["$oid"] for s in samples for f in ("ground_truth", "predictions") for label in s[f]["detections"]]
    assert len(set(ids)) == len(ids)


def test_every_value_has_a_field_and_classes_have_our_colours(root, results, tmp_path):
    given = ["--root", str(root), "--split", "val", "--pred-json", str(results), "--palette", "coco"]
    assert main(["fiftyone", *given, "--output", str(tmp_path / "out"), "--no-app", "--copy"]) == 0
    about = json.loads((tmp_path / "out" / "metadata.json").read_text())
    sample = samples_of(tmp_path / "out")[0]
    assert (tmp_path / "out" / sample["filepath"]).read_bytes() == min((root / "val").iterdir()).read_bytes()
    fields = {field["db_field"]: field for field in about["sample_fields"]}
    assert sample.keys() <= fields.keys()
    for name in ("ground_truth", "predictions"):
        (inside,) = fields[name]["fields"]
        known = {field["db_field"] for field in inside["fields"]} | {"_cls"}
        assert {key for label in sample[name]["detections"] for key in label} <= known
    colors = {row["value"]: row["color"] for row in about["app_config"]["color_scheme"]["fields"][0]["valueColors"]}
    categories = CocoPanoptic.from_root(root, "val").categories.categories
    assert colors == {category.name: "#{:02x}{:02x}{:02x}".format(*category.color) for category in categories}


def test_truth_alone_and_a_folder_that_is_taken(root, tmp_path, capsys):
    given = ["fiftyone", "--root", str(root), "--split", "val", "--limit", "1", "--output", str(tmp_path / "out"), "--no-app"]
    assert main(given) == 0
    (sample,) = samples_of(tmp_path / "out")
    assert not {"predictions", "pq"} & sample.keys()
    assert "status" not in sample["ground_truth"]["detections"][0]
    assert run(main, given, "visualize") == 1
    assert "samples.json is there already" in capsys.readouterr().err


@pytest.mark.parametrize("starts", [True, False])
def test_the_app_gets_the_folder_and_is_waited_for(root, tmp_path, monkeypatch, capsys, starts):
    asked = []

    def launch_app(data):
        asked.append(data)
        if not starts:
            raise RuntimeError("Could not find `mongod`")
        return SimpleNamespace(wait=lambda: asked.append("waited"))

    fake = SimpleNamespace(
        dataset_exists=lambda name: name in ("out", "out-2", "mine"),
        Dataset=SimpleNamespace(from_dir=lambda **given: given),
        types=SimpleNamespace(FiftyOneDataset="kind"),
        launch_app=launch_app,
    )
    monkeypatch.setitem(sys.modules, "fiftyone", fake)
    out = tmp_path / "out"
    assert main(["fiftyone", "--root", str(root), "--split", "val", "--limit", "1", "--output", str(out)]) == 0
    given = {"dataset_dir": str(out), "dataset_type": "kind", "name": "out-3"}  # nothing is overwritten
    assert asked == ([given, "waited"] if starts else [given])
    complaint = capsys.readouterr().err
    assert ("app does not start: RuntimeError: Could not find `mongod`; the folder is written" in complaint) is not starts


def test_without_the_library_the_folder_is_written_and_the_extra_named(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "fiftyone", None)
    out = tmp_path / "out"
    assert main(["fiftyone", "--root", str(root), "--split", "val", "--limit", "1", "--output", str(out)]) == 0
    assert "pip install 'panoptic-detr[fiftyone]'; the folder is written" in capsys.readouterr().err
    assert len(samples_of(out)) == 1


@pytest.fixture
def twice(root, tmp_path):
    """A data set in which two images are of one file."""
    (tmp_path / "annotations").mkdir()
    for folder in ("val", "panoptic_val"):
        (tmp_path / folder).symlink_to(root / folder)
    content = json.loads((root / "annotations" / "panoptic_val.json").read_text())
    for rows, key in ((content["images"], "id"), (content["annotations"], "image_id")):
        rows.append({**rows[0], key: 77})
    (tmp_path / "annotations" / "panoptic_val.json").write_text(json.dumps(content))
    return tmp_path


def test_two_images_of_one_file_have_ids_of_their_own(twice, tmp_path):
    out = tmp_path / "out"
    assert main(["fiftyone", "--root", str(twice), "--split", "val", "--output", str(out), "--no-app", "--copy"]) == 0
    samples = samples_of(out)
    assert samples[0]["filepath"] == samples[-1]["filepath"]
    labels = [label for sample in samples for label in sample["ground_truth"]["detections"]]
    ids = [row["_id"]["$oid"] for row in (*samples, *labels)]
    assert len(set(ids)) == len(ids)


def test_copies_of_one_name_do_not_overwrite_each_other(root, data, tmp_path):
    entry = Entry("a.png", data.image(0), data.truth(0), None)
    other = tmp_path / "a.png"
    other.write_bytes(b"another")
    rows = [(entry, data.image_path(0), 1), (entry, other, 2)]
    with pytest.raises(DataError, match=r"two images want the name 'a\.png'"):
        write_fiftyone(tmp_path / "out", rows, data.categories, copy=True)
    assert not (tmp_path / "out").exists()


def test_fiftyone_itself_loads_the_folder(twice, results, tmp_path, monkeypatch):
    monkeypatch.setenv("FIFTYONE_DATABASE_DIR", str(tmp_path / "database"))
    fiftyone = pytest.importorskip("fiftyone", reason="needs FiftyOne: pip install 'panoptic-detr[fiftyone]'")
    out = tmp_path / "out"
    assert main(["fiftyone", "--root", str(twice), "--split", "val", "--output", str(out), "--no-app"]) == 0
    data = fiftyone.Dataset.from_dir(dataset_dir=str(out), dataset_type=fiftyone.types.FiftyOneDataset)
    try:
        assert data.values("image_id") == [sample["image_id"] for sample in samples_of(out)]
        for sample, written in zip(data, samples_of(out), strict=True):
            for found, label in zip(sample.ground_truth.detections, written["ground_truth"]["detections"], strict=True):
                assert (found.mask == mask_of(label)).all()
                assert (found.label, found.isthing) == (label["label"], label["isthing"])
    finally:
        data.delete()
