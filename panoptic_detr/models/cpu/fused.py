"""Convolutions and linear layers with the ReLU and the sum that follow, in one call of oneDNN: float32 inference on CPUs.

As calls of their own, ReLU and sum read and write every activation once more. And PyTorch multiplies float32 matrices with
MKL, which on other makers' CPUs with AVX-512 leaves half of their speed unused; oneDNN does not (with AVX2 both are alike).
PyTorch has these calls for its own compiler. They are not part of its documented interface, so `available` tries them once on
small numbers, and where they are missing or have changed, the plain calls are made. In bfloat16 they gain nothing.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from panoptic_detr.models.layers import FeedForward
from panoptic_detr.models.tracing import is_traced


class FusedConv(nn.Module):
    """A convolution followed by a ReLU: (B, C, h, w) to (B, C', h', w')."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        """Convolve."""
        return convolve_relu(self.conv, x)


class FusedBlock(nn.Module):
    """A residual block of torchvision's ResNets whose BatchNorms are folded into its convolutions."""

    def __init__(self, block: BasicBlock | Bottleneck) -> None:
        super().__init__()
        inner = (block.conv1, block.conv2) if isinstance(block, Bottleneck) else (block.conv1,)
        self.inner = nn.ModuleList(FusedConv(conv) for conv in inner)
        self.last = block.conv3 if isinstance(block, Bottleneck) else block.conv2
        self.downsample = block.downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, C', h', w')."""
        residual = x if self.downsample is None else self.downsample(x)
        for conv in self.inner:
            x = conv(x)
        return convolve_relu(self.last, x, residual)


class FusedLinear(nn.Linear):
    """A linear layer, (..., C) to (..., C'), that is one to all who look: some read its weight or its sizes."""

    def __init__(self, layer: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        """Multiply."""
        return linear(x, self.weight, self.bias)


class FusedFeedForward(nn.Module):
    """A transformer's feed-forward block without its dropout: (B, N, D) to (B, N, D)."""

    def __init__(self, block: FeedForward) -> None:
        super().__init__()
        self.linear1, self.linear2 = FusedLinear(block.linear1), FusedLinear(block.linear2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, without its residual connection."""
        return self.linear2(linear_relu(x, self.linear1.weight, self.linear1.bias))


def convolve_relu(conv: nn.Conv2d, x: Tensor, residual: Tensor | None = None) -> Tensor:
    """ReLU of a convolution, plus a residual branch."""
    if not _applies(x):
        y = conv(x)
        return F.relu_(y if residual is None else y.add_(residual))
    return _fused(conv, x, residual)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`torch.nn.functional.linear`."""
    return _fused_linear(x, weight, bias, "none") if _applies(x) else F.linear(x, weight, bias)


def linear_relu(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """ReLU of a linear layer."""
    return _fused_linear(x, weight, bias, "relu") if _applies(x) else F.relu_(F.linear(x, weight, bias))


def _applies(x: Tensor) -> bool:
    """Whether the fused calls may be used on an input here and now."""
    ordinary = x.device.type == "cpu" and x.dtype == torch.float32 and x.numel() > 0
    free = not torch.is_autocast_enabled("cpu") and not torch.is_grad_enabled() and not is_traced()
    return ordinary and free and available()


@cache
def available() -> bool:
    """Whether this PyTorch has the fused calls, and they compute what they should."""
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1, 1, 48).view(1, 4, 4, 3)
    conv = nn.utils.skip_init(nn.Conv2d, 4, 4, 3, padding=1)
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        conv.weight.copy_(torch.linspace(-1, 1, 144).view_as(conv.weight))
        conv.bias.copy_(torch.linspace(-1, 1, 4))
        try:
            found = [_fused(conv, x, residual) for residual in (None, x)]
            found += [_fused_linear(x, conv.weight[0, 0], conv.bias[:3], after) for after in ("none", "relu")]
        except (AttributeError, RuntimeError, TypeError):
            return False
        product = F.linear(x, conv.weight[0, 0], conv.bias[:3])
        wanted = [*(F.relu(conv(x) + residual) for residual in (0, x)), product, F.relu(product)]
    return all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, wanted, strict=True))


def _fused(conv: nn.Conv2d, x: Tensor, residual: Tensor | None) -> Tensor:
    shape = conv.padding, conv.stride, conv.dilation, conv.groups
    call = torch.ops.mkldnn._convolution_pointwise
    if residual is None:
        return call(x, conv.weight, conv.bias, *shape, "relu", [], "")
    return call.binary(x, residual, conv.weight, conv.bias, *shape, "add", 1.0, "relu", [], "")


def _fused_linear(x: Tensor, weight: Tensor, bias: Tensor | None, after: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, after, [], "")
