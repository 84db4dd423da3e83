"""Open whatever can be scored: a checkpoint or a published model, with or without a mask head."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.checkpoints import CheckpointError, load_checkpoint
from panoptic_detr.inference.coco_classes import coco_categories
from panoptic_detr.inference.optimize import optimize_for_inference
from panoptic_detr.inference.predictor import load_model
from panoptic_detr.inference.settings import InferenceSettings
from panoptic_detr.zoo import PANOPTIC, build_model, default_num_labels, list_models, load_published


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
        ValueError: neither a file nor a model name with published weights.
    """
    path = Path(name_or_path)
    if not path.is_file() and name_or_path in list_models() and not name_or_path.endswith(PANOPTIC):
        table = coco_categories(default_num_labels(name_or_path))
        return _ready(load_published(name_or_path), table, InferenceSettings(), device)
    if path.is_file():
        checkpoint = load_checkpoint(path)
        spec = checkpoint.model
        if not str(spec["name"]).endswith(PANOPTIC):
            if checkpoint.categories is None:
                raise CheckpointError(f"{path}: the checkpoint does not say what its labels mean; convert it with --categories")
            model = build_model(spec["name"], num_labels=spec["num_labels"], **spec["overrides"])
            checkpoint.load_into(model)
            return _ready(model, checkpoint.categories, InferenceSettings.from_dict(checkpoint.inference), device)
    predictor = load_model(name_or_path, device=device)
    return _ready(predictor.model, predictor.categories, predictor.settings, device)


def best_device(wanted: str, local_rank: int = 0) -> str:
    """The device for "auto": this process's GPU, or the CPU; anything else stays as it is."""
    if wanted != "auto":
        return wanted
    if torch.cuda.is_available():
        return f"cuda:{local_rank % torch.cuda.device_count()}"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _ready(model: nn.Module, categories: CategoryTable, settings: InferenceSettings, device: str) -> OpenedModel:
    fast = optimize_for_inference(model.to(device))
    return OpenedModel(fast, categories, settings, callable(getattr(model, "segment", None)))
