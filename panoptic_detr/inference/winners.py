"""Which mask wins each pixel: the argmax of bilinearly enlarged mask logits, without enlarging them.

Bilinear interpolation mixes the four mask cells around a pixel with weights that are the same for every mask. A mask that is
ahead in all four cells is therefore ahead at every pixel between them, and only the pixels between cells of different
winners need interpolating: a few per cent of an image. The result is that of interpolating everything, in a fraction of the
time, and no (K, H, W) tensor ever exists. Where masks are so ragged that most pixels are contested, as early in training,
whole rows are interpolated instead, which is cheaper per pixel.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_detr.segment_maps import nearest_pixels

# Elements of one (K, pixels) block of interpolated logits: fits the cache of a core; on a GPU every block is a wait.
_BLOCK_ELEMENTS, _GPU_BLOCK_ELEMENTS = 1 << 18, 1 << 26
# Pixels of a band of rows that is treated in one way; bounds the index tensors.
_BAND_PIXELS, _GPU_BAND_PIXELS = 1 << 16, 1 << 23
# Share of contested pixels from which on a band is interpolated row by row.
_RAGGED = 0.25


@dataclass(frozen=True)
class Axis:
    """How the pixels of one image axis lie between mask cells, and how they spread over the result.

    Only pixels that the result samples are kept: n of them.
    """

    low: Tensor  # (n,) int64, the mask cell at or before each pixel centre
    high: Tensor  # (n,) int64, the cell after it
    weight: Tensor  # (n,) float32, share of the cell after it
    spread: Tensor  # (N,) int64, for every pixel of the result the index of its sampled pixel; never decreases

    def __len__(self) -> int:
        return len(self.low)

    def repeats(self) -> Tensor:
        """(n,) int64, pixels of the result that show each sampled pixel."""
        return torch.bincount(self.spread, minlength=len(self.low))

    def part(self, start: int, stop: int) -> "Axis":
        """The sampled pixels from `start` to `stop` alone."""
        return Axis(self.low[start:stop], self.high[start:stop], self.weight[start:stop], self.spread)


def make_axis(cells: int, padded: int, pixels: int, target: int, device: torch.device | str = "cpu") -> Axis:
    """Lay out one axis.

    Args:
        cells: mask cells along the axis; they cover `padded` pixels.
        padded: pixels of the padded image.
        pixels: pixels of the image without padding, at most `padded`.
        target: pixels of the result, each showing the nearest image pixel by centres (as `resize_ids`).
        device: where the tensors live.
    """
    nearest = torch.from_numpy(nearest_pixels(pixels, target))  # (target,)
    sampled, spread = nearest.unique_consecutive(return_inverse=True)  # (n,), (target,)
    # Single precision, as in torch.nn.functional.interpolate, so that ties fall the same way.
    scale = torch.tensor(cells / padded, dtype=torch.float32)
    source = (scale * (sampled.float() + 0.5) - 0.5).clamp(min=0)  # (n,)
    low = source.long().clamp(max=cells - 1)
    high, weight = (low + 1).clamp(max=cells - 1), (source - low).clamp(0, 1)
    return Axis(low.to(device), high.to(device), weight.to(device), spread.to(device))


def winning_masks(cells: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Index of the highest mask at every sampled pixel; of equals the first.

    Args:
        cells: (K, h, w) float32 mask logits without NaN or infinity, K >= 1.
        rows: the vertical axis, n pixels.
        columns: the horizontal axis, m pixels.

    Returns:
        (n, m) int16.
    """
    undecided = cells.shape[0]
    best = cells.max(0).indices.to(torch.int16)  # (h, w)
    agreed = _agreed_quads(best)
    quads = torch.where(agreed, best, torch.full_like(best, undecided))  # (h, w)
    winners = quads.index_select(1, columns.low).index_select(0, rows.low)  # (n, m)
    band = max(1, (_BAND_PIXELS if cells.device.type == "cpu" else _GPU_BAND_PIXELS) // max(1, len(columns)))
    for start in range(0, len(rows), band):
        part, part_rows = winners[start : start + band], rows.part(start, start + band)
        pixels = (part == undecided).nonzero()  # (P, 2)
        if len(pixels) > _RAGGED * part.numel():
            part.copy_(_winners_of_rows(cells, part_rows, columns))
        else:
            part[pixels[:, 0], pixels[:, 1]] = _winners_of_pixels(cells, part_rows, columns, pixels)
    return winners


def _agreed_quads(best: Tensor) -> Tensor:
    """(h, w) bool: the cell, its right, lower and lower right neighbour have one winner; the border counts itself again."""
    right = torch.cat([best[:, 1:], best[:, -1:]], dim=1)  # (h, w)
    across = best == right
    below = torch.cat([best[1:], best[-1:]], dim=0)
    across_below = torch.cat([across[1:], across[-1:]], dim=0)
    return across & (best == below) & across_below


def _winners_of_pixels(cells: Tensor, rows: Axis, columns: Axis, pixels: Tensor) -> Tensor:
    """The argmax of interpolated logits at (P, 2) positions (row, column), (P,) int16, block by block."""
    flat = cells.flatten(1)  # (K, h * w)
    size = max(1024, _block_elements(cells) // len(cells))
    blocks = [_interpolate(flat, cells.shape[2], rows, columns, block).max(0).indices for block in pixels.split(size)]
    return torch.cat(blocks).to(torch.int16) if blocks else pixels.new_zeros(0, dtype=torch.int16)


def _block_elements(cells: Tensor) -> int:
    return _BLOCK_ELEMENTS if cells.device.type == "cpu" else _GPU_BLOCK_ELEMENTS


def _interpolate(flat: Tensor, width: int, rows: Axis, columns: Axis, pixels: Tensor) -> Tensor:
    """Bilinear values (K, P) of flattened masks (K, h * w) at (P, 2) positions."""
    row, column = pixels.unbind(1)
    above, below = rows.low[row] * width, rows.high[row] * width
    left, right = columns.low[column], columns.high[column]
    across, down = columns.weight[column], rows.weight[row]  # (P,)
    upper = flat[:, above + left] * (1 - across) + flat[:, above + right] * across  # (K, P)
    lower = flat[:, below + left] * (1 - across) + flat[:, below + right] * across
    return upper * (1 - down) + lower * down


def _winners_of_rows(cells: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """The argmax of interpolated logits at every pixel of some rows, (n, m) int16, a few rows at a time."""
    size = max(1, _block_elements(cells) // (len(cells) * len(columns)))
    blocks = []
    for start in range(0, len(rows), size):
        part = rows.part(start, start + size)
        first, last = int(part.low[0]), int(part.high[-1])
        strip = cells[:, first : last + 1]  # (K, c, w), the cells that the rows touch
        wide = strip[..., columns.low] * (1 - columns.weight) + strip[..., columns.high] * columns.weight  # (K, c, m)
        down = part.weight[:, None]
        blocks.append((wide[:, part.low - first] * (1 - down) + wide[:, part.high - first] * down).max(0).indices)
    return torch.cat(blocks).to(torch.int16)
