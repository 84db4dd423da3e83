"""The one opener of models: whatever somebody names becomes a checkpoint, a checkpoint a model ready for use.

`open_source` is the place for further kinds of sources: each is turned into a `Checkpoint` with our names for the weights.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.coco_classes import DETECTION_LABELS, PANOPTIC_LABELS, coco_categories
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.errors import CheckpointError, InputError
from panoptic_detr.files import check_path
from panoptic_detr.models.backbones import finder, hub_id
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.weights.archives import check_is_file
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint
from panoptic_detr.weights.hub import is_hub_folder, read_files, read_folder
from panoptic_detr.weights.published import load_published
from panoptic_detr.zoo import check_name, list_models, with_own_masks

LONGEST_PATH = 4000  # letters


@dataclass(frozen=True)
class OpenedModel:
    """A model with what its use needs."""

    model: nn.Module  # in eval mode, on the CPU, not optimized
    categories: CategoryTable  # what its labels mean
    settings: InferenceSettings  # thresholds, merging rules and image size

    @property
    def panoptic(self) -> bool:
        """It has a mask head."""
        return callable(getattr(self.model, "segment", None))

    def on(self, device: torch.device) -> "OpenedModel":
        """The same on a device, optimized for inference and good for nothing else."""
        return replace(self, model=optimize_for_inference(self.model.to(device)))


def check_source(source: str | Path) -> None:
    """Raise `InputError` unless the source can be one, as far as its name tells; `open_source` does more, and takes longer."""
    if not isinstance(source, str | Path) or not str(source).strip() or len(str(source)) > LONGEST_PATH:
        raise InputError(f"a model must be named by a file, a folder or a name, but got {str(source)!r:.60}")
    check_path(source)
    name, path = str(source), Path(source)
    if path.is_file() or name in list_models() or is_hub_folder(path) or hub_id(name):
        return
    if path.is_dir() or path.suffix or path.name != name:
        check_is_file(path)
    check_name(name)


def identity(source: str) -> dict[str, object]:
    """What tells a model from another one, as plain values: its name or place, and size and time of change of its file."""
    path = Path(source)
    weights = path / "model.safetensors" if path.is_dir() else path
    state = weights.stat() if weights.is_file() else None
    return {
        "checkpoint": str(path.resolve()) if path.exists() else source,
        "weights": [state.st_size, state.st_mtime_ns] if state else None,
    }


def open_source(source: str | Path) -> Checkpoint:
    """Weights with what is known about them.

    Args:
        source: a checkpoint of this project; the name of a model whose authors publish weights (`PUBLISHED`); a folder in the
            hub's form; or a repository of the Hugging Face hub, `organisation/name` or `organisation/name@revision`.

    Raises:
        CheckpointError: no such file; no checkpoint; a damaged one; a model that we do not have.
        InputError: none of these, or a model without published weights.
        WeightsUnavailableError: published weights that cannot be fetched; the message says which file to put where.
    """
    check_source(source)
    checkpoint = _read(source)
    if checkpoint.categories is None:
        return replace(checkpoint, categories=published_categories(checkpoint.model.num_labels))
    return checkpoint


def _read(source: str | Path) -> Checkpoint:
    path = Path(source)
    if path.is_file():
        return load_checkpoint(path)
    if is_hub_folder(path):
        return read_folder(path)
    if str(source) not in list_models() and (repository := hub_id(str(source))):
        return read_files(finder(repository), str(repository))
    return load_published(str(source))


def load_pretrained(source: str | Path) -> nn.Module:
    """The bare model of a source, of a detector too, with its weights.

    Args:
        source: what `load_model` takes: a checkpoint, a model name, a folder in the hub's form, a repository of the hub.

    Returns:
        The model in eval mode on the CPU; `model.categories` is what its labels mean, None if nobody knows.

    Raises:
        InputError: see `open_source`.
        WeightsUnavailableError: weights that cannot be fetched; the message says which file to put where.
    """
    checkpoint = open_source(source)
    model = checkpoint.build().eval()
    model.categories = checkpoint.categories  # type: ignore[assignment]
    model.inference = InferenceSettings.from_dict(checkpoint.inference)  # type: ignore[assignment]
    return model


def published_categories(num_labels: int) -> CategoryTable | None:
    """What the labels of published weights mean, which bring no class table: their number tells; None for other numbers."""
    return coco_categories(num_labels) if num_labels in (DETECTION_LABELS, PANOPTIC_LABELS) else None


def open_model(source: str | Path) -> OpenedModel:
    """Build the model of a source and load its weights; a detector that makes its masks itself becomes its panoptic model.

    Raises:
        CheckpointError: besides what `open_source` raises, a checkpoint that does not say what its classes mean.
    """
    checkpoint = open_source(source)
    if checkpoint.categories is None:
        raise CheckpointError(
            f"checkpoint {str(checkpoint.path)!r} does not say what its {checkpoint.model.num_labels} labels mean; convert it "
            "with --categories, or build a Predictor(model, categories) with the table of its data set"
        )
    settings = InferenceSettings.from_dict(checkpoint.inference)
    return OpenedModel(with_own_masks(checkpoint.build().eval()), checkpoint.categories, settings)


def choose_device(wanted: str | torch.device, local_rank: int = 0) -> torch.device:
    """The device to run on.

    Args:
        wanted: "auto" (also ""), the best there is; "cpu"; "cuda" (also "gpu"), this process's GPU; "cuda:1" (also "1"), that
            one; "mps".
        local_rank: number of this process on this machine.

    Raises:
        InputError: no such device, or not on this machine.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = str(wanted).strip().lower() or "auto"
    name = f"cuda:{name}" if name.isdecimal() else name.replace("gpu", "cuda", 1)
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"there is no device {str(wanted)!r}; give auto, cpu, cuda, cuda:1 and so on, or mps") from None
    count = torch.cuda.device_count() if device.type == "cuda" and available["cuda"] else 1
    if not available.get(device.type, False) or (device.index or 0) >= count:
        there = ", ".join(repr(kind) for kind, found in available.items() if found)
        raise InputError(f"device {str(wanted)!r} is not available on this machine; use {there} or 'auto'")
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", local_rank % count)
    return device
