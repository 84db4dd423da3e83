"""Training steps on a GPU: as on a CPU, in every precision, reproducible, and in a group of processes."""

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from panoptic_detr.coco_classes import coco_categories
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.losses import LossConfig
from panoptic_detr.config.stages import ModelConfig, OptimizerConfig, TrainConfig
from panoptic_detr.models import PanopticDETR
from panoptic_detr.structures import Batch
from panoptic_detr.training.losses import criterion_for
from panoptic_detr.training.processes import any_process, gather, share_buffers, start_fabric
from panoptic_detr.training.stages import prepare, template_of
from panoptic_detr.training.step import set_train_mode
from panoptic_detr.training.trainer import Trainer
from tools.benchmarks.gpu.device import LABELS, MODEL, PRECISIONS, Job, Rows, attempt, differences
from tools.benchmarks.measure import Figures


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
    return {"difference": differences(found, expected)}


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
