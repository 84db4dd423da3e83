"""Deformable sampling on a GPU: the Triton kernel against `grid_sample`."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from panoptic_detr.models.deformable import has_triton, sample_with_grid, sample_with_triton
from tools.benchmarks import attention
from tools.benchmarks.gpu.device import TYPES, Job, Rows, attempt, difference
from tools.benchmarks.measure import Figures


def kernel(job: Job) -> Rows:
    """The Triton kernel against `grid_sample`: equal forward and backward, faster, and which block sizes are fastest."""
    for queries in (300, 0):  # of the decoder, and one per cell as in the encoder
        for precision, dtype in TYPES.items():
            yield attempt({"queries": queries or "cells", "precision": precision}, _compare_samplers, job, queries, dtype)
    for block in (8, 16, 32, 64):
        yield attempt({"queries": "cells", "precision": "bf16", "block": block}, _with_block, job, block)


def _sampling_inputs(job: Job, queries: int, dtype: torch.dtype) -> tuple[list[tuple[int, int]], list[Tensor]]:
    shapes = attention.pyramid(*((64, 64) if job.tiny else (800, 1066)))
    batch, heads, width, points = (1, 2, 8, 2) if job.tiny else (2, 8, 32, 4)
    queries = min(queries, 20) if job.tiny and queries else queries or sum(h * w for h, w in shapes)
    torch.manual_seed(0)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, width, device=job.device).to(dtype)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, device=job.device) * 1.2 - 0.1
    weights = torch.rand(batch, queries, heads, len(shapes), points, device=job.device)
    return shapes, [tensor.requires_grad_() for tensor in (value, locations, weights)]


def _triton_runs(job: Job) -> bool:
    return job.on_gpu and has_triton()


def _compare_samplers(job: Job, queries: int, dtype: torch.dtype) -> Figures:
    shapes, inputs = _sampling_inputs(job, queries, dtype)
    value, locations, weights = inputs
    ours = sample_with_triton if _triton_runs(job) else sample_with_grid

    def plain() -> Tensor:
        return sample_with_grid(value.float(), shapes, locations, weights)

    def fast() -> Tensor:
        return ours(value if ours is sample_with_triton else value.float(), shapes, locations, weights)

    probe = torch.randn_like(plain())
    results = [[way(), *torch.autograd.grad(way(), inputs, probe)] for way in (fast, plain)]
    names = ("forward", "to value", "to locations", "to weights")
    figures: Figures = {"triton": ours is sample_with_triton}
    figures["difference"] = {name: difference(a, b) for name, a, b in zip(names, *results, strict=True)}
    for name, way in (("triton", fast), ("grid_sample", plain)):
        with torch.no_grad():
            figures[f"{name} forward ms"] = job.milliseconds(way)
        figures[f"{name} step ms"] = job.milliseconds(partial(_differentiate, way, inputs, probe))
    return figures


def _differentiate(way: Callable[[], Tensor], inputs: Sequence[Tensor], probe: Tensor) -> None:
    torch.autograd.grad(way(), inputs, probe)


def _with_block(job: Job, block: int) -> Figures:
    if not _triton_runs(job):
        return {"triton": False}
    from panoptic_detr.models.deformable import triton as kernels

    shapes, inputs = _sampling_inputs(job, 0, torch.bfloat16)
    value, locations, weights = inputs
    before, kernels.BLOCK_QUERIES = kernels.BLOCK_QUERIES, block
    try:
        probe = torch.randn_like(sample_with_triton(value, shapes, locations, weights))
        with torch.no_grad():
            forward = job.milliseconds(lambda: sample_with_triton(value, shapes, locations, weights))
        step = job.milliseconds(
            lambda: torch.autograd.grad(sample_with_triton(value, shapes, locations, weights), inputs, probe)
        )
    finally:
        kernels.BLOCK_QUERIES = before
    return {"triton": True, "triton forward ms": forward, "triton step ms": step}
