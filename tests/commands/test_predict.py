"""The predict job from the command line: files written, messages, exit statuses."""

import json
import os

import cv2
import numpy as np
import pytest

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands import cli, predict
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.errors import ConfigError
from panoptic_detr.inference.predictor import Predictor
from panoptic_detr.segment_maps import areas, read_id_png
from panoptic_detr.zoo import build_model

TABLE = CategoryTable.from_coco([{"id": 3, "name": "cat", "isthing": 1}, {"id": 10, "name": "sky", "isthing": 0}])


@pytest.fixture
def checkpoint(tmp_path):
    model = build_model(
        "detr_r50_panoptic", num_labels=2, backbone="small", hidden_dim=32, encoder_layers=0, decoder_layers=1, num_queries=6
    )
    model.detector.class_embed.bias.data[-1] = -9.0  # never "no object"
    settings = InferenceSettings(threshold=0.1, min_area=1, short_side=64)
    return Predictor(model, TABLE, settings=settings).save(tmp_path / "model.pt")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (40, 60)), ("b.png", (60, 40))):
        picture = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), picture)
    return folder


def predictions(folder):
    content = json.loads((folder / "predictions.json").read_text())
    return content, {entry["image_id"]: entry for entry in content["annotations"]}


def test_predicts_a_folder(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "deep" / "out"
    assert predict.main([str(checkpoint), str(photos), "--output", str(out), "--device", "cpu"]) == 0
    content, entries = predictions(out)
    assert [(i["file_name"], i["height"], i["width"]) for i in content["images"]] == [("a.png", 40, 60), ("b.png", 60, 40)]
    for image in content["images"]:
        entry = entries[image["id"]]
        segment_map = read_id_png(out / "panoptic" / entry["file_name"])
        assert segment_map.shape == (image["height"], image["width"])
        assert {s["id"]: s["area"] for s in entry["segments_info"]} == areas(segment_map)
        assert entry["segments_info"]
    assert sorted(p.name for p in (out / "overlays").iterdir()) == ["a.jpg", "b.jpg"]
    printed = capsys.readouterr().out
    assert "pictures: 2, segments: " in printed
    assert str(out) in printed


def test_an_unreadable_picture_does_not_lose_the_others(checkpoint, photos, tmp_path, capsys):
    (photos / "aa.jpg").write_bytes(b"not a picture")
    pictures = [str(photos), str(photos / "gone.jpg")]
    assert predict.main([str(checkpoint), *pictures, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 1
    content, _ = predictions(tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["a.png", "b.png"]
    complaint = capsys.readouterr().err
    assert "could not be read:" in complaint
    assert "aa.jpg: not a readable image" in complaint
    assert "gone.jpg: there is no such image" in complaint


def test_where_no_picture_can_be_read_no_predictions_are_written(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert cli.main(["predict", str(checkpoint), str(photos / "gone.jpg"), "--output", str(out), "--device", "cpu"]) == 1
    complaint = capsys.readouterr().err
    assert "panoptic-detr predict: none of the pictures could be read:" in complaint
    assert "gone.jpg: there is no such image" in complaint
    assert not (out / "predictions.json").exists()


def test_explains_every_query(checkpoint, photos, tmp_path, capsys):
    arguments = [str(checkpoint), str(photos / "a.png"), "--output", str(tmp_path / "out"), "--device", "cpu", "--explain"]
    assert predict.main([*arguments, "--threshold", "0.999", "--no-overlays"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("low score") == 6
    assert "no query passed the threshold; the best score below it was 0." in printed
    assert not (tmp_path / "out" / "overlays").exists()


def test_settings_of_prediction_differ_where_the_command_line_says(checkpoint, photos, tmp_path, capsys):
    arguments = [str(checkpoint), str(photos / "a.png"), "--output", str(tmp_path / "out"), "--device", "cpu", "--explain"]
    assert predict.main([*arguments, "--inference.min_area", "100000"]) == 0
    assert "segments: 0 (none)" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"inference\.max_segments"):
        predict.main([*arguments, "--inference.max_segments", "0"])


def test_output_is_checked_before_any_work(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(predict, "load_model", lambda *_, **__: pytest.fail("the model was loaded first"))
    (tmp_path / "out").touch()
    arguments = ["predict", "model.pt", str(photos), "--output", str(tmp_path / "out")]
    assert cli.main(arguments) == 1
    assert "out: the folder cannot be made" in capsys.readouterr().err


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write everywhere")
def test_output_that_is_not_writable(photos, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o555)
    assert cli.main(["predict", "model.pt", str(photos), "--output", str(tmp_path / "out")]) == 1
    assert "choose another output folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("checkpoint_name", "message"),
    [("missing.pt", "no checkpoint at"), ("detr_r50_panoptik", "there is no model 'detr_r50_panoptik'")],
)
def test_one_message_for_a_wrong_checkpoint(photos, tmp_path, capsys, checkpoint_name, message):
    assert cli.main(["predict", checkpoint_name, str(photos), "--output", str(tmp_path / "out")]) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith("panoptic-detr predict: ")
    assert message in complaint
    assert "Traceback" not in complaint


def test_batches_give_the_same_files(checkpoint, photos, tmp_path, monkeypatch):
    original = predict.load_model
    for size in (1, 2):

        def load(*arguments, size=size, **options):
            predictor = original(*arguments, **options)
            predictor.batch_size = size
            return predictor

        monkeypatch.setattr(predict, "load_model", load)
        pictures = [str(photos / "a.png"), str(photos / "a.png"), str(photos / "b.png")]
        assert predict.main([str(checkpoint), *pictures, "--output", str(tmp_path / str(size)), "--device", "cpu"]) == 0
    one, two = (predictions(tmp_path / name)[0] for name in "12")
    assert [e["file_name"] for e in one["annotations"]] == ["a.png", "a_2.png", "b.png"]
    assert one["images"] == two["images"]
    for first, second in zip(one["annotations"], two["annotations"], strict=True):
        maps = [read_id_png(tmp_path / n / "panoptic" / first["file_name"]) for n in "12"]
        assert first["file_name"] == second["file_name"]
        assert (maps[0] == maps[1]).mean() > 0.99
