"""Where masks are compared: a jittered grid over the whole image, and one around every thing, however small it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from panoptic_detr.structures import Target

ROI_SCALE = 1.5  # of a thing's box
ROI_MARGIN = 8  # pixels that are added to a small one at least
BEFORE_THE_END = 1 - 1e-6


@dataclass(frozen=True)
class Places:
    """Places in one image, with what lies there and the pixel features that are found there.

    Attributes:
        points: (..., 2) x, y as fractions of the unpadded image.
        segments: (...) int64 number of the segment, 0 for void.
        features: (..., E).
    """

    points: Tensor
    segments: Tensor
    features: Tensor

    def part(self, start: int, stop: int) -> "Places":
        """Those from start to stop."""
        return Places(*(value[start:stop] for value in self.values()))

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points, segments and features."""
        return self.points, self.segments, self.features


def things_of(target: Target, fixed_labels: Sequence[int]) -> Tensor:
    """Indices (n,) of the segments whose class has no query of its own."""
    fixed = torch.isin(target.labels, target.labels.new_tensor(list(fixed_labels)))
    return (~fixed).nonzero()[:, 0]


def look_up(target: Target, points: Tensor) -> Tensor:
    """Numbers (P,) int64 of the segments at points (P, 2); 0 for void."""
    height, width = _size(target)
    x = (points[:, 0] * width).long().clamp(0, width - 1)
    y = (points[:, 1] * height).long().clamp(0, height - 1)
    assert target.segment_map is not None
    return target.segment_map.flatten()[y * width + x].long()


def everywhere(target: Target, step: int) -> Tensor:
    """One place (P, 2) by chance in every `step` x `step` pixels of the image."""
    height, width = _size(target)
    rows, columns = -(-height // step), -(-width // step)
    device = target.labels.device
    grid = torch.rand(rows, columns, 2, device=device)
    grid[..., 0] += torch.arange(columns, device=device)
    grid[..., 1] += torch.arange(rows, device=device)[:, None]
    return (grid.flatten(0, 1) * step / torch.tensor([width, height], device=device)).clamp(max=BEFORE_THE_END)


def around_things(target: Target, things: Tensor, side: int) -> Tensor:
    """A jittered grid of side x side places around each of n chosen segments: (n * side * side, 2), thing by thing."""
    height, width = _size(target)
    boxes = target.boxes[things].float()  # (n, 4)
    size = torch.maximum(boxes[:, 2:] * ROI_SCALE, boxes[:, 2:] + ROI_MARGIN / boxes.new_tensor([width, height]))
    axis = torch.arange(side, device=boxes.device)
    grid = torch.stack([axis.expand(side, -1), axis[:, None].expand(-1, side)], dim=-1).flatten(0, 1)  # (R, 2)
    jitter = torch.rand(len(things), side * side, 2, device=boxes.device)
    points = boxes[:, None, :2] + size[:, None] * ((grid + jitter) / side - 0.5)  # (n, R, 2)
    return points.clamp(0, BEFORE_THE_END).flatten(0, 1)


def _size(target: Target) -> tuple[int, int]:
    assert target.segment_map is not None
    return target.segment_map.shape[0], target.segment_map.shape[1]
