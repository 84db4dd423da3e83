"""Measure a panoptic model's inference by parts, in fp32 and bf16, with and without each way to make it faster.

Weights are random, so the kept queries are decided here: as many queries as asked for get a confident class, the others
no-object. The mask head computes their masks; the merger then gets round patches instead, because untrained masks are speckle
in fp32 and all the same in bf16. Every part does the work that it does for a trained model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.data.loading import collate
from panoptic_detr.data.transforms import eval_transform, image_tensor
from panoptic_detr.errors import InputError
from panoptic_detr.inference import segment_batch
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.structures import Batch, DetectorOutput, Sample, Target
from panoptic_detr.zoo import PANOPTIC, spec_of
from tools.benchmarks.measure import (
    Clock,
    Figures,
    Stopwatch,
    TimedModule,
    autocast,
    check_variants,
    in_own_process,
    peak_memory,
    random_model,
    take_turns,
)

PARTS = ("preprocessing", "backbone", "transformer", "mask head", "merge", "total")
CONFIDENT = 12.0


@dataclass(frozen=True)
class Variant:
    """One way to run the model: switches of `optimize_for_inference`, and bfloat16 autocast."""

    name: str
    fold: bool = False
    channels_last: bool = False
    fuse: bool = False
    bf16: bool = False


_FP32 = (
    Variant("plain"),
    Variant("BatchNorm folded", fold=True),
    Variant("channels-last", channels_last=True),
    Variant("folded, channels-last", fold=True, channels_last=True),
    Variant("folded, channels-last, fused", fold=True, channels_last=True, fuse=True),  # what a Predictor runs
)
VARIANTS = {v.name: v for v in (*_FP32, *(replace(v, name=f"bf16, {v.name}", bf16=True) for v in _FP32))}


@dataclass(frozen=True)
class Job:
    """What is measured."""

    model: str = "detr_r50_panoptic"  # a panoptic model of the zoo, with random weights
    picture: tuple[int, int] = (480, 640)  # (height, width) of the picture
    short_side: int = 800  # to which it is resized; 800 makes 800 x 1066 of 480 x 640
    threads: int | None = None  # of torch; None for as many as torch takes
    device: str = "cpu"  # where the model is


class Runner:
    """A variant of the model, ready to take laps."""

    def __init__(self, job: Job, variant: Variant, model: nn.Module, clock: Clock = "wall") -> None:
        self.job, self.variant, self.watch = job, variant, Stopwatch(clock)
        switches = {"fold": variant.fold, "fuse": variant.fuse, "channels_last": variant.channels_last}
        # Weights are converted to bf16 beforehand where everything is done, elsewhere on every call.
        self.model = optimize_for_inference(model, **switches, precision="bf16" if variant.bf16 and variant.fuse else "fp32")
        detector = self.model.get_submodule("detector")
        detector.backbone = TimedModule(detector.get_submodule("backbone"), self.watch, "backbone")
        self.segmented, self.segments = 0, 0
        self.categories = coco_categories(spec_of(model).num_labels)
        self.pixels = np.random.default_rng(0).integers(0, 256, (*job.picture, 3), dtype=np.uint8)

    @torch.no_grad()
    def lap(self, kept: int) -> None:
        """From the picture to its map, once, with `kept` queries that get a mask."""
        with self.watch.lap(), autocast(self.variant.bf16, self.job.device):
            batch = self.watch.time("preprocessing", self._batch)
            output = self.watch.time("detector", self.model, batch.images, batch.padding_mask)
            output = replace(output, logits=pinned_logits(output, kept, self.categories), segmenter=self._segment)
            maps = self.watch.time("masks and map", segment_batch, output, batch, self.categories)
        self.segments = len(maps[0].segments)
        if self.segmented != kept:
            raise RuntimeError(f"{kept} queries were to be kept, but {self.segmented} got a mask")

    def seconds(self) -> dict[str, float]:
        """Seconds of every part in the shortest lap since the last call; they add up to the total."""
        parts = self.watch.best()
        self.watch.laps.clear()
        parts["transformer"] = parts["detector"] - parts["backbone"]
        parts["merge"] = parts["masks and map"] - parts["mask head"]
        return {name: parts[name] for name in PARTS}

    def _segment(self, output: DetectorOutput, queries: Sequence[Tensor]) -> list[Tensor]:
        masks = self.watch.time("mask head", self.model.get_submodule("mask_head"), output, queries)
        self.segmented = len(masks[0])
        return [patches(rows.shape).to(rows.dtype) for rows in masks]

    def _batch(self) -> Batch:
        height, width = self.job.picture
        nothing = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
        sample = Sample(image_tensor(self.pixels), nothing, (height, width))
        return collate([eval_transform(self.job.short_side)(sample)]).to(self.job.device)


def pinned_logits(output: DetectorOutput, kept: int, categories: CategoryTable) -> Tensor:
    """Class logits (L, B, Q, C) by which exactly `kept` queries, spread over all, are confident, each of another category."""
    queries = output.logits.shape[2]
    if not 0 <= kept <= queries:
        raise InputError(f"masks must lie between 0 and the model's {queries} queries, but got {kept}")
    logits = torch.full_like(output.logits, -CONFIDENT)
    if output.no_object:
        logits[..., -1] = 0
    chosen = torch.arange(kept) * queries // max(kept, 1)
    labels = torch.tensor(sorted(categories.by_label))
    logits[:, :, chosen, labels[torch.arange(kept) % len(labels)]] = CONFIDENT
    return logits


@cache
def patches(shape: tuple[int, int, int]) -> Tensor:
    """Mask logits (K, h, w) that fall with the distance to a centre of their own, in cells."""
    count, height, width = shape
    centres = torch.rand(count, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([height, width])
    down = torch.arange(height)[None, :, None] - centres[:, 0, None, None]
    across = torch.arange(width)[None, None] - centres[:, 1, None, None]
    return 10 - torch.hypot(down, across)  # (K, h, w)


def run(
    *,
    model: str = "detr_r50_panoptic",
    masks: Sequence[int] = (100, 12),
    variants: Sequence[str] = tuple(VARIANTS),
    picture: tuple[int, int] = (480, 640),
    short_side: int = 800,
    repeats: int = 3,
    memory: bool = True,
    threads: int | None = None,
    clock: Clock = "wall",
) -> Figures:
    """Time the variants in one process, taking turns, so that whatever else runs here slows all alike.

    Args:
        model: a panoptic model of the zoo; weights are random.
        masks: kept queries.
        variants: names of the ways to run it; by default all.
        picture: (height, width) of the picture.
        short_side: to which it is resized; 800 makes 800 x 1066 of 480 x 640.
        repeats: laps; the shortest counts.
        memory: also take the peak memory of each, in a process of its own.
        threads: of torch; by default as many as torch takes.
        clock: "wall", or "cpu": the time of all threads, steadier on a busy machine with one thread.

    Returns:
        `rows` of variant, masks, segments of the map, `seconds` by part and, with `memory`, MiB.
    """
    job = Job(model, picture, short_side, threads)
    _check(job, variants)
    rows = time_variants(job, variants, masks, repeats, clock)
    for row in rows if memory else ():
        row |= in_own_process(memory_of, job=job, variant=row["variant"], kept=row["masks"])
    return {"model": model, "picture": list(picture), "short_side": short_side, "clock": clock, "rows": rows}


def time_variants(job: Job, variants: Sequence[str], masks: Sequence[int], repeats: int, clock: Clock) -> list[Figures]:
    """Shortest laps of every variant, in turns, after one lap that does not count."""
    model = random_model(job.model, job.threads)
    runners = [Runner(job, VARIANTS[name], model, clock) for name in variants]
    rows = []
    for kept in masks:
        take_turns(runners, repeats, kept)
        rows += [{"variant": r.variant.name, "masks": kept, "segments": r.segments, "seconds": r.seconds()} for r in runners]
    return rows


def memory_of(job: Job, variant: str, kept: int) -> dict[str, float]:
    """MiB of one prediction in this process: in all, and above what the imported libraries took."""
    imported = peak_memory()
    Runner(job, VARIANTS[variant], random_model(job.model, job.threads)).lap(kept)
    return {"peak_mib": peak_memory(), "above_import_mib": peak_memory() - imported}


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people, a table per number of masks."""
    return [_table(result, kept) for kept in dict.fromkeys(row["masks"] for row in result["rows"])]


def _table(result: Figures, kept: int) -> Table:
    rows = [row for row in result["rows"] if row["masks"] == kept]
    height, width = result["picture"]
    title = f"{result['model']}, {kept} masks, {height} x {width} resized to {result['short_side']}: {result['clock']} ms"
    view = Table("", *PARTS, "times faster", "peak MiB", "above import", title=title, title_justify="left")
    for row in rows:
        cells = [f"{1000 * row['seconds'][part]:.0f}" for part in PARTS]
        ratio = rows[0]["seconds"]["total"] / row["seconds"]["total"]
        sizes = [f"{row[name]:.0f}" if name in row else "" for name in ("peak_mib", "above_import_mib")]
        view.add_row(row["variant"], *cells, f"{ratio:.2f}", *sizes)
    return view


def _check(job: Job, variants: Sequence[str]) -> None:
    check_variants(variants, VARIANTS)
    if not job.model.endswith(PANOPTIC):
        raise InputError(f"inference is measured up to the map, which needs a panoptic model: {job.model}{PANOPTIC}")
