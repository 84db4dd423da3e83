"""The way back to the authors' names: exactly their lists of names and shapes, and nothing lost on a round trip."""

import json
from pathlib import Path

import pytest
import torch

from panoptic_detr import build_model
from panoptic_detr.errors import OfficialWeightsError
from panoptic_detr.weights.names.official import load_official, to_official

KEYS = Path(__file__).parents[1] / "parity" / "data" / "models"
PUBLISHED = {
    "detr_r50": ("detr_r50", {}),
    "detr_r50_panoptic": ("detr_r50_panoptic", {}),
    "deformable_detr_r50": ("deformable_detr_r50", {}),
    "deformable_detr_r50_refine": ("deformable_detr_r50_refine", {}),
    "deformable_detr_r50_two_stage": ("deformable_detr_r50_two_stage", {}),
    "h_deformable_detr_r50_hybrid_branch": ("h_deformable_detr_r50", {"num_queries": 100, "num_one_to_many": 200}),
}
KINDS = ("weight", "bias")
TINY = {"backbone": "resnet18", "hidden_dim": 16, "ffn_dim": 16, "num_heads": 4, "encoder_layers": 1, "decoder_layers": 2}
SMALL = {
    "detr": ("detr_r50", {}),
    "learned encoding, pre-norm": ("detr_r50", {"position_encoding": "learned", "pre_norm": True}),
    "panoptic": ("detr_r50_panoptic", {"hidden_dim": 64, "num_heads": 8}),
    "deformable": ("deformable_detr_r50", {}),
    "refining": ("deformable_detr_r50_refine", {}),
    "two-stage": ("deformable_detr_r50_two_stage", {}),
    "hybrid": ("h_deformable_detr_r50", {"num_one_to_many": 8, "num_queries": 4}),
    "single scale": ("deformable_detr_r50_single_scale", {}),
    "single scale DC5": ("deformable_detr_r50_single_scale_dc5", {"backbone": "resnet50"}),
    "Swin": ("h_deformable_detr_swin_t", {"backbone": "swin_t", "num_one_to_many": 8, "num_queries": 4}),
}


def small(case):
    name, overrides = SMALL[case]
    if case == "Swin":
        pytest.importorskip("timm")
    return build_model(name, num_labels=3, **{**TINY, **overrides})


@pytest.mark.parametrize("case", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(case):
    name, overrides = PUBLISHED[case]
    with torch.device("meta"):
        ours = build_model(name, **overrides).state_dict()
    ours = {key: torch.zeros(1).expand(value.shape) for key, value in ours.items()}  # one number in memory for each
    expected = json.loads((KEYS / f"{case}.keys.json").read_text())
    expected = {key: shape for key, shape in expected.items() if not key.endswith("num_batches_tracked")}
    assert {key: list(value.shape) for key, value in to_official(ours).items()} == expected


@pytest.mark.parametrize("case", SMALL)
def test_a_round_trip_brings_every_value_back(case):
    torch.manual_seed(1)
    model, other = small(case), small(case)
    load_official(other, to_official(model.state_dict()))
    before, after = model.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_swin_has_the_authors_names():
    names = [name.removeprefix("backbone.0.body.") for name in to_official(small("Swin").state_dict()) if "backbone" in name]
    block = {
        *(f"{part}.{kind}" for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") for kind in KINDS),
        "attn.relative_position_bias_table",
    }
    down = {"downsample.norm.weight", "downsample.norm.bias", "downsample.reduction.weight"}
    expected = {
        f"{part}.{kind}" for part in ("patch_embed.proj", "patch_embed.norm", "norm1", "norm2", "norm3") for kind in KINDS
    }
    for stage, depth in enumerate((2, 2, 6, 2)):
        expected |= {f"layers.{stage}.blocks.{index}.{part}" for index in range(depth) for part in block}
        expected |= {f"layers.{stage}.{part}" for part in down} if stage < 3 else set()
    assert len(names) == 175
    assert set(names) == expected


def test_heads_that_all_layers_share_are_one_tensor():
    published = to_official(small("deformable").state_dict())
    assert published["class_embed.0.weight"] is published["class_embed.1.weight"]
    assert not any(name.startswith("transformer.decoder.bbox_embed") for name in published)


def test_heads_of_a_refining_decoder_are_written_twice():
    published = to_official(small("two-stage").state_dict())
    for index in range(3):  # two layers and the proposals
        twin = published[f"transformer.decoder.bbox_embed.{index}.layers.2.bias"]
        assert twin is published[f"bbox_embed.{index}.layers.2.bias"]
        assert published[f"transformer.decoder.class_embed.{index}.weight"] is published[f"class_embed.{index}.weight"]


def test_counters_of_a_trained_batch_norm_stay_here():
    weights = {**small("detr").state_dict(), "backbone.body.bn1.num_batches_tracked": torch.tensor(5)}
    assert not any(name.endswith("num_batches_tracked") for name in to_official(weights))


@pytest.mark.parametrize(
    ("name", "overrides", "part"),
    [
        ("deformable_detr_r50", {"dense_aux": True}, "dense_heads"),
        ("deformable_detr_r50_panoptic", {"hidden_dim": 64, "num_heads": 8}, "detector.level_embed"),
    ],
)
def test_what_the_authors_code_does_not_have_is_refused_by_name(name, overrides, part):
    weights = build_model(name, num_labels=3, **{**TINY, **overrides}).state_dict()
    with pytest.raises(OfficialWeightsError, match="no published name, for example") as caught:
        to_official(weights)
    assert part in str(caught.value)
