"""Prediction on a GPU: pictures per second, by parts and through the predictor; CUDA graphs; `torch.compile`."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.inference import Predictor
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.structures import DetectorOutput
from tools.benchmarks import inference
from tools.benchmarks.gpu.device import LABELS, MODEL, Job, Rows, attempt, difference, differences
from tools.benchmarks.measure import Figures


class Pinned(nn.Module):
    """A panoptic model with random weights that is confident of `kept` queries, each with a mask of its own place."""

    def __init__(self, model: nn.Module, kept: int, categories: CategoryTable) -> None:
        super().__init__()
        self.model, self.kept, self.categories = model, kept, categories

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Detect."""
        output = self.model(images, padding_mask)
        pinned = inference.pinned_logits(output, self.kept, self.categories)
        return replace(output, logits=pinned, segmenter=self.segment)

    def segment(self, output: DetectorOutput, queries: Sequence[Tensor]) -> list[Tensor]:
        """What the mask head computes is computed; then masks of other places take its place."""
        masks = self.model.get_submodule("mask_head")(output, queries)
        return [inference.patches(rows.shape).to(rows) for rows in masks]


def frames(job: Job) -> Rows:
    """Pictures per second of DETR-R50 panoptic at 800 x 1066 with 12 masks, by parts, and through the predictor."""
    picture, short_side = ((48, 64), 64) if job.tiny else ((480, 640), 800)
    variants = ("folded, channels-last, fused", "bf16, folded, channels-last, fused")
    for name in variants:
        settings = inference.Job(MODEL, picture, short_side, device=job.device)
        yield attempt({"variant": name, "way": "one picture, by parts, ms"}, _parts, job, settings, name)
    for precision in ("fp32", "bf16"):
        for size in (1, 8):
            case = {"variant": precision, "way": "predictor", "batch": size}
            yield attempt(case, _throughput, job, precision, size, picture, short_side)
    if job.on_gpu:
        torch.set_float32_matmul_precision("high")
        yield attempt({"variant": "tf32", "way": "predictor", "batch": 8}, _throughput, job, "fp32", 8, picture, short_side)


def _parts(job: Job, settings: inference.Job, name: str) -> Figures:
    runner = inference.Runner(settings, inference.VARIANTS[name], job.build(MODEL), "device" if job.on_gpu else "wall")
    for lap in range(2 if job.tiny else 15):
        runner.lap(5 if job.tiny else 12)
        if not lap:
            runner.watch.laps.clear()  # kernels were chosen in it
    return {part: 1000 * seconds for part, seconds in runner.seconds().items()}


def _throughput(job: Job, precision: Any, size: int, picture: tuple[int, int], short_side: int) -> Figures:
    categories = coco_categories(LABELS)
    model = Pinned(job.build(MODEL), 5 if job.tiny else 12, categories)
    settings = InferenceSettings(short_side=short_side)
    predictor = Predictor(model, categories, settings=settings, device=job.device, precision=precision, batch_size=size)
    pixels = np.random.default_rng(0).integers(0, 256, (*picture, 3), dtype=np.uint8)
    pictures = [pixels] * (size if job.tiny else 32)
    job.forget_peak()
    seconds = job.milliseconds(lambda: predictor(pictures), 3) / 1000
    return {"pictures/s": len(pictures) / seconds, "peak MiB": job.peak_mib()}


def graphs(job: Job) -> Rows:
    """The detector of one picture as it is, as a CUDA graph and compiled: the same result, how fast, how long to prepare."""
    for name in ("detr_r50", "deformable_detr_r50", "mask_detr_r50"):
        for precision in ("fp32", "bf16"):
            case = {"model": name, "precision": precision, "way": "CUDA graph"}
            yield attempt(case, _graph, job, name, precision)


def compiled(job: Job) -> Rows:
    """The detector of one picture through `torch.compile`."""
    for name in ("detr_r50", "deformable_detr_r50", "mask_detr_r50"):
        case = {"model": name, "precision": "bf16", "way": "compiled"}
        yield attempt(case, _compiled, job, name, "bf16")


def _still(job: Job, name: str) -> tuple[nn.Module, Tensor, Tensor]:
    batch = job.batch(1).to(job.device)
    return optimize_for_inference(job.build(name)), batch.images, batch.padding_mask


@torch.no_grad()
def _graph(job: Job, name: str, precision: str) -> Figures:
    if not job.on_gpu:
        return {"left out": "CUDA graphs are for GPUs"}
    model, images, padding_mask = _still(job, name)
    with job.autocast(precision):
        expected, stream = model(images, padding_mask), torch.cuda.Stream()
        plain = job.milliseconds(lambda: model(images, padding_mask))
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                model(images, padding_mask)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = model(images, padding_mask)
    fast = job.milliseconds(graph.replay)
    return {"ms as it is": plain, "ms": fast, "times faster": plain / fast, "difference": differences(found, expected)}


@torch.no_grad()
def _compiled(job: Job, name: str, precision: str) -> Figures:
    model, images, padding_mask = _still(job, name)
    with job.autocast(precision):
        expected = model(images, padding_mask)
        plain = job.milliseconds(lambda: model(images, padding_mask))
        fast_model = torch.compile(model, backend="inductor" if job.on_gpu else "eager")
        started = time.perf_counter()
        found = fast_model(images, padding_mask)
        seconds = time.perf_counter() - started
        fast = job.milliseconds(lambda: fast_model(images, padding_mask))
    figures: Figures = {"ms as it is": plain, "ms": fast, "times faster": plain / fast, "seconds to compile": seconds}
    return figures | {"difference": {"logits": difference(found.logits, expected.logits)}}
