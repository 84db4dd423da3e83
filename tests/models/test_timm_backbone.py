"""Backbones from timm: equal to timm's own where that is defined, and of any image size."""

import sys

import pytest
import torch

from panoptic_detr.models.backbone import FrozenBatchNorm2d
from panoptic_detr.models.build_backbone import build_backbone
from panoptic_detr.models.timm_backbone import SwinBody, shift_mask, windowed_attention

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


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("swin_x", {}, "there is no backbone 'swin_x'; use one of small, resnet18"),
        ("vit_tiny_patch16_224", {}, "'vit_tiny_patch16_224' has levels at strides .*, but"),
        ("swin_t", {"dilation": True}, "no dilated"),
    ],
)
def test_what_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone(name, **options)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"comes from timm: pip install 'panoptic-detr\[backbones\]'"):
        build_backbone("swin_t")
