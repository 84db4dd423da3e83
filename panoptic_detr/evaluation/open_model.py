"""Open whatever can be scored: a checkpoint or a published model, with or without a mask head."""

from dataclasses import dataclass

import torch
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.inference.optimize import optimize_for_inference
from panoptic_detr.inference.read_model import read_model
from panoptic_detr.inference.settings import InferenceSettings


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
