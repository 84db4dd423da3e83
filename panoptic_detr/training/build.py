"""From settings to the parts of a run: devices, data, model. The one place where config objects are unpacked."""

import difflib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, Strategy
from rich.console import Console
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.checkpoints import Checkpoint
from panoptic_detr.config import (
    AugmentationConfig,
    ConfigError,
    DataConfig,
    DetectorStage,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from panoptic_detr.config_inference import InferenceSettings
from panoptic_detr.config_reading import type_name
from panoptic_detr.data.coco_files import DataError, resolve_paths
from panoptic_detr.data.coco_panoptic import CocoPanoptic
from panoptic_detr.data.loading import EpochSampler, PanopticLoader, make_loader
from panoptic_detr.data.transforms import Crop, Transform, crops_transform, eval_transform, scenes_transform, train_transform
from panoptic_detr.segment_maps import SegmentMapError
from panoptic_detr.training.acceleration import recompute_layers, use_channels_last
from panoptic_detr.training.criterion import Criterion, build_criterion
from panoptic_detr.training.curves import draw_curves
from panoptic_detr.training.diagnosis import overfit_verdict
from panoptic_detr.training.failures import TrainingError
from panoptic_detr.training.optimizer import freeze_groups_at_rest
from panoptic_detr.training.processes import end_with_the_first_process, gather, sharding_strategy
from panoptic_detr.training.run_record import only_run_in, write_record
from panoptic_detr.training.sanity import inspect_samples
from panoptic_detr.training.summary import print_groups
from panoptic_detr.training.tolerant_data import TolerantPanoptic, readable_part
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.training.transfer import open_source, transfer_weights
from panoptic_detr.visualization.pictures import PictureError
from panoptic_detr.zoo import build_model, built_with, fits_type


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


def open_train_set(
    data: DataConfig, augmentation: AugmentationConfig, inference: InferenceSettings, train: TrainConfig
) -> CocoPanoptic:
    """The training set with its augmentation.

    Raises:
        DataError: the files have a defect, or no image has a segment.
    """
    eval_size = eval_transform(inference.short_side, inference.long_side)
    transform = eval_size if train.overfit else build_augmentation(augmentation, eval_size)
    dataset = _open(data, data.train_split, _explicit(data, "train"), transform, None, train.seed, training=True)
    limit = train.overfit or data.train_limit
    dataset = dataset.subset(range(min(limit, len(dataset)))) if limit else dataset
    if not dataset.segment_count:
        raise DataError(
            f"none of the {len(dataset)} training images has a segment (crowd regions do not count), so there is nothing to "
            "learn; look at the annotations with `panoptic-detr data check`"
        )
    return dataset


def open_val_set(
    data: DataConfig, inference: InferenceSettings, train: TrainConfig, categories: CategoryTable, fabric: Fabric
) -> CocoPanoptic | None:
    """The validation set; the training images themselves with `overfit`; None without.

    Without a root (training data at explicit places) a split has nowhere to be looked up, and there is no validation.

    Raises:
        DataError: the files have a defect, or their categories mean something else than those of the training set.
    """
    part, split, limit = (
        ("train", data.train_split, train.overfit) if train.overfit else ("val", data.val_split, data.val_limit)
    )
    if not train.overfit and not any(_explicit(data, "val").values()) and (split is None or data.root is None):
        return None
    transform = eval_transform(inference.short_side, inference.long_side)
    dataset = _open(data, split, _explicit(data, part), transform, None, 0)
    if dataset.categories.differences(categories):
        _check_meanings(categories, dataset.categories)
        dataset = _open(data, split, _explicit(data, part), transform, categories, 0)  # labels are those of the model
    dataset = dataset.subset(range(min(limit, len(dataset)))) if limit else dataset
    return readable_part(dataset, fabric, data.workers) if data.on_unreadable == "skip" else dataset


def _check_meanings(trained: CategoryTable, validated: CategoryTable) -> None:
    """Refuse a validation set in which an id means something else; it may lack categories."""
    for category in validated.categories:
        known = trained.by_id.get(category.id)
        if known is not None and (known.name, known.isthing) != (category.name, category.isthing):
            kinds = [f"{c.name!r} ({'thing' if c.isthing else 'stuff'})" for c in (known, category)]
            raise DataError(
                f"category {category.id} is {kinds[0]} in the training set, but {kinds[1]} in the validation set; both JSONs "
                "need the same categories (`panoptic-detr data check` compares them)"
            )


def build_augmentation(config: AugmentationConfig, eval_size: Transform) -> Transform:
    """The preset's pipeline with the given settings changed.

    Raises:
        ConfigError: a setting that the preset does not have, or a crop larger than the picture.
    """
    given = {name: value for name, value in asdict(config).items() if value is not None and name != "preset"}
    if "short_sides" in given:
        given["short_sides"] = tuple(given["short_sides"])
    if config.preset == "crops":
        return _crops(given)
    if "crop_size" in given:
        raise ConfigError(f"setting 'augmentation.crop_size' belongs to preset crops, not to {config.preset}")
    presets: dict[str, Callable[[], Transform]] = {
        "paper": train_transform,
        "scenes": scenes_transform,
        "none": lambda: eval_size,
    }
    transform = presets[config.preset]()
    probability = given.pop("crop_probability", None)
    if probability is not None:
        given["crop"] = replace(transform.crop or Crop(), probability=probability) if probability else None
    return replace(transform, **given)


def _crops(given: dict[str, Any]) -> Transform:
    """Preset `crops`: the window first, then every other setting."""
    for name in ("crop_probability", "long_side"):
        if name in given:
            raise ConfigError(f"setting 'augmentation.{name}' does not go with preset crops, which cuts to crop_size")
    window = {name: given.pop(name) for name in ("crop_size", "short_sides") if name in given}
    try:
        return replace(crops_transform(**window), **given)
    except ValueError as error:
        raise ConfigError(f"augmentation.short_sides: {error}") from None


def train_loader(dataset: CocoPanoptic, data: DataConfig, train: TrainConfig, fabric: Fabric) -> PanopticLoader:
    """Shuffled batches for this process."""
    sampler = EpochSampler(len(dataset), seed=train.seed, rank=fabric.global_rank, world_size=fabric.world_size)
    return make_loader(
        dataset,
        batch_size=train.batch_size,
        sampler=sampler,
        workers=data.workers,
        pin_memory=fabric.device.type == "cuda",
    )


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
    lines = [f"{length}; {place}; folder {train.output}", *facts.lines(built_with(trainer.template.model, "num_queries"))]
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
    spec: Any = model.spec
    # A checkpoint brings all weights; rebuilding its model must not fetch others.
    overrides = {name: value for name, value in spec["overrides"].items() if name != "pretrained_backbone"}
    return Checkpoint({**spec, "overrides": overrides}, {}, categories, inference.to_dict())


def _explicit(data: DataConfig, part: str) -> dict[str, Path | None]:
    return {name: getattr(data, f"{part}_{name}") for name in ("images", "panoptic", "annotations")}


def _open(
    data: DataConfig,
    split: str | None,
    explicit: dict[str, Path | None],
    transform: Transform,
    categories: CategoryTable | None,
    seed: int,
    training: bool = False,
) -> CocoPanoptic:
    paths = resolve_paths(data.root, split, **explicit)
    kind = TolerantPanoptic if training and data.on_unreadable == "skip" else CocoPanoptic
    return kind(
        paths.images,
        paths.panoptic,
        paths.annotations,
        categories=categories,
        transforms=transform,
        seed=seed,
        cache="memory" if data.cache else "none",
    )
