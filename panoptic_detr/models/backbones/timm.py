"""Backbones from timm: Swin Transformers as H-DETR uses them, and convolutional networks such as ResNeXt.

timm gives the modules and their pretrained weights. The forward pass of Swin is written out here because images of any size
need it: as in the published detectors a block first pads its map to whole windows and then shifts it; timm's shifts first.
"""

import importlib
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.errors import InputError, WeightsUnavailableError
from panoptic_detr.models.backbones.resnet import Backbone, FrozenBatchNorm2d, NormKind, missing_weights
from panoptic_detr.models.backbones.statistics import IMAGENET_MEAN, IMAGENET_STD, InputStatistics
from panoptic_detr.models.backbones.weights import FoundWeights, find_weights, load_backbone_file
from panoptic_detr.models.settings import check_shares

SWIN = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "swin_s": "swin_small_patch4_window7_224",
    "swin_b": "swin_base_patch4_window7_224",
    "swin_l": "swin_large_patch4_window7_224.ms_in22k",  # as H-DETR: without the fine-tuning on ImageNet-1k
}
DROP_PATH = 0.2  # H-DETR's Swin-T
TRAINED_STAGES = ("layer2", "layer3", "layer4")


class SwinBody(nn.Module):
    """Feature maps of a Swin Transformer for images of any size.

    Levels 2 to 4 end in a LayerNorm each, as in the published detectors; level 1, which only a mask head reads, does not.

    Args:
        net: timm's model, built with `always_partition=True`; its classifier is not kept.
        levels: which stages to return, 1 (stride 4) to 4 (stride 32).
    """

    def __init__(self, net: Any, levels: Sequence[int]) -> None:
        super().__init__()
        self.patch_embed = net.patch_embed
        self.layers = net.layers
        widths = [net.embed_dim * 2**stage for stage in range(4)]
        wanted = [nn.LayerNorm(width) if stage and stage + 1 in levels else nn.Identity() for stage, width in enumerate(widths)]
        self.norms = nn.ModuleList(wanted)
        self.levels = tuple(levels)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps (B, C_l, ceil(H / stride), ceil(W / stride)) of (B, 3, H, W) images, by level, fine to coarse."""
        patch = self.patch_embed.proj.stride[0]
        x = self.patch_embed.proj(_pad_to_multiple(images, (patch, patch)))  # (B, C, h, w)
        x = self.patch_embed.norm(x.permute(0, 2, 3, 1))  # (B, h, w, C)
        maps = {}
        for level, (stage, norm) in enumerate(zip(self.layers, self.norms, strict=True), start=1):
            x = stage.downsample(x)
            for block in stage.blocks:
                x = swin_block(block, x)
            if level in self.levels:
                maps[str(level)] = norm(x).permute(0, 3, 1, 2).contiguous()  # (B, C, h, w)
        return maps


def swin_block(block: Any, x: Tensor) -> Tensor:
    """One block on a map (B, h, w, C): attention in (shifted) windows, then the perceptron (Liu et al., 2021, eq. 3)."""
    x = x + block.drop_path1(windowed_attention(block, block.norm1(x)))
    return x + block.drop_path2(block.mlp(block.norm2(x)))


def windowed_attention(block: Any, x: Tensor) -> Tensor:
    """Self-attention within windows of a map (B, h, w, C) that is padded to whole windows, then shifted."""
    height, width = x.shape[1:3]
    rows, columns = block.window_size
    shift = tuple(block.shift_size)
    x = _pad_to_multiple(x.permute(0, 3, 1, 2), (rows, columns)).permute(0, 2, 3, 1)  # (B, h', w', C)
    batch, padded_height, padded_width, channels = x.shape
    mask = shift_mask((padded_height, padded_width), (rows, columns), shift, x) if any(shift) else None
    x = torch.roll(x, (-shift[0], -shift[1]), dims=(1, 2))
    windows = _windows(x, rows, columns).flatten(1, 2)  # (B * number, rows * columns, C)
    windows = block.attn(windows, mask=mask).view(batch, -1, padded_width // columns, rows, columns, channels)
    x = windows.transpose(2, 3).reshape(batch, padded_height, padded_width, channels)
    return torch.roll(x, shift, dims=(1, 2))[:, :height, :width]


def shift_mask(size: tuple[int, int], window: tuple[int, int], shift: tuple[int, ...], like: Tensor) -> Tensor:
    """What to add to the attention of a shifted map: -100 between cells that the shift brought together from opposite borders.

    Returns:
        (number of windows, cells, cells).
    """
    parts = []
    for length, side, step in zip(size, window, shift, strict=True):
        cells = torch.arange(length, device=like.device)
        parts.append((cells >= length - side).long() + (cells >= length - step).long())  # 0, 1 or 2 per row (column)
    areas = parts[0][:, None] * 3 + parts[1]  # (h', w')
    areas = _windows(areas[None, ..., None], *window).flatten(1)  # (number, cells)
    apart = areas[:, None] != areas[:, :, None]
    return torch.zeros(apart.shape, dtype=like.dtype, device=like.device).masked_fill(apart, -100.0)


def _windows(x: Tensor, rows: int, columns: int) -> Tensor:
    """Cut (B, h, w, C) into windows: (B * number, rows, columns, C)."""
    # not by `unflatten`, whose sizes the tracer of torch.onnx takes for numbers that never change
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // rows, rows, width // columns, columns, channels).transpose(2, 3).flatten(0, 2)


def _pad_to_multiple(x: Tensor, sizes: tuple[int, int]) -> Tensor:
    """Pad (B, C, h, w) right and below with zeros."""
    return F.pad(x, (0, -x.shape[3] % sizes[1], 0, -x.shape[2] % sizes[0]))


class ConvolutionalBody(nn.Module):
    """Feature maps of one of timm's convolutional networks, built with `features_only=True`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps of (B, 3, H, W) images, fine to coarse."""
        return {str(index): features for index, features in enumerate(self.net(images))}


def build_timm_backbone(
    name: str,
    *,
    levels: Sequence[int] = (1, 2, 3, 4),
    pretrained: bool | str = False,
    norm: NormKind = "frozen",
    drop_path: float | None = None,
    trained_stages: int | None = None,
    dilation: bool = False,
) -> Backbone:
    """Build a backbone from timm: Swin, or a convolutional network with levels at strides 4 to 32; see `build_backbone`.

    A frozen norm replaces every BatchNorm by its frozen form, norm "eval" keeps its statistics; of a network whose stages are
    called as a ResNet's (layer1 to layer4; ResNeXt, Res2Net) both also freeze the stem and the first stage. All others train
    from the first layer on, unless `trained_stages` says how many of the last stages do. By `drop_path` the last block of Swin
    is left out so often in training, the others in proportion to their depth; it is 0.2 by default, as for H-DETR's Swin-T.
    `dilation` is for networks that timm has at `output_stride=16`.

    Raises:
        InputError: an unknown name, a `drop_path` outside of [0, 1), a norm or network without the wanted form, or timm is not
            installed.
        WeightsUnavailableError: `pretrained`, but the weights are neither in the cache nor to be had from the network.
    """
    timm = _import_timm(name)
    strides = [2 ** (level + 1) for level in levels]
    if name in SWIN:
        if dilation:
            raise InputError(f"backbone {name!r} has no dilated (DC5) form; use resnet50 or resnet101")
        net = _create_swin(timm, name, pretrained, DROP_PATH if drop_path is None else drop_path)
        widths = [net.embed_dim * 2 ** (level - 1) for level in levels]
        return Backbone(SwinBody(net, levels), strides, widths, ends=["patch_embed", *(f"layers.{i}" for i in range(4))])
    if not timm.is_model(name):
        known = f"small, resnet18, resnet34, resnet50, resnet101, {', '.join(SWIN)}"
        raise InputError(f"there is no backbone {name!r}; use one of {known}, or a name of timm.list_models()")
    info = timm.create_model(name, features_only=True).feature_info
    reductions = info.reduction()
    if not set(strides) <= set(reductions):
        raise InputError(f"backbone {name!r} has levels at strides {reductions}, but {strides} are needed")
    indices = [reductions.index(stride) for stride in strides]
    options = {"features_only": True, "out_indices": indices} | ({"output_stride": 16} if dilation else {})
    net, found = _create_dilated(timm, name, pretrained, options) if dilation else _create(timm, name, pretrained, options)
    strides = [min(stride, 16) for stride in strides] if dilation else strides
    if norm == "frozen":
        freeze_norms(net, name)
    stage_ends = _stage_ends(net, dict(zip(reductions, info.module_name(), strict=True)))
    if norm != "batch":
        _freeze_first_stages(net, {level: stage_ends[level] for level in levels}, trained_stages)
    return Backbone(
        ConvolutionalBody(net),
        strides,
        net.feature_info.channels(),
        _statistics(net, name, found, bool(pretrained)),
        ends=[f"net.{end}" for end in stage_ends],
        norms_at_rest=norm == "eval",
    )


def _create_swin(timm: ModuleType, name: str, pretrained: bool | str, drop_path: float) -> Any:
    check_shares(drop_path=drop_path)
    options = {"always_partition": True, "num_classes": 0, "drop_path_rate": drop_path}
    net, found = _create(timm, SWIN[name], pretrained, options)
    if found is not None:
        found.check_statistics(name, IMAGENET_MEAN, IMAGENET_STD)
    return net


def _freeze_first_stages(net: nn.Module, ends: Mapping[int, str], trained_stages: int | None) -> None:
    """Freeze stem and first stage of a network that is built like a ResNet, of others what `trained_stages` leaves."""
    if all(end == f"layer{level}" for level, end in ends.items() if level):
        for name, parameter in net.named_parameters():
            parameter.requires_grad_(name.startswith(TRAINED_STAGES))
    else:
        freeze_stages(net, ends, trained_stages)


def _stage_ends(net: nn.Module, modules: Mapping[int, str]) -> list[str]:
    """Names of the modules that end the stem (stride 2) and the stages at strides 4 to 32.

    Args:
        net: flattened by timm, so that some names have an underscore for a dot.
        modules: stride to the name of the module that ends there.
    """
    there = {name for name, _ in net.named_modules()}
    names = [modules.get(2 ** (level + 1), "no stem of its own") for level in range(5)]
    return [name if name in there else name.replace(".", "_") for name in names]


def _create(
    timm: ModuleType, name: str, pretrained: bool | str, options: Mapping[str, object]
) -> tuple[Any, FoundWeights | None]:
    """A module of timm, and the file that its weights came from, if any."""
    try:
        net = timm.create_model(name, pretrained=pretrained is True, **options)
        if not isinstance(pretrained, str):
            return net, None
        found = find_weights(pretrained, name)
        load_backbone_file(net, found.path, name)
        return net, found
    except WeightsUnavailableError:
        raise
    except OSError as error:
        remedy = (
            f"run timm.create_model({name!r}, pretrained=True) on a machine with a network and copy its ~/.cache/huggingface "
            "here (HF_HOME names another folder)"
        )
        raise missing_weights(name, error, remedy) from None


def _create_dilated(
    timm: ModuleType, name: str, pretrained: bool | str, options: Mapping[str, object]
) -> tuple[Any, FoundWeights | None]:
    try:
        return _create(timm, name, pretrained, options)
    except (TypeError, NotImplementedError, AssertionError):  # what timm's networks say to an output_stride that they lack
        raise InputError(f"backbone {name!r} has no dilated (DC5) form; use resnet50 or resnet101") from None


def freeze_stages(net: nn.Module, ends: Mapping[int, str], trained_stages: int | None) -> None:
    """Freeze everything up to the end of a stage.

    Raises:
        InputError: a stage that is not among the levels.

    Args:
        net: whose parameters are in the order of its layers.
        ends: level to the name of the module that ends it.
        trained_stages: how many of the four stages still train; None for all, stem included.
    """
    if trained_stages is not None and 4 - trained_stages not in ends:
        raise InputError(
            f"trained_stages is {trained_stages}, so stage {4 - trained_stages} is the last frozen one, but only the ends "
            f"of {sorted(ends)} are known: give a number from 0 to 3, or backbone_levels with {4 - trained_stages} in it"
        )
    end = None if trained_stages is None else ends[4 - trained_stages]
    names = [name for name, _ in net.named_parameters()]
    last = max((place for place, name in enumerate(names) if end and name.startswith(f"{end}.")), default=-1)
    for name in names[: last + 1]:
        net.get_parameter(name).requires_grad_(False)


def _statistics(net: Any, name: str, found: FoundWeights | None, pretrained: bool) -> InputStatistics | None:
    """What turns images into those that a network was trained on, if that is not ImageNet's normalisation."""
    mean, std = (tuple(net.pretrained_cfg.get(key, usual)) for key, usual in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)))
    if (mean, std) == (IMAGENET_MEAN, IMAGENET_STD):
        if found is not None:
            found.check_statistics(name, mean, std)
        return None
    statistics = InputStatistics()
    if found is not None and found.mean and found.std:
        mean, std = found.mean, found.std
    if pretrained:
        statistics.use(mean, std)
    return statistics


def freeze_norms(module: nn.Module, backbone: str) -> None:
    """Replace every BatchNorm below a module by its frozen form, timm's BatchNorm with activation included.

    Args:
        module: changed in place.
        backbone: its name, for the error.

    Raises:
        InputError: a kind of BatchNorm whose further doings are not known here.
    """
    with_activation = importlib.import_module("timm.layers").BatchNormAct2d
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            setattr(module, name, _frozen(child))
        elif isinstance(child, nn.BatchNorm2d) and type(child) is with_activation:
            parts = [child.get_submodule(part) for part in ("drop", "act")]
            setattr(module, name, nn.Sequential(_frozen(child), *parts))
        elif isinstance(child, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"backbone {backbone!r}: its {type(child).__name__} has no frozen form here; set backbone_norm=batch"
            )
        else:
            freeze_norms(child, backbone)


def _frozen(norm: nn.BatchNorm2d) -> FrozenBatchNorm2d:
    frozen = FrozenBatchNorm2d(norm.num_features, norm.eps)
    frozen.load_state_dict({name: value for name, value in norm.state_dict().items() if "." not in name})
    return frozen


def _import_timm(name: str) -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ImportError as error:
        raise InputError(f"backbone {name!r} comes from timm: pip install 'panoptic-detr[backbones]'") from error
