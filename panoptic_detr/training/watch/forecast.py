"""What a run will need in time and memory, measured before its first step: on a few steps, a few images, one checkpoint.

Nothing of it leaves a trace: weights, statistics, optimizer and random numbers are afterwards as before.
"""

import math
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from panoptic_detr.config.stages import DetectorStage, MaskStage
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.loading import collate
from panoptic_detr.errors import TrainingError
from panoptic_detr.structures import Batch
from panoptic_detr.training.optimizer import kept_weights
from panoptic_detr.training.processes import gather
from panoptic_detr.training.run.state import capture_random_state, restore_random_state
from panoptic_detr.training.step import set_train_mode
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.training.watch.progress import duration, peak_memory
from panoptic_detr.training.watch.validation import LOSS_IMAGES, evaluator, extra_outputs, validation_loss

FEWEST_STEPS = 20  # a shorter run is over before its forecast
DRAWN = 64  # samples whose sizes tell those of all batches
DRAWS = 500  # of batches from these sizes
TIMED, ENOUGH_SECONDS = 6, 5.0  # average batches at most, and after two of them so much time
EVALUATED = 8  # images
OTHER_ALLOCATORS = ("tcmalloc", "jemalloc", "mimalloc")
GAPS, UNEQUAL = 1.15, 4.0  # growth of a CPU's heap in nine long runs whose tensors vary; most segments for their mean
CACHED_BYTES = 4  # of a pixel: three colours and its segment


@dataclass(frozen=True)
class Forecast:
    """Time and memory of the rest of a run.

    Attributes:
        steps: to do.
        step: seconds of one, its data included.
        evaluations: to do.
        evaluation: seconds of one.
        saving: seconds of all checkpoints.
        memory: most bytes in use, as the bar of a run shows them: of the device, or of one process on a CPU.
        largest: (B, H, W) of the largest batch that is to be expected.
        device: type of the device.
        heap_grows: memory is glibc's, and batches have several sizes, which leave gaps in its heap.
    """

    steps: int
    step: float
    evaluations: int
    evaluation: float
    saving: float
    memory: int
    largest: tuple[int, int, int]
    device: str
    heap_grows: bool = False

    @property
    def seconds(self) -> float:
        """Of all that is to do."""
        return self.steps * self.step + self.evaluations * self.evaluation + self.saving

    def __str__(self) -> str:
        plural = "s" if self.evaluations > 1 else ""
        evaluations = f", {self.evaluations} evaluation{plural} of {self.evaluation:.1f} s" if self.evaluations else ""
        where = "this process" if self.device == "cpu" else f"the {self.device} device"
        return (
            f"forecast: {duration(self.seconds)} for {self.steps} steps of {self.step:.2f} s{evaluations}, checkpoints "
            f"{self.saving:.0f} s; up to {self.memory / 2**30:.1f}G of memory in {where} (largest batch "
            f"{' x '.join(map(str, self.largest))} pixels)"
            + (
                "; gaps in the heap of glibc may double that, see 'Out of memory' in docs/training.md"
                if self.heap_grows
                else ""
            )
        )


def forecast(trainer: Trainer, stage: DetectorStage, dataset: CocoPanoptic, val_set: CocoPanoptic | None) -> Forecast:
    """Measure what the rest of a run will need; every process must call it.

    Args:
        trainer: before its first step.
        stage: settings.
        dataset: with the augmentation of the training.
        val_set: for evaluation; None for none.

    Raises:
        TrainingError: the largest batch does not fit into the device's memory.
    """
    config, device = trainer.config, trainer.fabric.device
    sizes, loading = draw_sizes(dataset, config.seed + trainer.fabric.global_rank)
    largest, *typical = choose_batches(sizes, config.batch_size)
    with without_traces(trainer):
        batch = _batch(dataset, largest)
        try:
            _timed_step(trainer, batch)
        except torch.OutOfMemoryError as error:
            raise TrainingError(
                f"a batch of {' x '.join(map(str, _shape(batch)))} pixels does not fit into the device's memory: lower "
                f"train.batch_size and raise train.accumulate, or see 'Out of memory' in docs/training.md ({error})"
            ) from None
        shape = _shape(batch)
        del batch
        computing = _usual_seconds(_timed_step(trainer, _batch(dataset, chosen)) for chosen in typical)
        evaluation = _evaluation_seconds(trainer, stage, val_set)
        saving = _seconds_of(lambda: _save_nowhere(trainer))
        memory = peak_memory(device) + _later_bytes(trainer, stage, [size[3] for size in sizes], len(dataset), val_set)
        memory = round(memory * (heap_growth(sizes) if device.type == "cpu" else 1))
    loading *= config.batch_size / max(stage.data.workers, 1)
    per_batch = max(computing, loading) if stage.data.workers else computing + loading
    steps = trainer.total_steps - trainer.state.step
    evaluations = 0 if val_set is None else math.ceil(steps / (config.evaluate_every or steps or 1))
    saves = 3 * evaluations + 1 + (steps // config.checkpoint_every if config.checkpoint_every else 0)
    measured = gather(trainer.fabric, (per_batch * config.accumulate, evaluation, saving * saves, memory))
    step, evaluation, saving, memory = (max(values) for values in zip(*measured, strict=True))
    grows = device.type == "cpu" and len({size[:2] for size in sizes if size[0]}) > 1 and allocates_by_glibc()
    return Forecast(steps, step, evaluations, evaluation, saving, int(memory), shape, device.type, grows)


def allocates_by_glibc() -> bool:
    """Whether no other allocator was loaded before the program (LD_PRELOAD); False where the system has no glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    loaded = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace")
    return not any(name in loaded for name in OTHER_ALLOCATORS)


@contextmanager
def without_traces(trainer: Trainer) -> Iterator[None]:
    """Steps of a new run inside the context change nothing: it begins afterwards as if they had not been."""
    random, precision = capture_random_state(), trainer.fabric.strategy.precision
    scaler = precision.state_dict()
    set_train_mode(trainer.model, trainer.frozen)
    try:
        with kept_weights(trainer.model):
            yield
    finally:
        trainer.optimizer.zero_grad()
        trainer.optimizer.optimizer.state.clear()
        precision.load_state_dict(scaler)
        restore_random_state(random)


def draw_sizes(dataset: CocoPanoptic, seed: int) -> tuple[list[tuple[int, int, int, int]], float]:
    """Height, width, segments and pixels on disk of some augmented samples by their place; seconds to load one."""
    order = np.random.default_rng(seed).permutation(len(dataset))[:DRAWN].tolist()
    sizes = [(0, 0, 0, 0)] * len(dataset)
    started = time.perf_counter()
    for index in order:
        sample = dataset[index]
        height, width = sample.image.shape[1:]
        sizes[index] = (height, width, len(sample.target), math.prod(sample.original_size))
    return sizes, (time.perf_counter() - started) / len(order)


def choose_batches(sizes: Sequence[Sequence[int]], batch_size: int) -> list[list[int]]:
    """Places of the samples of the largest batch that is to be expected after padding, and of average ones.

    Args:
        sizes: height, width and segments of samples, of which masks take memory too; (0, 0, 0) of those that are not known.
        batch_size: samples of a batch.
    """
    known = [place for place, size in enumerate(sizes) if size[0]]
    count = min(batch_size, len(known))
    extremes = [max(known, key=lambda place: sizes[place][axis]) for axis in (0, 1)] if count > 1 else []
    by_work = sorted(known, key=lambda place: -sizes[place][0] * sizes[place][1] * (1 + sizes[place][2]))
    largest = list(dict.fromkeys([*extremes, *by_work]))[:count]
    generator = np.random.default_rng(0)
    batches = [generator.choice(known, count, replace=False).tolist() for _ in range(DRAWS)]
    padded = np.array([math.prod(np.max([sizes[place][:2] for place in batch], axis=0)) for batch in batches])
    masks = padded * np.array([1 + sum(sizes[place][2] for place in batch) for batch in batches])  # both take time
    apart = sum(np.abs(work / work.mean() - 1) for work in (padded, masks))
    typical = np.argsort(apart, kind="stable")[:TIMED]
    return [largest, *(batches[index] for index in typical)]


def heap_growth(sizes: Sequence[Sequence[int]]) -> float:
    """How much larger a heap becomes over a long run than its largest batch is, whatever the allocator.

    Where samples have one size and about as many segments each, whatever is given back fits again.
    """
    known = np.array([size[:3] for size in sizes if size[0]])
    alike = (known[:, :2] == known[0, :2]).all() and known[:, 2].max() < UNEQUAL * known[:, 2].mean()
    return 1.0 if alike else GAPS


def _batch(dataset: CocoPanoptic, places: Sequence[int]) -> Batch:
    return collate([dataset[place] for place in places])


def _shape(batch: Batch) -> tuple[int, int, int]:
    return len(batch), batch.images.shape[2], batch.images.shape[3]


def _usual_seconds(steps: Iterator[float]) -> float:
    """The median of at least two steps, and of more where they are short."""
    taken: list[float] = []
    for seconds in steps:
        taken.append(seconds)
        if len(taken) >= 2 and sum(taken) > ENOUGH_SECONDS:
            break
    return float(np.median(taken))


def _timed_step(trainer: Trainer, batch: Batch) -> float:
    """Seconds of a whole step on a batch."""

    def step() -> None:
        trainer.try_step([batch])
        if trainer.fabric.device.type == "cuda":
            torch.cuda.synchronize(trainer.fabric.device)

    return _seconds_of(step)


def _seconds_of(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _evaluation_seconds(trainer: Trainer, stage: DetectorStage, val_set: CocoPanoptic | None) -> float:
    """Seconds of an evaluation of the whole validation set."""
    if val_set is None:
        return 0.0
    model, fabric = trainer.model.eval(), trainer.fabric
    few = val_set.subset(range(min(len(val_set), max(EVALUATED, fabric.world_size))))
    score = evaluator(stage, few, fabric)
    assert score is not None
    with torch.no_grad(), extra_outputs(model, wanted=not isinstance(stage, MaskStage) or stage.joint):
        loss = _seconds_of(lambda: validation_loss(model, trainer.criterion, few, stage.train.batch_size, fabric))
    with torch.no_grad():
        scores = _seconds_of(lambda: score(model))
    return (scores * len(val_set) + loss * min(len(val_set), LOSS_IMAGES)) / len(few)


def _save_nowhere(trainer: Trainer) -> None:
    """Do the work of a checkpoint, apart from the disk's."""
    with open(os.devnull, "wb") as nowhere:
        torch.save([trainer.model.state_dict(), trainer.optimizer.state_dict()], nowhere)


def _later_bytes(
    trainer: Trainer, stage: DetectorStage, pixels: Sequence[int], images: int, val_set: CocoPanoptic | None
) -> int:
    """What a run needs beyond the measured peak: the optimizer's state, and what a cache still takes in.

    The state was not there yet in the largest step; the copy of the weights that was there instead counts against it.
    """
    trained = sum(parameter.numel() * parameter.element_size() for group in trainer.groups for parameter in group.parameters)
    kept = trained + sum(buffer.numel() * buffer.element_size() for buffer in trainer.model.buffers())
    state = sum(
        value.numel() * value.element_size()
        for values in trainer.optimizer.optimizer.state.values()
        for value in values.values()
        if isinstance(value, torch.Tensor)
    )
    known = [count for count in pixels if count]
    missing = images - len(known) + (0 if val_set is None else max(0, len(val_set) - EVALUATED))
    in_process = stage.data.cache and not stage.data.workers and trainer.fabric.device.type == "cpu"
    return state - kept + (int(np.mean(known)) * CACHED_BYTES * missing if in_process else 0)
