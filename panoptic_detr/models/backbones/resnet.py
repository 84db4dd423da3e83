"""Convolutional backbones: torchvision ResNets and a small one for small images.

A backbone turns a padded batch into feature levels from fine to coarse. Pretrained ResNets keep their BatchNorm frozen
(DETR paper, appendix A.4). A backbone from random weights cannot: frozen statistics of 0 and 1 leave the activations
unnormalised and nothing trains. It uses ordinary BatchNorm, which learned faster than GroupNorm at the batch sizes used here.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck

from panoptic_detr.errors import WeightsUnavailableError
from panoptic_detr.models.backbones.statistics import InputStatistics
from panoptic_detr.structures import FeatureLevel

NormKind = Literal["frozen", "batch", "eval"]


class FrozenBatchNorm2d(nn.Module):
    """BatchNorm whose statistics and affine parameters are constants; eps 1e-5.

    Unlike torchvision's op of this name it is one multiply-add on the input's own memory format, and it ignores the
    `num_batches_tracked` entries of ordinary BatchNorm checkpoints.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, num_features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            self.register_buffer(name, torch.full((num_features,), value))
        self._register_load_state_dict_pre_hook(_forget_batch_count)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The layer as `x * scale + shift`: two (C,) tensors."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w) with the stored constants."""
        scale, shift = (value.to(x.dtype)[:, None, None] for value in self.scale_and_shift())
        return torch.addcmul(shift, x, scale)


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """A convolution and the normalisation behind it: (B, C, h, w) to (B, C', h', w').

    In training a frozen BatchNorm scales the convolution's weight instead of its output. A step then reads and writes every
    activation, and every gradient, one time less: 5% of a step of DETR-R50 on a CPU. At inference they are two layers, which
    `optimize_for_inference` makes one for good.
    """
    if not isinstance(norm, FrozenBatchNorm2d) or not isinstance(conv, nn.Conv2d) or not _trains(conv):
        return norm(conv(x))
    scale, shift = norm.scale_and_shift()
    bias = shift if conv.bias is None else shift + scale * conv.bias
    return conv._conv_forward(x, conv.weight * scale[:, None, None, None], bias)


def _trains(conv: nn.Conv2d) -> bool:
    return conv.training and torch.is_grad_enabled()


class Basic(BasicBlock):
    """torchvision's block of two convolutions, each called through `conv_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h', w')."""
        y = self.relu(conv_norm(self.conv1, self.bn1, x))
        return self.relu(conv_norm(self.conv2, self.bn2, y).add_(_shortcut(self, x)))


class Bottle(Bottleneck):
    """torchvision's block of three convolutions, each called through `conv_norm`."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h', w')."""
        y = self.relu(conv_norm(self.conv1, self.bn1, x))
        y = self.relu(conv_norm(self.conv2, self.bn2, y))
        return self.relu(conv_norm(self.conv3, self.bn3, y).add_(_shortcut(self, x)))


def _shortcut(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    return x if block.downsample is None else conv_norm(block.downsample[0], block.downsample[1], x)


RESNETS: dict[str, tuple[type[Basic | Bottle], list[int]]] = {  # block, and how many in each stage
    "resnet18": (Basic, [2, 2, 2, 2]),
    "resnet34": (Basic, [3, 4, 6, 3]),
    "resnet50": (Bottle, [3, 4, 6, 3]),
    "resnet101": (Bottle, [3, 4, 23, 3]),
}


class Stages(nn.ModuleDict):
    """Modules that follow one another, of which some outputs are kept.

    Args:
        parts: in order; the first two, if they are called `conv1` and `bn1`, belong together. What follows the last kept one
            is left out.
        kept: names of those whose output is wanted.
    """

    def __init__(self, parts: Mapping[str, nn.Module], kept: Sequence[str]) -> None:
        names = list(parts)
        last = max(names.index(name) for name in kept)
        super().__init__({name: parts[name] for name in names[: last + 1]})
        self.kept = tuple(kept)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Kept maps (B, C_l, h_l, w_l) of (B, 3, H, W) images, by name, fine to coarse."""
        x, maps = images, {}
        for name, part in self.items():
            if name == "conv1":
                x = conv_norm(part, self["bn1"], x)
            elif name != "bn1":
                x = part(x)
            if name in self.kept:
                maps[name] = x
        return maps


class Backbone(nn.Module):
    """Feature levels of a convolutional body.

    Args:
        body: maps (B, 3, H, W) to an ordered dict of feature maps, fine to coarse.
        strides: pixels per cell of each level.
        num_channels: channels of each level.
        statistics: where the body wants images of other mean and deviation than ImageNet's.
        ends: names of the modules of the body that end its stem and its four stages, in order, where that is known.
        norms_at_rest: BatchNorm keeps its statistics in training too, while its scale and shift learn.
    """

    def __init__(
        self,
        body: nn.Module,
        strides: Sequence[int],
        num_channels: Sequence[int],
        statistics: InputStatistics | None = None,
        *,
        ends: Sequence[str] = (),
        norms_at_rest: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        self.statistics = statistics
        self.ends = tuple(ends)
        self.norms_at_rest = norms_at_rest
        self.strides = tuple(strides)
        self.num_channels = tuple(num_channels)

    def forward(self, images: Tensor, padding_mask: Tensor) -> list[FeatureLevel]:
        """Compute the levels.

        Args:
            images: (B, 3, H, W).
            padding_mask: (B, H, W) bool, True on padding.

        Returns:
            One level per stride with (B, C_l, ceil(H / stride), ceil(W / stride)) features.
        """
        if self.statistics is not None:
            images = self.statistics(images, padding_mask)
        maps = self.body(images).values()
        return [
            FeatureLevel(features, resize_padding_mask(padding_mask, features.shape[-2:]), stride)
            for features, stride in zip(maps, self.strides, strict=True)
        ]

    def train(self, mode: bool = True) -> "Backbone":
        """Switch to training or evaluation; norms at rest stay in evaluation."""
        super().train(mode)
        if self.norms_at_rest:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def stages(self) -> dict[nn.Parameter, int]:
        """The stage of every parameter of the body, in the order of its modules: 0 the stem, 4 the last."""
        places = {name: place for place, (name, _) in enumerate(self.body.named_modules())}
        last = [max((at for name, at in places.items() if f"{name}.".startswith(f"{end}.")), default=-1) for end in self.ends]
        last = [*last[:1], *(len(places) if end < 0 else end for end in last[1:])]  # stages that were left out end nowhere
        return {
            parameter: min(sum(place > end for end in last), len(self.ends) - 1)
            for name, parameter in self.body.named_parameters()
            for place in [places[name.rpartition(".")[0]]]
        }


def resize_padding_mask(padding_mask: Tensor, size: Sequence[int]) -> Tensor:
    """Padding mask of a feature map: (B, H, W) to (B, h, w), each cell as its top-left source pixel."""
    return F.interpolate(padding_mask[:, None].float(), size=tuple(size))[:, 0].bool()


class SmallBackbone(Backbone):
    """A body for small images trained from scratch: a 3x3 stem at stride 2 and one basic block per stage.

    Args:
        widths: channels of the stem and of the stages at strides 4, 8, 16 and 32.
        levels: what to return: 0 the stem (stride 2), 1..4 the stages.
    """

    def __init__(self, widths: Sequence[int] = (24, 48, 96, 128, 160), levels: Sequence[int] = (1, 2, 3, 4)) -> None:
        stages: dict[str, nn.Module] = {
            "stem": nn.Sequential(
                nn.Conv2d(3, widths[0], 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU(inplace=True)
            )
        }
        for index, (inner, outer) in enumerate(itertools.pairwise(widths), start=1):
            shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride=2, bias=False), nn.BatchNorm2d(outer))
            stages[f"layer{index}"] = Basic(inner, outer, stride=2, downsample=shortcut)
        body = Stages(stages, [list(stages)[level] for level in levels])
        super().__init__(body, [2 ** (level + 1) for level in levels], [widths[level] for level in levels], ends=list(stages))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def missing_weights(name: str, error: OSError, remedy: str) -> WeightsUnavailableError:
    """The error of a backbone whose ImageNet weights are neither cached nor reachable, with all ways out."""
    return WeightsUnavailableError(
        f"backbone {name!r}: its ImageNet weights are not cached and could not be fetched ({error}); {remedy}, or train "
        "without them: pretrained_backbone=false with backbone_norm=batch, or from a detector's checkpoint"
    )


def _forget_batch_count(state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    state_dict.pop(prefix + "num_batches_tracked", None)
