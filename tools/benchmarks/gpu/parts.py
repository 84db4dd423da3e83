"""The parts of the GPU's measurement, how long each may take, and the program that each runs as.

    python -m tools.benchmarks.gpu kernel '{"device": "cpu", "tiny": true}' /tmp/rows.jsonl

A part yields one row of figures per case, and a case that fails is a row too.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from panoptic_detr.quality import Regions, measure_overlaps
from tools.benchmarks.gpu.device import LABELS, MODEL, Job, Rows, attempt
from tools.benchmarks.gpu.prediction import compiled, frames, graphs
from tools.benchmarks.gpu.sampling import kernel
from tools.benchmarks.gpu.training import deterministic, one_process, steps_of
from tools.benchmarks.measure import Figures
from tools.benchmarks.steps import patches


def counting(job: Job) -> Rows:
    """Pixels that true and predicted segments share, for PQ: by runs on the CPU, and as one histogram on the device."""
    yield attempt({"segments": 12}, _count, job)


def _count(job: Job) -> Figures:
    size = (48, 64) if job.tiny else (480, 640)
    maps = [patches(size, count, LABELS).segment_map for count in (12, 9)]
    arrays = [segment_map.numpy().astype(np.int32) for segment_map in maps if segment_map is not None]
    regions = [
        Regions.from_rows(array, [(int(i), 1, False) for i in np.unique(array)], name)
        for array, name in zip(arrays, ("truth", "prediction"), strict=True)
    ]
    truth, prediction = (torch.from_numpy(array).to(job.device) for array in arrays)

    def histogram() -> Tensor:
        return torch.bincount((truth * 16 + prediction).flatten(), minlength=16 * 16).view(16, 16)

    expected = measure_overlaps(regions[1], regions[0])
    found = histogram().cpu().numpy()[1 : len(regions[0]) + 1, 1 : len(regions[1]) + 1]
    return {
        "equal": np.array_equal(np.argwhere(found), np.stack([expected.truth, expected.prediction], axis=1))
        and np.array_equal(found[found > 0], expected.intersections),
        "ms on the CPU": job.milliseconds(lambda: measure_overlaps(regions[1], regions[0])),
        "ms on the device": job.milliseconds(lambda: histogram().cpu()),
    }


def everything(job: Job) -> Rows:
    """The demo, shortened: data, both stages, scores, pictures, report."""
    yield attempt({"case": "demo"}, _demo, job)


def _demo(job: Job) -> Figures:
    lengths = (("scenes", 8, 256), ("detector-steps", 2, 300), ("mask-steps", 2, 150), ("held-out", 4, 32))
    with tempfile.TemporaryDirectory() as folder:
        options = [f"--{name}={tiny if job.tiny else full}" for name, tiny, full in lengths]
        started = time.perf_counter()
        command = [sys.executable, "-m", "panoptic_detr.commands.demo", f"--output={folder}/demo", *options]
        subprocess.run(command, check=True)
        seconds, found = time.perf_counter() - started, list(Path(folder, "demo", "scores").glob("*.json"))
        scores = json.loads(found[0].read_text())
    return {"seconds": seconds, "PQ": scores["All"]["pq"], "parameters of the demo": options}


@dataclass(frozen=True)
class Part:
    """A part and the most seconds that it may take."""

    rows: Callable[[Job], Rows]
    seconds: float


PARTS = {
    "kernel": Part(kernel, 70),
    "frames": Part(frames, 70),
    "steps detr": Part(steps_of("detr_r50", MODEL), 60),
    "steps deformable": Part(steps_of("deformable_detr_r50", "h_deformable_detr_r50"), 70),
    "steps masks": Part(steps_of("mask_detr_r50"), 40),
    "graphs": Part(graphs, 60),
    "deterministic": Part(deterministic, 60),
    "one process": Part(one_process, 40),
    "demo": Part(everything, 90),
    "counting": Part(counting, 40),
    "compiled": Part(compiled, 120),
    "steps others": Part(
        steps_of(
            "detr_r50_dc5", "deformable_detr_r50_two_stage", "deformable_detr_r50_single_scale", "h_deformable_detr_swin_t"
        ),
        90,
    ),
}


def main(name: str, job: str, path: str) -> int:
    """Run one part; rows are written as they come."""
    started, failed = time.perf_counter(), 0
    with Path(path).open("a", encoding="utf-8") as stream:
        for row in PARTS[name].rows(Job(**json.loads(job))):
            failed += "error" in row
            stream.write(json.dumps(row | {"at s": round(time.perf_counter() - started, 1)}) + "\n")
            stream.flush()
    return 1 if failed else 0
