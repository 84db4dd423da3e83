"""Deformable DETR and H-DETR: what goes in, what comes out, and what must not change it."""

import copy

import pytest
import torch

from panoptic_detr import build_model
from panoptic_detr.models.deformable.detector import build_deformable_detr
from panoptic_detr.models.deformable.heads import shift_boxes
from panoptic_detr.models.deformable.queries import shrink_groups
from panoptic_detr.models.deformable.transformer import flatten_levels
from panoptic_detr.structures import FeatureLevel, Predictions, pad_images

TINY = {
    "num_labels": 5,
    "backbone": "small",
    "backbone_norm": "batch",
    "hidden_dim": 32,
    "num_heads": 4,
    "num_points": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "ffn_dim": 48,
    "dropout": 0.0,
    "num_levels": 3,
    "num_queries": 6,
}
TWO_STAGE = {"two_stage": True, "box_refine": True}
HYBRID = TWO_STAGE | {"mixed_selection": True, "look_forward_twice": True, "num_one_to_many": 10}
VARIANTS = {
    "plain": {},
    "refine": {"box_refine": True},
    "two_stage": TWO_STAGE,
    "hybrid": HYBRID,
    "hybrid_learned": {"box_refine": True, "num_one_to_many": 10},
    "single_scale": {"num_levels": 1},
    "extra_level": {"num_levels": 4},
    "dense": TWO_STAGE | {"encoder": "dense"},
    "no_encoder": {"encoder_layers": 0},
}


def make(**overrides):
    model = build_deformable_detr(**(TINY | overrides))
    with torch.no_grad():  # the initial weights look alike everywhere: let boxes, offsets and weights depend on the query
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1 and not parameter.any():
                torch.nn.init.normal_(parameter, std=0.2 if "mlp" in name else 0.05)
    return model


def images(count=2, size=64):
    return torch.randn(count, 3, size, size), torch.zeros(count, size, size, dtype=torch.bool)


@pytest.mark.parametrize("variant", VARIANTS)
def test_output_shapes(variant):
    model = make(**VARIANTS[variant]).eval()
    output = model(*images())
    assert output.logits.shape == (2, 2, 6, 5)
    assert output.boxes.shape == (2, 2, 6, 4)
    assert output.decoder_states.shape == (2, 6, 32)
    assert output.memory.features.shape == output.projected.shape == (2, 32, 2, 2)
    assert output.memory.stride == 32
    assert [level.stride for level in output.features] == [4, 8, 16]
    assert not output.no_object
    assert output.one_to_many is None
    assert output.dense == ()
    assert (output.proposals is not None) == ("two_stage" in VARIANTS[variant])
    assert ((output.boxes > 0) & (output.boxes < 1)).all()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_parameter_gets_a_gradient(variant):
    model = make(**VARIANTS[variant], dense_aux=True)
    output = model(*images())
    parts = [output.logits, output.boxes, *(level.features for level in output.dense)]
    for group in (output.proposals, output.one_to_many):
        parts += [] if group is None else [group.logits, group.boxes]
    sum((part * torch.randn_like(part)).sum() for part in parts).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == ({"level_embed"} if variant == "no_encoder" else set())  # only the encoder reads positions of tokens


@pytest.mark.parametrize("variant", VARIANTS)
def test_batched_equals_single(variant):
    model = make(**VARIANTS[variant]).eval()
    batch, mask = images(3)
    together = model(batch, mask)
    for index in range(3):
        alone = model(batch[index : index + 1], mask[index : index + 1])
        torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padding", [(3, 2), (0, 5)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_transformer_ignores_padding(variant, padding):
    model = make(**VARIANTS[variant]).eval()
    sizes = (8, 4, 2, 1)[: len(model.input_proj.levels)]
    levels = [FeatureLevel(torch.randn(1, 32, s, s + 1), torch.zeros(1, s, s + 1, dtype=torch.bool), 64 // s) for s in sizes]
    padded = [pad_level(level, *padding) for level in levels]
    first, second = (transform(model, x) for x in (levels, padded))
    torch.testing.assert_close(first.boxes, second.boxes, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(first.logits, second.logits, atol=1e-5, rtol=1e-4)


def pad_level(level, rows, columns):
    """More rows and columns, full of large numbers."""
    features = torch.nn.functional.pad(level.features, (0, columns, 0, rows), value=50.0)
    mask = torch.nn.functional.pad(level.padding_mask, (0, columns, 0, rows), value=True)
    return FeatureLevel(features, mask, level.stride)


def transform(model, levels):
    tokens = flatten_levels(levels, model.position_encoding, model.level_embed)
    memory = model.encoder(tokens)
    if "pos_trans.weight" in dict(model.queries.named_parameters()):
        proposals = model.queries.propose(memory, tokens, model.heads, head=2)
        queries = model.queries(proposals, tokens, [6])
    else:
        queries = model.queries(1, [6])
    return model.decoder(queries, memory, tokens, model.heads)


@pytest.mark.parametrize("variant", ["hybrid", "hybrid_learned"])
def test_one_to_many_queries_never_change_the_others(variant):
    model = make(**VARIANTS[variant]).train()
    batch = images()
    before = copy.deepcopy(model)(*batch)
    with torch.no_grad():
        model.queries.query_embed.weight[6:].add_(10 * torch.randn_like(model.queries.query_embed.weight[6:]))
    after = model(*batch)
    assert before.one_to_many.logits.shape == (2, 2, 10, 5)
    assert not torch.allclose(before.one_to_many.logits, after.one_to_many.logits)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.boxes, after.boxes)


def test_one_to_many_queries_cost_nothing_at_inference():
    model = make(**HYBRID).eval()
    seen = []
    model.decoder.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    model(*images())
    model.train()(*images())
    assert seen == [6, 16]


@pytest.mark.parametrize("variant", ["two_stage", "hybrid"])
def test_fewer_tokens_than_queries(variant):
    model = make(**(VARIANTS[variant] | {"num_queries": 100})).train()
    output = model(*images(2, 32))
    assert output.logits.shape[2] == 16 + 4 + 1
    assert output.one_to_many is None
    assert torch.isfinite(output.boxes).all()


def test_groups_shrink_in_order():
    assert shrink_groups([100, 200], 300) == [100, 200]
    assert shrink_groups([100, 200], 150) == [100, 50]
    assert shrink_groups([100, 200], 80) == [80]


def test_padding_is_never_proposed():
    model = make(**TWO_STAGE).eval()
    batch, mask = pad_images([torch.randn(3, 64, 64), torch.randn(3, 40, 32)])
    levels = model.input_proj(model.backbone(batch, mask)[1:], mask)
    tokens = flatten_levels(levels, model.position_encoding, model.level_embed)
    proposals = model.queries.propose(tokens.features, tokens, model.heads, head=2)
    tempting = torch.where(tokens.padding_mask, 100.0, proposals.logits[0, ..., 0])
    boxes = proposals.boxes.clone()
    boxes[0, tokens.padding_mask] = 0.987
    queries = model.queries(Predictions(tempting[None, ..., None], boxes), tokens, [6])
    assert queries.references.shape == (2, 6, 4)
    assert not (queries.references == 0.987).any()
    assert (queries.references[..., :2] < 1).all()


def test_tokens_without_anchor_point_at_the_whole_image():
    model = make(**TWO_STAGE).eval()
    level = FeatureLevel(torch.randn(1, 32, 1, 60), torch.zeros(1, 1, 60, dtype=torch.bool), 8)
    tokens = flatten_levels([level] * 3, model.position_encoding, model.level_embed)
    _, valid = model.queries.anchors(tokens)
    assert (~valid).sum() == 6  # the first and last cells of each level lie within 1% of the border
    proposals = model.queries.propose(tokens.features, tokens, model.heads, head=2)
    assert (proposals.boxes[0][~valid] == 1).all()
    everything = model.queries(proposals, tokens, [180]).references[0]
    assert (everything == torch.tensor([0.5, 0.5, 1.0, 1.0])).all(-1).sum() == 6


def test_anchors_grow_with_the_level():
    model = make(**TWO_STAGE, anchor_size=0.1).eval()
    levels = [FeatureLevel(torch.randn(1, 32, s, s), torch.zeros(1, s, s, dtype=torch.bool), 64 // s) for s in (8, 4, 2)]
    anchors, valid = model.queries.anchors(flatten_levels(levels, model.position_encoding, model.level_embed))
    assert valid.all()
    torch.testing.assert_close(anchors[0, 1], torch.tensor([1.5 / 8, 0.5 / 8, 0.1, 0.1]))
    torch.testing.assert_close(anchors[0, 64], torch.tensor([0.5 / 4, 0.5 / 4, 0.2, 0.2]))
    torch.testing.assert_close(anchors[0, -1], torch.tensor([0.75, 0.75, 0.4, 0.4]))


def test_refined_boxes_start_from_detached_references():
    for twice in (False, True):
        model = make(**TWO_STAGE, look_forward_twice=twice)
        output = model(*images())
        output.boxes[1].sum().backward()
        gradient = model.heads.bbox_embed[0].mlp.layers[-1].weight.grad
        assert gradient.any() == twice


def test_offsets_from_a_point_leave_the_size_alone():
    offsets = torch.tensor([0.0, 0.0, -2.0, 1.0])
    boxes = shift_boxes(torch.tensor([0.3, 0.6]), offsets)
    torch.testing.assert_close(boxes, torch.tensor([0.3, 0.6, *torch.tensor([-2.0, 1.0]).sigmoid()]))
    torch.testing.assert_close(shift_boxes(boxes, torch.zeros(4)), boxes)


def test_initial_predictions_are_rare_classes_and_small_boxes():
    model = build_deformable_detr(**TINY).eval()
    output = model(*images())
    torch.testing.assert_close(model.heads.class_embed[0].linear.bias.sigmoid(), torch.full((5,), 0.01))
    torch.testing.assert_close(output.boxes[..., 2:], torch.full((2, 2, 6, 2), -2.0).sigmoid())


def test_dense_logits_in_training_only():
    model = make(**TWO_STAGE, dense_aux=True)
    shapes = [tuple(level.features.shape) for level in model.train()(*images()).dense]
    assert shapes == [(2, 5, 8, 8), (2, 5, 4, 4), (2, 5, 2, 2)] * 2
    assert model.eval()(*images()).dense == ()


def test_predictions_keep_float32_under_autocast():
    model = make(**HYBRID).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*images())
    for group in (output, output.one_to_many, output.proposals):
        assert group.logits.dtype == group.boxes.dtype == torch.float32
    output.boxes.sum().backward()


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("deformable_detr_r50", 40.1),
        ("deformable_detr_r50_refine", 40.8),
        ("deformable_detr_r50_two_stage", 41.2),
        ("deformable_detr_r50_single_scale", 34.1),
        ("deformable_detr_r50_single_scale_dc5", 34.1),
    ],
)
def test_parameter_counts_of_the_paper(name, millions):
    with torch.device("meta"):
        model = build_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encoder": "sparse"}, "'deformable' or 'dense', but got 'sparse'"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1, but got 0"),
        ({"mixed_selection": True}, "set two_stage=True"),
        ({"look_forward_twice": True}, "set box_refine=True"),
        ({"two_stage": True, "hidden_dim": 18, "num_heads": 2}, "multiple of 4, but got 18"),
    ],
)
def test_settings_that_do_not_fit(overrides, message):
    with pytest.raises(ValueError, match=message):
        build_deformable_detr(**(TINY | overrides))
