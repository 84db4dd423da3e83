"""Losses over regions of the image: masks of matched queries, and the dense class loss of feature cells."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_detr.config.stages import MaskLossKind
from panoptic_detr.errors import InputError
from panoptic_detr.models import cell_centres
from panoptic_detr.structures import DetectorOutput, FeatureLevel, Target
from panoptic_detr.training.losses.terms import (
    cells_inside_boxes,
    dense_class_loss,
    hard_points,
    interpolate_masks,
    mask_losses,
    sample_masks,
)


def mask_terms(
    output: DetectorOutput,
    targets: Sequence[Target],
    pairs: Sequence[tuple[Tensor, Tensor]],
    num_objects: float,
    kind: MaskLossKind,
    num_points: int,
    masks_per_image: int | None = None,
) -> dict[str, Tensor]:
    """Mask losses of matched queries, in the last decoder layer only (DETR paper, section 4.4).

    Args:
        output: of a panoptic model.
        targets: with segment maps.
        pairs: (queries, objects) of each image.
        num_objects: divisor.
        kind: "full" resolution of the padded batch, or "points".
        num_points: places per mask for "points".
        masks_per_image: at most so many objects of an image, drawn anew each time; each then counts for those left out.

    Returns:
        `mask_focal` and `mask_dice`, scalars.
    """
    chosen = [_sample(pair, masks_per_image) for pair in pairs]
    masks = output.segment([queries for queries, _ in chosen])
    canvas = _canvas(targets)
    focal, dice = masks[0].new_zeros(()), masks[0].new_zeros(())
    for logits, target, (_, objects), (_, every) in zip(masks, targets, chosen, pairs, strict=True):
        if len(objects) == 0:
            focal = focal + logits.sum()
            continue
        found, wanted = _compared(logits.float(), target, objects, canvas, kind, num_points)  # (K, N) each
        losses = mask_losses(found, wanted)
        share = len(every) / len(objects)
        focal, dice = focal + share * losses[0].sum(), dice + share * losses[1].sum()
    return {"mask_focal": focal / num_objects, "mask_dice": dice / num_objects}


def _sample(pair: tuple[Tensor, Tensor], limit: int | None) -> tuple[Tensor, Tensor]:
    """At most so many of an image's (queries, objects), by chance."""
    queries, objects = pair
    if limit is None or len(objects) <= limit:
        return pair
    rows = torch.randperm(len(objects))[:limit].to(objects.device)
    return queries[rows], objects[rows]


def _compared(
    logits: Tensor, target: Target, objects: Tensor, canvas: tuple[int, int], kind: MaskLossKind, num_points: int
) -> tuple[Tensor, Tensor]:
    """Logits and wanted values of one image at the places where they are compared: (K, N) each."""
    wanted = target.region_masks(objects)  # (K, H, W)
    wanted = F.pad(wanted, (0, canvas[1] - wanted.shape[2], 0, canvas[0] - wanted.shape[1]))
    if kind == "points":
        return sample_masks(logits, wanted, hard_points(logits, num_points))
    return interpolate_masks(logits, canvas).flatten(1), wanted.flatten(1).to(logits.dtype)


def dense_term(dense: Sequence[FeatureLevel], targets: Sequence[Target], num_labels: int) -> Tensor:
    """The dense class loss, mean over the given maps."""
    losses = [_dense_level(level, targets, num_labels) for level in dense]
    return torch.stack(losses).mean()


def _dense_level(level: FeatureLevel, targets: Sequence[Target], num_labels: int) -> Tensor:
    logits = level.features.flatten(2).transpose(1, 2).float()  # (B, N, C)
    wanted = torch.stack(
        [
            cells_inside_boxes(centres, target.boxes, target.labels, num_labels)
            for centres, target in zip(cell_centres(level.padding_mask), targets, strict=True)
        ]
    )
    return dense_class_loss(logits, wanted, ~level.padding_mask.flatten(1))


def _canvas(targets: Sequence[Target]) -> tuple[int, int]:
    """(height, width) of the padded batch: the largest of its segment maps."""
    shapes = [(t.masks if t.masks is not None else t.segment_map) for t in targets]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(targets):
        raise InputError("mask losses need a segment map in every target; these targets have boxes only")
    return max(m.shape[-2] for m in known), max(m.shape[-1] for m in known)
