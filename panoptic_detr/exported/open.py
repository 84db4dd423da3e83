"""The one way to a predictor: an exported file is run as it is, everything else is a model of PyTorch."""

from pathlib import Path
from typing import TYPE_CHECKING

from panoptic_detr.errors import InputError
from panoptic_detr.exported.engines import KINDS
from panoptic_detr.exported.runtime import ExportedPredictor

if TYPE_CHECKING:
    import torch

    from panoptic_detr.inference import Precision, Predictor


def is_exported(source: str | Path) -> bool:
    """Whether a source is named like an exported file."""
    return Path(source).suffix.lower() in KINDS


def load_model(
    name_or_path: "str | Path", *, device: "str | torch.device" = "auto", precision: "Precision" = "fp32"
) -> "Predictor | ExportedPredictor":
    """Load a model for prediction.

    Args:
        name_or_path: an exported file (`.onnx`, `.xml`, `.pt2`); a checkpoint of this project; a model name whose authors
            publish weights (`weights.PUBLISHED`); a folder in the hub's form (`config.json`, `model.safetensors`); a repository
            of the hub, `name/of` or `name/of@revision`.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best one there is (files of OpenVINO and
            PyTorch: the CPU).
        precision: "fp32", or "bf16" for bfloat16 autocast; of exported files only those of OpenVINO take it.

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, or does not say what its classes mean.
        InputError: an exported file that is damaged or comes from elsewhere, or a precision for one; neither a file nor a model
            name; a model without published weights or mask head.
        WeightsUnavailableError: published weights that cannot be fetched; the message says which file to put where.
    """
    if isinstance(name_or_path, str | Path) and is_exported(name_or_path):
        if precision != "fp32" and Path(name_or_path).suffix.lower() != ".xml":
            raise InputError(
                f"{name_or_path} is an exported file, which keeps the precision that it was written with: leave out "
                f"{precision}, or export the checkpoint again, with --precision fp16 or int8"
            )
        return ExportedPredictor(name_or_path, device=str(device), precision=precision)
    from panoptic_detr import inference  # only here: it needs PyTorch

    return inference.load_model(name_or_path, device=device, precision=precision)
