"""What users mistype or mislay: each is one line that names it and the way out, before any work is done."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

import panoptic_detr as pd
from panoptic_detr.commands import cli, convert_checkpoint, data, evaluate, train_detector, train_masks, visualize
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.errors import CheckpointError, DataError, InputError
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


def test_addresses_are_to_be_fetched_first(tmp_path, capsys):
    address = "https://host/a.jpg"
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    for arguments in ((tmp_path / "best.pt", address), ("https://host/best.pt", tmp_path), (tmp_path, address, "--track")):
        line = complaint(capsys, "predict", *arguments, "--output", tmp_path / "out")
        assert "'https://host/" in line
        assert line.endswith("is an address (https), and only files of this machine are read and written: fetch it first")
    assert not (tmp_path / "out").exists()


def test_a_drawing_that_is_refused_leaves_no_folder(tmp_path, capsys):
    write_scenes(tmp_path / "scenes", 1, size=48, workers=1)
    drawn = ["visualize", "coco", "--root", tmp_path / "scenes", "--split", "train", "--scale", 100000]
    line = complaint(capsys, *drawn, "--output", tmp_path / "deep" / "out")
    assert "scale must be a whole number from 1 that leaves no side longer than 16384 pixels, but got 100000" in line
    truth = ["--gt-json", "gone.json", "--gt-folder", tmp_path, "--pred-json", "gone.json", "--pred-folder", tmp_path]
    assert "gone.json" in complaint(capsys, "evaluate", *truth, "--output", tmp_path / "scores")
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_an_output_that_is_no_name_is_told(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    assert "is no name that a file can have" in complaint(capsys, "predict", "best.pt", tmp_path, "--output", "o\0b")


def test_a_link_to_itself_is_no_checkpoint(tmp_path, capsys):
    (tmp_path / "loop.pt").symlink_to("loop.pt")
    assert "there is no such file" in complaint(capsys, "convert_checkpoint", tmp_path / "loop.pt", tmp_path / "out.pt")


@pytest.mark.parametrize("ending", [".onnx", ".pt", ""])
def test_a_name_of_thousands_of_letters_is_no_model(ending):
    for letters in (300, 3000, 5000):
        with pytest.raises(InputError, match=r"^.{0,99}(is no name that a file can have|but got 'a{50,60})"):
            pd.load_model("a" * letters + ending)


def test_an_exported_file_has_its_own_precision(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "m.onnx").write_bytes(b"")
    file = tmp_path / "m.onnx"
    for job in (["predict", file, tmp_path, "--output", tmp_path / "out"], ["evaluate", file, "--data.root", tmp_path]):
        line = complaint(capsys, *job, "--precision", "bf16")
        assert "m.onnx is an exported file, which keeps the precision that it was written with: leave out bf16" in line


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("accelerator", "tpu", "train.accelerator: there is no device 'tpu'; give auto, cpu, cuda"),
        ("accelerator", "xla", "train.accelerator: device 'xla' is not available on this machine"),
        ("accelerator", "nothing", "train.accelerator: there is no device 'nothing'"),
        ("threads", "100000", "train.threads is 100000, but this machine has"),
    ],
)
def test_hardware_that_is_not_here_is_refused_before_the_run(tmp_path, capsys, setting, value, message):
    line = complaint(capsys, "train_detector", "--train.output", tmp_path / "run", f"--train.{setting}", value)
    assert message in line
    assert not (tmp_path / "run").exists()


def test_a_batch_of_nothing_is_refused_as_a_setting(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train_detector", "--train.batch_size", "0"])
    assert "setting 'train.batch_size' must be at least 1, but got 0" in capsys.readouterr().err
