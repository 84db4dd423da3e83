"""Where a feature cell or a box lies: as a point in the image without its padding, and as a vector that attention can compare.

Sine encodings follow DETR, appendix A.4 (Vaswani et al.'s on two axes): half of the channels tell y, half x. They are computed
in float32 whatever the model's precision: bfloat16 cannot tell neighbouring cells of a large map apart.
"""

import math

import torch
from torch import Tensor, nn

from panoptic_detr.errors import InputError
from panoptic_detr.models.tracing import assumes_padding, is_traced
from panoptic_detr.query_masks import unpadded_extent
from panoptic_detr.shapes import check_shape


def has_padding(padding_mask: Tensor) -> bool:
    """Whether there may be padding, for what is faster without.

    On a GPU the answer waits for all that is queued there: ask before the first layer. While a model is compiled or captured
    in a CUDA graph nobody can wait; yes is always right.
    """
    if is_traced():
        return assumes_padding()
    if padding_mask.is_cuda and torch.cuda.is_current_stream_capturing():
        return True
    return bool(padding_mask.any())


def attention_mask(padding_mask: Tensor) -> Tensor:
    """(B, h, w) padding to (B, 1, 1, N), True where attention is allowed."""
    return ~padding_mask.flatten(1)[:, None, None]


def axis_centres(padding_mask: Tensor) -> tuple[Tensor, Tensor]:
    """Centres of the columns and of the rows of maps.

    Args:
        padding_mask: (B, h, w) bool, True on padding.

    Returns:
        x (B, w) and y (B, h) float32 as fractions of the unpadded extent; beyond 1 on padding.
    """
    height, width = padding_mask.shape[1:]
    extent = unpadded_extent(padding_mask).clamp(min=1)  # (B, 2)
    x = (torch.arange(width, device=padding_mask.device) + 0.5) / extent[:, :1]
    y = (torch.arange(height, device=padding_mask.device) + 0.5) / extent[:, 1:]
    return x, y


def cell_centres(padding_mask: Tensor) -> Tensor:
    """Centres (x, y) of all cells of maps (B, h, w), row by row: (B, h * w, 2), scaled as those of `axis_centres`."""
    height, width = padding_mask.shape[1:]
    x, y = axis_centres(padding_mask)
    return torch.stack([x[:, None].expand(-1, height, -1), y[:, :, None].expand(-1, -1, width)], dim=-1).flatten(1, 2)


def sine_frequencies(num_channels: int, temperature: float, device: torch.device) -> Tensor:
    """Wavelength factors of one axis: (num_channels,), equal for each sine-cosine pair."""
    pairs = torch.arange(num_channels, dtype=torch.float32, device=device).div(2, rounding_mode="floor")
    return temperature ** (2 * pairs / num_channels)  # (num_channels,)


def sine_of(values: Tensor, num_channels: int, temperature: float = 10000.0) -> Tensor:
    """Encode every value as interleaved sines and cosines.

    Args:
        values: (...) positions in radians.
        num_channels: channels per value, even.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        (..., num_channels).
    """
    angles = values[..., None] / sine_frequencies(num_channels, temperature, values.device)  # (..., num_channels)
    return torch.stack((angles[..., 0::2].sin(), angles[..., 1::2].cos()), dim=-1).flatten(-2)


def sine_of_boxes(boxes_cxcywh: Tensor, num_channels_per_axis: int = 128, temperature: float = 10000.0) -> Tensor:
    """Encode boxes, or points, for the queries that two-stage proposals become (Deformable DETR, section 4.2).

    Args:
        boxes_cxcywh: (..., 4) boxes, or (..., 2) points, in [0, 1].
        num_channels_per_axis: channels of each coordinate.
        temperature: ratio of the longest to the shortest wavelength.

    Returns:
        (..., 4 * num_channels_per_axis) in the coordinates' own order, or (..., 2 * num_channels_per_axis) for points.
    """
    return sine_of(boxes_cxcywh.float() * (2 * math.pi), num_channels_per_axis, temperature).flatten(-2)


class SinePositionEncoding(nn.Module):
    """Fixed sine encoding of a padded map; the padding is not counted, so an image alone or in a batch gets the same one.

    Args:
        num_channels_per_axis: half of the model width, even.
        temperature: ratio of the longest to the shortest wavelength.
        normalize: scale the unpadded extent to 2 pi; otherwise positions are counted in cells.
        offset: added to the cell numbers (from 1) before they are normalised: 0 in DETR, -0.5 (centres) in Deformable DETR.
    """

    def __init__(
        self, num_channels_per_axis: int, temperature: float = 10000.0, normalize: bool = True, offset: float = 0.0
    ) -> None:
        super().__init__()
        if num_channels_per_axis % 2:
            raise InputError(
                f"num_channels_per_axis must be even (sines and cosines come in pairs), got {num_channels_per_axis}"
            )
        self.num_channels_per_axis = num_channels_per_axis
        self.temperature = temperature
        self.normalize = normalize
        self.offset = offset

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Encode every cell.

        Args:
            padding_mask: (B, h, w) bool, True on padding.

        Returns:
            (B, 2 * num_channels_per_axis, h, w) float32; the y channels come first.
        """
        check_shape("padding_mask", padding_mask, ("B", "h", "w"))
        encoded = [
            sine_of(self._positions(padding_mask, axis), self.num_channels_per_axis, self.temperature) for axis in (1, 2)
        ]
        return torch.cat(encoded, dim=-1).permute(0, 3, 1, 2)  # (B, D, h, w)

    def _positions(self, padding_mask: Tensor, axis: int) -> Tensor:
        cells = (~padding_mask).int().cumsum(axis).float()  # (B, h, w), from 1; integer sums are reproducible on CUDA as well
        if not self.normalize:
            return cells + self.offset
        last = cells.amax(axis, keepdim=True)  # they never decrease
        return (cells + self.offset) / (last + 1e-6) * (2 * math.pi)


class LearnedPositionEncoding(nn.Module):
    """One learned vector per column and one per row.

    Args:
        num_channels_per_axis: half of the model width.
        size: rows and columns of the largest map; the published code's 50 hold images of 1600 pixels at stride 32.
    """

    def __init__(self, num_channels_per_axis: int, size: int = 50) -> None:
        super().__init__()
        self.size = size
        self.row_embed = nn.Embedding(size, num_channels_per_axis)
        self.col_embed = nn.Embedding(size, num_channels_per_axis)
        for embedding in (self.row_embed, self.col_embed):
            nn.init.uniform_(embedding.weight)

    def forward(self, padding_mask: Tensor) -> Tensor:
        """Encode every cell.

        Args:
            padding_mask: (B, h, w) bool; only its shape counts.

        Returns:
            (B, 2 * num_channels_per_axis, h, w); the column channels come first.

        Raises:
            InputError: the map is larger than the table.
        """
        check_shape("padding_mask", padding_mask, ("B", "h", "w"))
        batch, height, width = padding_mask.shape
        if max(height, width) > self.size:
            raise InputError(
                f"a feature map of {height}x{width} cells exceeds the learned position table of {self.size}x{self.size}; use "
                f"smaller images, position_table_size={max(height, width)} or more (trained anew), or position_encoding=sine"
            )
        columns = self.col_embed.weight[:width].T[:, None, :].expand(-1, height, -1)  # (D / 2, h, w)
        rows = self.row_embed.weight[:height].T[:, :, None].expand(-1, -1, width)
        return torch.cat([columns, rows]).expand(batch, -1, -1, -1)  # (B, D, h, w)
