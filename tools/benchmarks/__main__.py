"""Measure speed and memory: inference and training steps by parts, panoptic quality, data loading, deformable attention.

Half a minute on two cores:

    python -m tools.benchmarks inference --masks [12] --variants "[plain, 'folded, channels-last, fused']"

`panoptic-detr benchmark --help` lists the jobs. Absolute times belong to a machine and a moment: compare within one run.
"""

import json as json_format
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from panoptic_detr.commands.cli import run as run_tool
from tools.benchmarks import attention as attention_ways
from tools.benchmarks import data, inference, overlay, pq, steps
from tools.benchmarks.measure import machine


@dataclass(frozen=True)
class Job:
    """A measurement: keyword arguments to figures (plain values), and figures to tables."""

    run: Callable[..., dict[str, Any]]
    tables: Callable[[dict[str, Any]], list[Table]]


def attention(
    *, image: tuple[int, int] = (480, 640), queries: int = 300, batch: int = 1, device: Literal["auto", "cpu", "cuda"] = "auto"
) -> dict[str, Any]:
    """Time the ways of deformable sampling.

    Args:
        image: (height, width) of the image whose levels are sampled.
        queries: that sample; 0: one per cell, as in the encoder.
        batch: images.
        device: "auto" takes the GPU where there is one.
    """
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    shapes = attention_ways.pyramid(*image)
    timings = attention_ways.compare(shapes, batch=batch, queries=queries, heads=8, width=32, points=4, device=chosen)
    return {"device": chosen, "timings": [asdict(timing) for timing in timings]}


def attention_table(result: dict[str, Any]) -> Table:
    """The figures of `attention` for people."""
    view = Table("way", "forward ms", "forward + backward ms", title=f"deformable sampling on {result['device']}")
    for timing in result["timings"]:
        view.add_row(timing["way"], f"{timing['forward']:.2f}", f"{timing['step']:.2f}")
    return view


JOBS = {
    "inference": Job(inference.run, inference.tables),
    "steps": Job(steps.run, steps.tables),
    "pq": Job(pq.run, lambda result: [pq.table(result)]),
    "data": Job(data.run, lambda result: [data.table(result)]),
    "overlay": Job(overlay.run, lambda result: [overlay.table(result)]),
    "attention": Job(attention, lambda result: [attention_table(result)]),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one measurement, print its tables, write its figures."""
    parser = ArgumentParser(prog="panoptic-detr benchmark", description="Measure speed and memory.")
    choices = parser.add_subcommands(dest="job")
    for name, job in JOBS.items():
        sub = ArgumentParser(description=(job.run.__doc__ or "").splitlines()[0])
        sub.add_function_arguments(job.run)
        sub.add_argument("--json", type=Path | None, help="also write the figures, with the machine, to this file")
        choices.add_subcommand(name, sub, help=sub.description)
        sub.prog = f"{parser.prog} {name}"  # without the " [options]" that the library puts between
    chosen = parser.parse_args(argv)
    options = chosen[chosen.job].as_dict()
    file = options.pop("json")
    result = JOBS[chosen.job].run(**options)
    show(JOBS[chosen.job].tables(result))
    if file is not None:
        content = {"job": chosen.job, "machine": machine(), "figures": result}
        file.write_text(json_format.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def show(tables: Sequence[Table]) -> None:
    """Print tables and the machine that they are from."""
    console = Console(width=None if sys.stdout.isatty() else 160)
    for table in tables:
        console.print(table)
    facts = machine()
    where = facts["gpu"] or facts["cpu"]
    console.print(
        f"{where}, {facts['cores']} cores, {torch.get_num_threads()} threads, {facts['instructions']}; torch {facts['torch']}"
    )


if __name__ == "__main__":
    sys.exit(run_tool(main, None, "benchmark"))
