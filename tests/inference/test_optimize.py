"""The optimised copy computes the same and leaves the model alone."""

import pytest
import torch
from torch import nn

from panoptic_detr.errors import InputError
from panoptic_detr.models.backbones.build import build_backbone
from panoptic_detr.models.backbones.resnet import FrozenBatchNorm2d
from panoptic_detr.models.cpu import fused
from panoptic_detr.models.cpu.fused import FusedBlock, FusedConv
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.models.layers import FeedForward, MultiHeadAttention


def randomise_norms(model):
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d | nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.3)


def norms(model):
    return [m for m in model.modules() if isinstance(m, FrozenBatchNorm2d | nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet18", {"norm": "frozen"}),
        ("resnet18", {"norm": "batch"}),
        ("resnet50", {"norm": "frozen", "dilation": True}),
        ("small", {}),
    ],
)
def test_every_batch_norm_of_the_backbone_is_folded(name, options):
    backbone = build_backbone(name, **options).eval()
    randomise_norms(backbone)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    fast = optimize_for_inference(backbone)
    assert norms(backbone)
    assert norms(fast) == []
    images, padding = torch.randn(2, 3, 64, 96), torch.zeros(2, 64, 96, dtype=torch.bool)
    with torch.no_grad():
        for expected, found in zip(backbone(images, padding), fast(images, padding), strict=True):
            scale = expected.features.abs().max()
            assert torch.allclose(found.features, expected.features, rtol=1e-5, atol=float(1e-5 * scale))
    after = backbone.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(
        not value.is_contiguous(memory_format=torch.channels_last)
        for key, value in after.items()
        if key.endswith("conv2.weight")
    )


def test_panoptic_model_gives_the_same_output(model):
    fast = optimize_for_inference(model)
    images, padding = torch.randn(1, 3, 64, 96), torch.zeros(1, 64, 96, dtype=torch.bool)
    with torch.no_grad():
        expected, found = model(images, padding), fast(images, padding)
        masks = [m.segment(o, [torch.arange(5)])[0] for m, o in ((model, expected), (fast, found))]
    assert torch.allclose(found.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.boxes, expected.boxes, rtol=1e-5, atol=1e-6)
    assert torch.allclose(masks[1], masks[0], rtol=1e-4, atol=1e-5)
    assert not any(type(m) is nn.Linear or isinstance(m, FeedForward) for m in fast.modules())
    assert any(isinstance(m, MultiHeadAttention) for m in fast.modules())
    assert all(m.linear is fused.linear for m in fast.modules() if isinstance(m, MultiHeadAttention))


def test_weights_other_than_convolutions_are_shared(model):
    fast = optimize_for_inference(model)
    linear = model.mask_head.attention.q_linear.weight
    assert fast.mask_head.attention.q_linear.weight is linear
    assert fast is not model
    assert fast.mask_head.convs[0].weight is not model.mask_head.convs[0].weight


def test_the_copy_is_in_eval_mode_and_the_model_stays_in_its_own(model):
    model.train()
    assert not optimize_for_inference(model).training
    assert model.training
    assert model.detector.training


def test_batch_norm_that_is_not_constant_is_left_alone():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)).eval()
    assert len(norms(optimize_for_inference(net))) == 1


def test_norms_before_convolutions_are_left_alone():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).eval()
    randomise_norms(net)
    images = torch.randn(1, 3, 8, 8)
    assert torch.allclose(optimize_for_inference(net)(images), net(images), atol=1e-5)


def run(backbone, images):
    with torch.no_grad():
        return [level.features for level in backbone(images, torch.zeros(len(images), *images.shape[2:], dtype=torch.bool))]


def assert_near(found, wanted, tolerance):
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one.float(), other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


@pytest.mark.parametrize(("name", "blocks"), [("resnet18", 8), ("resnet50", 16), ("small", 4)])
def test_blocks_are_fused_and_compute_the_same(name, blocks):
    backbone = build_backbone(name).eval()
    randomise_norms(backbone)
    fast = optimize_for_inference(backbone)
    assert sum(isinstance(m, FusedBlock) for m in fast.modules()) == blocks
    assert isinstance(fast.body["conv1"] if name != "small" else fast.body["layer1"].inner[0], FusedConv)
    images = torch.randn(2, 3, 64, 96)
    wanted = run(backbone, images)
    assert_near(run(fast, images), wanted, 1e-5)
    assert_near(run(optimize_for_inference(backbone, channels_last=False), images), wanted, 1e-5)


def test_the_fused_calls_are_those_of_this_pytorch():
    assert fused.available() == torch.backends.mkldnn.is_available()


def test_without_fused_calls_the_plain_ones_are_made(monkeypatch):
    backbone = build_backbone("resnet18").eval()
    randomise_norms(backbone)
    images, called = torch.randn(1, 3, 64, 96), []
    monkeypatch.setattr(fused, "available", lambda: bool(called.append("asked")))
    assert_near(run(optimize_for_inference(backbone), images), run(backbone, images), 1e-5)
    assert len(called) == 1 + 8 * 2  # the stem, and two convolutions in each of eight blocks


def test_a_fused_call_that_changed_is_not_used(monkeypatch):
    monkeypatch.setattr(fused, "_fused", lambda conv, x, residual: conv(x))
    assert not fused.available.__wrapped__()


def test_a_fused_block_passes_gradients_where_they_are_wanted():
    fast = optimize_for_inference(build_backbone("resnet18"))
    images = torch.randn(1, 3, 64, 96, requires_grad=True)
    fast(images, torch.zeros(1, 64, 96, dtype=torch.bool))[-1].features.sum().backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize("bf16", [False, True])
def test_autocast_of_a_fused_backbone_is_that_of_the_plain_one(bf16):
    backbone = build_backbone("resnet18").eval()
    randomise_norms(backbone)
    fast, images = optimize_for_inference(backbone, precision="bf16" if bf16 else "fp32"), torch.randn(1, 3, 64, 96)
    with torch.autocast("cpu", torch.bfloat16):
        found = run(fast, images)
    assert {level.dtype for level in found} == {torch.bfloat16}
    assert {m.weight.dtype for m in fast.modules() if isinstance(m, nn.Conv2d)} == {torch.bfloat16 if bf16 else torch.float32}
    assert_near(found, run(backbone, images), 5e-2)


@pytest.mark.parametrize(("model", "precision"), [(None, "fp32"), ("detr_r50", "fp32"), (nn.Identity(), "fp16")])
def test_what_cannot_be_made_faster_is_said(model, precision):
    with pytest.raises(InputError, match="give a model of PyTorch"):
        optimize_for_inference(model, precision=precision)


def test_switches_leave_out_what_they_name():
    backbone = build_backbone("resnet18").eval()
    assert norms(optimize_for_inference(backbone, fold=False))
    unfused = optimize_for_inference(backbone, fuse=False)
    assert norms(unfused) == []
    assert not any(isinstance(m, FusedBlock | FusedConv) for m in unfused.modules())
    assert optimize_for_inference(backbone, channels_last=False).body["conv1"].conv.weight.is_contiguous()


@pytest.mark.parametrize("shape", [(2, 5, 6), (0, 6), (5, 6)])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 4)])
def test_fused_linear_layers_compute_the_same(shape, bias):
    x, weight = torch.randn(shape), torch.randn(12, 6)[4:8]
    strided = torch.randn(*shape[:-1], 12)[..., ::2]
    with torch.no_grad():
        for values in (x, strided):
            product = torch.nn.functional.linear(values, weight, bias)
            assert torch.allclose(fused.linear(values, weight, bias), product, atol=1e-5)
            assert torch.allclose(fused.linear_relu(values, weight, bias), product.relu(), atol=1e-5)
