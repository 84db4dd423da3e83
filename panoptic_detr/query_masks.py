"""Masks as a product: what queries ask for and what pixels offer, so that any mask can be had at any place.

Bilinear interpolation and the product are both linear, so the logits at a place between cells are those of interpolated pixel
features: losses sample the features once, whatever the number of queries and decoder layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from panoptic_detr.shapes import check_shape

LARGEST_PENALTY = 30.0


@dataclass
class QueryMasks:
    """Masks of all queries of all decoder layers, not yet multiplied out."""

    embeddings: Tensor  # (L, B, Q, E) of the queries
    biases: Tensor  # (L, B, Q) added to every logit
    pixels: Tensor  # (B, E, h, w) of the cells
    padding_mask: Tensor  # (B, h, w) bool, True on padding
    boxes: Tensor  # (L, B, Q, 4) cxcywh; outside of them logits fall by `steepness`
    steepness: Tensor  # (Q,) how far a logit falls at one box size from the box; 0 for queries that are not bound to a box

    def __post_init__(self) -> None:
        check_shape("QueryMasks.embeddings", self.embeddings, ("L", "B", "Q", "E"))
        check_shape("QueryMasks.biases", self.biases, self.embeddings.shape[:3])
        check_shape("QueryMasks.pixels", self.pixels, (self.embeddings.shape[1], self.embeddings.shape[3], "h", "w"))
        check_shape("QueryMasks.boxes", self.boxes, (*self.embeddings.shape[:3], 4))
        check_shape("QueryMasks.steepness", self.steepness, (self.embeddings.shape[2],))

    def at_cells(self, image: int, queries: Tensor, layer: int = -1) -> Tensor:
        """Logits of chosen queries of an image: (K,) to (K, h, w) float32."""
        cells = self.pixels[image]  # (E, h, w)
        points = cell_points(self.padding_mask[image])  # (h * w, 2)
        logits = self.of_features(image, queries, cells.flatten(1).T, points, layer)
        return logits.reshape(queries.shape[0], *cells.shape[1:])

    def sample(self, points: Sequence[Tensor]) -> list[Tensor]:
        """Pixel features at places of every image.

        Args:
            points: for each image (P_i, 2), x and y as fractions of the unpadded image.

        Returns:
            For each image (P_i, E) float32.
        """
        height, width = self.padding_mask.shape[1:]
        columns, rows = (side[:, None] for side in unpadded_extent(self.padding_mask).unbind(1))  # (B, 1) each
        x, y = pad_sequence(list(points), batch_first=True).unbind(-1)  # (B, P) each
        grid = torch.stack([2 * x * (columns / width) - 1, 2 * y * (rows / height) - 1], dim=-1)  # (B, P, 2)
        found = F.grid_sample(self.pixels.float(), grid[:, None], padding_mode="border", align_corners=False)  # (B, E, 1, P)
        images = found[:, :, 0].transpose(1, 2).unbind()
        return [image[: len(own)] for image, own in zip(images, points, strict=True)]

    def of_features(self, image: int, queries: Tensor, features: Tensor, points: Tensor, layer: int = -1) -> Tensor:
        """Logits from pixel features that were sampled before.

        Args:
            image: which.
            queries: (K,) its queries.
            features: (P, E) of `sample`.
            points: (P, 2) where.
            layer: of the decoder.

        Returns:
            (K, P) float32.
        """
        embeddings, biases = self._of(image, queries, layer)
        with torch.autocast(features.device.type, enabled=False):  # whose half precision would undo the float32
            logits = embeddings @ features.float().T + biases[:, None]
        boxes = self.boxes[layer, image].index_select(0, queries).float()  # (K, 4)
        return logits - self.steepness[queries].float()[:, None] * distance_from_boxes(boxes, points, self._margin(image))

    def each_at(self, image: int, queries: Tensor, features: Tensor, points: Tensor, layer: int = -1) -> Tensor:
        """As `of_features`, but every query at places of its own: features (K, P, E) and points (K, P, 2) to (K, P)."""
        embeddings, biases = self._of(image, queries, layer)
        with torch.autocast(features.device.type, enabled=False):
            logits = (features.float() @ embeddings[:, :, None])[..., 0] + biases[:, None]
        boxes = self.boxes[layer, image].index_select(0, queries).float()[:, None]  # (K, 1, 4)
        return logits - self.steepness[queries, None] * distance_from_boxes(boxes, points, self._margin(image))

    def _of(self, image: int, queries: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Embeddings (K, E) and biases (K,) of queries (K,), float32."""
        embeddings, biases = (values[layer, image].index_select(0, queries) for values in (self.embeddings, self.biases))
        return embeddings.float(), biases.float()

    def _margin(self, image: int) -> Tensor:
        """The size of a cell as fractions (x, y) of the unpadded image: (2,)."""
        return 1 / unpadded_extent(self.padding_mask[image : image + 1])[0]


def distance_from_boxes(boxes_cxcywh: Tensor, points: Tensor, margin: Tensor) -> Tensor:
    """How far points lie outside of boxes, in half box sizes.

    Args:
        boxes_cxcywh: (K, 4) or (..., 1, 4).
        points: (P, 2) or (..., P, 2) x, y.
        margin: (2,) by which a box is widened on every side.

    Returns:
        (K, P) or (..., P); 0 inside.
    """
    boxes = boxes_cxcywh[:, None] if boxes_cxcywh.dim() == 2 else boxes_cxcywh
    scale = 1 / (boxes[..., 2:] / 2 + margin)  # (..., 1, 2)
    start = -boxes[..., :2] * scale
    # one axis after the other: a last dimension of 2 is slow to sum
    x, y = (torch.addcmul(start[..., axis], points[..., axis], scale[..., axis]).abs() for axis in (0, 1))  # (..., P) each
    return (F.relu(x - 1) + F.relu(y - 1)).clamp(max=LARGEST_PENALTY)


def cell_points(padding_mask: Tensor) -> Tensor:
    """Centres (x, y) of the cells of a map (h, w), row by row: (h * w, 2) as fractions of the unpadded extent."""
    height, width = padding_mask.shape
    columns, rows = unpadded_extent(padding_mask[None])[0]
    x = (torch.arange(width, device=padding_mask.device) + 0.5) / columns
    y = (torch.arange(height, device=padding_mask.device) + 0.5) / rows
    return torch.stack([x.expand(height, -1), y[:, None].expand(-1, width)], dim=-1).flatten(0, 1)


def unpadded_extent(padding_mask: Tensor) -> Tensor:
    """Unpadded columns and rows of maps (B, h, w): (B, 2) float32 as (w, h)."""
    return torch.stack([(~padding_mask[:, 0]).sum(1), (~padding_mask[:, :, 0]).sum(1)], dim=-1).float()
