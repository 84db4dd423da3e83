"""The evaluate job: both forms, what it prints and writes, and what it says of bad input."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.process_helpers import in_processes

from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.commands import cli, evaluate
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.scenes.dataset import scene_categories, write_scenes
from panoptic_detr.errors import ConfigError
from panoptic_detr.evaluation import calibrate_thresholds
from panoptic_detr.inference import Share
from panoptic_detr.weights.checkpoints import Checkpoint, save_checkpoint
from panoptic_detr.weights.open import choose_device, open_model
from panoptic_detr.zoo import build_model

PQ_DATA = Path(__file__).parents[1] / "parity" / "data" / "pq" / "mixed"
TINY = {
    "backbone": "small",
    "hidden_dim": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "ffn_dim": 32,
    "num_queries": 12,
}
SETTINGS = InferenceSettings(threshold=0.05, short_side=48, long_side=64).to_dict()


def file_options(folder=PQ_DATA):
    names = {"gt-json": "gt.json", "gt-folder": "gt", "pred-json": "pred.json", "pred-folder": "pred"}
    return [word for name, file in names.items() for word in (f"--{name}", str(folder / file))]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 3, size=48, seed=1, split="val", workers=1)
    return root


def write_checkpoint(path, name, categories):
    torch.manual_seed(0)
    model = build_model(name, num_labels=categories.num_labels, **TINY)
    return str(save_checkpoint(path, Checkpoint(model.spec, model.state_dict(), categories, SETTINGS)))


def test_prediction_files(capsys, tmp_path):
    assert cli.main(["evaluate", *file_options(), "--per-class", "--output", str(tmp_path / "scores")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "│ All    │ 40.0 │ 72.8 │ 54.6 │ 16 │" in out
    assert "│ toothbrush " in out
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    expected = json.loads((PQ_DATA / "expected.json").read_text())
    assert scores["All"] == pytest.approx(expected["All"], abs=1e-12)
    assert (tmp_path / "scores" / "classes.csv").read_text().count("\n") == 17
    assert not (tmp_path / "scores" / "ap.csv").exists()


def test_a_panoptic_checkpoint(capsys, tmp_path, scenes):
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    options = ["--data.root", str(scenes), "--data.split", "val", "--output", str(tmp_path / "scores"), "--device", "cpu"]
    assert cli.main(["evaluate", checkpoint, *options]) == 0
    out, _ = capsys.readouterr()
    assert "Panoptic quality, 3 images" in out
    assert "│ boxes │" in out
    assert "│ masks │" in out
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["images"] == 3
    assert 0 <= scores["All"]["pq"] <= 1
    assert scores["All"]["n"] > 0
    assert scores["mask_ap"]["ap"] is not None


def score_share(rank, arguments):
    assert evaluate.main(arguments) == 0


def contents(folder):
    return {path.name: path.read_text() for path in sorted(folder.iterdir())}


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
def test_two_processes_write_the_scores_of_one(tmp_path, scenes):
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    given = [checkpoint, "--data.root", str(scenes), "--data.split", "val", "--device", "cpu", "--output"]
    in_processes(2, score_share, [*given, str(tmp_path / "two")])
    assert evaluate.main([*given, str(tmp_path / "one")]) == 0
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert contents(tmp_path / "one").keys() == {"ap.csv", "classes.csv", "scores.json"}


def test_in_several_processes_files_are_scored_by_the_first_and_none_calibrates(tmp_path, scenes, monkeypatch, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    monkeypatch.setattr(evaluate, "join_processes", lambda: Share(1, 2))
    for given in (["--films"], []):
        assert evaluate.main([*file_options(), *given, "--output", str(tmp_path / "scores")]) == 0
    assert (capsys.readouterr().out, (tmp_path / "scores").exists()) == ("", False)
    with pytest.raises(ConfigError, match="--calibrate is for a checkpoint, in one process, and here are 2"):
        evaluate.main([checkpoint, "--data.root", str(scenes), "--data.split", "val", "--calibrate"])


def test_options_of_a_checkpoint_reach_the_evaluation(tmp_path, scenes):
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    places = ["--data.images", str(scenes / "val"), "--data.panoptic", str(scenes / "panoptic_val")]
    places += ["--data.annotations", str(scenes / "annotations" / "panoptic_val.json"), "--data.limit", "2"]
    options = evaluate.parse([checkpoint, *places, "--threshold", "1", "--ap", "none", "--device", "cpu"])
    scores = evaluate.score_checkpoint(options)
    assert scores.images == scores.panoptic.images == 2
    assert scores.things is None
    assert scores.panoptic.all.pq == 0.0
    assert all(quality.tp == quality.fp == 0 for quality in scores.panoptic.per_class.values())


def test_settings_of_prediction_differ_where_the_command_line_says(tmp_path, scenes, monkeypatch):
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    seen = []
    monkeypatch.setattr(evaluate, "evaluate_model", lambda model, dataset, **rest: seen.append((dataset, rest["settings"])))
    given = ["--inference.short_side", "null", "--inference.min_visible", "5e-1", "--threshold", "0.2"]
    evaluate.score_checkpoint(
        evaluate.parse([checkpoint, "--data.root", str(scenes), "--data.split", "val", *given, "--stuff-threshold", "0.1"])
    )
    ((dataset, settings),) = seen
    assert settings == replace(
        InferenceSettings.from_dict(SETTINGS), short_side=None, min_visible=0.5, threshold=0.2, stuff_threshold=0.1
    )
    assert dataset[0].image.shape == (3, 48, 48)


def test_a_detector_is_scored_by_boxes(capsys, tmp_path, scenes):
    checkpoint = write_checkpoint(tmp_path / "boxes.pt", "detr_r50", scene_categories())
    assert cli.main(["evaluate", checkpoint, "--data.root", str(scenes), "--data.split", "val", "--device", "cpu"]) == 0
    out, _ = capsys.readouterr()
    assert "│ boxes │" in out
    assert "Panoptic quality" not in out
    assert f"{checkpoint} is a detector without a mask head: box AP only" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [],
            "a folder of predictions and its truth (--gt-json, --gt-folder, --pred-json, --pred-folder missing)",
        ),
        ([*file_options()[:4], "--compare", "a", "b", "--boundary"], "leave --boundary and --intervals out"),
        (file_options()[:-4], "(--pred-json, --pred-folder missing)"),
        (["model.pt", *file_options()[:2]], "give a checkpoint or prediction files, not both"),
        (["model.pt", "--ap", "boxen"], "invalid choice: 'boxen'"),
        ([*file_options(), "--inference.min_area", "9"], "--inference.*: such are settings of a checkpoint"),
        (
            [*file_options(), "--threshold", "0.5"],
            "--threshold: such are settings of a checkpoint; prediction files are scored",
        ),
        ([*file_options()[:4], "--compare", "a", "b", "--data.images", "x", "--ap", "none"], "--ap: such are settings of a"),
        (["--data.root", "scenes"], "give a checkpoint, or a folder of predictions and its truth"),
        (
            ["m.xml", "--ap", "masks"],
            "--ap masks: m.xml is an exported file, which gives maps and no boxes and masks of single",
        ),
        (["m.pt", "--inference.short_side", "big"], "--inference.short_side: must be int or null, but got 'big'"),
        (["m.pt", "--inference.duplicate_stuff", "both"], "must be one of union, keep_first, but got 'both'"),
        (["m.pt", "--inference.min_visible", "{"], "--inference.min_visible: must be float, but got '{'"),
        (["m.pt", "--inference.short_side", ""], "--inference.short_side: must be int or null, but got ''"),
    ],
)
def test_a_wrong_command_line(options, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main(options)
    assert message in " ".join(capsys.readouterr().err.split())


def failing(arguments, capsys):
    """Run and give the one line that it prints about the failure."""
    assert cli.main(["evaluate", *arguments]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_a_folder_of_predictions_in_place_of_a_checkpoint(tmp_path, capsys):
    (tmp_path / "predictions.json").touch()
    with pytest.raises(SystemExit):
        evaluate.main([str(tmp_path), "--data.root", "scenes"])
    asked = f"--pred-json {tmp_path} --gt-json FILE --gt-folder DIR"
    assert f"holds predictions; score them with {asked}" in " ".join(capsys.readouterr().err.split())


def test_a_folder_of_a_run_in_place_of_a_checkpoint(tmp_path, scenes, capsys):
    (tmp_path / "best.pt").touch()
    assert f"that is a folder; name the file: {tmp_path / 'best.pt'}" in failing(
        [str(tmp_path), "--data.root", str(scenes)], capsys
    )


def test_a_folder_with_the_name_of_a_published_model_is_no_obstacle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "detr_r50_panoptic").mkdir()
    assert evaluate.parse(["detr_r50_panoptic", "--data.root", "coco"]).checkpoint == "detr_r50_panoptic"


def test_a_folder_of_predictions_stands_for_its_json(tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    shutil.copy(PQ_DATA / "pred.json", out / "predictions.json")
    shutil.copytree(PQ_DATA / "pred", out / "panoptic")
    truth = ["evaluate", *file_options()[:4]]
    assert cli.main([*truth, "--pred-json", str(out), "--pred-folder", str(out / "panoptic")]) == 0
    assert "│ All    │ 40.0 │" in capsys.readouterr().out
    assert cli.main([*truth, "--compare", str(out), str(PQ_DATA / "pred.json")]) == 0
    capsys.readouterr()
    told = failing([*file_options()[:4], "--compare", str(PQ_DATA), str(out)], capsys)
    assert f"{PQ_DATA}: this is a folder; name the JSON itself, such as {PQ_DATA / 'expected.json'}" in told


def test_bad_predictions_are_one_line(capsys, tmp_path):
    folder = shutil.copytree(PQ_DATA, tmp_path / "data")
    (folder / "pred" / "000000001003.png").write_bytes(b"no picture")
    line = failing(file_options(folder), capsys)
    assert line.startswith("panoptic-detr evaluate: image 1003: ")
    assert "000000001003.png: not a readable picture" in line


def test_settings_out_of_their_range_are_one_line(capsys, tmp_path, scenes):
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    for name, value in (("min_visible", "2"), ("min_area", "-5")):
        arguments = [checkpoint, "--data.root", str(scenes), "--data.split", "val", f"--inference.{name}", value]
        assert f"inference.{name}" in failing(arguments, capsys)


def test_other_bad_input_is_one_line(capsys, tmp_path, scenes):
    checkpoint = write_checkpoint(tmp_path / "boxes.pt", "detr_r50", scene_categories())
    assert "the data set is not fully named: give a root folder and a split" in failing([checkpoint], capsys)
    nowhere = ["--data.root", str(tmp_path / "nowhere")]
    assert "nowhere" in failing([checkpoint, *nowhere], capsys)
    (tmp_path / "broken.pt").write_bytes(b"PK nothing")
    assert "broken.pt" in failing([str(tmp_path / "broken.pt"), "--data.root", str(scenes), "--data.split", "val"], capsys)
    (tmp_path / "file").write_text("")
    assert "file" in failing([*file_options(), "--output", str(tmp_path / "file" / "scores")], capsys)


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [
        *(("cuda:3", "cuda:3"), ("3", "cuda:3"), ("cuda", "cuda:1"), ("gpu", "cuda:1"), ("GPU:0", "cuda:0")),
        *(("auto", "cuda:1"), ("", "cuda:1"), ("CPU", "cpu"), (torch.device("cpu"), "cpu")),
    ],
)
def test_devices(wanted, chosen, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert choose_device(wanted, local_rank=1) == torch.device(chosen)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("cuda:9", "device 'cuda:9' is not available on this machine; use 'cpu' or 'auto'"),
        ("0", "device '0' is not available"),
        ("tpu", "there is no device 'tpu'; give auto, cpu, cuda"),
        ("-1", "there is no device '-1'"),
        ("cuda:x", "there is no device 'cuda:x'"),
    ],
)
def test_devices_that_are_not_there(wanted, message, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        choose_device(wanted)
    assert choose_device("auto") == torch.device("cpu")


def test_a_detector_that_does_not_say_its_classes(tmp_path):
    model = build_model("detr_r50", num_labels=4, **TINY)
    path = save_checkpoint(tmp_path / "nameless.pt", Checkpoint(model.spec, model.state_dict()))
    with pytest.raises(ValueError, match=r"nameless\.pt' does not say what its 4 labels mean; convert it with --categories"):
        open_model(str(path))


@pytest.mark.parametrize("name", ["detr_r50", "detr_r50_panoptic"])
def test_a_model_is_optimised_once(name, tmp_path, monkeypatch):
    calls = []
    for module in ("panoptic_detr.weights.open", "panoptic_detr.inference.predictor"):
        monkeypatch.setattr(f"{module}.optimize_for_inference", lambda model, **_: calls.append(model) or model.eval())
    opened = open_model(write_checkpoint(tmp_path / "model.pt", name, scene_categories())).on(torch.device("cpu"))
    assert calls == [opened.model]
    assert opened.panoptic == name.endswith("_panoptic")
    assert opened.settings.short_side == 48


def test_a_converted_published_detector_is_known_by_its_label_slots(tmp_path):
    model = build_model("detr_r50", num_labels=91, **TINY)
    path = save_checkpoint(tmp_path / "converted.pt", Checkpoint(model.spec, model.state_dict()))
    assert open_model(str(path)).categories == coco_categories(91)


def test_calibrated_thresholds_are_stored_with_the_checkpoint(scenes, tmp_path, monkeypatch, capsys):
    found = evaluate.calibrate_thresholds
    monkeypatch.setattr(evaluate, "calibrate_thresholds", lambda *a, **k: replace(found(*a, **k), quality=0.5))  # untrained: 0
    checkpoint = write_checkpoint(tmp_path / "model.pt", "deformable_detr_r50_panoptic", scene_categories())
    data = ["--data.root", str(scenes), "--data.split", "val", "--device", "cpu", "--ap", "none"]
    assert cli.main(["evaluate", checkpoint, *data, "--calibrate", "--store"]) == 0
    printed = capsys.readouterr().out
    assert "best thresholds on 3 images: " in printed
    assert f"stored in {checkpoint}" in printed
    kept = open_model(checkpoint).settings
    assert f"{kept.threshold:g} for things, {kept.stuff_threshold:g} for stuff" in printed
    assert (kept.short_side, kept.long_side, kept.min_visible) == (48, 64, 0.0)
    assert cli.main(["evaluate", checkpoint, *data, "--calibrate", "--store", "--inference.min_visible", "0.25"]) == 0
    assert open_model(checkpoint).settings.min_visible == 0.25


def test_calibration_runs_as_the_evaluation_does(scenes, tmp_path, monkeypatch):
    asked = {}

    def watched(*arguments, **options):
        asked.update(options)
        return calibrate_thresholds(*arguments, **options)

    monkeypatch.setattr(evaluate, "calibrate_thresholds", watched)
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    data = ["--data.root", str(scenes), "--data.split", "val", "--device", "cpu", "--ap", "none", "--calibrate"]
    assert cli.main(["evaluate", checkpoint, *data, "--precision", "bf16", "--batch-size", "3"]) == 0
    assert (asked["precision"], asked["batch_size"]) == ("bf16", 3)


def test_thresholds_that_give_nothing_are_not_stored(scenes, tmp_path, capsys):
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    before = open_model(checkpoint).settings
    data = ["--data.root", str(scenes), "--data.split", "val", "--inference.min_area", "100000", "--device", "cpu"]
    assert "no thresholds gave a PQ above 0 on these 3 images" in failing([checkpoint, *data, "--calibrate", "--store"], capsys)
    assert open_model(checkpoint).settings == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["detr_r50_panoptic", "--calibrate", "--store"], "--store keeps what --calibrate finds in a checkpoint file"),
        ([*file_options(), "--calibrate"], "--calibrate is for a checkpoint, in one process"),
    ],
)
def test_calibration_needs_a_checkpoint(options, message, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--data.limit", "0"], ["--batch-size", "0"], ["--workers", "-3"], ["--batch-size", "two"]])
def test_numbers_out_of_range_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        evaluate.parse(["model.pt", *option])
    assert f"argument {option[0]}: must be a whole number, " in capsys.readouterr().err


def test_an_empty_split_is_nothing_to_score(scenes, tmp_path, capsys):
    shutil.copytree(scenes, tmp_path / "data")
    path = tmp_path / "data" / "annotations" / "panoptic_val.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": [], "annotations": []}))
    checkpoint = write_checkpoint(tmp_path / "model.pt", "detr_r50_panoptic", scene_categories())
    told = failing([checkpoint, "--data.root", str(tmp_path / "data"), "--data.split", "val", "--device", "cpu"], capsys)
    assert "panoptic_val.json: there is no image in it, so nothing to score" in told
