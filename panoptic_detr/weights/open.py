"""Read a model with what it needs for use: a checkpoint or a published model, with or without a mask head."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.coco_classes import DETECTION_LABELS, PANOPTIC_LABELS, coco_categories
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.errors import CheckpointError, ConfigError
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint
from panoptic_detr.weights.published import load_published
from panoptic_detr.zoo import build_model, default_num_labels, list_models


@dataclass(frozen=True)
class ReadModel:
    """A model as its file has it.

    Attributes:
        model: in training mode, on the CPU, not optimised.
        categories: what its labels mean.
        settings: thresholds, merging rules and image size.
    """

    model: nn.Module
    categories: CategoryTable
    settings: InferenceSettings


def read_model(name_or_path: str | Path) -> ReadModel:
    """Read a checkpoint of this project, or a published model by its name.

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, or does not say what its classes mean.
        InputError: neither a file nor a model name, or a model without published weights.
        WeightsUnavailableError: published weights that cannot be fetched; the message says which file to put where.
    """
    name, path = str(name_or_path), Path(name_or_path)
    if path.is_file() or path.suffix or path.name != name or (path.is_dir() and name not in list_models()):
        return _from_checkpoint(load_checkpoint(path))
    return ReadModel(load_published(name), coco_categories(default_num_labels(name)), InferenceSettings())


def _from_checkpoint(checkpoint: Checkpoint) -> ReadModel:
    spec = checkpoint.model
    model = build_model(spec["name"], num_labels=spec["num_labels"], **spec["overrides"])
    checkpoint.load_into(model)
    try:
        settings = InferenceSettings.from_dict(checkpoint.inference)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {str(checkpoint.path)!r} has unusable inference settings: {error}") from None
    return ReadModel(model, _class_table(checkpoint), settings)


def _class_table(checkpoint: Checkpoint) -> CategoryTable:
    """The checkpoint's own table; converted published weights have none, but their label slots tell what they mean."""
    labels = checkpoint.model["num_labels"]
    if checkpoint.categories is not None:
        return checkpoint.categories
    if labels in (DETECTION_LABELS, PANOPTIC_LABELS):
        return coco_categories(labels)
    raise CheckpointError(
        f"checkpoint {str(checkpoint.path)!r} does not say what its {labels} labels mean; convert it with --categories, "
        "or build a Predictor(model, categories) with the table of its data set"
    )


@dataclass(frozen=True)
class OpenedModel:
    """A model ready to be scored.

    Attributes:
        model: in eval mode, on its device, optimized for inference.
        categories: what its labels mean.
        settings: thresholds, merging rules and image size.
        panoptic: it has a mask head.
    """

    model: nn.Module
    categories: CategoryTable
    settings: InferenceSettings
    panoptic: bool


def open_model(name_or_path: str, device: str = "cpu") -> OpenedModel:
    """Open a checkpoint file or a published model.

    Args:
        name_or_path: a file of this project, or a name from `list_models` with published weights.
        device: where it runs.

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, or does not say what its classes mean.
        InputError: neither a file nor a model name with published weights.
        WeightsUnavailableError: published weights that cannot be fetched; the message says which file to put where.
    """
    read = read_model(name_or_path)
    panoptic = callable(getattr(read.model, "segment", None))
    return OpenedModel(optimize_for_inference(read.model.to(device)), read.categories, read.settings, panoptic)


def best_device(wanted: str, local_rank: int = 0) -> str:
    """The device for "auto": this process's GPU, or the CPU; anything else stays as it is."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return f"cuda:{local_rank % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"
