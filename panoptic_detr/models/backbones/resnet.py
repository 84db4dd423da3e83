"""Convolutional backbones: torchvision ResNets and a small one for small images.

A backbone turns a padded batch into feature levels from fine to coarse. Pretrained ResNets keep their BatchNorm frozen
(DETR paper, appendix A.4). A backbone from random weights cannot: frozen statistics of 0 and 1 leave the activations
unnormalised and nothing trains. It uses ordinary BatchNorm, which learned faster than GroupNorm at the batch sizes used here.
"""

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock, Bottleneck

from panoptic_detr.errors import WeightsUnavailableError
from panoptic_detr.structures import FeatureLevel

NormKind = Literal["frozen", "batch"]
RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")


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
        self.applied_by: tuple[NormalizedConv2d, ...] = ()  # in a tuple, so that it is not a module of this one

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The layer as `x * scale + shift`: two (C,) tensors."""
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w) with the stored constants, unless the convolution before has done so."""
        if any(conv.normalizes() for conv in self.applied_by):
            return x
        scale, shift = (value.to(x.dtype)[:, None, None] for value in self.scale_and_shift())
        return torch.addcmul(shift, x, scale)


class NormalizedConv2d(nn.Conv2d):
    """A convolution that in training applies the frozen BatchNorm behind it: its weight is scaled instead of its output.

    A step then reads and writes every activation, and every gradient, one time less: 5% of a step of DETR-R50 on a CPU.
    Names and values of parameters stay those of the two layers; at inference they are two (`optimize_for_inference` makes
    them one for good).

    Args:
        conv: whose parameters this one takes over.
        norm: what its output goes to, and nothing else does.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm2d) -> None:
        nn.Module.__init__(self)
        self.__dict__.update(conv.__dict__)
        self.norm = (norm,)  # in a tuple, so that it is not a module of this one
        norm.applied_by = (self,)

    def normalizes(self) -> bool:
        """Whether the norm is applied here, now."""
        return self.training and torch.is_grad_enabled()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, h, w)."""
        if not self.normalizes():
            return super().forward(x)
        scale, shift = self.norm[0].scale_and_shift()
        bias = shift if self.bias is None else shift + scale * self.bias
        return self._conv_forward(x, self.weight * scale[:, None, None, None], bias)


def apply_norms_in_convolutions(model: nn.Module) -> None:
    """Replace every convolution below a module whose output goes to a frozen BatchNorm only, where that is known."""
    for parent in model.modules():
        children = dict(parent.named_children())
        for conv_name, norm_name in conv_norm_pairs(parent):
            conv, norm = children.get(conv_name), children.get(norm_name)
            if type(conv) is nn.Conv2d and isinstance(norm, FrozenBatchNorm2d):
                parent.register_module(conv_name, NormalizedConv2d(conv, norm))


def conv_norm_pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Names of children of which the second takes the first's output, and nobody else does; they may be of any kind."""
    if isinstance(parent, nn.Sequential):
        return list(itertools.pairwise(name for name, _ in parent.named_children()))
    if isinstance(parent, BasicBlock | Bottleneck | IntermediateLayerGetter):
        return [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
    return []


class Backbone(nn.Module):
    """Feature levels of a convolutional body.

    Args:
        body: maps (B, 3, H, W) to an ordered dict of feature maps, fine to coarse.
        strides: pixels per cell of each level.
        num_channels: channels of each level.
    """

    def __init__(self, body: nn.Module, strides: Sequence[int], num_channels: Sequence[int]) -> None:
        super().__init__()
        self.body = body
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
        maps = self.body(images).values()
        return [
            FeatureLevel(features, resize_padding_mask(padding_mask, features.shape[-2:]), stride)
            for features, stride in zip(maps, self.strides, strict=True)
        ]


def resize_padding_mask(padding_mask: Tensor, size: Sequence[int]) -> Tensor:
    """Padding mask of a feature map: (B, H, W) to (B, h, w), each cell as its top-left source pixel."""
    return F.interpolate(padding_mask[None].float(), size=tuple(size))[0].bool()


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
            stages[f"layer{index}"] = BasicBlock(inner, outer, stride=2, downsample=shortcut)
        names = list(stages)
        chosen = {names[level]: str(index) for index, level in enumerate(levels)}
        body = IntermediateLayerGetter(nn.Sequential(OrderedDict(stages)), chosen)
        super().__init__(body, [2 ** (level + 1) for level in levels], [widths[level] for level in levels])
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
