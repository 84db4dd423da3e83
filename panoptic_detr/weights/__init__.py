"""Weights in and out: checkpoints, published weights, opening a model, moving weights to other classes."""

from panoptic_detr.weights.checkpoints import (
    Checkpoint,
    check_is_file,
    check_source,
    load_checkpoint,
    save_checkpoint,
    unreadable_weights,
    write_atomically,
)
from panoptic_detr.weights.names import load_official
from panoptic_detr.weights.open import OpenedModel, best_device, open_model, read_model
from panoptic_detr.weights.published import PUBLISHED
from panoptic_detr.weights.transfer import check_mask_settings, copy_mask_head, detector_changes, open_source, transfer_weights

__all__ = [
    "PUBLISHED",
    "Checkpoint",
    "OpenedModel",
    "best_device",
    "check_is_file",
    "check_mask_settings",
    "check_source",
    "copy_mask_head",
    "detector_changes",
    "load_checkpoint",
    "load_official",
    "names",
    "open_model",
    "open_source",
    "read_model",
    "save_checkpoint",
    "transfer_weights",
    "unreadable_weights",
    "write_atomically",
]
