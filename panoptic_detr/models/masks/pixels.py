"""A feature pyramid from coarse to fine that ends in one map of pixel features at the stride of the finest level."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.models.position_encoding import SinePositionEncoding, attention_mask
from panoptic_detr.models.tracing import at_most, is_traced
from panoptic_detr.models.transformer import Encoder
from panoptic_detr.structures import FeatureLevel


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of every cell of (B, C, h, w): what lies on padding changes nothing elsewhere."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise; free of copies for channels-last maps."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNorm(nn.Module):
    """A convolution without bias, `ChannelNorm`, and ReLU."""

    def __init__(self, in_channels: int, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
        self.norm = ChannelNorm(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (B, channels, h, w)."""
        return F.relu(self.norm(self.conv(x)))


class PixelDecoder(nn.Module):
    """Backbone levels to a pyramid: attention among the coarsest cells, then one sum and convolution per finer level.

    Args:
        num_channels: of the backbone levels, fine to coarse.
        widths: of the pyramid's levels, fine to coarse, the last being that of `encoder`.
        encoder: over the cells of the coarsest level.
    """

    def __init__(self, num_channels: Sequence[int], widths: Sequence[int], encoder: Encoder) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(num_channels, widths, strict=True))
        self.norms = nn.ModuleList(ChannelNorm(width) for width in widths)
        self.descents = nn.ModuleList(
            nn.Conv2d(coarse, fine, 1, bias=False) if coarse != fine else nn.Identity() for fine, coarse in pairwise(widths)
        )
        self.convs = nn.ModuleList(ConvNorm(width, width) for width in widths[:-1])
        self.encoder = encoder
        self.position_encoding = SinePositionEncoding(
            widths[-1] // 2, normalize=False
        )  # in cells: crops teach what holds for whole images

    def forward(self, features: Sequence[FeatureLevel], padded: bool = True) -> list[FeatureLevel]:
        """Levels of the same sizes, fine to coarse; without padding (`padded` false) it is faster."""
        projected = [
            norm(projection(level.features))
            for norm, projection, level in zip(self.norms, self.projections, features, strict=True)
        ]
        x = self._encode(projected[-1], features[-1].padding_mask, padded)
        maps = [x]
        for index in reversed(range(len(projected) - 1)):
            coarse, size = self.descents[index](x), projected[index].shape[-2:]
            down = upsample(coarse, features[index + 1].padding_mask if padded else None, size)
            total = projected[index] + down
            x = self.convs[index](blank(total, features[index].padding_mask) if padded else total)
            maps.insert(0, x)
        return [FeatureLevel(x, level.padding_mask, level.stride) for x, level in zip(maps, features, strict=True)]

    def _encode(self, x: Tensor, padding_mask: Tensor, padded: bool) -> Tensor:
        """Self-attention over the cells of (B, D, h, w)."""
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, D)
        position = self.position_encoding(padding_mask).flatten(2).transpose(1, 2).to(tokens.dtype)  # (B, N, D)
        mask = attention_mask(padding_mask) if padded else None
        return self.encoder(tokens, position, mask).transpose(1, 2).reshape(x.shape)


def blank(x: Tensor, padding_mask: Tensor) -> Tensor:
    """(B, C, h, w) with zeros on padding, as beyond the border of an image."""
    return x.masked_fill(padding_mask[:, None], 0)


def upsample(x: Tensor, padding_mask: Tensor | None, size: Sequence[int]) -> Tensor:
    """Bilinear (B, C, h, w) to (B, C, *size); where padding begins as at the border of a map, whatever lies beyond."""
    if padding_mask is None:
        return F.interpolate(x, size=tuple(size), mode="bilinear")
    inside = (~padding_mask[:, None]).to(x.dtype)  # (B, 1, h, w)
    values, weights = (F.interpolate(part, size=tuple(size), mode="bilinear") for part in (x * inside, inside))
    return values / weights.clamp(min=1e-6)


def pool(x: Tensor, size: Sequence[int]) -> Tensor:
    """`adaptive_avg_pool2d` of (B, C, h, w) to (B, C, *size); as two products where the sizes are symbols."""
    if not is_traced():
        return F.adaptive_avg_pool2d(x, (size[0], size[1]))
    rows, columns = (_shares(x.shape[axis], size[axis], x) for axis in (-2, -1))
    return rows @ x @ columns.T


def _shares(cells: int, pooled: int, like: Tensor) -> Tensor:
    """(pooled, cells): the share that each cell of an axis has in each pooled one."""
    cell, place = torch.arange(cells, device=like.device), torch.arange(pooled, device=like.device)[:, None]
    first = torch.div(place * cells, pooled, rounding_mode="floor")
    last = torch.div((place + 1) * cells + pooled - 1, pooled, rounding_mode="floor")
    return ((cell >= first) & (cell < last)).to(like.dtype) / (last - first).to(like.dtype)


def top_values(scores: Tensor, count: int) -> Tensor:
    """Indices (B, count) of the local maxima with the highest scores.

    Args:
        scores: (B, h, w) in [0, 1].
        count: at most so many; if the map has fewer cells, all of them.
    """
    peaks = scores == F.max_pool2d(scores[:, None], 3, stride=1, padding=1)[:, 0]
    ranked = torch.where(peaks, scores + 1, scores).flatten(1)  # others only where there are too few peaks
    return ranked.topk(at_most(count, ranked.shape[1]), dim=1).indices
