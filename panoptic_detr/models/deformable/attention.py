"""Multi-scale deformable attention (Deformable DETR, section 4.1): each query reads a few points of each feature level.

`sample_levels` is the operation itself. Three ways give the same numbers: `grid_sample` per level, on any device; an
`embedding_bag` over one table of all levels, on a CPU, up to ten times faster; a Triton kernel, on CUDA. The environment
variable PANOPTIC_DETR_SAMPLING = grid | table | triton forces one; otherwise the fastest that fits is taken. On CUDA only the
table sums gradients in a fixed order: where `torch.use_deterministic_algorithms` is on, it is taken, and the backward passes of
the other two are refused (with `warn_only` they warn), as PyTorch does.
"""

import math
import os
from collections.abc import Callable, Sequence
from functools import cache, reduce
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.errors import InputError
from panoptic_detr.models.deformable.levels import level_sizes
from panoptic_detr.models.deformable.table import sample_with_table
from panoptic_detr.models.settings import check_heads
from panoptic_detr.models.tracing import is_traced, keeps_sampling_whole

Shapes = Sequence[tuple[int, int]]
Sampler = Callable[[Tensor, Shapes, Tensor, Tensor], Tensor]
SWITCH = "PANOPTIC_DETR_SAMPLING"
LARGE_MAP = 1000  # cells of all levels from which the table is faster in training too


def sample_levels(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sum of bilinear samples; outside of a level everything is zero.

    Args:
        value: (B, N, M, d) tokens of all levels one after the other, row by row, split into M heads.
        shapes: (height, width) of each level.
        locations: (B, Q, M, L, P, 2) points (x, y), where 0..1 spans the padded level.
        weights: (B, Q, M, L, P) attention weights.

    Returns:
        (B, Q, M * d).
    """
    way = choose_sampler(value)
    if way != "triton":  # which reads half precision as it is
        value = value.to(locations.dtype)
    sampler = sample_whole if way == "whole" else SAMPLERS[way]
    return sampler(value, shapes, locations, weights)


def choose_sampler(value: Tensor) -> str:
    """Name of the way to sample tokens (B, N, M, d): the forced one, or the fastest for this device and size.

    Where deterministic algorithms are asked for, the fastest on CUDA is the table, whatever Triton could do.

    Raises:
        InputError: the environment variable names no way.
    """
    if is_traced():
        return "whole" if keeps_sampling_whole() else "grid"  # which every exporter and compiler knows
    forced = os.environ.get(SWITCH, "auto")
    if forced in SAMPLERS:
        return forced
    if forced != "auto":
        raise InputError(f"{SWITCH}={forced!r} in the environment: it must be auto, {', '.join(SAMPLERS)} or unset")
    if value.device.type == "cuda" and torch.are_deterministic_algorithms_enabled():
        return "table"
    if value.device.type == "cuda" and value.dtype != torch.float64 and has_triton():
        return "triton"
    table = value.device.type == "cpu" and (value.shape[1] >= LARGE_MAP or not torch.is_grad_enabled())
    return "table" if table else "grid"


@cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def sample_with_triton(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample_levels` by one kernel for all levels; imported late, since Triton is on CUDA machines only."""
    from panoptic_detr.models.deformable.triton import sample

    return sample(value, shapes, locations, weights)


def sample_with_grid(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample_levels` by one `grid_sample` per level."""
    heads, width = value.shape[2:]
    queries = locations.shape[1]
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)  # (B * M, Q, L, P, 2)
    tokens = value.permute(0, 2, 3, 1).flatten(0, 1)  # (B * M, d, N)
    shares = weights.transpose(1, 2).flatten(0, 1)[:, None]  # (B * M, 1, Q, L, P)
    sums, start = [], 0
    for index, (rows, columns) in enumerate(shapes):
        level = tokens[..., start : start + rows * columns].reshape(-1, width, rows, columns)
        samples = F.grid_sample(level, grids[:, :, index], padding_mode="zeros", align_corners=False)  # (B * M, d, Q, P)
        sums.append((samples * shares[:, :, :, index]).sum(-1))  # (B * M, d, Q); never all samples at once
        start += rows * columns
    return reduce(torch.add, sums).view(-1, heads * width, queries).transpose(1, 2)  # (B, Q, M * d)


def sample_whole(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample_levels` as one node of what is recorded."""
    fixed = [int(size) for size in (*weights.shape[2:], value.shape[3])]  # the same for every picture
    sampled: Tensor = WholeSampling.apply(value, locations, weights, level_sizes(shapes, locations), *fixed)
    return sampled


class WholeSampling(torch.autograd.Function):
    """`sample_levels` as one node `SampleLevels` of an ONNX graph.

    Its inputs are those, with (width, height) of the levels (L, 2) in place of `shapes`; heads M, levels L, points P and width
    d are its attributes.
    """

    @staticmethod
    def forward(ctx: object, value: Tensor, locations: Tensor, weights: Tensor, sizes: Tensor, *fixed: int) -> Tensor:
        """See `sample_levels`."""
        return sample_with_table(value, [(int(height), int(width)) for width, height in sizes.tolist()], locations, weights)

    @staticmethod
    def symbolic(
        graph: torch.Graph,
        value: torch.Value,
        locations: torch.Value,
        weights: torch.Value,
        sizes: torch.Value,
        heads: int,
        levels: int,
        points: int,
        width: int,
    ) -> torch.Value:
        """The node."""
        fixed = {"heads_i": heads, "levels_i": levels, "points_i": points, "width_i": width}
        inputs = (value, locations, weights, sizes)
        node: torch.Value = graph.op("panoptic_detr::SampleLevels", *inputs, **fixed)  # type: ignore[attr-defined]
        node.setType(value.type().with_sizes([None, None, heads * width]))
        return node


SAMPLERS: dict[str, Sampler] = {"grid": sample_with_grid, "table": sample_with_table, "triton": sample_with_triton}


class DeformableAttention(nn.Module):
    """Multi-head attention from each query to `num_points` sampled points of every level.

    Offsets and weights are linear in the query. At first every head looks in a direction of its own, its k-th point k cells
    away, with equal weights (section 4.1, "Implementation details").

    Args:
        hidden_dim: width D of queries and tokens.
        num_levels: feature levels L.
        num_heads: heads M; D must be a multiple.
        num_points: points P per level and head.
    """

    def __init__(self, hidden_dim: int = 256, num_levels: int = 4, num_heads: int = 8, num_points: int = 4) -> None:
        super().__init__()
        check_heads(hidden_dim, num_heads)
        self.num_levels, self.num_heads, self.num_points = num_levels, num_heads, num_points
        self.sampling_offsets = nn.Linear(hidden_dim, num_heads * num_levels * num_points * 2)
        self.attention_weights = nn.Linear(hidden_dim, num_heads * num_levels * num_points)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the paper's initial weights."""
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (M, 2)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        steps = torch.arange(1.0, self.num_points + 1)[:, None]  # (P, 1)
        offsets = (directions[:, None, None] * steps).expand(-1, self.num_levels, -1, -1)  # (M, L, P, 2)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(offsets.flatten())
        for weight in (self.sampling_offsets.weight, self.attention_weights.weight, self.attention_weights.bias):
            nn.init.zeros_(weight)
        for linear in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(
        self, queries: Tensor, references: Tensor, tokens: Tensor, shapes: Shapes, padding_mask: Tensor | None = None
    ) -> Tensor:
        """Let the queries read the tokens.

        Args:
            queries: (B, Q, D), position encoding included.
            references: (B, Q, L, 2) points or (B, Q, L, 4) cxcywh boxes, where 0..1 spans the padded level. Offsets count in
                cells around a point, and in half widths and heights divided by P around the centre of a box.
            tokens: (B, N, D) of all levels, N the sum of the levels' cells.
            shapes: (height, width) of each level.
            padding_mask: (B, N) bool, True on padding, whose tokens read as zero.

        Returns:
            (B, Q, D).
        """
        value = self.value_proj(tokens)
        if padding_mask is not None:
            value = value.masked_fill(padding_mask[..., None], 0)
        with torch.autocast(queries.device.type, enabled=False):
            locations, weights = self.where_to_look(queries, references, shapes)
            heads = value.unflatten(-1, (self.num_heads, -1))  # (B, N, M, D / M)
            sampled = sample_levels(heads, shapes, locations, weights)  # (B, Q, D)
        return self.output_proj(sampled.to(value.dtype))

    def where_to_look(self, queries: Tensor, references: Tensor, shapes: Shapes) -> tuple[Tensor, Tensor]:
        """Sampling locations (B, Q, M, L, P, 2) and attention weights (B, Q, M, L, P), in float32 at least."""
        layout = (self.num_levels, self.num_points)
        queries = queries.to(self.sampling_offsets.weight.dtype)
        offsets = self.sampling_offsets(queries).unflatten(-1, (self.num_heads, -1)).to(references.dtype)
        logits = self.attention_weights(queries).unflatten(-1, (self.num_heads, -1)).to(references.dtype)
        weights = logits.softmax(-1).unflatten(-1, layout)  # (B, Q, M, L, P)
        references = references[:, :, :, None].expand(-1, -1, -1, self.num_points, -1)  # (B, Q, L, P, 2 or 4)
        # Rows are long here, because runtimes of exported files are slow at the short ones of levels and points.
        if references.shape[-1] == 2:
            offsets = offsets / level_sizes(shapes, references)[:, None].expand(-1, self.num_points, -1).flatten()
        else:
            offsets = offsets * (references[..., 2:] * (0.5 / self.num_points)).flatten(2)[:, :, None]
        locations = references[..., :2].flatten(2)[:, :, None] + offsets  # (B, Q, M, L * P * 2)
        return locations.view(*queries.shape[:2], self.num_heads, *layout, 2), weights
