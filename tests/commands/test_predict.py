"""The predict job from the command line: files written, messages, exit statuses."""

import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
from commands.prediction_helpers import predictions, tree
from plain_maps import areas

from panoptic_detr.commands import cli, predict
from panoptic_detr.errors import ConfigError, EvaluationError, InputError
from panoptic_detr.inference import rasters
from panoptic_detr.inference.predictor import Predictor
from panoptic_detr.segment_maps import read_id_png


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
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert [(f["path"], f["image_id"]) for f in failures] == [(f"{photos}/aa.jpg", 2), (f"{photos}/gone.jpg", 4)]
    assert failures[1]["reason"].startswith("there is no such image")
    before = tree(tmp_path / "out")
    (photos / "aa.jpg").write_bytes((photos / "a.png").read_bytes())
    assert predict.main([str(checkpoint), *pictures, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert "going on: 2 of 4 pictures are there already" in capsys.readouterr().out
    after = tree(tmp_path / "out")
    assert after.keys() - before.keys() == {"panoptic/aa.png", "overlays/aa.jpg"}
    content, entries = predictions(tmp_path / "out")
    assert [(image["id"], image["file_name"]) for image in content["images"]] == [(1, "a.png"), (2, "aa.jpg"), (3, "b.png")]
    assert [entries[i]["file_name"] for i in (1, 2, 3)] == ["a.png", "aa.png", "b.png"]
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert [failure["path"] for failure in failures] == [f"{photos}/gone.jpg"]


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


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--device", ""), "--device is empty"),
        (("--overlap", "64"), "--overlap 64 means nothing without --tile"),
        (("--threshold", "2"), "inference.threshold"),
        (("--device", "quantum"), "there is no device 'quantum'"),
    ],
)
def test_a_refusal_before_the_first_picture_leaves_no_folder(checkpoint, photos, tmp_path, options, says):
    with pytest.raises(InputError, match=says):
        predict.main([str(checkpoint), str(photos), "--output", str(tmp_path / "deep" / "out"), *options])
    assert not (tmp_path / "deep").exists()


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


def test_pictures_that_do_not_fit_and_names_that_cannot_be_written_are_passed_over(
    checkpoint, photos, tmp_path, monkeypatch, capsys
):
    picture = (photos / "a.png").read_bytes()
    with open(os.fsencode(photos) + b"/\xff.png", "wb") as file:
        file.write(picture)
    original = Predictor.__call__

    def small_memory(self, pictures):
        if any(len(image) == 60 for image in pictures):
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to")
        return original(self, pictures)

    monkeypatch.setattr(Predictor, "__call__", small_memory)
    assert predict.main([str(checkpoint), str(photos), "--output", str(tmp_path / "out"), "--device", "cpu"]) == 1
    content, _ = predictions(tmp_path / "out")
    assert [image["file_name"] for image in content["images"]] == ["a.png"]
    complaint = capsys.readouterr().err
    assert "b.png: too large for the memory" in complaint
    assert "\\xff.png: the name is not UTF-8" in complaint


def test_ids_and_names_of_a_ground_truth_and_folders_in_folders(checkpoint, photos, tmp_path, capsys):
    (photos / "in").mkdir()
    (photos / "a.png").rename(photos / "in" / "a.png")
    rows = [{"id": "x7", "file_name": "b.jpg"}, {"id": 5, "file_name": "val/in/a.jpg"}, {"id": 6, "file_name": "gone.jpg"}]
    (photos / "c.png").write_bytes((photos / "b.png").read_bytes())
    (tmp_path / "gt.json").write_text(json.dumps({"images": rows}))
    arguments = [str(checkpoint), str(photos), "--device", "cpu", "--recursive", "--output"]
    assert predict.main([*arguments, str(tmp_path / "like"), "--like", str(tmp_path / "gt.json")]) == 0
    content, _ = predictions(tmp_path / "like")
    assert [(i["id"], i["file_name"]) for i in content["images"]] == [("x7", "b.jpg"), (5, "val/in/a.jpg")]
    assert [(a["image_id"], a["file_name"]) for a in content["annotations"]] == [("x7", "b.png"), (5, "in/a.png")]
    printed = capsys.readouterr().out
    assert "left out: 1 pictures" in printed
    assert "no picture is there for 1 of the 3 images" in printed
    assert predict.main([*arguments, str(tmp_path / "all")]) == 0
    content, _ = predictions(tmp_path / "all")
    assert [i["file_name"] for i in content["images"]] == ["b.png", "c.png", "in/a.png"]
    (tmp_path / "gt.json").write_text(json.dumps({"images": rows[2:]}))
    with pytest.raises(EvaluationError, match="none of its 1 images has the name of one of the 3 pictures"):
        predict.main([*arguments, str(tmp_path / "none"), "--like", str(tmp_path / "gt.json")])


def test_tiles_of_large_pictures(checkpoint, photos, tmp_path, capsys):
    tifffile = pytest.importorskip("tifffile")
    arguments = [str(checkpoint), str(photos), "--device", "cpu", "--output", str(tmp_path / "out"), "--tile", "32"]
    with pytest.raises(InputError, match="overlap by 2 to half of them, but got 32 and 17"):
        predict.main([*arguments, "--overlap", "17"])
    assert predict.main([*arguments, "--tiff"]) == 0  # by half of a tile
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())["info"]["made_by"]["tiles"] == [32, 16]
    assert "predictions.json, panoptic/, overlays/, tiff/\n" in capsys.readouterr().out
    content, entries = predictions(tmp_path / "out")
    assert [(i["height"], i["width"]) for i in content["images"]] == [(40, 60), (60, 40)]
    for entry in entries.values():
        ids = read_id_png(tmp_path / "out" / "panoptic" / entry["file_name"])
        assert {s["id"]: s["area"] for s in entry["segments_info"]} == {i: area for i, area in areas(ids).items() if i}
        assert (tifffile.imread((tmp_path / "out" / "tiff" / entry["file_name"]).with_suffix(".tif")) == ids).all()


def test_id_maps_as_tiff_without_tifffile_are_refused_at_once(checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(rasters, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"--tiff\) need tifffile; install it: pip install 'panoptic-detr\[large\]'"):
        predict.main([str(checkpoint), str(photos), "--output", str(tmp_path / "out"), "--tiff"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["", "--output", "out"], "argument pictures: is empty; give a path, or . for the current folder"),
        (["a.png", "--output", " "], "argument --output: is empty"),
        (["x" * 300 + ".jpg", "--output", "out"], "is no name that a file can have"),
        (
            ["pack.tar.gz", "--output", "out"],
            "pack.tar.gz: not a readable tar file .*; shards must be whole and not compressed",
        ),
        (
            ["a.png", "--output", "out.PNG"],
            "out.PNG: maps, overlays and a JSON are written to a folder, and this is the name of a",
        ),
        (["a.png", "--track", "--output", "out"], "a.png: a picture among films; predict pictures by themselves"),
        (["frames", "--track", "--output", "used.mp4"], "used.mp4 is a folder, and would be an overlay film"),
        (["a.png", "--output", "damaged"], "damaged/predictions.jsonl: line 1 is damaged; remove the file to start anew"),
    ],
)
def test_what_cannot_be_predicted_is_said_in_one_message(checkpoint, photos, monkeypatch, capsys, given, says):
    monkeypatch.chdir(photos)
    for folder in ("used.mp4", "frames", "damaged"):
        Path(folder).mkdir()
    shutil.copy("a.png", "frames/1.png")
    Path("pack.tar.gz").write_bytes(b"\x1f\x8b" + bytes(600))
    Path("damaged/predictions.jsonl").write_text('{"made_by": 5}\n')
    with suppress(SystemExit):
        assert cli.main(["predict", str(checkpoint), *given, "--device", "cpu"]) == 1
    complaint = capsys.readouterr().err
    assert re.search(says, complaint)
    assert "Traceback" not in complaint
    assert not Path("out").exists()
