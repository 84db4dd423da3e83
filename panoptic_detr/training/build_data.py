"""From settings to data: both sets, their augmentation, the loader, and how to go on without images that cannot be read."""

import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.stages import AugmentationConfig, DataConfig, TrainConfig
from panoptic_detr.data.coco import CocoPanoptic, resolve_paths
from panoptic_detr.data.loading import EpochSampler, PanopticLoader, make_loader
from panoptic_detr.data.photographs import PhotoTransform
from panoptic_detr.data.transforms import Crop, Transform, crops_transform, eval_transform, scenes_transform, train_transform
from panoptic_detr.errors import ConfigError, DataError, SegmentMapError
from panoptic_detr.parallel import parallel_map
from panoptic_detr.structures import Sample
from panoptic_detr.training.processes import gather

Given = dict[str, Any]  # settings of an augmentation by name
PHOTOS_ONLY = {"window", "scales", "rotation", "contrast", "saturation", "hue", "blur", "copy_paste", "mosaic"}


def open_train_set(
    data: DataConfig, augmentation: AugmentationConfig, inference: InferenceSettings, train: TrainConfig
) -> CocoPanoptic:
    """The training set with its augmentation.

    Raises:
        DataError: the files have a defect, or no image has a segment.
        ConfigError: a normalisation of its own.
    """
    if inference.image_mean or inference.image_std:
        raise ConfigError("inference.image_mean and image_std are for other libraries' weights; training has ImageNet's")
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
    transform, explicit = eval_transform(inference.short_side, inference.long_side), _explicit(data, part)
    try:
        dataset = _open(data, split, explicit, transform, None, 0)
    except DataError as error:
        if (
            train.overfit
            or any(explicit.values())
            or (Path(data.root or "") / "annotations" / f"panoptic_{split}.json").exists()
        ):
            raise
        raise DataError(
            f"no validation split {split!r}: {error}. `panoptic-detr data split {data.root} --val 0.2` takes one from the "
            "training images, data.val_split names another one, and --data.val_split null goes without evaluation"
        ) from None
    if dataset.categories.differences(categories):
        _check_meanings(categories, dataset.categories, resolve_paths(data.root, split, **explicit).annotations)
        dataset = _open(data, split, explicit, transform, categories, 0)  # labels are those of the model
    dataset = dataset.subset(range(min(limit, len(dataset)))) if limit else dataset
    return readable_part(dataset, fabric, data.workers) if data.on_unreadable == "skip" else dataset


def validates_on_training(data: DataConfig, train: TrainConfig) -> bool:
    """Whether the validation images are those of training, though nobody asked for an overfitting run."""
    here, there = (_explicit(data, part)["annotations"] for part in ("train", "val"))
    same = here == there if here or there else data.root is not None and data.train_split == data.val_split
    return same and not train.overfit


def _check_meanings(trained: CategoryTable, validated: CategoryTable, path: Path) -> None:
    """Refuse a validation set, read from `path`, in which an id means something else; it may lack categories."""
    for category in validated.categories:
        known = trained.by_id.get(category.id)
        if known is not None and (known.name, known.isthing) != (category.name, category.isthing):
            raise DataError(
                f"{path}: category {category.id} is {category} in this validation set, but {known} in the training set; "
                "both JSONs need the same categories (`panoptic-detr data check` compares them)"
            )


def build_augmentation(config: AugmentationConfig, eval_size: Transform) -> Transform | PhotoTransform:
    """The preset's pipeline with the given settings changed.

    Raises:
        ConfigError: a setting that the preset does not have, or a crop larger than the picture.
    """
    given = {name: value for name, value in asdict(config).items() if value is not None and name != "preset"}
    if "short_sides" in given:
        given["short_sides"] = tuple(given["short_sides"])
    if config.preset == "photos":
        return _photos(given)
    if unknown := given.keys() & PHOTOS_ONLY:
        raise ConfigError(f"setting 'augmentation.{min(unknown)}' belongs to preset photos, not to {config.preset}")
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


def _photos(given: Given) -> PhotoTransform:
    """Preset `photos`."""
    known = [field.name for field in fields(PhotoTransform)]
    if unknown := sorted(given.keys() - set(known)):
        raise ConfigError(f"setting 'augmentation.{unknown[0]}' does not go with preset photos, which has {', '.join(known)}")
    pairs: Given = {name: tuple(given.pop(name)) for name in ("window", "scales") if name in given}
    for name, pair in pairs.items():
        if len(pair) != 2 or min(pair) <= 0:
            raise ConfigError(f"setting 'augmentation.{name}' must be two numbers above 0, but got {list(pair)}")
    settings: Given = {"window": (512, 512), **pairs, **given}
    return PhotoTransform(**settings)


def _crops(given: Given) -> Transform:
    """Preset `crops`: the window first, then every other setting."""
    for name in ("crop_probability", "long_side"):
        if name in given:
            raise ConfigError(f"setting 'augmentation.{name}' does not go with preset crops, which cuts to crop_size")
    window: Given = {name: given.pop(name) for name in ("crop_size", "short_sides") if name in given}
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


def _explicit(data: DataConfig, part: str) -> dict[str, Path | None]:
    return {name: getattr(data, f"{part}_{name}") for name in ("images", "panoptic", "annotations")}


def _open(
    data: DataConfig,
    split: str | None,
    explicit: dict[str, Path | None],
    transform: Transform | PhotoTransform,
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


ATTEMPTS = 20


class TolerantPanoptic(CocoPanoptic):
    """Gives the next readable sample in the place of one that cannot be read, and names each of those once per process.

    The order of an epoch stays the same for every process and after a resume.
    """

    def __getitem__(self, i: int) -> Sample:
        """The i-th sample, or the first readable one after it.

        Raises:
            DataError: many samples in a row cannot be read; then something else is wrong.
        """
        for attempt in range(ATTEMPTS):
            try:
                return super().__getitem__((i + attempt) % len(self))
            except (DataError, SegmentMapError) as error:
                self._report(error)
                last = error
        raise DataError(f"{ATTEMPTS} samples in a row cannot be read; the last one: {last}")

    def _report(self, error: Exception) -> None:
        named: set[str] = self.__dict__.setdefault("_named", set())
        if str(error) not in named:
            named.add(str(error))
            worker = torch.utils.data.get_worker_info()
            where = "" if worker is None else f" (loader process {worker.id})"
            print(f"left out{where}: {error}", file=sys.stderr, flush=True)


def readable_part(dataset: CocoPanoptic, fabric: Fabric, workers: int = 0) -> CocoPanoptic:
    """The samples that can be evaluated, the same in every process; each other one is named.

    Args:
        dataset: for evaluation; the first process reads every file of it once.
        fabric: of the run.
        workers: processes that read; 0 reads here.

    Raises:
        DataError: none can be read.
    """
    problems: list[str] = []
    if fabric.is_global_zero:
        every = range(len(dataset))
        problems = list(parallel_map(partial(_problem, dataset), every, workers=workers, description="validation files"))
        for problem in filter(None, problems):
            print(f"left out of evaluation: {problem}", file=sys.stderr, flush=True)
    problems = gather(fabric, problems)[0]
    left = [index for index, problem in enumerate(problems) if not problem]
    if problems and not left:
        raise DataError(f"none of the {len(problems)} images for evaluation can be read; the last one: {problems[-1]}")
    return dataset.subset(left)


def _problem(dataset: CocoPanoptic, index: int) -> str:
    """What keeps a sample from being evaluated; empty for nothing."""
    try:
        dataset[index]
        dataset.truth(index)
    except (DataError, SegmentMapError) as error:
        return str(error)
    return ""
