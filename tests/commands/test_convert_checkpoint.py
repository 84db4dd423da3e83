"""Conversion of checkpoints: published to ours, ours to published, safetensors, and what can be wrong with a file."""

import argparse
import json
import pickle

import pytest
import torch

from panoptic_detr import build_model
from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands import convert_checkpoint
from panoptic_detr.errors import CheckpointError, OfficialWeightsError
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from panoptic_detr.weights.names.official import to_official
from panoptic_detr.zoo import ModelSpec

OVERRIDES = {
    "backbone": "resnet18",
    "hidden_dim": 16,
    "ffn_dim": 16,
    "num_heads": 4,
    "encoder_layers": 0,
    "decoder_layers": 1,
    "num_queries": 3,
}
MODEL = ["--model", "detr_r50", "--overrides", json.dumps(OVERRIDES)]
CATEGORIES = [{"id": 4, "name": "cat", "isthing": 1}, {"id": 9, "name": "sky", "isthing": 0}]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(3)
    return build_model("detr_r50", num_labels=2, **OVERRIDES)


@pytest.fixture
def published(model, tmp_path):
    """What a training run of the authors' code saves."""
    path = tmp_path / "checkpoint.pth"
    content = {"model": to_official(model.state_dict()), "epoch": 3, "args": argparse.Namespace(lr=1e-4, masks=False)}
    torch.save(content, path)
    return path


@pytest.fixture
def ours(model, tmp_path):
    path = tmp_path / "run" / "best.pth"
    table = CategoryTable.from_coco(CATEGORIES)
    save_checkpoint(path, Checkpoint(model.spec, model.state_dict(), table, {"threshold": 0.3}, {"step": 7}))
    return path


def same(weights, others):
    return weights.keys() == others.keys() and all(torch.equal(weights[name], others[name]) for name in weights)


def test_published_becomes_a_checkpoint_that_rebuilds_the_model(published, model, tmp_path, capsys):
    out = tmp_path / "ours.pth"
    assert convert_checkpoint.main([str(published), str(out), *MODEL, "--num-labels", "2"]) == 0
    checkpoint = load_checkpoint(out)
    assert checkpoint.model == ModelSpec("detr_r50", 2, OVERRIDES)
    assert same(checkpoint.state_dict, model.state_dict())
    assert checkpoint.categories is None
    checkpoint.load_into(checkpoint.model.build())
    assert f"{out}: detr_r50 with 2 label slots" in capsys.readouterr().out


def test_a_published_file_is_known_by_its_name_and_means_cocos_classes(tmp_path, monkeypatch, model):
    monkeypatch.setattr(convert_checkpoint, "build_model", lambda name, num_labels: build_model(name, **OVERRIDES))
    path = tmp_path / "detr-r50-e632da11.pth"
    torch.save({"model": to_official(build_model("detr_r50", **OVERRIDES).state_dict())}, path)
    assert convert_checkpoint.main([str(path), str(tmp_path / "ours.pth")]) == 0
    checkpoint = load_checkpoint(tmp_path / "ours.pth")
    assert checkpoint.model.name == "detr_r50"
    assert checkpoint.categories.by_label[1].name == "person"
    assert len(checkpoint.categories.categories) == 80


def test_classes_come_from_an_annotation_file(published, tmp_path):
    classes = tmp_path / "panoptic.json"
    classes.write_text(json.dumps({"categories": CATEGORIES}))
    convert_checkpoint.main(
        [str(published), str(tmp_path / "ours.pth"), *MODEL, "--num-labels", "2", "--categories", str(classes)]
    )
    table = load_checkpoint(tmp_path / "ours.pth").categories
    assert [(label, category.name) for label, category in table.by_label.items()] == [(0, "cat"), (1, "sky")]


def test_there_and_back_gives_the_published_file_again(published, tmp_path):
    ours, again = tmp_path / "ours.pth", tmp_path / "again.pth"
    convert_checkpoint.main([str(published), str(ours), *MODEL, "--num-labels", "2"])
    assert convert_checkpoint.main([str(ours), str(again), "--to", "published"]) == 0
    first, second = (torch.load(path, weights_only=False) for path in (published, again))
    assert list(second) == ["model"]
    assert same(first["model"], second["model"])


def test_safetensors_keep_everything_but_the_training_state(ours, model, tmp_path):
    out = tmp_path / "best.safetensors"
    assert convert_checkpoint.main([str(ours), str(out)]) == 0
    checkpoint = load_checkpoint(out)
    assert same(checkpoint.state_dict, model.state_dict())
    assert checkpoint.categories == load_checkpoint(ours).categories
    assert checkpoint.inference == {"threshold": 0.3}
    back = tmp_path / "back.pth"
    assert convert_checkpoint.main([str(out), str(back)]) == 0
    assert same(load_checkpoint(back).state_dict, model.state_dict())


def test_a_checkpoint_for_use_has_no_training_state(ours, tmp_path):
    assert load_checkpoint(ours).training == {"step": 7}
    convert_checkpoint.main([str(ours), str(tmp_path / "slim.pth")])
    assert load_checkpoint(tmp_path / "slim.pth").training is None


def test_a_foreign_file_without_a_model_name_says_how_to_go_on(published, tmp_path):
    with pytest.raises(CheckpointError, match="say which model it is with --model"):
        convert_checkpoint.main([str(published), str(tmp_path / "ours.pth")])


def test_weights_of_another_model_are_refused_and_nothing_is_written(published, tmp_path):
    out = tmp_path / "ours.pth"
    with pytest.raises(OfficialWeightsError, match="of another shape: class_embed"):
        convert_checkpoint.main([str(published), str(out), *MODEL, "--num-labels", "5"])
    assert not out.exists()


class Malice:
    def __reduce__(self):
        return (open, ("stolen.txt", "w"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps({"model": Malice()}), "cannot be opened as a file of weights"),
        (b"not a checkpoint at all", "cannot be opened as a file of weights"),
        (b"", "cannot be opened as a file of weights"),
    ],
)
def test_a_file_that_is_no_set_of_weights_is_named_and_never_run(content, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pth"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=reason) as caught:
        convert_checkpoint.main([str(path), str(tmp_path / "ours.pth"), *MODEL])
    assert str(path) in str(caught.value)
    assert not (tmp_path / "stolen.txt").exists()


def test_a_list_is_no_state_dict(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list, not a state dict"):
        convert_checkpoint.main([str(tmp_path / "list.pth"), str(tmp_path / "ours.pth"), *MODEL])


@pytest.mark.parametrize("extra", [[], MODEL])
def test_a_missing_file_is_said(extra, tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at '.*gone\.pth'"):
        convert_checkpoint.main([str(tmp_path / "gone.pth"), str(tmp_path / "ours.pth"), *extra])


def test_the_source_is_never_overwritten(ours):
    with pytest.raises(CheckpointError, match="same file"):
        convert_checkpoint.main([str(ours), str(ours)])


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        (["--model", "detr_r5"], "there is no model 'detr_r5'"),
        (["--to", "published"], "reads .pth files"),
    ],
)
def test_a_wrong_command_line_ends_with_status_2(extra, reason, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        convert_checkpoint.main([str(tmp_path / "a.pth"), str(tmp_path / "b.safetensors"), *extra])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[1]", "{num_queries: 3}"])
def test_overrides_must_be_a_json_object(text, published, tmp_path):
    with pytest.raises(ValueError, match="--overrides must be a JSON object"):
        convert_checkpoint.main([str(published), str(tmp_path / "o.pth"), "--model", "detr_r50", "--overrides", text])


@pytest.mark.parametrize(
    ("text", "what"), [("[]", "a COCO-panoptic JSON"), ("{}", "a COCO-panoptic JSON"), ('{"categories"', "valid JSON")]
)
def test_a_category_file_of_another_kind_is_refused_by_name(text, what, published, tmp_path):
    classes = tmp_path / "classes.json"
    classes.write_text(text)
    with pytest.raises(ValueError, match=rf"classes\.json: not {what}"):
        convert_checkpoint.main(
            [str(published), str(tmp_path / "o.pth"), *MODEL, "--num-labels", "2", "--categories", str(classes)]
        )


@pytest.mark.parametrize("name", ["model.onnx", "model", "model.bin"])
def test_other_formats_are_not_written_under_their_endings(name, published, tmp_path, capsys):
    with pytest.raises(SystemExit):
        convert_checkpoint.main([str(published), str(tmp_path / name), *MODEL])
    assert f"checkpoints are written as .pt, .pth, .safetensors, but the output is {name!r}" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_weights_of_another_library_are_one_short_error(tmp_path):
    path = tmp_path / "pytorch_model.pt"
    names = [f"model.encoder.layers.{i}.self_attn.q_proj.weight" for i in range(300)]
    weights = {name: torch.zeros(2) for name in [*names, "class_labels_classifier.weight", "bbox_predictor.layers.0.weight"]}
    torch.save(weights, path)
    with pytest.raises(
        OfficialWeightsError, match=r"302 unexpected: .* and so on. These are the names of the transformers"
    ) as error:
        convert_checkpoint.main([str(path), str(tmp_path / "ours.pt"), "--model", "detr_r50"])
    assert str(path) in str(error.value)
    assert len(str(error.value)) < 900


def test_weights_that_are_no_numbers_are_refused_with_their_name(model, tmp_path):
    weights = to_official(model.state_dict())
    weights["class_embed.bias"] = torch.full_like(weights["class_embed.bias"], torch.nan)
    torch.save(weights, tmp_path / "nan.pth")
    with pytest.raises(OfficialWeightsError, match=r"nan\.pth'.*class_embed\.bias has 3 of 3 values that are NaN"):
        convert_checkpoint.main([str(tmp_path / "nan.pth"), str(tmp_path / "ours.pt"), *MODEL, "--num-labels", "2"])
