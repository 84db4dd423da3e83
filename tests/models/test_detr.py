"""DETR: sizes, switches, and what must not change its answer."""

import pytest
import torch
from torch import nn

from panoptic_detr import build_model
from panoptic_detr.models.backbones.resnet import Backbone
from panoptic_detr.structures import pad_images

TINY = {
    "backbone": "resnet18",
    "backbone_norm": "batch",
    "hidden_dim": 32,
    "num_heads": 4,
    "ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
}


def tiny(name="detr_r50", num_labels=5, **overrides):
    torch.manual_seed(1)
    return build_model(name, num_labels=num_labels, **(TINY | overrides)).eval()


def run(model, *images):
    with torch.no_grad():
        return model(*pad_images(images))


def count(model, without_batch_norm=True):
    norms = ("bn", "downsample.1")
    return sum(p.numel() for n, p in model.named_parameters() if not (without_batch_norm and any(part in n for part in norms)))


def test_parameter_counts_of_the_published_models():
    assert count(build_model("detr_r50")) == 41_524_768
    assert count(build_model("detr_r50_panoptic")) == 42_899_288
    with_layer, without = build_model("detr_r50", encoder_layers=1), build_model("detr_r50", encoder_layers=0)
    assert count(with_layer) - count(without) == 1_315_072


@pytest.mark.parametrize(
    ("overrides", "millions"),
    [
        ({"encoder_layers": 0}, 33.4),
        ({"encoder_layers": 3}, 37.4),
        ({}, 41.3),
        ({"encoder_layers": 12}, 49.2),
        ({"ffn_dim": 0}, 28.7),
    ],
)
def test_parameter_counts_of_the_papers_tables(overrides, millions):
    assert count(build_model("detr_r50", **overrides)) / 1e6 == pytest.approx(millions, abs=0.3)


@pytest.mark.parametrize(("name", "millions"), [("detr_r101", 60), ("detr_r50_dc5", 41), ("detr_r101_dc5", 60)])
def test_parameter_counts_of_variants(name, millions):
    assert count(build_model(name)) / 1e6 == pytest.approx(millions, abs=0.7)


class Patches(nn.Module):
    """A body that looks at each cell alone.

    A convolution across the image's border sees what lies beyond: zeros for an image alone, features of nothing in a padded
    batch. The published models do so too; everything behind the backbone must not.
    """

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 8, stride, stride) for stride in (4, 8, 16, 32))

    def forward(self, images):
        return {str(index): conv(images) for index, conv in enumerate(self.convs)}


@pytest.mark.parametrize("larger", [(96, 128), (64, 192)])
@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("detr_r50", {}),
        ("detr_r50_panoptic", {}),
        ("detr_r50", {"pre_norm": True}),
        ("detr_r50", {"encoder_layers": 0}),
        ("detr_r50", {"ffn_dim": 0}),
        ("detr_r50", {"position_encoding": "learned"}),
        ("detr_r50", {"position_encoding": "none"}),
        ("detr_r50", {"encoder_position": "input", "decoder_position": "input", "query_position": "input"}),
    ],
)
def test_padding_changes_nothing(name, overrides, larger):
    model = tiny(name, **overrides)
    detector = model.detector if name.endswith("panoptic") else model
    detector.backbone = Backbone(Patches(), (4, 8, 16, 32), (8, 8, 8, 8))
    detector.input_proj = nn.Conv2d(8, 32, 1)
    small, large = torch.randn(3, 64, 96), torch.randn(3, *larger)
    alone, padded = run(model, small), run(model, small, large)
    torch.testing.assert_close(padded.logits[:, :1], alone.logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(padded.boxes[:, :1], alone.boxes, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(padded.logits[:, 1:], alone.logits)


def test_batched_equals_single():
    model = tiny("detr_r50_panoptic")
    first, second = torch.randn(3, 64, 96), torch.randn(3, 64, 96)
    both = run(model, first, second)
    queries = torch.tensor([4, 1])
    masks = model.segment(both, [queries, queries])
    for index, image in enumerate((first, second)):
        one = run(model, image)
        torch.testing.assert_close(both.logits[:, index], one.logits[:, 0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(masks[index], model.segment(one, [queries])[0], rtol=1e-4, atol=1e-5)


def test_permuted_queries_permute_the_answers():
    model = tiny("detr_r50_panoptic")
    image = torch.randn(3, 64, 64)
    before = run(model, image)
    masks = model.segment(before, [torch.arange(6)])[0]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    with torch.no_grad():
        model.detector.query_embed.weight.copy_(model.detector.query_embed.weight[order])
    after = run(model, image)
    torch.testing.assert_close(after.logits, before.logits[:, :, order], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.segment(after, [torch.arange(6)])[0], masks[order], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "overrides",
    [
        {"pre_norm": True},
        {"encoder_layers": 0},
        {"ffn_dim": 0},
        {"position_encoding": "learned"},
        {"position_encoding": "none"},
        {"encoder_position": "none"},
        {"encoder_position": "input", "decoder_position": "input", "query_position": "input"},
        {"encoder_position": "none", "decoder_position": "input"},
        {"backbone": "resnet34"},
        {"backbone": "resnet50", "dilation": True},
        {"backbone": "small"},
    ],
)
def test_switches_build_train_and_matter(overrides):
    image = torch.randn(3, 64, 64)
    model = tiny(**overrides)
    output = model.train()(*pad_images([image]))
    assert output.logits.shape == (2, 1, 6, 6)
    (output.logits.square().mean() + output.boxes.mean()).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []
    assert not torch.allclose(run(tiny(), image).logits, run(tiny(**overrides), image).logits)


def test_dilation_halves_the_stride_and_masks_stay_at_stride_four():
    model = tiny("detr_r50_dc5_panoptic", backbone="resnet50")
    output = run(model, torch.randn(3, 64, 96))
    assert output.memory.stride == 16
    assert output.memory.features.shape[-2:] == (4, 6)
    assert model.segment(output, [torch.tensor([0, 2])])[0].shape == (2, 16, 24)


def test_frozen_backbone_stages_do_not_train():
    frozen = {n for n, p in build_model("detr_r50").named_parameters() if not p.requires_grad}
    assert any(name.startswith("backbone.body.conv1") for name in frozen)
    assert any(name.startswith("backbone.body.layer1") for name in frozen)
    assert not any("layer2" in name or "encoder" in name for name in frozen)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("detr_r5", {}, "there is no model 'detr_r5'; the nearest are detr_r50"),
        ("detr_r50", {"num_querys": 5}, "did you mean 'num_queries'"),
        ("detr_r50", {"hidden_dim": 36}, "hidden_dim must be a multiple of num_heads, but got 36 and 8"),
        ("detr_r50", {"decoder_layers": 0}, "decoder_layers must be at least 1"),
        (
            "detr_r50",
            {"position_encoding": "cosine"},
            "'position_encoding' must be one of sine, learned, none, but got 'cosine'",
        ),
        ("detr_r50", {"encoder_position": "attn"}, "'encoder_position' must be one of"),
        ("detr_r50", {"backbone_norm": "froze"}, "'backbone_norm' must be one of frozen, batch, eval, but got 'froze'"),
        ("detr_r50", {"num_queries": "abc"}, "'num_queries' must be int, but got 'abc'"),
        ("detr_r50", {"pre_norm": 1}, "'pre_norm' must be bool, but got 1"),
        ("deformable_detr_r50", {"backbone_levels": [1, "x"]}, "'backbone_levels' must be"),
        ("detr_r50_panoptic", {"mask_dropout": "no"}, "'mask_dropout' must be float, but got 'no'"),
        ("detr_r50", {"backbone": "small", "dilation": True}, "neither a dilated"),
        ("detr_r50", {"backbone": "small", "pretrained_backbone": "no.pth"}, "'no.pth', .* a recipe with one: photos"),
        ("detr_r50", {"mask_dropout": 0.1}, "no override 'mask_dropout'"),
    ],
)
def test_bad_settings_are_refused_by_name(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        build_model(name, **overrides)
