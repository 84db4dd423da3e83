"""Logits and boxes of every detector are computed in float32, whatever the precision of the rest."""

import pytest
import torch

from panoptic_detr import build_model

TINY = {"backbone": "small", "backbone_norm": "batch", "hidden_dim": 32, "num_heads": 4, "ffn_dim": 48, "num_queries": 6}
SMALL_LAYERS = {"encoder_layers": 1, "decoder_layers": 2, "dropout": 0.0}
NAMES = ["detr_r50", "deformable_detr_r50", "deformable_detr_r50_refine", "deformable_detr_r50_two_stage"]
DETECTORS = pytest.mark.parametrize("name", [*NAMES, "h_deformable_detr_r50"])
LEARNED = pytest.mark.parametrize("name", NAMES[:3])  # two-stage ones may choose other proposals: there is no pairing


def make(name):
    overrides = TINY | SMALL_LAYERS | ({"num_one_to_many": 4} if name.startswith("h_") else {})
    model = build_model(name, num_labels=5, **overrides)
    with torch.no_grad():  # boxes that differ from query to query
        for key, parameter in model.named_parameters():
            if "bbox_embed" in key and parameter.dim() > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


def run(model, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(2, 3, 64, 96, generator=generator, dtype=torch.float32).to(dtype)
    return model(images, torch.zeros(2, 64, 96, dtype=torch.bool))


def groups(output):
    return [group for group in (output, output.one_to_many, output.proposals) if group is not None]


def is_rounded(x):
    """Whether every number would survive bfloat16."""
    return torch.equal(x, x.bfloat16().float())


@DETECTORS
def test_under_autocast(name):
    model = make(name).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = run(model)
    for group in groups(output):
        assert group.logits.dtype == group.boxes.dtype == torch.float32
        assert not is_rounded(group.logits)
        assert not is_rounded(group.boxes)
    (output.logits.sum() + output.boxes.sum()).backward()


@DETECTORS
def test_with_half_weights(name):
    output = run(make(name).eval().bfloat16(), torch.bfloat16)
    for group in groups(output):
        assert group.logits.dtype == group.boxes.dtype == torch.float32
        assert not is_rounded(group.logits)
        assert not is_rounded(group.boxes)


@LEARNED
def test_heads_add_no_error_of_their_own_under_autocast(name):
    model = make(name).eval()
    given = {}
    heads = model if name == "detr_r50" else model.heads
    box_head = heads.bbox_embed if name == "detr_r50" else heads.bbox_embed[0].mlp
    hook = box_head.register_forward_hook(lambda module, inputs, result: given.update(states=inputs[0], offsets=result))
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        run(model)
    hook.remove()
    with torch.no_grad():
        expected = box_head.double()(given["states"].double())
    torch.testing.assert_close(given["offsets"].double(), expected, rtol=1e-5, atol=1e-5)


@LEARNED
def test_autocast_stays_close_to_float32(name):
    model = make(name).eval()
    with torch.no_grad():
        exact = run(model)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = run(model)
    torch.testing.assert_close(rounded.logits, exact.logits, rtol=0.05, atol=0.05)
    torch.testing.assert_close(rounded.boxes, exact.boxes, rtol=0, atol=0.02)
