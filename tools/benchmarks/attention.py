"""Time deformable sampling: grid_sample, table, Triton (on CUDA) and a naive gather, at a model's sizes."""

import time
from collections.abc import Callable, Sequence

import torch
from rich.table import Table
from torch import Tensor

from panoptic_detr.models.deformable import Sampler, Shapes, has_triton, sample_with_grid, sample_with_table, sample_with_triton
from panoptic_detr.weights import choose_device
from tools.benchmarks.measure import Figures


def run(
    *,
    image: tuple[int, int] = (480, 640),
    queries: int = 300,
    batch: int = 1,
    heads: int = 8,
    head_width: int = 32,
    points: int = 4,
    device: str = "auto",
) -> Figures:
    """Time the ways of deformable sampling.

    Args:
        image: (height, width) of the image whose levels are sampled.
        queries: that sample; 0: one per cell, as in the encoder.
        batch: images.
        heads: of the attention.
        head_width: channels per head.
        points: per level and head.
        device: "auto" takes the GPU where there is one.

    Returns:
        `device`, and `timings` in milliseconds: of each `way` the `forward` pass without gradients, and forward and backward
        (`step`).
    """
    chosen = choose_device(device)
    shapes = pyramid(*image)
    timings = compare(shapes, batch=batch, queries=queries, heads=heads, width=head_width, points=points, device=chosen)
    return {"device": str(chosen), "timings": timings}


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    view = Table("way", "forward ms", "forward + backward ms", title=f"deformable sampling on {result['device']}")
    for timing in result["timings"]:
        view.add_row(timing["way"], f"{timing['forward']:.2f}", f"{timing['step']:.2f}")
    return [view]


def sample_naively(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """The textbook form: gather four cells per point, each as a tensor of its own, and add them up."""
    total = value.new_zeros(*locations.shape[:3], value.shape[3])  # (B, Q, M, d)
    start = 0
    for index, (height, width) in enumerate(shapes):
        level = value[:, start : start + height * width].transpose(1, 2)  # (B, M, h * w, d)
        pixels = locations[:, :, :, index] * locations.new_tensor([width, height]) - 0.5  # (B, Q, M, P, 2)
        first = pixels.detach().floor()
        for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
            cell = first + locations.new_tensor(corner)
            share = (1 - (pixels - cell).abs()).prod(-1) * weights[:, :, :, index]  # (B, Q, M, P)
            x, y = cell.long().unbind(-1)
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            rows = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).transpose(1, 2).flatten(2)  # (B, M, Q * P)
            found = level.gather(2, rows[..., None].expand(-1, -1, -1, value.shape[3]))  # (B, M, Q * P, d)
            found = found.unflatten(2, x.shape[1:4:2]).transpose(1, 2)  # (B, Q, M, P, d)
            total = total + (found * (share * inside)[..., None]).sum(-2)
        start += height * width
    return total.flatten(2)  # (B, Q, M * d)


def pyramid(height: int, width: int, strides: Sequence[int] = (8, 16, 32, 64)) -> list[tuple[int, int]]:
    """Sizes of the feature levels of an image."""
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def compare(
    shapes: Shapes, *, batch: int, queries: int, heads: int, width: int, points: int, device: torch.device
) -> list[Figures]:
    """Time every way that the device allows on random points; 0 queries mean one per cell, as in the encoder."""
    tokens = sum(h * w for h, w in shapes)
    queries = queries or tokens
    value = torch.randn(batch, tokens, heads, width, device=device, requires_grad=True)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, device=device, requires_grad=True)
    weights = torch.rand(batch, queries, heads, len(shapes), points, device=device, requires_grad=True)
    ways: dict[str, Sampler] = {"naive gather": sample_naively, "grid_sample": sample_with_grid, "table": sample_with_table}
    if device.type == "cuda" and has_triton():
        ways["triton"] = sample_with_triton
    return [_time_way(name, sample, (value, shapes, locations, weights)) for name, sample in ways.items()]


def _time_way(name: str, sample: Sampler, inputs: tuple[Tensor, Shapes, Tensor, Tensor]) -> Figures:
    def step() -> None:
        sample(*inputs).sum().backward()

    with torch.no_grad():
        forward = _milliseconds(lambda: sample(*inputs))
    return {"way": name, "forward": forward, "step": _milliseconds(step)}


def _milliseconds(run: Callable[[], object], seconds: float = 1.0) -> float:
    """Median over repetitions that fill about `seconds`, after one that is not counted."""
    run()
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < 100):
        begin = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1000 * sorted(times)[len(times) // 2]
