"""Deformable sampling as a Triton kernel, forward and backward, for CUDA.

One program handles a block of queries for one image and head. It walks over levels and points, reads the four cells around
each point and accumulates in float32; no sample is ever stored. Backward walks the same way and adds to the tokens' gradient
atomically, in no fixed order: where `torch.use_deterministic_algorithms` is on, it refuses or warns. With TRITON_INTERPRET=1
set before the import the same code runs on a CPU, which is how it is tested.

For PyTorch the kernels are two operators of its own kind, so that `torch.compile` and CUDA graphs take them as they are.
"""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from panoptic_detr.models.deformable.levels import level_table

BLOCK_QUERIES = 16


def sample(value: Tensor, shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples; see `attention.sample_levels`. Computes in float32."""
    geometry = level_table(shapes, value.device)
    return sample_tokens(value, geometry, locations.float(), weights.float()).to(locations.dtype)


@triton.jit
def _point(
    locations: tl.tensor, weights: tl.tensor, offset: tl.tensor, live: tl.tensor, height: tl.tensor, width: tl.tensor
) -> tl.tensor:  # pragma: no cover - compiled, or run by Triton's interpreter
    """Cell left of and above each point, its distance from there, and the point's attention weight."""
    x = tl.load(locations + 2 * offset, mask=live, other=0.0) * width - 0.5
    y = tl.load(locations + 2 * offset + 1, mask=live, other=0.0) * height - 0.5
    x = tl.minimum(tl.maximum(x, -2.0), width + 1.0)  # beyond the border all is zero, and the cell number stays small
    y = tl.minimum(tl.maximum(y, -2.0), height + 1.0)
    left, top = tl.floor(x), tl.floor(y)
    weight = tl.load(weights + offset, mask=live, other=0.0)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top, weight


@triton.jit
def _cell(
    start: tl.tensor,
    column: tl.tensor,
    row: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    live: tl.tensor,
    step: tl.tensor,
    channels: tl.tensor,
    dim: tl.constexpr,
) -> tl.tensor:  # pragma: no cover
    """Offsets (queries, channels) of one cell per query, and where there is something to read."""
    inside = live & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    offsets = ((start + row * width + column) * step)[:, None] + channels[None, :]
    return offsets, inside[:, None] & (channels < dim)[None, :]


@triton.jit
def _forward(
    value: tl.tensor,
    geometry: tl.tensor,
    locations: tl.tensor,
    weights: tl.tensor,
    out: tl.tensor,
    tokens: tl.tensor,
    queries: tl.tensor,
    heads: tl.constexpr,
    dim: tl.constexpr,
    levels: tl.constexpr,
    points: tl.constexpr,
    block_queries: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:  # pragma: no cover
    query = tl.program_id(0) * block_queries + tl.arange(0, block_queries)
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    live, channels = query < queries, tl.arange(0, block_dim)
    bag = (image * queries + query) * heads + head
    value += (image * tokens * heads + head) * dim
    total = tl.zeros((block_queries, block_dim), dtype=tl.float32)
    for level in range(levels):
        height, width = tl.load(geometry + 3 * level), tl.load(geometry + 3 * level + 1)
        start = tl.load(geometry + 3 * level + 2)
        for point in range(points):
            offset = (bag * levels + level) * points + point
            left, top, dx, dy, weight = _point(locations, weights, offset, live, height, width)
            for corner in tl.static_range(4):
                right, below = corner % 2, corner // 2
                share = (right * dx + (1 - right) * (1 - dx)) * (below * dy + (1 - below) * (1 - dy)) * weight
                cell, inside = _cell(start, left + right, top + below, height, width, live, heads * dim, channels, dim)
                total += share[:, None] * tl.load(value + cell, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + bag[:, None] * dim + channels[None, :], total, mask=live[:, None] & (channels < dim)[None, :])


@triton.jit
def _backward(
    gradient: tl.tensor,
    value: tl.tensor,
    geometry: tl.tensor,
    locations: tl.tensor,
    weights: tl.tensor,
    to_value: tl.tensor,
    to_locations: tl.tensor,
    to_weights: tl.tensor,
    tokens: tl.tensor,
    queries: tl.tensor,
    heads: tl.constexpr,
    dim: tl.constexpr,
    levels: tl.constexpr,
    points: tl.constexpr,
    block_queries: tl.constexpr,
    block_dim: tl.constexpr,
) -> None:  # pragma: no cover
    query = tl.program_id(0) * block_queries + tl.arange(0, block_queries)
    image, head = (tl.program_id(1) // heads).to(tl.int64), tl.program_id(1) % heads
    live, channels = query < queries, tl.arange(0, block_dim)
    bag = (image * queries + query) * heads + head
    value += (image * tokens * heads + head) * dim
    to_value += (image * tokens * heads + head) * dim
    readable = live[:, None] & (channels < dim)[None, :]
    given = tl.load(gradient + bag[:, None] * dim + channels[None, :], mask=readable, other=0.0).to(tl.float32)
    for level in range(levels):
        height, width = tl.load(geometry + 3 * level), tl.load(geometry + 3 * level + 1)
        start = tl.load(geometry + 3 * level + 2)
        for point in range(points):
            offset = (bag * levels + level) * points + point
            left, top, dx, dy, weight = _point(locations, weights, offset, live, height, width)
            by_weight = tl.zeros((block_queries,), dtype=tl.float32)
            by_x = tl.zeros((block_queries,), dtype=tl.float32)
            by_y = tl.zeros((block_queries,), dtype=tl.float32)
            for corner in tl.static_range(4):
                right, below = corner % 2, corner // 2
                share_x = right * dx + (1 - right) * (1 - dx)
                share_y = below * dy + (1 - below) * (1 - dy)
                cell, inside = _cell(start, left + right, top + below, height, width, live, heads * dim, channels, dim)
                product = tl.sum(given * tl.load(value + cell, mask=inside, other=0.0).to(tl.float32), axis=1)
                by_weight += share_x * share_y * product
                by_x += (2 * right - 1) * share_y * product
                by_y += (2 * below - 1) * share_x * product
                part = (share_x * share_y * weight)[:, None] * given
                tl.atomic_add(to_value + cell, part, mask=inside, sem="relaxed")  # a sum needs no order of memory
            tl.store(to_weights + offset, by_weight, mask=live)
            tl.store(to_locations + 2 * offset, by_x * weight * width, mask=live)
            tl.store(to_locations + 2 * offset + 1, by_y * weight * height, mask=live)


@torch.library.custom_op("panoptic_detr::sample_tokens", mutates_args=())
def sample_tokens(value: Tensor, geometry: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Sample tokens.

    Args:
        value: (B, N, M, d).
        geometry: (L, 3) of `level_table`.
        locations: (B, Q, M, L, P, 2).
        weights: (B, Q, M, L, P).

    Returns:
        (B, Q, M * d) float32.
    """
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    out = _sampled(value, geometry, locations, weights)
    grid, sizes = _launch(value, locations)
    with torch.cuda.device_of(value):  # Triton starts kernels on the current device, which need not be the tensors'
        _forward[grid](value, geometry, locations, weights, out, *sizes)
    return out


@torch.library.custom_op("panoptic_detr::sample_tokens_backward", mutates_args=())
def sample_tokens_backward(
    gradient: Tensor, value: Tensor, geometry: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of tokens, locations and weights, float32, from that of the samples (B, Q, M * d)."""
    refuse_where_deterministic()
    value, locations, weights = value.contiguous(), locations.contiguous(), weights.contiguous()
    to_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    to_locations, to_weights = torch.empty_like(locations), torch.empty_like(weights)
    grid, sizes = _launch(value, locations)
    inputs = (gradient.contiguous(), value, geometry, locations, weights)
    with torch.cuda.device_of(value):
        _backward[grid](*inputs, to_value, to_locations, to_weights, *sizes)
    return to_value, to_locations, to_weights


@sample_tokens.register_fake
def _sampled(value: Tensor, geometry: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """A tensor of the result's kind, not yet filled."""
    batch, queries, heads = locations.shape[:3]
    return torch.empty((batch, queries, heads * value.shape[3]), dtype=torch.float32, device=value.device)


@sample_tokens_backward.register_fake
def _gradients(
    gradient: Tensor, value: Tensor, geometry: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of the gradients' kinds."""
    wide = torch.empty(value.shape, dtype=torch.float32, device=value.device)
    return wide, torch.empty_like(locations.contiguous()), torch.empty_like(weights.contiguous())


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, Tensor, Tensor]:
    value, geometry, locations, weights = ctx.saved_tensors
    to_value, to_locations, to_weights = sample_tokens_backward(gradient, value, geometry, locations, weights)
    return to_value.to(value.dtype), None, to_locations, to_weights


sample_tokens.register_autograd(_differentiate, setup_context=_keep)


def refuse_where_deterministic() -> None:
    """Say that the sum of gradients has no fixed order, as PyTorch's own operations do.

    Raises:
        RuntimeError: `torch.use_deterministic_algorithms(True)` is on; with `warn_only` a `UserWarning` is given instead.
    """
    if not torch.are_deterministic_algorithms_enabled():
        return
    message = (
        "the backward pass of Triton's deformable sampling adds in no fixed order, but torch.use_deterministic_algorithms is "
        "on: unset PANOPTIC_DETR_SAMPLING or set it to 'table', or train without train.deterministic"
    )
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        raise RuntimeError(message)
    warnings.warn(message, stacklevel=2)


def _launch(value: Tensor, locations: Tensor) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Grid of programs, and the sizes that both kernels end with."""
    batch, queries, heads, levels, points, _ = locations.shape
    dim = value.shape[3]
    grid = (triton.cdiv(queries, BLOCK_QUERIES), batch * heads)
    return grid, (value.shape[1], queries, heads, dim, levels, points, BLOCK_QUERIES, triton.next_power_of_2(dim))
