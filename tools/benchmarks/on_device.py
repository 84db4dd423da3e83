"""The parts of the GPU's measurement (`gpu`): each yields one row of figures per case, and a case that fails is a row too.

A part runs as a program of its own:

    python -m tools.benchmarks.on_device kernel '{"device": "cpu", "tiny": true}' /tmp/rows.jsonl
"""

import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.losses import LossConfig
from panoptic_detr.config.stages import ModelConfig, OptimizerConfig, TrainConfig
from panoptic_detr.inference import Predictor
from panoptic_detr.models import PanopticDETR
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.models.deformable import has_triton, sample_with_grid, sample_with_triton
from panoptic_detr.quality import Regions, measure_overlaps
from panoptic_detr.structures import Batch, DetectorOutput
from panoptic_detr.training.losses import criterion_for
from panoptic_detr.training.processes import any_process, gather, share_buffers, start_fabric
from panoptic_detr.training.stages import prepare, template_of
from panoptic_detr.training.step import set_train_mode
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.zoo import PANOPTIC, build_model
from tools.benchmarks import attention, inference
from tools.benchmarks.measure import Figures, peak_memory
from tools.benchmarks.steps import patches

LABELS = 250  # of COCO panoptic
Rows = Iterator[Figures]
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL = {"hidden_dim": 32, "ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 20}
MODEL = "detr_r50" + PANOPTIC


@dataclass(frozen=True)
class Job:
    """Where to measure, and whether in miniature."""

    device: str = "cuda"
    tiny: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether there is a queue to wait for, and memory of the device to count."""
        return torch.device(self.device).type == "cuda"

    def build(self, name: str, **overrides: object) -> nn.Module:
        """A model with random weights, always the same, on the device."""
        torch.manual_seed(0)
        small = {**SMALL, "backbone": "resnet18", **({"num_one_to_many": 30} if name.startswith("h_") else {})}
        return build_model(name, num_labels=LABELS, **(small if self.tiny else {}), **overrides).to(self.device)

    def batch(self, images: int) -> Batch:
        """Noise with a few segments, the second image narrower than the first, so that there is padding."""
        height, width = (64, 96) if self.tiny else (800, 1066)
        sizes = [(height, width), *[(height, width * 3 // 4)] * (images - 1)]
        pixels, padding_mask = torch.zeros(images, 3, height, width), torch.ones(images, height, width, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        for index, (rows, columns) in enumerate(sizes):
            pixels[index, :, :rows, :columns] = torch.randn(3, rows, columns, generator=generator)
            padding_mask[index, :rows, :columns] = False
        targets = [patches(size, 3 if self.tiny else 12, LABELS) for size in sizes]
        return Batch(pixels, padding_mask, targets, sizes, sizes, list(range(images)))

    def settle(self) -> None:
        """Wait until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], repeats: int = 10) -> float:
        """Of one call, the best of `repeats`; two more before them do not count."""
        repeats, best = (1 if self.tiny else repeats), float("inf")
        for repeat in range(-1 if self.tiny else -2, repeats):
            self.settle()
            started = time.perf_counter()
            work()
            self.settle()
            best = min(best, time.perf_counter() - started) if repeat >= 0 else best
        return 1000 * best

    def forget_peak(self) -> None:
        """Count memory from here."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_mib(self) -> float:
        """Largest memory in use since then; on a CPU that of the process since its start."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else peak_memory()

    def autocast(self, precision: str) -> AbstractContextManager[None]:
        """The context of a precision; without the cache of weights, which a captured graph must not read."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, TYPES[precision], cache_enabled=False)


def attempt(case: Figures, work: Callable[..., Figures], *arguments: object) -> Figures:
    """The case with its figures, or with the traceback of what went wrong."""
    try:
        return case | work(*arguments)
    except Exception:  # whatever it is: the other cases can still be measured
        return case | {"error": traceback.format_exc()}


def difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, as a fraction of the expected one's."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


# --- deformable sampling ---------------------------------------------------------------------------------------------------


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


# --- inference -------------------------------------------------------------------------------------------------------------


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
    differences = {"logits": difference(found.logits, expected.logits), "boxes": difference(found.boxes, expected.boxes)}
    return {"ms as it is": plain, "ms": fast, "times faster": plain / fast, "difference": differences}


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


# --- training --------------------------------------------------------------------------------------------------------------


class OneBatch:
    """A loader that is never asked: the steps are taken one by one."""

    def __len__(self) -> int:
        """One batch."""
        return 1

    def __iter__(self) -> Iterator[Batch]:
        """None."""
        return iter(())

    def set_position(self, epoch: int, batch: int) -> None:
        """Stay."""


def steps_of(*names: str) -> Callable[[Job], Rows]:
    """A part that takes training steps of these models in every precision."""

    def steps(job: Job) -> Rows:
        for name in names:
            yield attempt({"model": name, "way": "forward on CPU and device"}, _same_as_cpu, job, name)
            for precision in PRECISIONS:
                if job.on_gpu or precision != "fp16":
                    case = {"model": name, "way": "train", "precision": precision}
                    yield attempt(case, _train, job, name, precision)

    return steps


@torch.no_grad()
def _same_as_cpu(job: Job, name: str) -> Figures:
    model = job.build(name).eval()
    batch = job.batch(2)
    images, padding_mask = batch.images[:, :, :256, :320], batch.padding_mask[:, :256, :320]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        found = model(images.to(job.device), padding_mask.to(job.device))
    expected = model.cpu()(images, padding_mask)
    return {
        "difference": {"logits": difference(found.logits, expected.logits), "boxes": difference(found.boxes, expected.boxes)}
    }


def trainer_of(job: Job, name: str, precision: str, folder: Path, **settings: Any) -> Trainer:
    """The project's own trainer of a model: of a panoptic one with a frozen detector, which is stage 2."""
    accelerator = "cuda" if job.on_gpu else "cpu"
    train: Any = {"output": folder, "steps": 1000, "accelerator": accelerator, "tensorboard": False, **settings}
    config = TrainConfig(precision=PRECISIONS[precision], **train)  # type: ignore[arg-type]
    fabric = start_fabric(config)
    model, rates = job.build(name), OptimizerConfig()
    frozen = prepare(model, ModelConfig(name=name, channels_last=True), rates)
    if isinstance(model, PanopticDETR):
        frozen = [model.detector]
    criterion = criterion_for(model, LABELS, LossConfig(), frozen_detector=isinstance(model, PanopticDETR))
    template = template_of(model, coco_categories(LABELS), InferenceSettings())
    trainer = Trainer(fabric, model, criterion, OneBatch(), optimizer=rates, train=config, template=template, frozen=frozen)
    set_train_mode(model, frozen)
    return trainer


def _train(job: Job, name: str, precision: str, images: int = 2) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        job.forget_peak()
        trainer = trainer_of(job, name, precision, Path(folder))
        batch = job.batch(images)
        first = trainer._step([batch])
        milliseconds = job.milliseconds(lambda: trainer._step([batch]), 5)
        last = trainer._step([batch])
        scaler = getattr(trainer.fabric.strategy.precision, "scaler", None)
    figures: Figures = {"ms": milliseconds, "images/s": 1000 * images / milliseconds, "peak MiB": job.peak_mib()}
    figures |= {"first loss": first["loss"], "last loss": last["loss"], "gradient norm": last["gradient_norm"]}
    return figures if scaler is None else figures | {"loss scale": scaler.get_scale()}


def deterministic(job: Job) -> Rows:
    """Steps with `train.deterministic`, twice: bit-equal weights, or the operation that PyTorch refuses."""
    names = ("detr_r50", MODEL, "deformable_detr_r50", "h_deformable_detr_r50", "mask_detr_r50")
    for name in names[: 1 if job.tiny else None]:
        yield attempt({"model": name}, _twice, job, name)


def _twice(job: Job, name: str) -> Figures:
    ends, milliseconds = [], 0.0
    try:
        for _ in range(2):
            with tempfile.TemporaryDirectory() as folder:
                trainer = trainer_of(job, name, "fp32", Path(folder), deterministic=True)
                milliseconds = job.milliseconds(partial(trainer._step, [job.batch(2)]), 2)
                ends.append(torch.cat([p.detach().flatten().cpu() for p in trainer.model.parameters() if p.requires_grad]))
    finally:
        torch.use_deterministic_algorithms(False)
    return {"bit-equal": torch.equal(*ends), "ms": milliseconds}


def one_process(job: Job) -> Rows:
    """One process with a process group (NCCL on GPUs, gloo on CPUs): what processes tell each other, and a DDP step."""
    with tempfile.TemporaryDirectory() as folder:
        trainer: Trainer | None = None

        def step() -> Figures:
            nonlocal trainer
            trainer = trainer_of(job, "detr_r50", "bf16", Path(folder), strategy="ddp")
            return {"ms": job.milliseconds(lambda: trainer._step([job.batch(2)]), 5) if trainer else 0.0}

        def talk() -> Figures:
            assert trainer is not None
            values: list[object] = [None]
            torch.distributed.all_gather_object(values, {"from": 0})
            share_buffers(trainer.fabric, trainer.model)
            agreed = any_process(trainer.fabric, True)
            backend = torch.distributed.get_backend()
            return {"backend": backend, "all": values == [{"from": 0}] == gather(trainer.fabric, {"from": 0}) and agreed}

        yield attempt({"case": "DDP step"}, step)
        yield attempt({"case": "messages"}, talk)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


# --- scores, and everything together -----------------------------------------------------------------------------------------


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


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
