"""From settings to the parts of a run: devices, model, losses, what is said before and after; `build_data` opens the data."""

import difflib
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, get_type_hints

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, Strategy
from rich.console import Console
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.stages import DetectorStage, ModelConfig, OptimizerConfig, TrainConfig
from panoptic_detr.config.types import fits_type, type_name
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.errors import ConfigError, DataError, PictureError, SegmentMapError, TrainingError
from panoptic_detr.training.acceleration import recompute_layers, use_channels_last
from panoptic_detr.training.losses import Criterion, build_criterion
from panoptic_detr.training.optimizer import freeze_groups_at_rest
from panoptic_detr.training.processes import end_with_the_first_process, gather, sharding_strategy
from panoptic_detr.training.run.record import only_run_in, write_record
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.training.watch.curves import draw_curves
from panoptic_detr.training.watch.diagnosis import overfit_verdict
from panoptic_detr.training.watch.sanity import inspect_samples, print_groups
from panoptic_detr.weights import Checkpoint, open_source, transfer_weights
from panoptic_detr.zoo import build_model, spec_of


def start_fabric(train: TrainConfig, *, unused_parameters: bool = False) -> Fabric:
    """Devices, processes and precision; launched and seeded.

    Args:
        train: settings.
        unused_parameters: trained parameters may stay without gradient (see `switches_terms_off`).

    Raises:
        ConfigError: torchrun or srun started another number of processes than the settings say, or PyTorch is too old for FSDP.
    """
    wanted = train.devices * train.nodes
    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if started > 1 and started != wanted:
        raise ConfigError(
            f"{started} processes were started (torchrun or srun), but train.devices x train.nodes is {wanted}; train.devices "
            "must be the processes on one machine, and train.nodes the machines"
        )
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    strategy: str | Strategy = "auto"
    if wanted > 1 and train.strategy == "fsdp":
        strategy = sharding_strategy(wanted)
    elif wanted > 1 or train.strategy == "ddp":
        strategy = DDPStrategy(find_unused_parameters=unused_parameters)
    try:
        fabric = Fabric(
            accelerator=train.accelerator,
            devices=train.devices,
            num_nodes=train.nodes,
            strategy=strategy,
            precision=train.precision,
        )
    except (RuntimeError, ValueError) as error:
        asked = f"train.accelerator {train.accelerator}, train.devices {train.devices}, train.precision {train.precision}"
        raise ConfigError(f"not possible here ({asked}): {error}; train.accelerator auto takes what there is") from error
    end_with_the_first_process()
    logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)  # no greeting from each process
    fabric.launch()
    # Every process draws its own dropout; initial weights are the same, because process 0 hands its own to all.
    fabric.seed_everything(train.seed + fabric.global_rank, verbose=False)
    torch.use_deterministic_algorithms(train.deterministic)
    return fabric


def new_model(config: ModelConfig, categories: CategoryTable, console: Console) -> nn.Module:
    """Build the model of a stage for the data's classes, with the weights that `model.weights` names, if any."""
    if config.weights is None:
        return build_model(config.name, num_labels=categories.num_labels, **config.overrides)
    overrides = {**config.overrides, "pretrained_backbone": False}
    model = build_model(config.name, num_labels=categories.num_labels, **overrides)
    transfer_weights(open_source(config.weights), model, categories).print(console)
    return model


def new_criterion(name: str, num_labels: int, settings: Mapping[str, Any]) -> Criterion:
    """Build the criterion of a model with the settings of the `loss` section.

    Raises:
        ConfigError: a setting that the criterion does not have (the message names the nearest), or a value of another type.
    """
    known = {key: kind for key, kind in get_type_hints(build_criterion).items() if key not in ("name", "num_labels", "return")}
    for key, value in settings.items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise ConfigError(
                f"unknown setting 'loss.{key}'; did you mean 'loss.{nearest}'? The criterion takes {', '.join(known)}"
            )
        if not fits_type(value, known[key]):
            raise ConfigError(f"setting 'loss.{key}' must be {type_name(known[key])}, but got {value!r}")
    return build_criterion(name, num_labels=num_labels, **settings)


def check_one_to_many(model: nn.Module, criterion: Criterion) -> None:
    """Refuse one-to-many queries that no loss trains, and a hybrid branch without queries.

    Raises:
        ConfigError: the model and the matching scheme contradict each other.
    """
    queries, scheme = getattr(getattr(model, "detector", model), "num_one_to_many", 0), criterion.hybrid.scheme
    if queries and scheme != "branch":
        raise ConfigError(
            f"the model has {queries} one-to-many queries, which cost time in training, but 'loss.hybrid: {scheme}' trains "
            "none of them; give --model.overrides.num_one_to_many 0, or --loss.hybrid branch"
        )
    if scheme == "branch" and not queries:
        raise ConfigError(
            "'loss.hybrid: branch' trains one-to-many queries, and the model has none; give "
            "--model.overrides.num_one_to_many 1500 (H-DETR's number, for 300 queries), or another loss.hybrid"
        )


def switches_terms_off(loss: Mapping[str, Any]) -> bool:
    """Whether the `loss` section leaves terms out (a weight of 0, no auxiliary losses), so that nothing may reach a head.

    With every term on, each trained parameter gets a gradient in every step, even without any object in the images.
    """
    return any(value == 0 for value in loss.values())


def prepare(model: nn.Module, config: ModelConfig, optimizer: OptimizerConfig) -> list[nn.Module]:
    """Freeze what has learning rate 0, and apply what makes training faster or smaller.

    Returns:
        What is frozen now, for the trainer to keep in evaluation mode.
    """
    frozen = freeze_groups_at_rest(model, optimizer)
    if config.channels_last:
        use_channels_last(model)
    if config.activation_checkpointing:
        recompute_layers(model)
    if config.compile:
        model.compile(dynamic=True)
    return frozen


@contextmanager
def announced(trainer: Trainer, stage: DetectorStage, dataset: CocoPanoptic, console: Console) -> Iterator[None]:
    """Say what will happen, write the record of the run and a picture of its samples, and keep other runs out meanwhile.

    Raises:
        TrainingError: the first process could not; then no process begins.
    """
    refusal = None
    with ExitStack() as stack:
        if trainer.fabric.is_global_zero:
            try:
                stack.enter_context(only_run_in(stage.train.output))
                if not (trainer.resumed and trainer.complete):  # where nothing will be trained, nothing is announced
                    write_record(stage, dataset.categories, trainer.state.step if trainer.resumed else None)
                    _introduce(trainer, stage, dataset, console)
            except (TrainingError, DataError, SegmentMapError, PictureError) as error:
                refusal = str(error)
        if refusal := gather(trainer.fabric, refusal)[0]:
            raise TrainingError(refusal)
        yield


def _introduce(trainer: Trainer, stage: DetectorStage, dataset: CocoPanoptic, console: Console) -> None:
    fabric, train = trainer.fabric, stage.train
    batch = min(train.batch_size * fabric.world_size, len(dataset)) * train.accumulate
    facts = inspect_samples(
        dataset, train.output / "samples.png", eval_transform(stage.inference.short_side, stage.inference.long_side)
    )
    epochs = trainer.total_steps * batch / len(dataset)
    length = f"{trainer.total_steps} steps of {batch} images = {epochs:.1f} epochs of {len(dataset)}"
    place = f"{fabric.world_size} x {fabric.device.type}, {train.precision}, seed {train.seed}"
    crowds = [f"all annotations of {category} are crowds: it is not learnt" for category in dataset.only_crowds]
    lines = [*crowds, f"{length}; {place}; folder {train.output}", *facts.lines(trainer.template.model.setting("num_queries"))]
    print_groups(console, trainer.model, trainer.groups, lines)


def conclude(trainer: Trainer, stage: DetectorStage, console: Console) -> None:
    """After the run: the picture of its curves, where the result is, and what an overfitting run has shown.

    Raises:
        TrainingError: there is no result, because the disk was full all the time.
    """
    if not trainer.fabric.is_global_zero or not trainer.complete:
        return
    if not trainer.files.best.exists():
        raise TrainingError(f"the run is over, but {str(trainer.files.best)!r} could not be written: its weights are lost")
    draw_curves(stage.train.output)
    console.print(f"result: {trainer.files.best}", highlight=False, soft_wrap=True)
    if stage.train.overfit and trainer.last_scores:
        console.print(overfit_verdict(trainer.last_scores), highlight=False, soft_wrap=True)


def template_of(model: nn.Module, categories: CategoryTable, inference: InferenceSettings) -> Checkpoint:
    """What every checkpoint of a run says besides weights."""
    spec = spec_of(model)
    # A checkpoint brings all weights; rebuilding its model must not fetch others.
    overrides = {name: value for name, value in spec.overrides.items() if name != "pretrained_backbone"}
    return Checkpoint(replace(spec, overrides=overrides), {}, categories, inference.to_dict())
