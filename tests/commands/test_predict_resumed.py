"""The predict job goes on where it stopped, makes nothing twice, and shares its pictures among processes."""

import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from commands.prediction_helpers import TABLE, predictions, run_share, times, tree
from training.process_helpers import in_processes

from panoptic_detr.commands import predict
from panoptic_detr.errors import DataError
from panoptic_detr.inference import PredictionFolder, shares, stream
from panoptic_detr.panoptic import PanopticSegmentation


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


def test_a_checkpoint_has_one_name_and_the_font_counts_where_it_is_drawn(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = predict.load_model(checkpoint, device="cpu")

    def made(name, *more):
        return predict.made_by(predict.parse([name, "a.png", "--output", "out", *more]), model, ())

    assert made("model.pt") == made("./model.pt") == made(str(checkpoint))
    assert made("detr_r50_panoptic")["checkpoint"] == "detr_r50_panoptic"
    assert made("model.pt", "--font-path", "f.ttf") == made("model.pt", "--font-path", "./f.ttf") != made("model.pt")
    assert made("model.pt", "--font-path", "f.ttf", "--no-overlays") == made("model.pt")
