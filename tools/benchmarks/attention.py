"""Time deformable sampling: grid_sample, table, Triton (on CUDA) and a naive gather, at a model's sizes.

python tools/benchmark_attention.py --queries 300 --image 480 640
"""

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from panoptic_detr.models.deformable import Sampler, Shapes, has_triton, sample_with_grid, sample_with_table, sample_with_triton


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one way: `forward` without gradients, `step` forward and backward."""

    way: str
    forward: float
    step: float


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


def compare(shapes: Shapes, *, batch: int, queries: int, heads: int, width: int, points: int, device: str) -> list[Timing]:
    """Time every way that the device allows on random points; 0 queries mean one per cell, as in the encoder."""
    tokens = sum(h * w for h, w in shapes)
    queries = queries or tokens
    value = torch.randn(batch, tokens, heads, width, device=device, requires_grad=True)
    locations = torch.rand(batch, queries, heads, len(shapes), points, 2, device=device, requires_grad=True)
    weights = torch.rand(batch, queries, heads, len(shapes), points, device=device, requires_grad=True)
    ways: dict[str, Sampler] = {"naive gather": sample_naively, "grid_sample": sample_with_grid, "table": sample_with_table}
    if device == "cuda" and has_triton():
        ways["triton"] = sample_with_triton
    return [_time_way(name, sample, (value, shapes, locations, weights)) for name, sample in ways.items()]


def _time_way(name: str, sample: Sampler, inputs: tuple[Tensor, Shapes, Tensor, Tensor]) -> Timing:
    def step() -> None:
        sample(*inputs).sum().backward()

    with torch.no_grad():
        forward = _milliseconds(lambda: sample(*inputs))
    return Timing(name, forward, _milliseconds(step))


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


def main(argv: Sequence[str] | None = None) -> int:
    """Print a table of milliseconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", type=int, nargs=2, default=(480, 640), metavar=("HEIGHT", "WIDTH"), help="image size")
    parser.add_argument("--queries", type=int, default=300, help="queries; 0: one per cell, as in the encoder")
    parser.add_argument("--batch", type=int, default=1, help="images")
    parser.add_argument("--heads", type=int, default=8, help="attention heads")
    parser.add_argument("--head-width", type=int, default=32, help="channels per head")
    parser.add_argument("--points", type=int, default=4, help="points per level and head")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    options = parser.parse_args(argv)
    timings = compare(
        pyramid(*options.image),
        batch=options.batch,
        queries=options.queries,
        heads=options.heads,
        width=options.head_width,
        points=options.points,
        device=options.device,
    )
    table = Table("way", "forward ms", "forward + backward ms", title=f"deformable sampling on {options.device}")
    for timing in timings:
        table.add_row(timing.way, f"{timing.forward:.2f}", f"{timing.step:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
