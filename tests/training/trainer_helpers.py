"""A trainer of a tiny detector on a few tiny scenes, and what tests do to it."""

import csv
import signal
from dataclasses import replace

import torch
from lightning_fabric import Fabric

from panoptic_detr.config.stages import OptimizerConfig, TrainConfig
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.loading import EpochSampler, make_loader
from panoptic_detr.data.transforms import eval_transform, scenes_transform
from panoptic_detr.training.losses import build_criterion
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint
from panoptic_detr.zoo import build_model

TINY = {
    "backbone": "small",
    "backbone_norm": "batch",
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 12,
}


def make_trainer(
    scenes,
    output,
    *,
    workers=0,
    name="detr_r50",
    overrides=TINY,
    augment=True,
    fabric=None,
    frozen=None,
    optimizer=None,
    loss=None,
    evaluate=None,
    **train,
):
    config = TrainConfig(
        **{"output": output, "steps": 6, "batch_size": 2, "checkpoint_every": 1, "log_every": 1, "tensorboard": False, **train}
    )
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    torch.manual_seed(config.seed)
    model = build_model(name, num_labels=8, **overrides)
    transform = scenes_transform() if augment else eval_transform(None)
    dataset = CocoPanoptic.from_root(scenes, "train", transforms=transform)
    sampler = EpochSampler(len(dataset), rank=fabric.global_rank, world_size=fabric.world_size, seed=config.seed)
    loader = make_loader(dataset, batch_size=config.batch_size, sampler=sampler, workers=workers)
    return Trainer(
        fabric,
        model,
        build_criterion(name, num_labels=8, **(loss or {})),
        loader,
        optimizer=optimizer or OptimizerConfig(lr=1e-3, clip_norm=1.0, schedule="cosine", warmup=0.2),
        train=config,
        template=Checkpoint(model.spec, {}, dataset.categories),
        frozen=() if frozen is None else [getattr(model, part) for part in frozen],
        evaluate=evaluate,
        resume_command="panoptic-detr train_detector --config x",
    )


def weights_of(path):
    return load_checkpoint(path).state_dict


def read_rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def assert_equal(here, there):
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []


def stop_at(trainer, step, number=signal.SIGTERM):
    """Send the signal to this process while the step is computed."""
    counts = trainer.criterion.counts

    def counts_and_signal(targets):
        if trainer.state.step == step:
            signal.raise_signal(number)
        return counts(targets)

    trainer.criterion.counts = counts_and_signal
    return trainer


def poison(trainer, *steps):
    """Make the loss NaN in these steps."""
    forward = trainer.criterion.forward

    def poisoned(output, targets, counts=None):
        losses = forward(output, targets, counts)
        return replace(losses, total=losses.total * float("nan")) if trainer.state.step in steps else losses

    trainer.criterion.forward = poisoned
    return trainer
