"""Both tools on tiny scenes: stage 1, stage 2 on the frozen detector, and every refusal a user can run into."""

import csv
import json
import shutil

import pytest
import torch

from panoptic_detr.commands import train_detector, train_masks
from panoptic_detr.commands.cli import run
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.inference.predictor import load_model
from panoptic_detr.weights.checkpoints import load_checkpoint

TINY = """
model:
  name: deformable_detr_r50_two_stage
  overrides: {backbone: small, backbone_norm: batch, backbone_levels: [0, 1, 2, 3, 4], num_backbone_levels: 3, num_levels: 3,
    hidden_dim: 32, num_queries: 12, num_heads: 2, num_points: 2, encoder: dense, encoder_layers: 1, decoder_layers: 2,
    ffn_dim: 32, mixed_selection: true, dense_aux: true}
data: {train_split: train, val_split: train, workers: 0, cache: true}
augmentation: {preset: scenes}
optimizer: {lr: 2e-3, clip_norm: 1.0, schedule: cosine}
train: {steps: 4, batch_size: 4, evaluate_every: 2}
inference: {short_side: null, threshold: 0.05}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with data, settings and a run of stage 1."""
    folder = tmp_path_factory.mktemp("work")
    write_scenes(folder / "scenes", 8, size=48, workers=1)
    (folder / "tiny.yaml").write_text(TINY)
    assert call(train_detector, folder, "--train.output", folder / "boxes") == 0
    return folder


def call(tool, folder, *arguments):
    common = ["--config", folder / "tiny.yaml", "--data.root", folder / "scenes"]
    return run(tool.main, [str(argument) for argument in [*common, *arguments]], tool.__name__)


def tensorboard_samples(run):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(run / "tensorboard")).Reload().Tags()["images"]


def masks(folder, output, *arguments):
    return call(train_masks, folder, "--detector", folder / "boxes" / "best.pt", "--train.output", output, *arguments)


def test_stage_2_leaves_the_detector_bit_identical(folder, tmp_path, capsys):
    assert masks(folder, tmp_path / "masks") == 0
    boxes = load_checkpoint(folder / "boxes" / "best.pt").state_dict
    both = load_checkpoint(tmp_path / "masks" / "best.pt")
    assert both.model.name == "deformable_detr_r50_two_stage_panoptic"
    detector = {
        name.removeprefix("detector."): value for name, value in both.state_dict.items() if name.startswith("detector.")
    }
    assert detector.keys() == boxes.keys()
    assert [name for name in boxes if not torch.equal(boxes[name], detector[name])] == []
    assert "step 4: PQ 0." in capsys.readouterr().err
    for made in (folder / "boxes", tmp_path / "masks"):
        assert len(tensorboard_samples(made)) == 4
    assert load_model(tmp_path / "masks" / "best.pt").settings.threshold == 0.05


def test_the_mask_head_starts_from_given_weights(folder, tmp_path, capsys):
    assert masks(folder, tmp_path / "first", "--train.steps", 1) == 0
    given = tmp_path / "first" / "best.pt"
    assert masks(folder, tmp_path / "second", "--model.weights", given, "--train.steps", 1, "--optimizer.lr", 1e-9) == 0
    assert f"mask head taken over from {given}" in capsys.readouterr().err
    old, new = (load_checkpoint(path).state_dict for path in (given, tmp_path / "second" / "best.pt"))
    for name in old:
        torch.testing.assert_close(new[name], old[name], atol=1e-6, rtol=0)
    assert masks(folder, tmp_path / "third", "--model.weights", folder / "boxes" / "best.pt") == 1
    assert "has no mask head to start from" in capsys.readouterr().err


def test_a_name_that_contradicts_the_detector_is_refused(folder, tmp_path, capsys):
    assert masks(folder, tmp_path / "run", "--model.name", "detr_r101") == 1
    error = capsys.readouterr().err
    assert (
        f"model.name is 'detr_r101', but the detector '{folder / 'boxes' / 'best.pt'}' is 'deformable_detr_r50_two_stage'"
        in error
    )
    assert "leave model.name out, or name another --detector" in error


@pytest.mark.parametrize("given", [("anchor_size", "0.1"), ("num_heads", "4"), ("num_queries", "13")])
def test_stage_2_takes_the_detector_as_it_is(folder, tmp_path, capsys, given):
    name, value = given
    assert masks(folder, tmp_path / "run", f"--model.overrides.{name}", value) == 1
    error = capsys.readouterr().err
    assert f"model.overrides.{name} is {value}, but the detector '{folder / 'boxes' / 'best.pt'}' was trained with " in error
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_finished_run_stays_as_it_is(folder, tmp_path, capsys):
    shutil.copytree(folder / "boxes", tmp_path / "boxes")
    before = {path.name: path.read_bytes() for path in (tmp_path / "boxes").iterdir() if path.is_file()}
    again = ["--train.output", tmp_path / "boxes", "--train.resume", "true", "--optimizer.lr", "1e-5"]
    assert call(train_detector, folder, *again) == 0
    told = capsys.readouterr().err
    assert "the run is complete" in told
    assert "learning rate" not in told
    after = {path.name: path.read_bytes() for path in (tmp_path / "boxes").iterdir() if path.is_file()}
    assert after.keys() == before.keys()
    assert [name for name in ("config.yaml", "run.json", "log.csv", "best.pt") if after[name] != before[name]] == []


def test_names_in_square_brackets_are_no_markup(folder, tmp_path, capsys):
    path = folder / "scenes" / "annotations" / "panoptic_train.json"
    other = json.loads(path.read_text())
    other["categories"][0]["name"] = "tool [/b] x"
    (tmp_path / "other.json").write_text(json.dumps(other))
    names = ["--data.train_annotations", tmp_path / "other.json", "--data.val_annotations", tmp_path / "other.json"]
    assert call(train_detector, folder, "--train.output", tmp_path / "r [on]", "--train.steps", 1, *names) == 0
    told = capsys.readouterr().err
    assert "tool [/b] x" in told
    assert "r [on]" in told


def test_a_mask_head_with_another_setting_is_refused(folder, tmp_path, capsys):
    assert masks(folder, tmp_path / "scaled", "--train.steps", 1, "--model.overrides.mask_scale_maps", "true") == 0
    scaled = tmp_path / "scaled" / "best.pt"
    assert masks(folder, tmp_path / "head", "--train.steps", 1, "--model.weights", scaled) == 1
    told = (
        f"the mask head of '{scaled}' was trained with mask_scale_maps true, but this model has false; give --model.overrides."
    )
    assert told in capsys.readouterr().err
    given = (
        "--train.steps",
        1,
        "--train.output",
        tmp_path / "whole",
        "--detector",
        scaled,
        "--model.overrides.mask_scale_maps",
    )
    assert call(train_masks, folder, *given, "false") == 1
    assert told in capsys.readouterr().err


def test_a_frozen_detector_may_run_in_bfloat16(folder, tmp_path, capsys):
    assert masks(folder, tmp_path / "full", "--train.steps", 1) == 0
    assert masks(folder, tmp_path / "half", "--train.steps", 1, "--detector_bf16", "true") == 0
    full, half = ((tmp_path / name / "log.csv").read_text().splitlines() for name in ("full", "half"))
    column = full[0].split(",").index("loss")
    first, second = (float(lines[1].split(",")[column]) for lines in (full, half))
    assert first != second
    assert second == pytest.approx(first, rel=0.02)
    boxes = load_checkpoint(folder / "boxes" / "best.pt").state_dict
    both = load_checkpoint(tmp_path / "half" / "best.pt").state_dict
    assert [name for name in boxes if not torch.equal(boxes[name], both[f"detector.{name}"])] == []
    with pytest.raises(SystemExit):
        masks(folder, tmp_path / "both", "--joint", "true", "--detector_bf16", "true")
    assert "detector_bf16 is for a frozen detector" in capsys.readouterr().err


def test_a_panoptic_model_is_finetuned_to_other_classes(folder, tmp_path, capsys):
    assert masks(folder, tmp_path / "first", "--train.steps", 1) == 0
    annotations = folder / "scenes" / "annotations" / "panoptic_train.json"
    content = json.loads(annotations.read_text())
    renamed = next(category for category in content["categories"] if category["name"] == "circle")
    renamed["name"] = "ring"
    (tmp_path / "panoptic_train.json").write_text(json.dumps(content))
    other = ("--data.train_annotations", tmp_path / "panoptic_train.json", "--data.val_split", "null")
    first = tmp_path / "first" / "best.pt"
    assert call(train_masks, folder, "--detector", first, "--joint", "true", "--train.output", tmp_path / "new", *other) == 0
    shown = capsys.readouterr().err
    assert [word for word in ("classes new", "ring", "circle") if word not in shown] == []
    made = load_checkpoint(tmp_path / "new" / "best.pt")
    assert "ring" in {category["name"] for category in made.categories.to_dict()["categories"]}


def test_joint_training_changes_the_detector_too(folder, tmp_path):
    assert masks(folder, tmp_path / "joint", "--joint", "--train.steps", 1) == 0
    boxes = load_checkpoint(folder / "boxes" / "best.pt").state_dict
    both = load_checkpoint(tmp_path / "joint" / "last.pt").state_dict
    assert not torch.equal(both["detector.backbone.body.stem.0.weight"], boxes["backbone.body.stem.0.weight"])


def test_same_seed_same_run(folder, tmp_path):
    for name in ("a", "b"):
        assert masks(folder, tmp_path / name, "--train.steps", 2, "--train.deterministic", "true") == 0
    first, second = (load_checkpoint(tmp_path / name / "last.pt").state_dict for name in ("a", "b"))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    torch.use_deterministic_algorithms(False)


def test_the_run_folder_says_how_it_was_made(folder):
    text = (folder / "boxes" / "config.yaml").read_text()
    assert "hidden_dim: 32" in text
    assert load_checkpoint(folder / "boxes" / "last.pt").training["settings"]["train"]["steps"] == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--train.output", "BOXES"], "holds a run already; go on with it (--train.resume true)"),
        (["--train.output", "/dev/null/x"], "the run's folder '/dev/null/x' cannot be written"),
        (["--model.overrides.mask_scale_maps", "true"], "that is a setting of the mask head, which stage 2 (train_masks)"),
        (["--model.overrides.num_querys", "5"], "has no override 'num_querys'; did you mean 'num_queries'?"),
        (["--model.name", "detr_r5"], "there is no model 'detr_r5'; the nearest are detr_r50"),
        (["--data.root", "/nowhere"], "/nowhere"),
        (
            ["--train.accelerator", "gpu"],
            "train.accelerator: device 'gpu' is not available on this machine; use 'cpu' or 'auto'",
        ),
    ],
)
def test_detector_refusals(folder, tmp_path, capsys, arguments, message):
    given = [folder / "boxes" if argument == "BOXES" else argument for argument in arguments]
    assert call(train_detector, folder, "--train.output", tmp_path / "run", *given) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_stage_2_needs_a_detector(folder, tmp_path, capsys):
    assert call(train_masks, folder, "--train.output", tmp_path / "none") == 1
    assert "give --detector CHECKPOINT" in capsys.readouterr().err
    assert call(train_masks, folder, "--train.output", tmp_path / "none", "--detector", "detr_r999") == 1
    assert "there is no model 'detr_r999'; the nearest are detr_r50, " in capsys.readouterr().err


@pytest.mark.parametrize("joint", ["false", "true"])
def test_stage_2_maps_other_classes_by_name_and_says_so(folder, tmp_path, capsys, joint):
    path = folder / "scenes" / "annotations" / "panoptic_train.json"
    other = json.loads(path.read_text())
    other["categories"][0]["name"] = "hexagon"
    (tmp_path / "other.json").write_text(json.dumps(other))
    names = ["--data.train_annotations", tmp_path / "other.json", "--data.val_annotations", tmp_path / "other.json"]
    assert masks(folder, tmp_path / "run", "--train.steps", 1, "--joint", joint, *names) == 0
    text = " ".join(capsys.readouterr().err.split())
    assert "classes new │ 1 │ hexagon" in text
    assert "classes dropped │ 1 │ circle" in text
    assert ("1 of 8 classes have untrained class weights" in text) is (joint == "false")


def test_detector_starts_from_the_weights_of_another(folder, tmp_path, capsys):
    start = ["--model.weights", folder / "boxes" / "best.pt", "--optimizer.lr", 1e-12, "--train.steps", 1]
    assert call(train_detector, folder, "--train.output", tmp_path / "run", *start) == 0
    before, after = (load_checkpoint(path / "best.pt").state_dict for path in (folder / "boxes", tmp_path / "run"))
    name = "heads.class_embed.0.linear.weight"
    torch.testing.assert_close(after[name], before[name], atol=1e-6, rtol=0)
    assert "settings changed │ 0" in " ".join(capsys.readouterr().err.split())
    changed = ["--model.overrides.num_heads", 4, "--model.overrides.dropout", 0.3]
    assert call(train_detector, folder, "--train.output", tmp_path / "other", *start, *changed) == 0
    assert "settings changed │ 1 │ num_heads 2 -> 4" in " ".join(capsys.readouterr().err.split())


def test_run_folder_holds_record_and_samples(folder):
    record = json.loads((folder / "boxes" / "run.json").read_text())
    assert torch.__version__.startswith(record["parts"][0]["packages"]["torch"])
    assert (folder / "boxes" / "samples.png").stat().st_size > 10_000
    assert [c["name"] for c in json.loads((folder / "boxes" / "categories.json").read_text())["categories"]][:2] == [
        "circle",
        "square",
    ]


@pytest.mark.parametrize("setting", ["activation_checkpointing", "channels_last"])
def test_memory_settings_do_not_change_the_result(folder, tmp_path, setting):
    rows = []
    for name, value in (("plain", "false"), ("changed", "true")):
        arguments = ["--train.steps", 2, "--train.log_every", 1, f"--model.{setting}", value, "--train.output", tmp_path / name]
        assert call(train_detector, folder, *arguments) == 0
        with open(tmp_path / name / "log.csv", newline="") as stream:
            rows.append(list(csv.DictReader(stream)))
    same = [name for name in rows[0][0] if name not in ("seconds", "wait", "wait_share")]
    assert {"loss", "gradient_norm", "dense", "box_giou_layer0"} <= set(same)
    for plain, changed in zip(*rows, strict=True):
        assert [float(changed[name]) for name in same] == pytest.approx([float(plain[name]) for name in same], rel=1e-3)


def test_stage_2_follows_the_detector_too(folder, tmp_path):
    assert masks(folder, tmp_path / "run", "--joint", "true") == 0
    first = (tmp_path / "run" / "scores.csv").read_text().splitlines()[0].split(",")
    assert first == ["step", "PQ", "SQ", "RQ", "PQ things", "PQ stuff", "box AP", "val loss"]
