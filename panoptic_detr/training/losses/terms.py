"""The losses as pure functions: classes, boxes, focal, DICE. All return sums; the criterion divides by the global counts.

Mask-DETR, whose masks are trained with the boxes, has those of places and of who wins one in `mask_detr`.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from panoptic_detr.boxes import cxcywh_to_xyxy, generalized_iou


def softmax_class_loss(logits: Tensor, classes: Tensor, no_object_weight: float) -> Tensor:
    """Cross-entropy with a lower weight for no-object (DETR paper, section 3.1).

    Args:
        logits: (L, B, Q, C) with no-object as the last slot.
        classes: (L, B, Q) int64 wanted class of every query, C - 1 for no-object.
        no_object_weight: weight of queries without an object (paper: 0.1).

    Returns:
        (L,) weighted sums. The weighted mean divides by the sum of the weights.
    """
    weight = logits.new_ones(logits.shape[-1])
    weight[-1] = no_object_weight
    losses = F.cross_entropy(logits.flatten(0, 2), classes.flatten(), weight, reduction="none")  # (L * B * Q,)
    return losses.view(len(logits), -1).sum(1)


def sigmoid_class_loss(logits: Tensor, classes: Tensor) -> Tensor:
    """Sigmoid focal loss over queries and classes (Lin et al., 2017), alpha 0.25, gamma 2: (L,) sums.

    Args:
        logits: (L, B, Q, C), every slot a class.
        classes: (L, B, Q) int64 wanted class of every query, C for none.
    """
    wanted = F.one_hot(classes, logits.shape[-1] + 1)[..., :-1].to(logits.dtype)  # (L, B, Q, C)
    return sigmoid_focal_loss(logits, wanted).flatten(1).sum(1)


def sigmoid_focal_loss(logits: Tensor, wanted: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Element-wise focal loss: (...) logits and 0/1 values to (...)."""
    cross_entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
    p = logits.sigmoid()
    missed = p + wanted - 2 * p * wanted  # 1 - p where wanted, p elsewhere
    return cross_entropy * missed**gamma * (1 - alpha + (2 * alpha - 1) * wanted)


def box_losses(boxes_cxcywh: Tensor, wanted_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """L1 distances and 1 - GIoU, (P,) each, of boxes (P, 4) and the objects matched to them (DETR paper, section 3.1)."""
    l1 = (boxes_cxcywh - wanted_cxcywh).abs().sum(-1)
    giou = generalized_iou(cxcywh_to_xyxy(boxes_cxcywh), cxcywh_to_xyxy(wanted_cxcywh))
    return l1, 1 - giou


def mask_losses(logits: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Focal and DICE losses, (K,) each, of mask logits (K, N) and 0/1 values at N places (DETR paper, appendix A.2, eq. 13).

    The focal loss is a mean over places; DICE has +1 smoothing.
    """
    focal = sigmoid_focal_loss(logits, wanted).mean(1)
    p = logits.sigmoid()
    dice = 1 - (2 * (p * wanted).sum(1) + 1) / (p.sum(1) + wanted.sum(1) + 1)
    return focal, dice


def dense_class_loss(logits: Tensor, wanted: Tensor, valid: Tensor) -> Tensor:
    """Multi-label cross-entropy of the cells of a feature map: mean over an image's valid cells and classes, then over images.

    Not in the papers: a help for short trainings from random weights. Every image counts the same, so that it does not matter
    which images share a batch.

    Args:
        logits: (B, N, C).
        wanted: (B, N, C) 0/1, one where the cell lies inside a (shrunk) box of that class.
        valid: (B, N) bool, False on padding.
    """
    losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)  # (B, N)
    return ((losses * valid).sum(1) / valid.sum(1).clamp(min=1)).mean()


def cells_inside_boxes(centres: Tensor, boxes_cxcywh: Tensor, labels: Tensor, num_labels: int, shrink: float = 0.9) -> Tensor:
    """Which classes have a box around each cell centre: (N, C) float 0/1.

    Args:
        centres: (N, 2) x, y as fractions of the unpadded image.
        boxes_cxcywh: (S, 4).
        labels: (S,).
        num_labels: C.
        shrink: factor on the boxes' sizes.
    """
    inside = ((centres[:, None] - boxes_cxcywh[None, :, :2]).abs() < 0.5 * shrink * boxes_cxcywh[None, :, 2:]).all(-1)  # (N, S)
    classes = F.one_hot(labels, num_labels).to(boxes_cxcywh.dtype)  # (S, C)
    return (inside.to(classes.dtype) @ classes).clamp(max=1)  # (N, C)


def sum_per_layer(values: Tensor, layers: Tensor, num_layers: int) -> Tensor:
    """Add (P,) values of matched pairs to their layers: (num_layers,)."""
    return values.new_zeros(num_layers).index_add(0, layers, values)


def interpolate_masks(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear upsampling of (K, h, w) mask logits to (K, height, width)."""
    return F.interpolate(logits[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]


def sample_masks(logits: Tensor, wanted: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mask logits (bilinear) and 0/1 values (nearest) at chosen places: (K, N) logits and (K, N) values.

    Args:
        logits: (K, h, w).
        wanted: (K, H, W) bool over the same canvas.
        points: (K, N, 2) x, y as fractions of the canvas.
    """
    grid = 2 * points[:, None] - 1  # (K, 1, N, 2)
    found = F.grid_sample(logits[:, None], grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0, 0]
    height, width = wanted.shape[1:]
    x = (points[..., 0] * width).long().clamp(0, width - 1)  # (K, N)
    y = (points[..., 1] * height).long().clamp(0, height - 1)
    values = wanted.flatten(1).gather(1, y * width + x)
    return found, values.to(logits.dtype)


def hard_points(logits: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Places for a sampled mask loss: three quarters where the mask is least certain, a quarter anywhere (PointRend).

    Args:
        logits: (K, h, w); no gradient flows through the choice.
        count: places per mask.
        generator: randomness.

    Returns:
        (K, count, 2) x, y as fractions of the canvas.
    """
    masks = len(logits)
    pool = torch.rand(masks, 3 * count, 2, generator=generator, device=logits.device)
    with torch.no_grad():
        grid = 2 * pool[:, None] - 1
        certainty = F.grid_sample(logits[:, None], grid, padding_mode="border", align_corners=False)[
            :, 0, 0
        ].abs()  # (K, 3 * count)
    hard = certainty.topk(3 * count // 4, dim=1, largest=False).indices  # (K, 3/4 count)
    chosen = pool.gather(1, hard[..., None].expand(-1, -1, 2))
    rest = torch.rand(masks, count - hard.shape[1], 2, generator=generator, device=logits.device)
    return torch.cat([chosen, rest], dim=1)
