"""The same model, faster at inference: BatchNorm folded, ReLU and sums fused, channels-last convolutions."""

import copy
from itertools import pairwise
from typing import TypeGuard

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from panoptic_detr.models.backbones import FrozenBatchNorm2d, Stages
from panoptic_detr.models.cpu.fused import FusedBlock, FusedConv, FusedFeedForward, FusedLinear, linear
from panoptic_detr.models.layers import FeedForward, MultiHeadAttention


def optimize_for_inference(
    model: nn.Module, *, fold: bool = True, fuse: bool = True, channels_last: bool = True, bf16: bool = False
) -> nn.Module:
    """Build a faster model of the same results (within rounding); the model itself stays as it is.

    Activations follow the layout of the weights, and all weights that are not changed are shared with `model`, so the copy
    costs the memory of its convolutions only. What each part gains is in docs/benchmarks.md.

    Args:
        model: any model of the package.
        fold: frozen BatchNorm, and ordinary BatchNorm, which at inference is constant too, go into the convolution before
            them wherever the order is known: in torchvision's ResNet blocks and stem, and in `nn.Sequential`.
        fuse: the residual blocks of a folded ResNet do convolution, sum and ReLU in one call, and so do linear layers with
            what follows them, on CPUs in float32.
        channels_last: convolution weights in the layout in which CPUs and tensor cores convolve faster.
        bf16: for bfloat16 autocast, which otherwise converts every convolution's weight on every call.

    Returns:
        A copy in eval mode, for inference only: training it, or saving it as a checkpoint, makes no sense.
    """
    fast = _copy_sharing_weights(model).eval()
    if fold:
        _fold(fast)
    if fold and fuse:
        _fuse_convolutions(fast)
    if fuse:
        _fuse_linears(fast)
    memory_format = torch.channels_last if channels_last else torch.preserve_format
    for conv in fast.modules():
        if isinstance(conv, nn.Conv2d):
            dtype = torch.bfloat16 if bf16 else conv.weight.dtype
            conv.weight = _constant(conv.weight.detach().to(dtype, memory_format=memory_format))
            if conv.bias is not None:
                conv.bias = _constant(conv.bias.detach().to(dtype))
    return fast


def _fold(model: nn.Module) -> None:
    for parent in model.modules():
        children = dict(parent.named_children())
        for conv_name, norm_name in _pairs(parent):
            conv, norm = children.get(conv_name), children.get(norm_name)
            # Other kinds of convolution may do something with their weight first.
            if isinstance(conv, nn.Conv2d) and type(conv) is nn.Conv2d and _is_constant(norm):
                parent.register_module(conv_name, _folded(conv, norm))
                parent.register_module(norm_name, nn.Identity())


def _pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Names of children of which the second takes the first's output, and nobody else does; they may be of any kind."""
    if isinstance(parent, nn.Sequential):
        return list(pairwise(name for name, _ in parent.named_children()))
    if isinstance(parent, BasicBlock | Bottleneck | Stages):
        return [("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3")]
    return []


def _fuse_convolutions(model: nn.Module) -> None:
    """Replace the stem and the residual blocks of folded ResNets."""
    for parent in list(model.modules()):
        for name, block in list(parent.named_children()):
            if isinstance(block, BasicBlock | Bottleneck) and _is_folded(block):
                parent.register_module(name, FusedBlock(block))
        stem = parent["conv1"] if isinstance(parent, Stages) and "conv1" in parent else None
        if isinstance(parent, Stages) and isinstance(stem, nn.Conv2d) and _is_folded(parent):
            parent.update({"conv1": FusedConv(stem), "relu": nn.Identity()})


def _fuse_linears(model: nn.Module) -> None:
    for parent in list(model.modules()):
        if isinstance(parent, MultiHeadAttention):
            parent.linear = linear
        for name, child in list(parent.named_children()):
            if isinstance(child, FeedForward):
                parent.register_module(name, FusedFeedForward(child))
            elif type(child) is nn.Linear:
                parent.register_module(name, FusedLinear(child))


def _is_folded(parent: nn.Module) -> bool:
    """Whether every norm next to the parent's own convolutions is gone."""
    return not any(isinstance(child, FrozenBatchNorm2d | nn.BatchNorm2d) for child in parent.children())


def _copy_sharing_weights(model: nn.Module) -> nn.Module:
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, shared)


def _is_constant(norm: nn.Module | None) -> TypeGuard[FrozenBatchNorm2d | nn.BatchNorm2d]:
    """Whether this is the same affine map for every input in eval mode, and nothing more: timm's norms hold the activation."""
    return type(norm) is FrozenBatchNorm2d or (type(norm) is nn.BatchNorm2d and norm.running_var is not None and norm.affine)


def _folded(conv: nn.Conv2d, norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> nn.Conv2d:
    """One convolution in place of a convolution and a constant normalisation."""
    scale, shift = _scale_and_shift(norm)  # (C,), (C,) float64
    folded = copy.copy(conv)
    folded._parameters = dict(conv._parameters)
    bias = shift if conv.bias is None else shift + conv.bias.detach().double() * scale
    weight = conv.weight.detach().double() * scale[:, None, None, None]
    folded.weight, folded.bias = _constant(weight.to(conv.weight.dtype)), _constant(bias.to(conv.weight.dtype))
    return folded


def _scale_and_shift(norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """The normalisation as `x * scale + shift`, in double precision."""
    mean, variance = norm.get_buffer("running_mean").double(), norm.get_buffer("running_var").double()
    scale = (variance + norm.eps).rsqrt() * norm.weight.detach().double()
    return scale, norm.bias.detach().double() - mean * scale


def _constant(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)
