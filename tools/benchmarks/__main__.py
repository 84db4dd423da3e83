"""Measure speed and memory: inference and training steps by parts, panoptic quality, data loading, attention, prediction.

Half a minute on two cores:

    python -m tools.benchmarks inference --masks [12] --variants "[plain, 'folded, channels-last, fused']"

`panoptic-detr benchmark --help` lists the jobs. Absolute times belong to a machine and a moment: compare within one run.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table

from panoptic_detr.commands.cli import run as run_tool
from tools.benchmarks import attention, data, export, films, gpu, hub, inference, overlay, pq, predict, steps, tiles
from tools.benchmarks.measure import machine

MEASURED = (inference, steps, pq, data, overlay, attention, predict, tiles, films, hub, export, gpu)
JOBS = {job.__name__.rpartition(".")[2]: job for job in MEASURED}


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
        file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
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
