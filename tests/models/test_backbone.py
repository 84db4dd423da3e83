"""Backbones: in training a convolution applies the frozen BatchNorm behind it, and nothing else about either changes."""

import copy

import pytest
import torch
from torch import nn

from panoptic_detr.errors import InputError
from panoptic_detr.models.backbones import resnet
from panoptic_detr.models.backbones.build import build_backbone
from panoptic_detr.models.backbones.resnet import FrozenBatchNorm2d, conv_norm


def build(name="resnet18"):
    torch.manual_seed(0)
    backbone = build_backbone(name, levels=(2, 4)).double()
    for norm in norms(backbone):
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2.0)
        norm.weight.uniform_(0.5, 1.5)
        norm.bias.normal_(0, 0.3)
    return backbone


def norms(backbone):
    return [m for m in backbone.modules() if isinstance(m, FrozenBatchNorm2d)]


def features(backbone, images=None):
    images = (
        torch.randn(2, 3, 64, 96, dtype=torch.double, generator=torch.Generator().manual_seed(1)) if images is None else images
    )
    return [level.features for level in backbone(images, torch.zeros(2, 64, 96, dtype=torch.bool))]


def gradients(backbone):
    backbone.zero_grad()
    sum((f * f).sum() for f in features(backbone)).backward()
    return {name: p.grad.clone() for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "count"), [("resnet18", 20), ("resnet50", 53)])
def test_every_convolution_applies_its_norm_in_training(name, count):
    backbone, called = build(name).train(), []
    assert len(norms(backbone)) == count
    for norm in norms(backbone):
        norm.register_forward_hook(lambda *_: called.append(1))
    features(backbone)
    assert len(called) == 0
    features(backbone.eval())
    assert len(called) == count


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_training_computes_what_the_two_layers_compute(name, monkeypatch):
    backbone = build(name).train()
    found, found_gradients = features(backbone), gradients(backbone)
    monkeypatch.setattr(resnet, "_trains", lambda conv: False)
    wanted, wanted_gradients = features(backbone), gradients(backbone)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert found_gradients.keys() == wanted_gradients.keys()
    for key, value in wanted_gradients.items():
        torch.testing.assert_close(found_gradients[key], value, rtol=1e-8, atol=1e-8 * float(value.abs().max()))


def test_a_norm_is_applied_once_whatever_the_mode():
    backbone = build()
    with torch.no_grad():
        modes = [features(backbone.train()), features(backbone.eval())]
    modes += [features(backbone.eval()), features(backbone.train())]
    for other in modes[1:]:
        for a, b in zip(modes[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_parameters_keep_their_names():
    keys = set(build_backbone("resnet18").state_dict())
    assert "body.layer1.0.conv1.weight" in keys
    assert not any("norm" in key for key in keys)
    assert len(keys) == 20 + 20 * 4


def test_a_copy_has_norms_of_its_own():
    backbone = build().train()
    twin = copy.deepcopy(backbone)
    before = features(backbone)
    for norm in norms(twin):
        norm.weight.mul_(2)
    assert not torch.allclose(features(twin)[0], before[0])
    assert all(torch.equal(a, b) for a, b in zip(features(backbone), before, strict=True))


def test_a_convolution_with_a_bias():
    conv, norm = nn.Conv2d(3, 4, 3), FrozenBatchNorm2d(4)
    norm.weight.uniform_(0.5, 2)
    norm.bias.normal_()
    norm.running_mean.normal_()
    x = torch.randn(1, 3, 8, 8)
    wanted = norm(conv(x))
    torch.testing.assert_close(conv_norm(conv, norm, x), wanted)
    torch.testing.assert_close(conv_norm(conv.eval(), norm, x), wanted)


@pytest.mark.parametrize("name", ["resnet18", "tf_efficientnet_lite0"])
def test_norms_at_rest_keep_their_statistics_and_learn_scale_and_shift(name):
    if name != "resnet18":
        pytest.importorskip("timm")
    backbone = build_backbone(name, norm="eval", levels=(1, 2, 3, 4), trained_stages=2)
    torch.nn.ModuleList([backbone]).train()  # as a part of a model
    norms = [m for m in backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    levels = backbone(torch.randn(2, 3, 64, 64), torch.zeros(2, 64, 64, dtype=torch.bool))
    sum(level.features.sum() for level in levels).backward()
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
    assert norms[-1].weight.grad is not None
    assert norms[0].weight.grad is None  # its stage is frozen
    assert backbone.training
    assert sum(m.training for m in norms) == 0
    with pytest.raises(InputError, match="no pretrained statistics that norm 'eval' could keep"):
        build_backbone("small", norm="eval")
