"""What users mistype or mislay: each is one line that names it and the way out, before any work is done."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from panoptic_detr.commands import cli, convert_checkpoint, data, evaluate, train_detector, train_masks, visualize
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.errors import CheckpointError, DataError
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from panoptic_detr.weights.open import check_source, open_model, open_source
from panoptic_detr.zoo import ModelSpec, build_model
from tools.benchmarks import __main__ as benchmark

FORMATS = ("coco-instances", "semantic-instance", "cityscapes", "instance-masks", "labelme", "to-instances", "to-semantic")
USAGES = [
    (data, "data", ()),
    *((data, "data", (job,)) for job in ("check", "scenes", "convert")),
    *((data, "data", ("convert", name)) for name in FORMATS),
    (benchmark, "benchmark", ()),
    *((benchmark, "benchmark", (job,)) for job in benchmark.JOBS),
    (visualize, "visualize", ()),
    *((visualize, "visualize", (job,)) for job in visualize.JOBS),
    (train_detector, "train_detector", ()),
    (train_masks, "train_masks", ()),
    (evaluate, "evaluate", ()),
    (convert_checkpoint, "convert_checkpoint", ()),
]


def complaint(capsys, *arguments):
    """The one line that a command fails with."""
    assert cli.main([str(argument) for argument in arguments]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error.splitlines()[-1]


@pytest.mark.parametrize(("tool", "name", "jobs"), USAGES, ids=lambda value: str(value)[:30])
def test_usage_is_what_can_be_typed(tool, name, jobs, capsys):
    with pytest.raises(SystemExit) as ended:
        tool.main([*jobs, "--help"])
    assert ended.value.code == 0
    usage = " ".join(capsys.readouterr().out.split())
    assert usage.startswith(" ".join(["usage: panoptic-detr", name, *jobs, ""]))


@pytest.mark.parametrize("option", ["--detector", "--model.weights"])
def test_a_missing_file_is_not_taken_for_a_model_name(option, capsys):
    more = ["--detector", "detr_r50"] if option == "--model.weights" else []
    for name in ("nope.pt", "runs/nope", "nope.pth", "nope.safetensors"):
        line = complaint(capsys, "train_masks", *more, option, name)
        assert line == f"panoptic-detr train_masks: no checkpoint at '{name}': there is no such file"
    assert complaint(capsys, "train_detector", "--model.weights", "nope.pt").endswith("there is no such file")


def test_a_folder_is_no_checkpoint_but_may_hold_one(tmp_path):
    with pytest.raises(CheckpointError, match=r"that is a folder; it holds no best\.pt"):
        check_source(str(tmp_path))
    (tmp_path / "best.pt").touch()
    for read in (check_source, open_model, load_checkpoint):
        with pytest.raises(CheckpointError, match=r"that is a folder; name the file: .*best\.pt"):
            read(str(tmp_path))
    check_source(str(tmp_path / "best.pt"))


def test_a_folder_does_not_hide_the_published_model_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("panoptic_detr.weights.open.load_published", lambda name: Checkpoint(ModelSpec(name, 91), {}))
    (tmp_path / "detr_r50").mkdir()
    (tmp_path / "run").mkdir()
    check_source("detr_r50")
    assert open_source("detr_r50").model.name == "detr_r50"
    with pytest.raises(CheckpointError, match="no checkpoint at 'run': that is a folder"):
        open_model("run")


@pytest.mark.parametrize("model", [[], ["--model", "detr_r50"]])
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is empty"),
        (b"{}", "is neither a PyTorch archive nor a pickle"),
        (b"\x01" * 99, "is neither a PyTorch archive nor a pickle"),
        (b"PK\x03\x04", "is cut short"),
    ],
)
def test_garbage_is_no_checkpoint(tmp_path, capsys, content, reason, model):
    (tmp_path / "garbage.pth").write_bytes(content)
    line = complaint(capsys, "convert_checkpoint", tmp_path / "garbage.pth", tmp_path / "out.pt", *model)
    assert reason in line
    assert ".." not in line
    assert "weights_only" not in line  # PyTorch's advice is to open the file unsafely
    assert not (tmp_path / "out.pt").exists()


@pytest.mark.parametrize("model", [[], ["--model", "detr_r50"]])
def test_a_file_that_holds_code_is_named(tmp_path, capsys, model):
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pth")
    line = complaint(capsys, "convert_checkpoint", tmp_path / "whole.pth", tmp_path / "out.pt", *model)
    assert "is not opened, because it could run code (it names torch.nn.modules.linear.Linear)" in line
    assert "weights_only" not in line


def test_the_number_of_labels_is_no_override(tmp_path, capsys):
    (tmp_path / "a.pth").touch()
    given = ["--model", "detr_r50", "--overrides", '{"num_labels": 3}']
    assert "give --num-labels" in complaint(capsys, "convert_checkpoint", tmp_path / "a.pth", tmp_path / "b.pth", *given)
    with pytest.raises(ValueError, match="the number of classes is 'num_labels'"):
        build_model("detr_r50", num_classes=3)


def test_a_split_of_scenes_is_not_overwritten(tmp_path):
    first = write_scenes(tmp_path, 2, size=48, workers=1).read_bytes()
    with pytest.raises(DataError, match=r"train is there already; choose another output folder or split"):
        write_scenes(tmp_path, 1, size=48, seed=1, workers=1)
    assert (tmp_path / "annotations" / "panoptic_train.json").read_bytes() == first
    write_scenes(tmp_path, 1, size=48, split="val", workers=1)


def test_calibration_of_a_detector_is_refused_by_name(tmp_path, capsys):
    tiny = {"backbone": "small", "hidden_dim": 32, "encoder_layers": 0, "decoder_layers": 1, "num_queries": 2}
    model = build_model("detr_r50", num_labels=91, **tiny)
    path = save_checkpoint(tmp_path / "boxes.pt", Checkpoint(model.spec, model.state_dict()))
    line = complaint(capsys, "evaluate", path, "--calibrate", "--store", "--device", "cpu", "--data.root", tmp_path)
    assert f"{path} is a detector without a mask head, so it has no PQ to calibrate; train the head first" in line


def test_thresholds_are_stored_in_files_that_are_there(capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(["gone.pt", "--calibrate", "--store"])
    assert "keeps what --calibrate finds in a checkpoint file, and 'gone.pt' is none" in capsys.readouterr().err


def test_a_report_says_at_once_what_it_lacks(tmp_path, capsys):
    report = ["visualize", "report"]
    gone = complaint(capsys, *report, "gone", "--output", tmp_path / "r.html")
    assert "there is no model 'gone'" in gone
    gone = complaint(capsys, *report, "gone.json", "--output", tmp_path / "r.html")
    assert "gone.json: there is no such results JSON to report on" in gone
    assert "no best.pt in this folder" in complaint(capsys, *report, tmp_path, "--output", tmp_path / "r.html")
    (tmp_path / "best.pt").touch()
    line = complaint(capsys, *report, tmp_path, "--output", tmp_path)
    assert f"{tmp_path} is a folder; name the file to write the report to" in line


def test_a_sweep_without_an_ending_stops_before_the_work(tmp_path, capsys):
    line = complaint(capsys, "visualize", "sweep", "--model", "gone.pt", "--output", tmp_path / "sweep")
    assert "pictures are written as .png, .jpg or .jpeg, not without an ending" in line


def test_opencv_does_not_print_beside_our_errors(tmp_path):
    data = cv2.imencode(".png", np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))[1].tobytes()
    (tmp_path / "cut.png").write_bytes(data[:2000])
    job = "import sys, types; m = types.ModuleType('job'); sys.modules['panoptic_detr.commands.predict'] = m\n"
    job += f"def main(argv):\n from panoptic_detr.images import read_image\n read_image({str(tmp_path / 'cut.png')!r})\n"
    job += "m.main = main\nfrom panoptic_detr.commands import cli\nsys.exit(cli.main(['predict']))"
    done = subprocess.run([sys.executable, "-c", job], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [done.stderr.strip()]
    assert "cut.png: not a readable image" in done.stderr
