"""Backbones by name: the small one, torchvision's ResNets, and everything else through timm."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import ResNet

from panoptic_detr.errors import InputError
from panoptic_detr.models.backbones.layout import LAYOUT, dilate, layout_parts, read_layout
from panoptic_detr.models.backbones.resnet import (
    RESNETS,
    Backbone,
    Basic,
    FrozenBatchNorm2d,
    NormKind,
    SmallBackbone,
    Stages,
    missing_weights,
)
from panoptic_detr.models.backbones.statistics import IMAGENET_MEAN, IMAGENET_STD
from panoptic_detr.models.backbones.timm import SWIN, build_timm_backbone
from panoptic_detr.models.backbones.weights import find_weights, load_backbone_file
from panoptic_detr.models.settings import check_backbone_levels


def build_backbone(
    name: str,
    *,
    norm: NormKind = "frozen",
    dilation: bool = False,
    levels: Sequence[int] = (1, 2, 3, 4),
    pretrained: bool | str = False,
    trained_stages: int | None = None,
    drop_path: float | None = None,
) -> Backbone:
    """Build a backbone by name.

    Args:
        name: resnet18, resnet34, resnet50, resnet101, or "small" (a five-layer body for images of about 100 pixels); through
            timm swin_t, swin_s, swin_b, swin_l or a convolutional network such as resnext50_32x4d; or the sizes of a ResNet,
            such as "resnet basic 2x16 2x32 2x64 2x128 stem 16".
        norm: BatchNorm. "frozen": constants, for pretrained weights; "eval": pretrained statistics stay and scale and shift
            learn; "batch": everything learns, for training from random weights or with large batches.
        dilation: DC5, the last stage dilated instead of strided (stride 16); for ResNets and relatives.
        levels: which stages to return, 1 (stride 4) to 4 (stride 32); for "small" also 0, its stem at stride 2.
        pretrained: ImageNet weights: true fetches torchvision's or timm's, a path reads a state dict of theirs from a file, and
            a name such as "timm/resnet50.a1_in1k" is looked up on the Hugging Face hub.
        trained_stages: how many of the last stages train where norm is not "batch"; the stem and the others are frozen. None
            for 3 of a ResNet (paper) and all of other networks.
        drop_path: stochastic depth of Swin, by default 0.2; other backbones have none.

    Raises:
        InputError: an unknown name, or an option the backbone does not have.
        WeightsUnavailableError: `pretrained`, but the weights are neither in the cache nor to be had from the network.
    """
    check_backbone_levels(levels, finest=1 if name in (*RESNETS, *SWIN) or name.startswith(LAYOUT) else 0)
    if drop_path is not None and name not in SWIN:
        raise InputError(f"drop_path is for Swin backbones; {name!r} has none: leave it out")
    if name == "small":
        if pretrained:
            raise InputError(
                f"pretrained_backbone is {pretrained!r}, but backbone 'small' has no pretrained weights; leave it (`train "
                "--backbone`) out, or take a backbone that has them, such as resnet50, or a recipe with one: photos, detr_r50"
            )
        if dilation:
            raise InputError("backbone 'small' has neither a dilated form nor pretrained weights; leave dilation out")
        if norm == "eval":
            raise InputError("backbone 'small' has no pretrained statistics that norm 'eval' could keep; use 'batch'")
        return SmallBackbone(levels=levels)
    if name.startswith(LAYOUT):
        return _build_layout(name, norm, dilation, levels, pretrained)
    if name not in RESNETS:
        return build_timm_backbone(
            name,
            levels=levels,
            pretrained=pretrained,
            norm=norm,
            drop_path=drop_path,
            trained_stages=trained_stages,
            dilation=dilation,
        )
    return _build_resnet(name, norm, dilation, levels, pretrained, 3 if trained_stages is None else trained_stages)


def _build_resnet(
    name: str, norm: NormKind, dilation: bool, levels: Sequence[int], pretrained: bool | str, trained_stages: int
) -> Backbone:
    """One of torchvision's ResNets; arguments as `build_backbone`."""
    layer = _norm_layer(norm)
    block, counts = RESNETS[name]
    basic = block is Basic  # whose dilated form torchvision does not have
    net = ResNet(block, counts, norm_layer=layer, replace_stride_with_dilation=[False, False, dilation and not basic])
    if dilation and basic:
        dilate(net.layer4)
    if isinstance(pretrained, str):
        net.fc = nn.Identity()  # the file may be without classifier, or with one of other classes
        found = find_weights(pretrained, name)
        found.check_statistics(name, IMAGENET_MEAN, IMAGENET_STD)
        load_backbone_file(net, found.path, name)
    elif pretrained:
        net.load_state_dict(_fetch_weights(name))
    if norm != "batch":
        _freeze_early_stages(net, trained_stages)
    body = Stages(dict(net.named_children()), [f"layer{level}" for level in levels])
    strides = [4, 8, 16, 16 if dilation else 32]
    widths = [64 * block.expansion * 2**stage for stage in range(4)]
    return Backbone(
        body,
        [strides[level - 1] for level in levels],
        [widths[level - 1] for level in levels],
        ends=["maxpool", "layer1", "layer2", "layer3", "layer4"],
        norms_at_rest=norm == "eval",
    )


def _build_layout(name: str, norm: NormKind, dilation: bool, levels: Sequence[int], pretrained: bool | str) -> Backbone:
    """A ResNet of the sizes that its name says; arguments as `build_backbone`."""
    if dilation or pretrained:
        raise InputError(
            f"backbone {name!r} has neither a dilated form nor pretrained weights; resnet18 to resnet101 have both"
        )
    layout = read_layout(name)
    body = Stages(layout_parts(layout, _norm_layer(norm)), [f"layer{level}" for level in levels])
    strides, widths = [2 ** (level + 1) for level in levels], [layout.widths[level - 1] for level in levels]
    return Backbone(body, strides, widths, norms_at_rest=norm == "eval")


def _norm_layer(norm: NormKind) -> Callable[[int], nn.Module]:
    return FrozenBatchNorm2d if norm == "frozen" else nn.BatchNorm2d


def _fetch_weights(name: str) -> Mapping[str, Tensor]:
    """ImageNet weights of torchvision, through the cache of torch.hub."""
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except OSError as error:
        place = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
        remedy = f"download {weights.url} elsewhere and put it at {place}"
        raise missing_weights(name, error, remedy) from None


def _freeze_early_stages(net: nn.Module, trained_stages: int) -> None:
    trained = tuple(f"layer{stage}." for stage in range(5 - trained_stages, 5))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
