"""Where the cells of a feature map lie in the image without its padding, which lies right and below."""

import torch
from torch import Tensor


def unpadded_extent(padding_mask: Tensor) -> Tensor:
    """Unpadded columns and rows of maps (B, h, w): (B, 2) float32 as (w, h)."""
    return torch.stack([(~padding_mask[:, 0]).sum(1), (~padding_mask[:, :, 0]).sum(1)], dim=-1).float()


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
