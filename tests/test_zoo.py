import pickle
from argparse import Namespace
from urllib.error import URLError

import pytest
import torch

import panoptic_detr as pd
from panoptic_detr import zoo
from panoptic_detr.errors import WeightsUnavailableError
from panoptic_detr.weights import published as published_weights
from panoptic_detr.weights.names.official import to_official
from panoptic_detr.weights.published import PUBLISHED, load_published
from panoptic_detr.zoo import build_model as build_tiny

DETECTORS = [name for name in pd.list_models() if not name.endswith("_panoptic")]


def test_every_detector_has_a_panoptic_model():
    assert len(DETECTORS) == 14
    assert set(pd.list_models()) == {*DETECTORS, *(name + "_panoptic" for name in DETECTORS)}


@pytest.mark.parametrize(
    ("name", "overrides", "key", "value"),
    [
        ("detr_r50", {}, "num_queries", 100),
        ("detr_r50_panoptic", {"num_queries": 25}, "num_queries", 25),
        ("h_deformable_detr_r50_panoptic", {}, "num_queries", 300),
        ("h_deformable_detr_r50", {}, "num_one_to_many", 1500),
        ("detr_r50_panoptic", {}, "mask_scale_maps", False),
        ("detr_r50_panoptic", {"mask_scale_maps": True}, "mask_scale_maps", True),
    ],
)
def test_what_a_model_was_built_with(name, overrides, key, value):
    assert zoo.ModelSpec(name, 8, overrides).setting(key) == value


@pytest.mark.parametrize("name", ["detr_r50", "deformable_detr_r50_two_stage", "h_deformable_detr_r50"])
def test_a_model_is_rebuilt_from_its_spec(name):
    overrides = {
        "backbone": "resnet18",
        "hidden_dim": 32,
        "num_heads": 4,
        "ffn_dim": 32,
        "encoder_layers": 1,
        "decoder_layers": 1,
    }
    model = pd.build_model(name + "_panoptic", num_labels=6, **overrides)
    again = zoo.ModelSpec(**model.spec.to_dict()).build()
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in again.state_dict().items()}


def test_published_label_slots():
    assert zoo.default_num_labels("detr_r50") == 91
    assert zoo.default_num_labels("h_deformable_detr_swin_t_panoptic") == 250


def test_without_network_one_error_says_which_file_goes_where(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(OSError, match=r"detr-r50-e632da11\.pth is not cached") as error:
        load_published("detr_r50")
    assert f"put it at {tmp_path}/hub/checkpoints/detr-r50-e632da11.pth" in str(error.value)


def test_a_cached_file_is_loaded_safely(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    source = pd.build_model("detr_r50")
    torch.save({"model": to_official(source.state_dict())}, folder / "detr-r50-e632da11.pth")
    loaded = load_published("detr_r50")
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), loaded.state_dict.values(), strict=True))


def test_a_cached_pickle_of_something_else_is_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)

    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    (folder / "detr-r50-e632da11.pth").write_bytes(pickle.dumps(Harm(), protocol=2))
    with pytest.raises(OSError, match=r"detr-r50-e632da11\.pth"):
        load_published("detr_r50")
    assert not (tmp_path / "harm").exists()


TINY = {"backbone": "resnet18", "hidden_dim": 32, "num_heads": 4, "ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 1}


def test_every_published_file_has_a_model_and_a_name_of_its_own():
    assert set(PUBLISHED) <= set(pd.list_models())
    files = [published.file_name for published in PUBLISHED.values()]
    assert all(name.endswith(".pth") for name in files)
    assert len(set(files)) == len(files) == 15
    assert all(published.source.startswith("https://") for published in PUBLISHED.values())


def test_a_file_that_only_a_browser_gets_is_named_with_its_place(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(published_weights, "build_model", lambda name: build_tiny(name, **TINY))
    with pytest.raises(WeightsUnavailableError) as error:
        load_published("deformable_detr_r50_refine")
    message = str(error.value)
    assert "download https://drive.google.com/file/d/1JYKyRYzUH7uo9eVfDaVCiaIGZb5YTCuI/view with a browser" in message
    name = "r50_deformable_detr_plus_iterative_bbox_refinement-checkpoint.pth"
    assert f"put it at {tmp_path}/hub/checkpoints/{name}" in message
    assert "panoptic-detr convert_checkpoint FILE deformable_detr_r50_refine.pth --model deformable_detr_r50_refine" in message


@pytest.mark.parametrize("name", ["deformable_detr_r50", "h_deformable_detr_r50"])
def test_cached_files_of_deformable_detectors_are_loaded_with_the_options_in_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(published_weights, "build_model", lambda name: build_tiny(name, **TINY))
    source = build_tiny(name, **TINY)
    path = tmp_path / "hub" / "checkpoints" / PUBLISHED[name].file_name
    path.parent.mkdir(parents=True)
    torch.save({"model": to_official(source.state_dict()), "args": Namespace(lr=2e-4), "epoch": 49}, path)
    loaded = load_published(name)
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), loaded.state_dict.values(), strict=True))


def test_models_without_published_weights_are_named():
    with pytest.raises(ValueError, match="no weights are published for 'h_deformable_detr_swin_l_panoptic'"):
        load_published("h_deformable_detr_swin_l_panoptic")
