"""Weights from another model: class rows by category name, the rest by name and shape, everything reported."""

import io

import pytest
import torch
from rich.console import Console

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import CheckpointError
from panoptic_detr.weights.checkpoints import Checkpoint
from panoptic_detr.weights.open import open_source
from panoptic_detr.weights.transfer import copy_mask_head, transfer_weights
from panoptic_detr.zoo import build_model

SMALL = {"backbone": "small", "backbone_norm": "batch", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16}
DETR = {**SMALL, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5}
TWO_STAGE = {**SMALL, "num_points": 2, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 5, "num_levels": 2}


def table(*names):
    return CategoryTable.from_coco([{"id": i, "name": name, "isthing": 1} for i, name in enumerate(names, 1)])


def build(name, categories, overrides):
    return build_model(name, num_labels=categories.num_labels, **overrides)


def source_of(model, categories):
    return Checkpoint(model.spec, model.state_dict(), categories)


def test_class_rows_follow_the_names():
    here, there = table("dog", "cow", "cat"), table("cat", "dog")
    old, new = build("detr_r50", there, DETR), build("detr_r50", here, DETR)
    before = new.class_embed.weight.clone()
    result = transfer_weights(source_of(old, there), new, here)
    torch.testing.assert_close(new.class_embed.weight[0], old.class_embed.weight[1])
    torch.testing.assert_close(new.class_embed.weight[2], old.class_embed.weight[0])
    torch.testing.assert_close(new.class_embed.weight[1], before[1])
    torch.testing.assert_close(new.class_embed.bias[3], old.class_embed.bias[2])  # no-object
    torch.testing.assert_close(new.encoder.state_dict(), old.encoder.state_dict())
    assert (result.classes_kept, result.classes_new, result.classes_dropped) == (["dog", "cat"], ["cow"], [])
    assert result.fresh == result.dropped == []


def test_proposal_head_keeps_its_one_row():
    here, there = table("dog", "cat"), table("cat", "dog")
    name = "deformable_detr_r50_two_stage"
    old, new = build(name, there, TWO_STAGE), build(name, here, TWO_STAGE)
    transfer_weights(source_of(old, there), new, here)
    mine, theirs = new.heads.class_embed, old.heads.class_embed
    assert len(mine) == 3
    torch.testing.assert_close(mine[0].linear.weight[0], theirs[0].linear.weight[1])
    torch.testing.assert_close(mine[2].linear.weight[0], theirs[2].linear.weight[0])


def test_detector_into_panoptic_model_with_more_queries():
    categories = table("cat")
    old = build("detr_r50", categories, DETR)
    new = build("detr_r50_panoptic", categories, {**DETR, "num_queries": 8})
    result = transfer_weights(source_of(old, categories), new, categories)
    torch.testing.assert_close(new.detector.query_embed.weight[:5], old.query_embed.weight)
    assert "detector.query_embed.weight: the first 5 of 8 taken over" in result.fresh
    assert any(line.startswith("mask_head.") and line.endswith("not in the source") for line in result.fresh)
    back = build("detr_r50", categories, DETR)
    result = transfer_weights(source_of(new, categories), back, categories)
    assert all(name.startswith("mask_head.") for name in result.dropped)
    assert len(result.dropped) > 5


def test_everything_is_printed():
    here, there = table("dog", "cow"), table("cat", "dog")
    old, new = build("detr_r50", there, DETR), build("detr_r50", here, {**DETR, "ffn_dim": 32})
    stream = io.StringIO()
    transfer_weights(source_of(old, there), new, here).print(Console(file=stream, width=200))
    text = " ".join(stream.getvalue().split())
    assert "classes kept │ 1 │ dog" in text
    assert "classes new │ 1 │ cow" in text
    assert "classes dropped │ 1 │ cat" in text
    assert ": (32, 16) here, (16, 16) in the source" in text


def test_heads_of_another_width_are_new():
    categories = table("cat")
    old, new = build("detr_r50", categories, DETR), build("detr_r50", categories, {**DETR, "hidden_dim": 32})
    result = transfer_weights(source_of(old, categories), new, categories)
    assert "class_embed.weight: (2, 32) here, (2, 16) in the source" in result.fresh
    assert (result.classes_kept, result.classes_new) == ([], ["cat"])


def test_a_mask_head_is_taken_over_unless_it_computes_something_else():
    categories = table("cat")
    plain, scaled, other = (
        build("detr_r50_panoptic", categories, {**DETR, **overrides})
        for overrides in ({}, {"mask_scale_maps": True}, {"mask_scale_maps": False})
    )
    copy_mask_head(source_of(plain, categories), other)
    torch.testing.assert_close(other.mask_head.state_dict(), plain.mask_head.state_dict())
    before = scaled.mask_head.out.weight.clone()
    with pytest.raises(
        CheckpointError, match=r"mask_scale_maps false, .* has true; give --model\.overrides\.mask_scale_maps false"
    ):
        copy_mask_head(source_of(plain, categories), scaled)
    assert torch.equal(scaled.mask_head.out.weight, before)


def test_refusals():
    categories = table("cat")
    model = build("detr_r50", categories, DETR)
    with pytest.raises(CheckpointError, match="does not say what its labels mean"):
        transfer_weights(Checkpoint(model.spec, model.state_dict()), model, categories)
    with pytest.raises(CheckpointError, match="no parameter in common"):
        transfer_weights(Checkpoint(model.spec, {"w": torch.zeros(1)}, categories), model, categories)
    with pytest.raises(CheckpointError, match=r"no checkpoint at 'x\.pt': there is no such file"):
        open_source("x.pt")
