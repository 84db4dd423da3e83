"""The predict job from the command line: files written, messages, exit statuses."""

import json
import multiprocessing
import os
import re
import shutil
import signal
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from plain_maps import areas
from training.process_helpers import in_processes

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands import cli, evaluate, predict
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.scenes import write_films
from panoptic_detr.errors import ConfigError, DataError, EvaluationError, InputError, PictureError
from panoptic_detr.inference import PredictionFolder, rasters, shares, stream
from panoptic_detr.inference.predictor import Predictor
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.segment_maps import read_id_png
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


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_a_finished_output_is_neither_overwritten_nor_made_twice(checkpoint, photos, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [str(checkpoint), str(photos), "--output", str(out), "--device", "cpu"]
    assert predict.main(arguments) == 0
    before, content = times(out), json.loads((out / "predictions.json").read_text())
    (tmp_path / "other_ids.json").write_text(json.dumps({"images": content["images"][:1]}))
    changes = {
        "settings": ["--threshold", "0.2"],
        "precision": ["--precision", "bf16"],
        "overlays": ["--no-overlays"],
        "tiles": ["--tile", "32", "--overlap", "16"],
        "pictures": ["--like", str(tmp_path / "other_ids.json")],
    }
    for key, change in changes.items():
        values = "threshold 0.1 then, threshold 0.2 now" if key == "settings" else ".* then, .* now"
        told = (
            rf"this output was finished with other {key}: {values}; choose another output folder, or remove predictions\.json"
        )
        with pytest.raises(DataError, match=told):
            predict.main([*arguments, *change])
    assert times(out) == before
    capsys.readouterr()
    assert predict.main(arguments) == 0
    printed = capsys.readouterr().out
    assert "nothing to do: all 2 predictions are in " in printed
    assert "choose another output folder, or remove the predictions.json in it" in printed
    assert times(out) == before
    gone = sorted((out / "panoptic").iterdir())[0]
    gone.unlink()  # by hand
    assert predict.main(arguments) == 0
    assert "going on: 1 of 2 pictures" in capsys.readouterr().out
    assert gone.is_file()
    assert json.loads((out / "predictions.json").read_text()) == content
    os.utime(checkpoint, (1, 1))  # trained on
    with pytest.raises(DataError, match="finished with other weights"):
        predict.main(arguments)


def test_finished_predictions_of_unknown_settings_are_not_overwritten(tmp_path, photos, checkpoint):
    arguments = [str(checkpoint), str(photos), "--output", str(tmp_path), "--device", "cpu"]
    path, told = tmp_path / "predictions.json", "predictions are finished here, and nothing tells that these would have"
    for text in ("{}", '{"images": [], "info": {}}', "[", '{\n"info": 5\n}', '{\n"images": [\n]\n}'):  # of older versions, say
        path.write_text(text)
        with pytest.raises(DataError, match=told):
            predict.main(arguments)
        with pytest.raises(DataError, match=told), PredictionFolder(tmp_path, TABLE, made_by=None):
            pass
        assert path.read_text() == text
    made_by = {"overlays": True, "model": "mine"}
    path.write_text('{\n"info": ' + json.dumps({"made_by": made_by}) + ',\n"annotations": [\n{}\n]\n}\n')
    with (
        pytest.raises(DataError, match=r"predictions\.json: line 4 is damaged; remove the file to start anew"),
        PredictionFolder(tmp_path, TABLE, made_by={"model": "mine"}),
    ):
        pass


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


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def killed_at(arguments, where, count):
    """Run the job in a process of its own that is killed at the `count`-th call of `where`: (owner, name of a function)."""
    owner, name = where
    original, calls = getattr(owner, name), []

    def deadly(*given, **named):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*given, **named)

    def work():
        torch.set_num_threads(1)  # PyTorch's thread pool is made anew after a fork
        setattr(owner, name, deadly)
        predict.main(arguments)

    for _ in range(3):  # a copy of a process that has had threads may stand still from its beginning (CPython before 3.12)
        process = multiprocessing.get_context("fork").Process(target=work)
        process.start()
        process.join(60)
        if not process.is_alive():
            return process.exitcode
        process.kill()
        process.join()
        shutil.rmtree(arguments[-1])
    return None


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
def test_a_kill_at_any_moment_loses_nothing(checkpoint, photos, tmp_path, capsys):
    for number in range(3):
        (photos / f"c{number}.png").write_bytes((photos / "a.png").read_bytes())
    (photos / "broken.png").write_bytes(b"not a picture")
    arguments = [str(checkpoint), str(photos), "--device", "cpu", "--output"]
    assert predict.main([*arguments, str(tmp_path / "whole")]) == 1
    moments = [(PanopticSegmentation, "save"), (stream, "save_picture"), (stream, "_line"), (stream, "write_json")]
    for where in moments:
        for count in (1, 3, 4) if where[1] != "write_json" else (1,):
            out = tmp_path / f"{where[1]}{count}"
            assert killed_at([*arguments, str(out)], where, count) == -signal.SIGKILL
            with open(out / "predictions.jsonl", "ab") as lines:
                lines.write(b'{"name": "half a li')
            assert not (out / "predictions.json").exists()
            assert predict.main([*arguments, str(out)]) == 1
            assert tree(out) == tree(tmp_path / "whole")
    assert "going on: 5 of 6 pictures are there already" in capsys.readouterr().out


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_finish_the_picture_and_say_how_to_go_on(checkpoint, photos, tmp_path, monkeypatch, capsys, number):
    original = predict.predict_files

    def interrupted(*given, watch, **named):
        def watch_and_interrupt(*seen):
            os.kill(os.getpid(), number)
            watch(*seen)

        return original(*given, watch=watch_and_interrupt, **named)

    arguments = [str(checkpoint), str(photos), "--device", "cpu", "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(predict, "predict_files", interrupted)
        assert predict.main(arguments) == 128 + number
    assert "stopped after 1 of 2 pictures; the same command goes on" in capsys.readouterr().err
    assert signal.getsignal(number) is signal.SIG_DFL
    for change in (["--threshold", "0.2"], ["--precision", "bf16"], ["--no-overlays"], [str(photos / "a.png")]):
        with pytest.raises(DataError, match=r"this output was started with other (settings|precision|overlays|pictures)"):
            predict.main([*arguments, *change] if change[0][0] == "-" else [arguments[0], *change, *arguments[1:]])
    assert predict.main(arguments) == 0
    assert sorted(tree(tmp_path / "out")) == [
        "overlays/a.jpg",
        "overlays/b.jpg",
        "panoptic/a.png",
        "panoptic/b.png",
        "predictions.json",
    ]


def run_share(rank, arguments, statuses):
    statuses[rank] = predict.main(arguments)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
def test_four_processes_write_the_files_of_one(checkpoint, photos, tmp_path):
    for number in range(5):
        (photos / f"c{number}.png").write_bytes((photos / "a.png").read_bytes())
    for name in ("broken.png", "c9.png"):
        (photos / name).write_bytes(b"not a picture")
    arguments = [str(checkpoint), str(photos), "--device", "cpu", "--output"]
    statuses = multiprocessing.get_context("fork").Array("i", 4)
    in_processes(4, run_share, [*arguments, str(tmp_path / "four")], statuses)
    assert list(statuses) == [1, 0, 0, 0]
    assert predict.main([*arguments, str(tmp_path / "one")]) == 1
    assert tree(tmp_path / "four") == tree(tmp_path / "one")
    (photos / "broken.png").write_bytes((photos / "a.png").read_bytes())
    in_processes(4, run_share, [*arguments, str(tmp_path / "four")], statuses)
    assert list(statuses) == [1, 0, 0, 0]
    assert predict.main([*arguments, str(tmp_path / "again")]) == 1
    assert tree(tmp_path / "four") == tree(tmp_path / "again")
    names = [Path(row["path"]).name for row in json.loads((tmp_path / "four" / "failures.json").read_text())]
    assert names == ["c9.png"]


def port_of(monkeypatch, job, step):
    """Where the tasks of a step of a job meet."""
    monkeypatch.delenv("MASTER_PORT")
    for name, value in (("SLURM_JOB_ID", job), ("SLURM_STEP_ID", step)):
        monkeypatch.setenv(name, str(value))
    shares.join_processes()
    return int(os.environ["MASTER_PORT"])


def test_slurm_tells_each_task_its_share(monkeypatch):
    """By variables alone: a step of three tasks, two of them on a machine of this one."""
    met = []
    monkeypatch.setattr(shares.distributed, "init_process_group", lambda backend, **given: met.append((backend, given)))
    step = {"SLURM_JOB_ID": "4242", "SLURM_NODELIST": "gpu[07-08]", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3"}
    for name, value in {**step, "SLURM_PROCID": "2", "SLURM_LOCALID": "1"}.items():
        monkeypatch.setenv(name, value)
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    share = shares.join_processes()
    assert share == shares.Share(rank=2, processes=3, local_rank=1)
    assert (share.part, list(share.of(range(8)))) == ("3-of-3", [2, 5])
    assert met == [("gloo", {"rank": 2, "world_size": 3, "timeout": shares.PATIENCE})]
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", "19242")
    ports = {port_of(monkeypatch, job, step) for job in (4242, 4243) for step in range(4)}
    assert len(ports) == 8  # of steps that may run side by side
    assert all(15000 <= port < 25000 for port in ports)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")  # a batch script, or a shell of an allocation
    assert shares.join_processes() == shares.Share()


def test_only_the_loss_of_another_process_is_told_as_such(monkeypatch):
    for error, kind in (
        (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError),
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer"), DataError),
        (torch.distributed.DistNetworkError("broken pipe"), DataError),
    ):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(torch.distributed, "all_gather_object", fail)
        with pytest.raises(kind) as caught:
            shares.Share(0, 2).gather(1)
        assert (caught.value is error) == (kind is RuntimeError)


def test_an_output_belongs_to_one_process_at_a_time(tmp_path):
    with PredictionFolder(tmp_path, TABLE), pytest.raises(DataError, match="another process writes predictions here"):
        PredictionFolder(tmp_path, TABLE).__enter__()


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


def test_a_folder_of_frames_as_a_film(checkpoint, tmp_path, capsys):
    write_films(tmp_path / "films", 1, frames=3, size=48, workers=1)
    frames = str(tmp_path / "films" / "train" / "0000")
    arguments = [str(checkpoint), frames, "--device", "cpu", "--output", str(tmp_path / "out.mp4"), "--track", "--fps", "5"]
    assert predict.main(arguments) == 0
    assert "frames: 3, " in capsys.readouterr().out
    content, _ = predictions(tmp_path / "out")
    assert [i["file_name"] for i in content["images"]] == ["0000/000000.png", "0000/000001.png", "0000/000002.png"]
    assert (tmp_path / "out.mp4").stat().st_size > 500
    assert (
        predict.main([str(checkpoint), str(tmp_path / "out.mp4"), "--device", "cpu", "--output", str(tmp_path / "again")]) == 0
    )
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["overlays.mp4", "panoptic", "predictions.json"]
    with pytest.raises(ConfigError, match="films are predicted without --like, --recursive and --explain"):
        predict.main([*arguments, "--explain"])
    before = times(tmp_path)
    assert predict.main(arguments) == 0
    assert "nothing to do: all 3 predictions" in capsys.readouterr().out
    with pytest.raises(DataError, match="finished with other track"):
        predict.main([argument for argument in arguments if argument != "--track"])
    with pytest.raises(DataError, match="finished with other fps: 5 then, 6 now"):
        predict.main([*arguments, "--fps", "6"])
    with pytest.raises(ConfigError, match=r"out\.mp4 would be written over a film that is read"):
        predict.main([str(checkpoint), str(tmp_path / "out.mp4"), "--output", str(tmp_path / "out.mp4")])
    assert times(tmp_path) == before
    (tmp_path / "mine.mp4").write_bytes(b"of a camera")
    with pytest.raises(ConfigError, match=r"mine\.mp4 is there, and not of these predictions"):
        predict.main([str(checkpoint), str(tmp_path / "out.mp4"), "--output", str(tmp_path / "mine.mp4")])
    assert (tmp_path / "mine.mp4").read_bytes() == b"of a camera"
    (tmp_path / "out.mp4").unlink()
    assert predict.main(arguments) == 0
    assert (tmp_path / "out.mp4").stat().st_size > 500


def test_an_output_may_lie_in_the_folder_that_is_searched(checkpoint, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(photos)
    inside = [str(checkpoint), ".", "--recursive", "--device", "cpu", "--output"]
    for output in (".", "deep/out"):  # the second finds the pictures of the first, which are of another output
        assert predict.main([*inside, output]) == 0
        capsys.readouterr()
        assert predict.main([*inside, output]) == 0
        assert "nothing to do: all " in capsys.readouterr().out
    assert [image["file_name"] for image in predictions(photos)[0]["images"]] == ["a.png", "b.png"]
    pattern = [str(checkpoint), "**/*.png", "--device", "cpu", "--output", "deep/out"]
    with pytest.raises(DataError, match=r"finished with other pictures: 6 pictures, list .* then, 4 pictures"):
        predict.main(pattern)
    before = times(photos)
    for picture in ("panoptic/a.png", "panoptic", "panoptic/*.png"):  # would be written over
        with pytest.raises(DataError, match=r"predictions are written there; choose another output folder than"):
            predict.main([str(checkpoint), picture, "--device", "cpu", "--output", "."])
    with pytest.raises(DataError, match="predictions are written there"):
        predict.main([str(checkpoint), "panoptic", "--track", "--device", "cpu", "--output", "."])
    assert times(photos) == before


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


@pytest.fixture
def films(tmp_path):
    """Two drawn films as folders of frames, two broken ones, and something else."""
    write_films(tmp_path / "set", 2, frames=3, size=48, split="val", workers=1)
    (tmp_path / "set" / "val" / "0010.mp4").write_bytes(b"no film")
    (tmp_path / "set" / "val" / "notes").mkdir()
    (tmp_path / "set" / "val" / "0002").mkdir()
    (tmp_path / "set" / "val" / "0002" / "000000.png").write_bytes(b"no frame")
    return tmp_path / "set"


def test_films_of_a_folder_are_predicted_and_scored_in_one_call(checkpoint, films, tmp_path, capsys):
    arguments = [str(checkpoint), str(films / "val"), "--device", "cpu", "--track", "--output"]
    assert predict.main([*arguments, str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "frames: 6, " in told.out
    assert f"{films}/val/0010.mp4: not a film that OpenCV can read" in told.err
    assert f"{films}/val/0002/000000.png: not a readable image" in told.err
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert [(failure["path"], failure["image_id"]) for failure in failures] == [
        (f"{films}/val/0010.mp4", 4),
        (f"{films}/val/0002/000000.png", 3000001),
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == ["0000.mp4", "0001.mp4"]
    content, entries = predictions(tmp_path / "out")
    assert [(i["id"], i["file_name"]) for i in content["images"]][::3] == [
        (1000001, "0000/000000.png"),
        (2000001, "0001/000000.png"),
    ]
    assert entries[2000003]["file_name"] == "0001/000002.png"
    truth = ["--gt-json", str(films / "annotations" / "panoptic_val.json"), "--gt-folder", str(films / "panoptic_val")]
    results = ["--pred-json", str(tmp_path / "out" / "predictions.json"), "--pred-folder", str(tmp_path / "out" / "panoptic")]
    assert evaluate.main([*truth, *results, "--films", "--windows", "1", "3"]) == 0
    assert "2 films, 6 frames" in capsys.readouterr().out
    for frame in ("000000", "000001"):
        shutil.copy(films / "val" / "0001" / f"{frame}.png", films / "val" / "0002" / f"{frame}.png")
    drawn = times(tmp_path / "out" / "overlays")
    assert predict.main([*arguments, str(tmp_path / "out")]) == 1  # the mended one, and nothing else
    content, _ = predictions(tmp_path / "out")
    assert [i["id"] for i in content["images"]] == [1000001, 1000002, 1000003, 2000001, 2000002, 2000003, 3000001, 3000002]
    assert times(tmp_path / "out" / "overlays").items() > drawn.items()
    with pytest.raises(ConfigError, match=r"these are 3 \(each folder of frames is one\); name a folder"):
        predict.main([*arguments, str(tmp_path / "all.mp4")])
    deeper = r"no film in this folder: .*, each of them a film; there are some in its panoptic_val and val: name such a folder$"
    with pytest.raises(DataError, match=deeper):
        predict.main([str(checkpoint), str(films), "--track", "--output", str(tmp_path / "none")])
    for missing, says in ((films / "val" / "notes", "no film in this folder"), (films / "*.avi", "no film has such a name")):
        with pytest.raises(DataError, match=says):
            predict.main([str(checkpoint), str(missing), "--track", "--output", str(tmp_path / "none")])
    with pytest.raises(PictureError, match=r"none of the films could be read:\n  .*a\.mp4: there is no such film"):
        predict.main([str(checkpoint), "a.mp4", "b.mp4", "--output", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def write_film(path, frames):
    film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (48, 48))
    for number in range(frames):
        film.write(np.full((48, 48, 3), 40 * number, np.uint8))
    film.release()


def test_finished_films_that_have_changed_are_told(checkpoint, tmp_path, capsys):
    write_films(tmp_path / "set", 2, frames=2, size=48, split="val", workers=1)
    val, film = tmp_path / "set" / "val", tmp_path / "set" / "val" / "0002.avi"
    write_film(film, 2)
    arguments = [str(checkpoint), str(val), "--device", "cpu", "--track", "--output", str(tmp_path / "out")]

    def told(status):
        assert predict.main(arguments) == status
        said = capsys.readouterr()
        return said.out + said.err

    assert "frames: 6" in told(0)
    assert "nothing to do: all 6" in told(0)
    before = times(tmp_path / "out" / "overlays")
    more = Path(shutil.copy(val / "0001" / "000001.png", val / "0001" / "000002.png"))
    assert re.search(
        r"/val/0001: this film has changed since it was predicted; choose another output folder than .*out\n", told(1)
    )
    more.unlink()
    assert "frames: 6" in told(0)
    assert "nothing to do: all 6" in told(0)
    film.write_bytes(b"x")
    assert "/val/0002.avi: not a film that OpenCV can read" in told(1)
    write_film(film, 3)
    assert "/val/0002.avi: this film has changed since it was predicted" in told(1)
    assert times(tmp_path / "out" / "overlays") == before


def test_a_checkpoint_has_one_name_and_the_font_counts_where_it_is_drawn(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = predict.load_model(checkpoint, device="cpu")

    def made(name, *more):
        return predict.made_by(predict.parse([name, "a.png", "--output", "out", *more]), model, ())

    assert made("model.pt") == made("./model.pt") == made(str(checkpoint))
    assert made("detr_r50_panoptic")["checkpoint"] == "detr_r50_panoptic"
    assert made("model.pt", "--font-path", "f.ttf") == made("model.pt", "--font-path", "./f.ttf") != made("model.pt")
    assert made("model.pt", "--font-path", "f.ttf", "--no-overlays") == made("model.pt")


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
def test_two_processes_share_films(checkpoint, films, tmp_path):
    arguments = [str(checkpoint), str(films / "val"), "--device", "cpu", "--track", "--no-overlays", "--output"]
    statuses = multiprocessing.get_context("fork").Array("i", 2)
    in_processes(2, run_share, [*arguments, str(tmp_path / "two")], statuses)
    assert list(statuses) == [1, 0]
    assert predict.main([*arguments, str(tmp_path / "one")]) == 1
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
