"""The same model, faster at inference: BatchNorm folded, ReLU and sums fused, channels-last convolutions."""

import copy
from collections import Counter
from itertools import pairwise
from typing import Literal, TypeGuard

import torch
from torch import Tensor, fx, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from panoptic_detr.errors import InputError
from panoptic_detr.models.backbones import FrozenBatchNorm2d, Stages
from panoptic_detr.models.cpu.fused import FusedBlock, FusedConv, FusedFeedForward, FusedLinear, linear
from panoptic_detr.models.layers import FeedForward, MultiHeadAttention


def optimize_for_inference(
    model: nn.Module,
    *,
    precision: Literal["fp32", "bf16"] = "fp32",
    fold: bool = True,
    fuse: bool = True,
    channels_last: bool = True,
) -> nn.Module:
    """Build a faster model of the same results (within rounding); the model itself stays as it is.

    Activations follow the layout of the weights, and all weights that are not changed are shared with `model`, so the copy
    costs the memory of its convolutions only. What each part gains is in docs/benchmarks.md.

    Args:
        model: any model of the package.
        precision: "bf16" for bfloat16 autocast, which otherwise converts every convolution's weight on every call.
        fold: frozen BatchNorm, and ordinary BatchNorm, which at inference is constant too, go into the convolution before
            them wherever the order is known: in torchvision's ResNet blocks and stem, in `nn.Sequential`, and in timm's
            networks where tracing shows it.
        fuse: the residual blocks of a folded ResNet do convolution, sum and ReLU in one call, and so do linear layers with
            what follows them, on CPUs in float32.
        channels_last: convolution weights in the layout in which CPUs and tensor cores convolve faster.

    Returns:
        A copy in eval mode, for inference only: training it, or saving it as a checkpoint, makes no sense.

    Raises:
        InputError: no module, or another precision.
    """
    if not isinstance(model, nn.Module) or precision not in ("fp32", "bf16"):
        raise InputError(f"give a model of PyTorch, and a precision of fp32 or bf16, but got {model!r} and {precision!r}")
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
            dtype = torch.bfloat16 if precision == "bf16" else conv.weight.dtype
            conv.weight = _constant(conv.weight.detach().to(dtype, memory_format=memory_format))
            if conv.bias is not None:
                conv.bias = _constant(conv.bias.detach().to(dtype))
    return fast


def _fold(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for conv_name, norm_name in [*_pairs(parent), *_traced_pairs(parent)]:
            conv, norm = _part(parent, conv_name), _part(parent, norm_name)
            # Other kinds of convolution may do something with their weight first.
            if isinstance(conv, nn.Conv2d) and _is_plain(conv) and _is_constant(norm):
                parent.set_submodule(conv_name, _folded(conv, norm))
                parent.set_submodule(norm_name, _what_is_left(norm))


def _part(parent: nn.Module, name: str) -> nn.Module | None:
    try:
        return parent.get_submodule(name)
    except AttributeError:
        return None


def _of_timm(module: nn.Module | None, name: str) -> bool:
    """Whether a module is of this class of timm, which need not be installed."""
    return type(module).__module__.startswith("timm.") and type(module).__name__ == name


def _is_plain(conv: nn.Conv2d) -> bool:
    """Whether the weight is used as it is; `Conv2dSame` only pads before."""
    return type(conv) is nn.Conv2d or _of_timm(conv, "Conv2dSame")


def _what_is_left(norm: nn.Module) -> nn.Module:
    """What a folded norm still does: the activation that timm's hold."""
    parts = [part for part in norm.children() if not isinstance(part, nn.Identity)]
    return nn.Sequential(*parts) if parts else nn.Identity()


class _BlockTracer(fx.Tracer):
    """Follows a block down to its convolutions and norms."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Neither kind is looked into: what they do is known."""
        return isinstance(m, nn.Conv2d | FrozenBatchNorm2d | nn.BatchNorm2d) or super().is_leaf_module(m, module_qualified_name)


def _traced_pairs(parent: nn.Module) -> list[tuple[str, str]]:
    """Convolutions and norms of one of timm's modules of which the norm alone takes the other's output, each used once."""
    has_either = any(isinstance(child, nn.Conv2d | FrozenBatchNorm2d | nn.BatchNorm2d) for child in parent.children())
    if not has_either or not type(parent).__module__.startswith("timm.") or isinstance(parent, nn.Conv2d):
        return []
    try:
        nodes = [node for node in _BlockTracer().trace(parent).nodes if node.op == "call_module"]
    except (AttributeError, RuntimeError, TypeError, ValueError):  # a module whose way depends on its input
        return []
    calls = Counter(node.target for node in nodes)
    return [
        (str(node.target), str(user.target))
        for node in nodes
        for user in node.users
        if len(node.users) == 1 and user.op == "call_module" and user.args == (node,) and calls[node.target] == 1
        if calls[user.target] == 1
    ]


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
    """Whether this is the same affine map for every input in eval mode, but for what `_what_is_left` says."""
    if type(norm) is FrozenBatchNorm2d:
        return True
    known = type(norm) is nn.BatchNorm2d or _of_timm(norm, "BatchNormAct2d")
    return known and isinstance(norm, nn.BatchNorm2d) and norm.running_var is not None and norm.affine


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
