"""Weights in and out: checkpoints, published weights, opening a model, moving weights to other classes."""

from panoptic_detr.weights.archives import check_is_file, read_weights, write_atomically
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from panoptic_detr.weights.hub import is_hub_folder
from panoptic_detr.weights.hub.card import ModelNotes, read_run, read_scores
from panoptic_detr.weights.hub.save import push_to_hub, save_pretrained
from panoptic_detr.weights.names import load_official
from panoptic_detr.weights.open import (
    OpenedModel,
    check_source,
    choose_device,
    identity,
    load_pretrained,
    open_model,
    open_source,
    published_categories,
)
from panoptic_detr.weights.published import PUBLISHED
from panoptic_detr.weights.transfer import check_mask_settings, copy_mask_head, detector_changes, transfer_weights

__all__ = [
    "PUBLISHED",
    "Checkpoint",
    "ModelNotes",
    "OpenedModel",
    "check_is_file",
    "check_mask_settings",
    "check_source",
    "choose_device",
    "copy_mask_head",
    "detector_changes",
    "identity",
    "is_hub_folder",
    "load_checkpoint",
    "load_official",
    "load_pretrained",
    "names",
    "open_model",
    "open_source",
    "published_categories",
    "push_to_hub",
    "read_run",
    "read_scores",
    "read_weights",
    "save_checkpoint",
    "save_pretrained",
    "transfer_weights",
    "write_atomically",
]
