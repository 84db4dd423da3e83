"""Box formats and overlaps.

Two formats are used, and the name always says which: `boxes_cxcywh` (centre x, centre y, width, height) and `boxes_xyxy`
(left, top, right, bottom). Coordinates are fractions of the unpadded image unless a function says pixels.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def cxcywh_to_xyxy(boxes_cxcywh: Tensor) -> Tensor:
    """Turn centre-size boxes into corner boxes; (..., 4) to (..., 4)."""
    centres, sizes = boxes_cxcywh.split(2, dim=-1)
    return torch.cat([centres - 0.5 * sizes, centres + 0.5 * sizes], dim=-1)  # (..., 4)


def xyxy_to_cxcywh(boxes_xyxy: Tensor) -> Tensor:
    """Turn corner boxes into centre-size boxes; (..., 4) to (..., 4)."""
    low, high = boxes_xyxy.split(2, dim=-1)
    return torch.cat([0.5 * (low + high), high - low], dim=-1)  # (..., 4)


def whole_image_box(like: Tensor) -> Tensor:
    """The (4,) cxcywh box of a whole image, filled in where `like` is: to copy a list there is to wait for the GPU."""
    return F.pad(like.new_full((2,), 0.5), (0, 2), value=1.0)


def generalized_iou(boxes_xyxy: Tensor, others_xyxy: Tensor) -> Tensor:
    """Generalized IoU of boxes paired by broadcasting (Rezatofighi et al., 2019; DETR paper, eq. 10).

    Unlike torchvision's pairwise function this one broadcasts, so that the matcher (all pairs) and the loss (matched pairs)
    share it: pass `boxes[:, None]` and `others[None]` for all pairs.

    Args:
        boxes_xyxy: (..., 4) corner boxes with right >= left and bottom >= top.
        others_xyxy: (..., 4) corner boxes, broadcastable against the first.

    Returns:
        (...) values in [-1, 1]; two boxes of zero area give 0 for the IoU part instead of NaN.
    """
    low = torch.maximum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    high = torch.minimum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    intersection = _product((high - low).clamp(min=0))
    union = _area(boxes_xyxy) + _area(others_xyxy) - intersection
    hull_low = torch.minimum(boxes_xyxy[..., :2], others_xyxy[..., :2])
    hull_high = torch.maximum(boxes_xyxy[..., 2:], others_xyxy[..., 2:])
    hull = _product((hull_high - hull_low).clamp(min=0))
    tiny = torch.finfo(union.dtype).tiny
    return intersection / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def _area(boxes_xyxy: Tensor) -> Tensor:
    return _product((boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]).clamp(min=0))


def _product(sides: Tensor) -> Tensor:
    """(..., 2) to (...); not `prod`, whose gradient asks a GPU whether a side is zero, and waits for the answer."""
    return sides[..., 0] * sides[..., 1]
