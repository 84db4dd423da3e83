"""Measure training steps by parts: stage 1 on boxes, stage 2 on masks with a frozen detector, and what each lever gains.

Next to each step stands the time of its convolutions and matrix products alone, which nothing around them can go below.
Stage 2 is also run with the mask head on all queries, the usual way, of which the losses then see the matched ones. Images are
noise, segments are patches, weights are random: a step's time does not depend on them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from panoptic_detr.config.losses import MaskLossKind
from panoptic_detr.config.stages import OptimizerConfig
from panoptic_detr.data.coco import retarget
from panoptic_detr.errors import InputError
from panoptic_detr.shapes import map_tensors
from panoptic_detr.structures import DetectorOutput, Predictions, Target
from panoptic_detr.training.losses import HungarianMatcher, Matches, build_criterion
from panoptic_detr.training.optimizer import build_optimizer, parameter_groups
from panoptic_detr.training.step import freeze, set_train_mode
from panoptic_detr.zoo import PANOPTIC
from tools.benchmarks.measure import (
    Clock,
    Figures,
    Stopwatch,
    autocast,
    check_variants,
    in_own_process,
    peak_memory,
    product_seconds,
    random_model,
    take_turns,
)

PARTS = ("detector", "matching", "mask head", "losses", "backward", "optimiser", "total")


@dataclass(frozen=True)
class Variant:
    """One kind of step."""

    name: str
    stage: int
    channels_last: bool = False
    bf16: bool = False
    all_queries: bool = False
    mask_loss: MaskLossKind = "full"


VARIANTS = {
    v.name: v
    for v in (
        Variant("stage 1", 1),
        Variant("stage 1, channels-last", 1, channels_last=True),
        Variant("stage 1, channels-last, bf16", 1, channels_last=True, bf16=True),
        Variant("stage 2, mask head on all queries", 2, all_queries=True),
        Variant("stage 2", 2),
        Variant("stage 2, losses at points", 2, mask_loss="points"),
        Variant("stage 2, channels-last", 2, channels_last=True),
        Variant("stage 2, channels-last, bf16", 2, channels_last=True, bf16=True),
    )
}


@dataclass(frozen=True)
class Job:
    """What is measured."""

    model: str = "detr_r50"  # a detector of the zoo
    picture: tuple[int, int] = (480, 640)  # (height, width) of the images
    objects: int = 12  # segments per image
    batch_size: int = 1  # images per step
    threads: int | None = None  # of torch; None for as many as torch takes


@dataclass(frozen=True)
class TimedMatcher(HungarianMatcher):
    """A matcher whose calls count as a part of the lap."""

    watch: Stopwatch = field(default_factory=Stopwatch)

    def __call__(self, predictions: Predictions, targets: Sequence[Target], repeats: Sequence[int]) -> Matches:
        """Match."""
        return self.watch.time("matching", super().__call__, predictions, targets, repeats)


class Runner:
    """Model, criterion, optimiser and one batch of a variant, ready to take laps."""

    def __init__(self, job: Job, variant: Variant, clock: Clock = "wall") -> None:
        self.variant, self.watch = variant, Stopwatch(clock)
        name = job.model if variant.stage == 1 else job.model + PANOPTIC
        self.model = random_model(name, job.threads)
        frozen = [] if variant.stage == 1 else [self.model.get_submodule("detector")]
        freeze(frozen)
        set_train_mode(self.model, frozen)
        if variant.channels_last:
            self.model.to(memory_format=torch.channels_last)
        # In stage 2 the losses of boxes and classes train nothing, and only the last layer is matched.
        self.criterion = build_criterion(name, aux_loss=variant.stage == 1, mask_loss=variant.mask_loss)
        matcher: HungarianMatcher = self.criterion.matcher  # type: ignore[assignment]
        settings = {f.name: getattr(matcher, f.name) for f in fields(matcher)}
        self.criterion.matcher = TimedMatcher(**settings, watch=self.watch)
        config = OptimizerConfig()
        self.optimizer = build_optimizer(parameter_groups(self.model, config), config)
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.images = torch.randn(job.batch_size, 3, *job.picture)
        self.targets = [patches(job.picture, job.objects, self.criterion.num_labels) for _ in range(job.batch_size)]

    def lap(self) -> None:
        """One step."""
        watch = self.watch
        with watch.lap():
            with autocast(self.variant.bf16):
                padding_mask = torch.zeros_like(self.images[:, 0], dtype=torch.bool)
                output = watch.time("detector", self.model, self.images, padding_mask)
                if self.variant.stage == 2:
                    output = replace(output, segmenter=self._segment)
                losses = watch.time("criterion", self.criterion, output, self.targets)
            watch.time("backward", losses.total.backward)
            watch.time("optimiser", self._optimise)

    def seconds(self) -> dict[str, float]:
        """Seconds of every part in the shortest lap; they add up to the total."""
        parts = self.watch.best()
        parts["mask head"] = parts.get("mask head", 0.0)
        parts["losses"] = parts["criterion"] - parts["matching"] - parts["mask head"]
        return {name: parts[name] for name in PARTS}

    def _segment(self, output: DetectorOutput, queries: Sequence[Tensor]) -> list[Tensor]:
        head = self.model.get_submodule("mask_head")
        if not self.variant.all_queries:
            return self.watch.time("mask head", head, output, queries)
        everything = [torch.arange(output.logits.shape[2])] * len(queries)
        masks = self.watch.time("mask head", head, output, everything)
        return [rows[chosen] for rows, chosen in zip(masks, queries, strict=True)]

    def _optimise(self) -> None:
        nn.utils.clip_grad_norm_(self.trained, 0.1)
        self.optimizer.step()
        self.optimizer.zero_grad()


def patches(size: tuple[int, int], count: int, num_labels: int) -> Target:
    """A target whose segments share an image: every pixel belongs to the nearest of random centres."""
    generator = np.random.default_rng(0)
    rows, columns = np.meshgrid(*(np.arange(side) for side in size), indexing="ij")
    centres = generator.uniform(0, 1, (count, 2)) * size
    nearest = np.argmin([(rows - y) ** 2 + (columns - x) ** 2 for y, x in centres], axis=0)
    segment_map = torch.from_numpy((nearest + 1).astype(np.int16))
    return retarget(segment_map, torch.from_numpy(generator.integers(0, num_labels, count)), "noise")


def run(
    *,
    model: str = "detr_r50",
    picture: tuple[int, int] = (480, 640),
    objects: int = 12,
    batch_size: int = 1,
    variants: Sequence[str] = tuple(VARIANTS),
    repeats: int = 3,
    memory: bool = True,
    threads: int | None = None,
    clock: Clock = "wall",
) -> Figures:
    """Time training steps in one process, taking turns, so that whatever else runs here slows all alike.

    Args:
        model: a detector of the zoo; weights are random.
        picture: (height, width) of the images.
        objects: segments per image.
        batch_size: images per step.
        variants: names of the kinds of step; by default all.
        repeats: laps; the shortest counts.
        memory: also take the peak memory of each, in a process of its own.
        threads: of torch; by default as many as torch takes.
        clock: "wall", or "cpu": the time of all threads, steadier on a busy machine with one thread.

    Returns:
        `rows` of variant, `seconds` by part, `products_seconds` (its convolutions and matrix products, each alone) and, with
        `memory`, MiB; `matcher_seconds` for 300 queries, 100 objects, 7 layers.
    """
    job = Job(model, picture, objects, batch_size, threads)
    _check(job, variants)
    runners = [Runner(job, VARIANTS[name], clock) for name in variants]
    take_turns(runners, repeats)
    rows: list[Figures] = []
    for runner in runners:
        parts, alone = runner.seconds(), product_seconds(runner.lap, clock)
        rows.append({"variant": runner.variant.name, "seconds": parts, "products_seconds": sum(alone.values())})
    large = time_matcher(Stopwatch(clock))
    del runners, runner
    for row in rows if memory else ():
        row |= in_own_process(memory_of, job=job, variant=row["variant"])
    facts = {"model": model, "picture": list(picture), "objects": objects, "batch_size": batch_size, "clock": clock}
    return facts | {"rows": rows, "matcher_seconds": large}


def time_matcher(watch: Stopwatch, queries: int = 300, objects: int = 100, layers: int = 7) -> float:
    """Seconds to match a crowded image in every layer, costs and assignment."""
    torch.manual_seed(0)
    predictions = Predictions(torch.randn(layers, 1, queries, 91), torch.rand(layers, 1, queries, 4) * 0.5 + 0.25)
    target = Target(torch.randint(91, (objects,)), torch.rand(objects, 4) * 0.5 + 0.25)
    matcher = HungarianMatcher("sigmoid", 2.0)
    for _ in range(5):
        with watch.lap():
            matcher(predictions, [target], [1] * layers)
    return watch.best()["total"]


def memory_of(job: Job, variant: str) -> dict[str, float]:
    """MiB of two steps in this process: in all, above imported libraries, above the model, and kept for the mask head."""
    imported = peak_memory()
    runner = Runner(job, VARIANTS[variant])
    built = peak_memory()
    runner.lap()
    runner.lap()
    peak = peak_memory()
    sizes = {"peak_mib": peak, "above_import_mib": peak - imported, "above_model_mib": peak - built}
    return sizes if runner.variant.stage == 1 else sizes | {"mask_head_mib": kept_for_backward(runner)}


def kept_for_backward(runner: Runner) -> float:
    """MiB of activations that the mask head keeps for its backward pass; weights and the detector's output do not count."""
    model, kept = runner.model, dict[int, int]()
    with torch.no_grad():
        output = model.get_submodule("detector")(runner.images, torch.zeros_like(runner.images[:, 0], dtype=torch.bool))
    queries = [torch.arange(output.logits.shape[2] if runner.variant.all_queries else len(t)) for t in runner.targets]
    known = {_place(parameter) for parameter in model.parameters()}

    def know(tensor: Tensor) -> Tensor:
        known.add(_place(tensor))
        return tensor

    def keep(tensor: Tensor) -> Tensor:
        kept[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    map_tensors(output, know)
    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast(runner.variant.bf16):
        masks = model.get_submodule("mask_head")(output, queries)
    total = sum(size for place, size in kept.items() if place not in known)
    del masks  # alive until here, so that no place was used twice
    return total / 2**20


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    rows, (height, width) = result["rows"], result["picture"]
    title = f"{result['model']}, {result['batch_size']} x {height} x {width}, {result['objects']} objects: {result['clock']} ms"
    sizes = {"peak_mib": "peak MiB", "above_import_mib": "above import", "mask_head_mib": "kept by mask head"}
    view = Table("", *PARTS, "times faster", "products alone", *sizes.values(), title=title, title_justify="left")
    for row in rows:
        cells = [f"{1000 * row['seconds'][part]:.0f}" for part in PARTS]
        first = next(other for other in rows if VARIANTS[other["variant"]].stage == VARIANTS[row["variant"]].stage)
        ratio = first["seconds"]["total"] / row["seconds"]["total"]
        alone = row["products_seconds"]
        cells += [f"{ratio:.2f}", f"{1000 * alone:.0f} (x {row['seconds']['total'] / alone:.2f})"]
        view.add_row(row["variant"], *cells, *(f"{row[name]:.0f}" if name in row else "" for name in sizes))
    large = Table("matching 300 queries, 100 objects, 7 layers", "ms", "share of the step", title_justify="left")
    for row in rows:
        share = result["matcher_seconds"] / row["seconds"]["total"]
        large.add_row(f"against {row['variant']}", f"{1000 * result['matcher_seconds']:.1f}", f"{share:.1%}")
    return [view, large]


def _check(job: Job, variants: Sequence[str]) -> None:
    check_variants(variants, VARIANTS)
    if job.model.endswith(PANOPTIC):
        raise InputError(f"name the detector; its mask head is added for stage 2: {job.model.removesuffix(PANOPTIC)}")
