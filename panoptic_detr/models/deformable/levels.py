"""Sizes of the feature levels as a tensor on the device, copied there once per combination of sizes."""

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from panoptic_detr.models.tracing import is_traced


def level_sizes(shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """Width and height of each level: (L, 2), of the type and device of another tensor."""
    if is_traced():  # sizes are symbols, or tensors already
        rows = [torch.stack([_scalar(width), _scalar(height)]) for height, width in shapes]
        return torch.stack(rows).to(like.device, like.dtype)
    return level_table(shapes, like.device)[:, :2].flip(-1).to(like.dtype)


def level_table(shapes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
    """Height, width and first token of each level: (L, 3) int32.

    Every copy to a GPU waits for all the work that is queued there, and each of a dozen layers needs these numbers; the same
    tensor is returned for the same sizes, so it must not be written to.
    """
    key = tuple((h, w) for h, w in shapes)
    if torch.compiler.is_compiling():  # the compiler keeps what is constant
        return _make(key, device)
    return _kept(key, device)


@lru_cache(maxsize=256)
def _kept(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # else the first user would decide that no later one may train with it
        return _make(shapes, device)


def _make(shapes: tuple[tuple[int, int], ...], device: torch.device) -> Tensor:
    rows, start = [], 0
    for height, width in shapes:
        rows.append((height, width, start))
        start += height * width
    return torch.tensor(rows, dtype=torch.int32, device=device)


def _scalar(size: int) -> Tensor:
    return size if isinstance(size, Tensor) else torch.scalar_tensor(size, dtype=torch.int64)
