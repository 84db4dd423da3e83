"""For tests with several processes: a way to start them as torchrun does, and tiny models with tiny fixed images."""

import faulthandler
import multiprocessing
import os
import socket
import sys
import traceback

import torch
from torch import nn
from training.trainer_helpers import TINY

from panoptic_detr.config.losses import LossConfig
from panoptic_detr.config.stages import OptimizerConfig, TrainConfig
from panoptic_detr.data.loading import collate
from panoptic_detr.structures import Sample, Target
from panoptic_detr.training.losses import build_criterion
from panoptic_detr.training.processes import start_fabric, whole
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.weights.checkpoints import Checkpoint
from panoptic_detr.zoo import build_model

LIMIT = 120  # seconds; a process that takes longer waits for another one that will never come
LABELS = 4
DETR = {**TINY, "num_queries": 8, "dropout": 0.0}
DEFORMABLE = {
    **DETR,
    "backbone_levels": [0, 1, 2, 3, 4],
    "num_backbone_levels": 3,
    "num_levels": 3,
    "num_points": 2,
    "mixed_selection": True,
    "dense_aux": True,
}
KINDS = {
    "detr": ("detr_r50", DETR),
    "two stages, dense loss": ("deformable_detr_r50_two_stage", {**DEFORMABLE, "encoder": "dense"}),
    "hybrid branch": ("h_deformable_detr_r50", {**DEFORMABLE, "num_one_to_many": 12}),
    "masks": ("detr_r50_panoptic", DETR),
    "masks on two stages": ("deformable_detr_r50_two_stage_panoptic", {**DEFORMABLE, "hidden_dim": 32}),
}
MASKS_ONLY = {"aux_loss": False, "class_weight": 0.0, "l1_weight": 0.0, "giou_weight": 0.0, "dense_weight": 0.0}
# Sizes of four images and their objects. The first two, and the last two, have together the size of all four.
IMAGES = (((48, 48), 3), ((48, 48), 0), ((32, 48), 1), ((48, 40), 5))


def in_processes(count, function, *arguments):
    """Call `function(rank, *arguments)` in so many processes, in the environment that torchrun makes; all must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    errors = fork.SimpleQueue()
    started = [fork.Process(target=_call, args=(errors, rank, count, port, function, arguments)) for rank in range(count)]
    for process in started:
        process.start()
    for process in started:
        process.join(LIMIT)
    stuck = [rank for rank, process in enumerate(started) if process.is_alive()]
    for process in started:
        process.kill()
    assert errors.empty(), errors.get()
    assert not stuck, f"still waiting after {LIMIT} s: {stuck}"
    assert [process.exitcode for process in started] == [0] * count


def _call(errors, rank, count, port, function, arguments):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
    faulthandler.dump_traceback_later(LIMIT - 10, file=sys.__stderr__)  # where a process waits
    torch.set_num_threads(
        1
    )  # PyTorch's thread pool is made anew after a fork, which must not happen in several threads at once
    try:
        function(rank, *arguments)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    except BaseException:
        errors.put(f"in process {rank}: {traceback.format_exc()}")
        raise


def sample(index):
    (height, width), objects = IMAGES[index]
    generator = torch.Generator().manual_seed(index)
    segment_map = torch.zeros(height, width, dtype=torch.uint8)
    boxes = torch.zeros(objects, 4)
    for i in range(objects):  # stripes, with void between them and below
        left, right, bottom = i * width // objects, (i + 1) * width // objects - 1, height - 4 * i
        segment_map[:bottom, left:right] = i + 1
        centre_and_size = [(left + right) / 2 / width, bottom / 2 / height, (right - left) / width, bottom / height]
        boxes[i] = torch.tensor(centre_and_size)
    labels = torch.randint(0, LABELS, (objects,), generator=generator)
    image = torch.randn(3, height, width, generator=generator)
    return Sample(image, Target(labels, boxes, segment_map, index), (height, width))


class FixedLoader:
    """Batches of the same images in the same order, split over processes; every epoch is alike."""

    def __init__(self, images, batch_size, rank=0, processes=1):
        share = len(images) // processes
        mine = images[rank * share : (rank + 1) * share]
        self.batches = [collate([sample(i) for i in mine[start : start + batch_size]]) for start in range(0, share, batch_size)]
        self.first = 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches[self.first :])

    def set_position(self, epoch, batch):
        self.first = batch


def hold_batch_norm(model):
    """Batch statistics depend on how images are batched; with those held, nothing else may."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
            module.train = lambda mode=True, module=module: module


def make_trainer(kind, output, *, loss=None, images=range(4), clip_norm=0.0, lr=1e-4, change=hold_batch_norm, **train):
    name, overrides = KINDS[kind]
    settings = {"steps": 1, "batch_size": 4, "log_every": 1, "tensorboard": False, "accelerator": "cpu", **train}
    config = TrainConfig(output=output, devices=int(os.environ.get("WORLD_SIZE", 1)), **settings)
    fabric = start_fabric(config, unused_parameters=LossConfig(**(loss or {})).switches_terms_off)
    model = build_model(name, num_labels=LABELS, **overrides)
    change(model)
    panoptic = name.endswith("_panoptic")
    return Trainer(
        fabric,
        model,
        build_criterion(name, num_labels=LABELS, **{**(MASKS_ONLY if panoptic else {}), **(loss or {})}),
        FixedLoader(images, config.batch_size, fabric.global_rank, fabric.world_size),
        optimizer=OptimizerConfig(lr=lr, clip_norm=clip_norm),
        train=config,
        template=Checkpoint(model.spec, {}),
        frozen=(model.detector,) if panoptic else (),
    )


def gradients_of_first_step(trainer):
    kept = {}

    def keep(optimizer, args, kwargs):
        if not kept:
            kept.update({n: whole(p.grad).clone() for n, p in trainer.model.named_parameters() if p.grad is not None})

    trainer.optimizer.optimizer.register_step_pre_hook(keep)
    trainer.fit()
    return kept
