"""Backbones from timm: equal to timm's own where that is defined, and of any image size."""

import sys

import pytest
import torch

from panoptic_detr.models.backbones.build import build_backbone
from panoptic_detr.models.backbones.resnet import FrozenBatchNorm2d
from panoptic_detr.models.backbones.timm import SwinBody, freeze_norms, shift_mask, windowed_attention
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.models.deformable.detector import build_deformable_detr

timm_swin = pytest.importorskip("timm.models.swin_transformer")


@pytest.fixture
def net():
    options = {"depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "num_classes": 0, "drop_path_rate": 0.0}
    return timm_swin.SwinTransformer(img_size=64, embed_dim=16, window_size=2, always_partition=True, **options).eval()


def test_whole_windows_give_what_timm_gives(net):
    images = torch.randn(2, 3, 64, 64)
    body = SwinBody(net, (1, 2, 3, 4)).eval()
    maps = body(images)
    wanted = net.forward_intermediates(images, intermediates_only=True)
    assert len(wanted) == len(maps) == 4
    for level, features in enumerate(wanted, start=1):
        normed = body.norms[level - 1](features.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        torch.testing.assert_close(maps[str(level)], normed, atol=1e-5, rtol=1e-4)


def test_any_size(net):
    body = SwinBody(net, (2, 3, 4)).eval()
    images = torch.randn(2, 3, 70, 51)
    maps = body(images)
    assert [tuple(features.shape) for features in maps.values()] == [(2, 32, 9, 7), (2, 64, 5, 4), (2, 128, 3, 2)]
    for together, alone in zip(maps.values(), body(images[1:]).values(), strict=True):
        torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


def test_padding_comes_before_the_shift(net):
    block = net.layers[0].blocks[1]
    assert block.shift_size == (1, 1)
    block.dynamic_mask = True
    x = torch.randn(1, 5, 7, 16)
    expected = block._attn(torch.nn.functional.pad(x, (0, 0, 0, 1, 0, 1)))[:, :5, :7]
    torch.testing.assert_close(windowed_attention(block, x), expected)


def test_shift_mask_by_hand():
    # Columns 0 1 2 | 3 of a 2x4 map with windows of 2 and a shift of 1: the last window mixes column 2 with the first one.
    mask = shift_mask((2, 4), (2, 2), (0, 1), torch.zeros(1))
    assert mask.shape == (2, 4, 4)
    assert not mask[0].any()
    blocked = torch.tensor([[0, 1, 0, 1], [1, 0, 1, 0]] * 2) * -100.0
    torch.testing.assert_close(mask[1], blocked)


def test_swin_by_name():
    backbone = build_backbone("swin_t", levels=(2, 3, 4))
    assert backbone.num_channels == (192, 384, 768)
    assert backbone.strides == (8, 16, 32)
    learned = sum(p.numel() for p in backbone.parameters()) / 1e6
    assert learned == pytest.approx(27.52, abs=0.01)  # Liu et al.: 28.3M with a classifier of 0.77M
    last = backbone.eval()(torch.randn(1, 3, 64, 50), torch.zeros(1, 64, 50, dtype=torch.bool))[-1]
    assert last.features.shape == (1, 768, 2, 2)


def test_convolutional_network_by_name():
    backbone = build_backbone("resnext26ts", norm="batch")
    assert backbone.strides == (4, 8, 16, 32)
    backbone = build_backbone("resnext50_32x4d", levels=(3, 4))
    assert backbone.num_channels == (1024, 2048)
    assert not any(type(module) is torch.nn.BatchNorm2d for module in backbone.modules())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()) == 53
    frozen = {name.split(".")[2] for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "layer1"}


@pytest.mark.parametrize("name", ["resnext50_32x4d", "res2net50_26w_4s"])
def test_stem_and_first_stage_are_frozen_whichever_levels_are_wanted(name):
    backbone = build_backbone(name, levels=(1, 2, 3))
    trained = {parameter.split(".")[2] for parameter, p in backbone.named_parameters() if p.requires_grad}
    assert trained == {"layer2", "layer3"}


@pytest.mark.parametrize("name", ["regnety_002", "hrnet_w18_small"])
def test_networks_of_another_build_train_from_the_first_layer(name):
    assert all(p.requires_grad for p in build_backbone(name).parameters())


@pytest.mark.parametrize("name", ["regnety_002", "efficientnet_b0", "densenet121"])
def test_norms_with_activation_are_frozen_and_do_the_same(name):
    backbone = build_backbone(name, norm="batch", levels=(1, 2)).eval()
    norms = [module for module in backbone.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert any(type(norm) is not torch.nn.BatchNorm2d for norm in norms)
    for norm in norms:
        norm.running_mean.normal_(0, 0.1)
        torch.nn.init.normal_(norm.bias, std=0.1)
    images, padding = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    with torch.no_grad():
        wanted = [level.features for level in backbone(images, padding)]
        freeze_norms(backbone, name)
        found = [level.features for level in backbone.train()(images, padding)]
        folded = [level.features for level in optimize_for_inference(backbone)(images, padding)]
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in backbone.modules())
    assert sum(isinstance(module, FrozenBatchNorm2d) for module in backbone.modules()) == len(norms)
    for features in (found, folded):
        for level, expected in zip(features, wanted, strict=True):
            torch.testing.assert_close(level, expected, rtol=1e-4, atol=float(1e-5 * expected.abs().max()))


def test_an_optimised_network_keeps_the_activations_of_its_norms():
    layers = pytest.importorskip("timm.layers")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), layers.BatchNormAct2d(4)).eval()
    images = torch.randn(1, 3, 8, 8)
    torch.testing.assert_close(optimize_for_inference(net)(images), net(images))


@pytest.mark.parametrize(("name", "norm"), [("tf_efficientnet_lite0", "frozen"), ("resnet10t", "batch")])
def test_norms_of_timm_are_folded_into_the_convolutions_before_them(name, norm):
    torch.manual_seed(0)
    backbone = build_backbone(name, norm=norm, levels=(1, 2, 3)).eval()
    for module in backbone.modules():
        if isinstance(module, FrozenBatchNorm2d | torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    images, padding = torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)
    fast = optimize_for_inference(backbone)
    left = [type(m).__name__ for m in fast.modules() if isinstance(m, FrozenBatchNorm2d | torch.nn.BatchNorm2d)]
    assert left == []
    assert any(isinstance(m, FrozenBatchNorm2d | torch.nn.BatchNorm2d) for m in backbone.modules())
    with torch.no_grad():
        for found, wanted in zip(fast(images, padding), backbone(images, padding), strict=True):
            torch.testing.assert_close(
                found.features, wanted.features, rtol=1e-3, atol=1e-4 * float(wanted.features.abs().max())
            )


def test_norms_without_frozen_form_are_named():
    net = torch.nn.Sequential(torch.nn.Sequential(torch.nn.SyncBatchNorm(4)))
    with pytest.raises(ValueError, match="backbone 'some': its SyncBatchNorm has no frozen form here; set backbone_norm=batch"):
        freeze_norms(net, "some")


@pytest.mark.parametrize(("options", "last"), [({}, 0.2), ({"drop_path": 0.5}, 0.5), ({"drop_path": 0.0}, 0.0)])
def test_stochastic_depth_grows_to_the_last_block(options, last):
    model = build_deformable_detr(
        backbone="swin_t", hidden_dim=16, num_heads=2, encoder_layers=0, decoder_layers=1, ffn_dim=16, **options
    )
    blocks = [block for stage in model.backbone.body.layers for block in stage.blocks]
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([last * index / 11 for index in range(12)])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_x", {}, "there is no backbone 'swin_x'; use one of small, resnet18"),
        ("vit_tiny_patch16_224", {}, "'vit_tiny_patch16_224' has levels at strides .*, but"),
        ("swin_t", {"dilation": True}, "no dilated"),
        ("swin_t", {"drop_path": 1.0}, r"drop_path must be in \[0, 1\), .* but got 1\.0"),
        ("resnet50", {"drop_path": 0.1}, "drop_path is for Swin backbones; 'resnet50' has none: leave it out"),
        ("small", {"drop_path": 0.0}, "drop_path is for Swin backbones; 'small' has none: leave it out"),
        ("resnext50_32x4d", {"drop_path": 0.1}, "drop_path is for Swin backbones; 'resnext50_32x4d' has none: leave it out"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **options)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"comes from timm: pip install 'panoptic-detr\[backbones\]'"):
        build_backbone("swin_t")
