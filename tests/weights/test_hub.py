"""Models of the hub without a network: its cache, a small server of our own, folders of every age, what cannot leave."""

import json
import re
import socket
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard, constants
from weights.small_hub import Server, put_into_cache

import panoptic_detr as pd
from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.commands import hub as command
from panoptic_detr.errors import CheckpointError, InputError, WeightsUnavailableError
from panoptic_detr.models.backbones import hub_id
from panoptic_detr.weights import read_scores
from panoptic_detr.weights.hub.config import spec_of_config
from panoptic_detr.weights.hub.settings import categories_of_labels, settings_of_processor
from panoptic_detr.weights.names import hub_weights, to_hub
from panoptic_detr.weights.open import check_source
from panoptic_detr.weights.published import PUBLISHED, load_published

TINY = {"backbone": "small", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 8, "encoder_layers": 1, "decoder_layers": 1}
RESNET = {**TINY, "num_heads": 8, "backbone": "resnet basic 1x4 1x4 1x8 1x8 stem 4"}
WIDE = {**RESNET, "hidden_dim": 32, "norm_groups": 32}
RECORDED = json.loads((Path(__file__).parent / "data" / "transformers_4.json").read_text())


def tiny(name="detr_r50_panoptic", **overrides):
    torch.manual_seed(0)
    model = pd.build_model(name, num_labels=3, **{**TINY, **overrides})
    rows = [{"id": i, "name": name, "isthing": i < 2} for i, name in enumerate(("cell", "worm", "glass"))]
    model.categories = pd.CategoryTable.from_coco(rows)
    return model


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_cached_repository_is_used_offline(cache, tmp_path):
    model = tiny()
    put_into_cache(cache, "lab/cells", pd.save_pretrained(model, tmp_path / "folder"), "v1")
    again = pd.load_pretrained("lab/cells@v1")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert [category.name for category in again.categories.stuff] == ["glass"]
    with pytest.raises(WeightsUnavailableError, match=r"lab/cells: not in the cache .* HF_HUB_OFFLINE is set"):
        pd.load_pretrained("lab/cells")


def test_published_deformable_weights_come_from_the_hub(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = pd.save_pretrained(tiny("deformable_detr_r50", **WIDE), tmp_path / "folder", format="transformers")
    put_into_cache(cache, PUBLISHED["deformable_detr_r50"].hub, folder)
    assert load_published("deformable_detr_r50").model.overrides["hidden_dim"] == 32
    with pytest.raises(WeightsUnavailableError, match=r"drive.google.com.*SenseTime/deformable-detr-single-scale: not in the"):
        load_published("deformable_detr_r50_single_scale")


@pytest.fixture
def server(cache, monkeypatch):
    kind = type("OneServer", (Server,), {"files": {}, "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{running.server_port}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: huggingface_hub.hf_api.HfApi(endpoint=address))
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield kind
        running.shutdown()


def test_a_repository_is_fetched_from_one_commit(server, tmp_path):
    model = tiny(**RESNET)
    folder = pd.save_pretrained(model, tmp_path / "folder", format="transformers")
    server.files |= {path.name: path.read_bytes() for path in folder.iterdir()}
    again = pd.load_pretrained("lab/cells")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    with pytest.raises(WeightsUnavailableError, match=r"lab/nothing: there is no such repository on http://127.0.0.1"):
        pd.load_pretrained("lab/nothing")
    server.files["config.json"] = json.dumps({"architectures": ["BertModel"], "model_type": "bert"}).encode()
    with pytest.raises(CheckpointError, match=r"lab/cells@v2: config.json describes BertModel of model type 'bert'"):
        pd.load_pretrained("lab/cells@v2")


def test_a_model_is_pushed_with_its_card(server):
    address = pd.push_to_hub(tiny(), "lab/new", private=True, notes=pd.ModelNotes(license="mit"))
    assert address.endswith("/lab/new")
    assert set(server.files) == {"README.md", "config.json", "model.safetensors"}
    assert all(line.endswith("Bearer hf_secret") for line in server.asked)
    assert ModelCard(server.files["README.md"].decode()).data.license == "mit"
    assert b"pd.load_model('lab/new')" in server.files["README.md"]


def test_a_hub_that_does_not_answer_is_said(server, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setattr(huggingface_hub, "HfApi", lambda: huggingface_hub.hf_api.HfApi(endpoint=address))
        with pytest.raises(WeightsUnavailableError, match=r"lab/new: http://127.* does not answer: "):
            pd.push_to_hub(tiny(), "lab/new")


def test_wrong_notes_and_ids_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match=r"notes must be ModelNotes\(\.\.\.\), but got a dict"):
        pd.save_pretrained(tiny(), tmp_path, notes={"name": "x"})
    assert list(tmp_path.iterdir()) == []
    for name in ("x y", "", None, "a/b/c"):
        with pytest.raises(InputError, match=f"repo_id must be .* but got {name!r}"):
            pd.push_to_hub(tiny(), name)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            ["Apache-2.0"],
            "license 'Apache-2.0' is no identifier of a licence that is known here; perhaps apache-2.0; give one of",
        ),
        (["whatever I like"], "is no identifier of a licence that is known here; give one of https://"),
        (["other"], "license 'other' with license name None: a licence that the hub does not know is other and has a name"),
        (["mit", "--license-name", "mine"], "license 'mit' with license name 'mine': a licence"),
        (["mit", "--license-link", "LICENSE"], "license 'mit' with license name None"),
        (["other", "--license-name", "my own"], "license name 'my own' must be one word such as my-license-1.0"),
        (["other", "--license-name", "m", "--license-link", "a.txt"], "license link 'a.txt' must be an address"),
    ],
)
def test_licences_that_the_hub_does_not_know_are_refused_before_anything_is_written(given, told, tmp_path):
    source = pd.Predictor(tiny(), tiny().categories).save(tmp_path / "best.pt")
    with pytest.raises(InputError, match=re.escape(told)):
        command.main(["save", str(source), str(tmp_path / "out"), "--license", *given])
    assert not (tmp_path / "out").exists()


def test_a_licence_of_ones_own_has_a_name_and_a_link(tmp_path):
    notes = pd.ModelNotes(license="other", license_name="my-license-1.0", license_link="LICENSE")
    pd.save_pretrained(tiny(), tmp_path, notes=notes)
    card = ModelCard.load(tmp_path / "README.md").data
    assert (card.license, card.license_name, card.license_link) == ("other", "my-license-1.0", "LICENSE")


def test_the_card_of_a_detector_that_makes_its_masks_itself_speaks_of_maps(tmp_path):
    sizes = {"hidden_dim": 32, "encoder_layers": 0, "decoder_layers": 1, "num_queries": 4, "stuff_labels": [2]}
    detector = pd.build_model("mask_detr_r50", num_labels=3, backbone="small", backbone_norm="batch", **sizes)
    detector.categories = tiny().categories
    pd.save_pretrained(detector, tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.pipeline_tag == "image-segmentation"
    assert "pd.load_model(" in card.content
    assert pd.load_model(tmp_path).model.spec.name == "mask_detr_r50_panoptic"


def test_the_card_tells_the_run(tmp_path, capsys):
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    tiny_checkpoint = pd.Predictor(tiny(), tiny().categories).save(run / "best.pt")
    (run / "config.yaml").write_text("data: {root: /somewhere/plates}\noptimizer: {lr: 0.002}\n")
    (run / "run.json").write_text(
        json.dumps({"parts": [{"command": "/home/me/.venv/bin/panoptic-detr train_masks --train.steps 3"}]})
    )
    (run / "scores.csv").write_text(
        "step,PQ,SQ,RQ,PQ things,PQ stuff,box AP\n3,0.25,0.5,0.5,0.2,0.3,0.125\n9,0.1,0.9,0.9,0,0,0\n"
    )
    command.main(["save", str(tiny_checkpoint), str(tmp_path / "out"), "--license", "apache-2.0", "--name", "lab/cells"])
    assert "detr_r50_panoptic for panoptic_detr" in capsys.readouterr().out
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        "pq": 25.0,
        "sq": 50.0,
        "rq": 50.0,
        "ap": 12.5,
    }
    assert card.data.pipeline_tag == "image-segmentation"
    for words in (
        "| All | 25.0 | 50.0 | 50.0 |",
        "```\npanoptic-detr train_masks --train.steps 3",
        "| `optimizer.lr` | 0.002 |",
        "1 kinds of stuff: glass",
    ):
        assert words in card.content
    assert "/somewhere" not in card.content


@pytest.mark.parametrize(
    ("name", "overrides", "lack"),
    [
        ("h_deformable_detr_r50", {"num_one_to_many": 4}, "h_deformable_detr_r50"),
        ("deformable_detr_r50_panoptic", {}, "mask head for Deformable DETR"),
        ("detr_r50_panoptic", {}, "backbone 'small'"),
        ("detr_r50_panoptic", {**RESNET, "mask_inside_boxes": True}, "mask_inside_boxes = True"),
        ("detr_r50", {**RESNET, "pre_norm": True}, "pre_norm = True"),
        ("mask_detr_r50", {"ffn_dim": 8}, "mask_detr_r50"),
    ],
)
def test_what_transformers_lacks_is_refused_by_name(name, overrides, lack, tmp_path):
    model = pd.build_model(name, num_labels=3, **{**TINY, **overrides})
    with pytest.raises(InputError, match=rf"transformers has no such model, because it lacks .*{lack}"):
        pd.save_pretrained(model, tmp_path / "out", format="transformers")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("case", RECORDED)
def test_names_that_transformers_4_wrote_are_all_read(case):
    """Recorded from 4.57; `def_res` has its heads under both names."""
    spec = spec_of_config(RECORDED[case]["config"])
    given = {name: torch.randn(shape) for name, shape in RECORDED[case]["shapes"].items()}
    for name in [name for name in given if name.startswith("model.decoder.bbox_embed.")]:
        given[name] = given[name.removeprefix("model.decoder.")]
    ours = hub_weights(spec, given)
    assert ours.keys() == {name for name in spec.build().state_dict() if not name.endswith("num_batches_tracked")}
    back = to_hub(ours, spec)
    assert all(torch.equal(value, back[name]) for name, value in given.items())
    assert back.keys() == given.keys()


@pytest.mark.parametrize(
    ("config", "name", "overrides"),
    [
        ({"model_type": "detr", "id2label": {str(i): "N/A" for i in range(91)}}, "detr_r50", {}),
        ({"model_type": "detr", "backbone": "resnet101", "dilation": True, "num_labels": 91}, "detr_r101_dc5", {}),
        ({"model_type": "detr", "architectures": ["DetrForSegmentation"], "num_labels": 250}, "detr_r50_panoptic", {}),
        ({"model_type": "deformable_detr", "num_labels": 91}, "deformable_detr_r50", {}),
        ({"model_type": "deformable_detr", "with_box_refine": True}, "deformable_detr_r50_refine", {}),
        ({"model_type": "deformable_detr", "with_box_refine": True, "two_stage": True}, "deformable_detr_r50_two_stage", {}),
        ({"model_type": "deformable_detr", "num_feature_levels": 1}, "deformable_detr_r50_single_scale", {}),
        (
            {"model_type": "deformable_detr", "num_feature_levels": 1, "dilation": True},
            "deformable_detr_r50_single_scale_dc5",
            {},
        ),
        ({"model_type": "detr", "use_timm_backbone": False}, "detr_r50", {}),
        (
            {"model_type": "detr", "num_queries": 50, "backbone": "resnet18"},
            "detr_r50",
            {"num_queries": 50, "backbone": "resnet18"},
        ),
    ],
)
def test_published_configs_are_our_published_models(config, name, overrides):
    spec = spec_of_config(config)
    assert (spec.name, dict(spec.overrides)) == (name, overrides)


def test_labels_of_every_kind():
    coco = {str(c.id): c.name for c in coco_categories(250).categories}
    assert categories_of_labels({str(i): coco.get(str(i), "N/A") for i in range(250)}, 250, True) == coco_categories(250)
    assert categories_of_labels({str(i): f"LABEL_{i}" for i in range(91)}, 91, False) == coco_categories(91)
    own = categories_of_labels({"0": "N/A", "1": "cell", "2": "sky-other-merged"}, 3, True)
    assert [(c.id, c.name, c.isthing) for c in own.categories] == [(1, "cell", True), (2, "sky-other-merged", False)]
    assert own.num_labels == 3
    assert [c.name for c in categories_of_labels(None, 2, False).categories] == ["LABEL_0", "LABEL_1"]


@pytest.mark.parametrize(
    ("processor", "settings"),
    [
        ({"size": 800, "max_size": 1333, "do_normalize": True}, {"short_side": 800, "long_side": 1333}),
        ({"size": {"shortest_edge": 480, "longest_edge": 600}}, {"short_side": 480, "long_side": 600}),
        ({"do_resize": False}, {"short_side": None}),
        (
            {"size": 64, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]},
            {"short_side": 64, "long_side": 1333, "image_mean": [0.5] * 3, "image_std": [0.25] * 3},
        ),
        (
            {"size": 64, "do_normalize": False},
            {"short_side": 64, "long_side": 1333, "image_mean": [0.0] * 3, "image_std": [1.0] * 3},
        ),
    ],
)
def test_processors_of_every_age(processor, settings):
    assert settings_of_processor(processor) == settings


def test_processors_that_we_cannot_follow_are_refused():
    with pytest.raises(CheckpointError, match="no shortest_edge"):
        settings_of_processor({"size": {"height": 800, "width": 800}})
    with pytest.raises(CheckpointError, match="image_mean must be three numbers, but is 'grey'"):
        settings_of_processor({"image_mean": "grey"})
    with pytest.raises(CheckpointError, match="image_std must be three numbers"):
        settings_of_processor({"image_std": [0.5]})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": 3}, "config.json describes 3 of model type 'detr'"),
        ({"backbone_kwargs": "dilated"}, "backbone_kwargs must be a dict, but is 'dilated'"),
        ({"backbone_config": {"model_type": "resnet", "depths": None}}, "with depths None"),
        ({"backbone_config": {"model_type": "resnet", "out_features": 4}}, "out_features must be a list, but is 4"),
    ],
)
def test_fields_of_another_kind_are_refused_in_a_sentence(fields, words):
    with pytest.raises(CheckpointError, match=words):
        spec_of_config({"model_type": "detr", "architectures": ["DetrForObjectDetection"], **fields})


def test_normalisation_of_the_weights_is_used_and_travels(tmp_path):
    model = tiny(**RESNET)
    settings = pd.InferenceSettings(short_side=32, image_mean=[0.0] * 3, image_std=[1.0] * 3)
    folder = pd.save_pretrained(pd.Predictor(model, model.categories, settings=settings), tmp_path / "f", format="transformers")
    predictor = pd.load_model(folder, device="cpu")
    assert predictor.settings == settings
    picture = torch.full((32, 32, 3), 51, dtype=torch.uint8).numpy()
    assert torch.allclose(predictor.prepare(picture), torch.full((1, 3, 32, 32), 0.2))


def test_ids_and_paths_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert hub_id("facebook/detr-resnet-50") == ("facebook/detr-resnet-50", None)
    assert hub_id("facebook/detr-resnet-50@refs/pr/3") == ("facebook/detr-resnet-50", "refs/pr/3")
    (tmp_path / "mine").mkdir()
    for path in ("runs/boxes", "mine/boxes", "other/best.pt", "a/b/c", "detr_r50", "/abs/path"):
        assert hub_id(path) is None
    with pytest.raises(CheckpointError, match="no checkpoint at 'mine'"):
        check_source("mine")


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(InputError, match=r"pip install 'panoptic-detr\[hub\]'"):
        pd.load_pretrained("lab/cells")


def test_a_table_without_scores_is_refused(tmp_path):
    (tmp_path / "scores.json").write_text('{"VPQ": 0.5}')
    with pytest.raises(InputError, match=r"is no scores\.json of .*: neither PQ nor box AP in it"):
        read_scores(tmp_path / "scores.json")
