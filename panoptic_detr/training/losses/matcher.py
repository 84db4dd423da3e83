"""Bipartite matching of predictions and objects (DETR paper, eq. 1; Deformable DETR, section A.2), one-to-many too (H-DETR).

The costs of all decoder layers and all images are computed in one go, copied to the host once, and solved per layer and image.
Mask-DETR matches by masks too, in `mask_detr`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from panoptic_detr.boxes import cxcywh_to_xyxy, generalized_iou
from panoptic_detr.config.losses import Scheme
from panoptic_detr.structures import Predictions, Target

ClassCost = Literal["softmax", "sigmoid"]
HUGE = 1e9


@dataclass(frozen=True)
class Matches:
    """Who was matched with whom, over all layers and images at once; four (P,) int64 tensors."""

    layers: Tensor  # decoder layer of each pair
    images: Tensor  # image of each pair
    queries: Tensor  # matched query; ascending within one layer and image
    objects: Tensor  # matched object, an index into the image's target
    counts: Tensor  # (layers, images) pairs of each

    def of_layer(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """(queries, objects) of every image for one layer; negative layers count from the last."""
        row = range(len(self.counts))[layer]
        sizes = self.counts.flatten().tolist()
        batch = self.counts.shape[1]
        pairs = list(zip(self.queries.split(sizes), self.objects.split(sizes), strict=True))
        return pairs[row * batch : (row + 1) * batch]


@dataclass(frozen=True)
class HybridMatching:
    """Which layers are matched one-to-many, and how often.

    Three schemes of the paper (H-DETR, section 3): a second group of queries ("branch"), the first epochs ("epoch"), the first
    decoder layers ("layer"). A decoder layer that is matched one-to-many sees every object K times.
    """

    scheme: Scheme = "none"  # "none" is plain one-to-one matching
    repeats: int = 6  # K, how often each object is matched one-to-many (paper: 6)
    weight: float = 1.0  # lambda, the weight of the one-to-many branch (paper: 1)
    epoch_share: float = 2 / 3  # rho, for "epoch": the share of the training that is one-to-many
    # L1, for "layer": the first decoder layers that are one-to-many. The last one never is: its queries are the result
    one_to_many_layers: int = 3

    def main_repeats(self, num_layers: int, progress: float) -> list[int]:
        """How often each object is matched in each layer of the main queries, after a share `progress` of the training."""
        if self.scheme == "epoch" and progress < self.epoch_share:
            return [self.repeats] * num_layers
        if self.scheme == "layer":
            first = min(self.one_to_many_layers, num_layers - 1)
            return [self.repeats] * first + [1] * (num_layers - first)
        return [1] * num_layers


@dataclass(frozen=True)
class HungarianMatcher:
    """Matching with the lowest total cost."""

    class_cost: ClassCost = "softmax"  # "softmax": minus the probability; "sigmoid": the focal-style cost of Deformable DETR
    class_weight: float = 1.0  # weight of the class cost (DETR 1, Deformable DETR 2)
    l1_weight: float = 5.0  # weight of the L1 distance between cxcywh boxes
    giou_weight: float = 2.0  # weight of minus the generalized IoU

    @torch.no_grad()
    def __call__(self, predictions: Predictions, targets: Sequence[Target], repeats: Sequence[int]) -> Matches:
        """Match.

        Args:
            predictions: of L layers.
            targets: one per image, B.
            repeats: for each layer how often every object may be matched (1: one-to-one; K: one-to-many, H-DETR section 3.1).

        Returns:
            For each layer and image min(Q, S * repeats) pairs.
        """
        costs = self._costs(predictions, targets).float().cpu().numpy()  # (L, B, Q, S_max)
        rows = [
            (layer, image, *_assign(costs[layer, image, :, : len(target)], repeats[layer]))
            for layer in range(len(costs))
            for image, target in enumerate(targets)
        ]
        sizes = np.array([len(queries) for _, _, queries, _ in rows], dtype=np.int64)
        columns = [
            np.repeat([row[0] for row in rows], sizes),
            np.repeat([row[1] for row in rows], sizes),
            np.concatenate([row[2] for row in rows]),
            np.concatenate([row[3] for row in rows]),
        ]
        device = predictions.logits.device
        packed = torch.from_numpy(np.stack(columns).astype(np.int64)).to(device)  # (4, P)
        layers, images, queries, objects = packed.unbind()
        return Matches(layers, images, queries, objects, torch.from_numpy(sizes.reshape(len(costs), len(targets))))

    def _costs(self, predictions: Predictions, targets: Sequence[Target]) -> Tensor:
        """Cost of every query against every object, padded to the longest target: (L, B, Q, S_max)."""
        labels = pad_sequence([target.labels for target in targets], batch_first=True)  # (B, S_max)
        boxes = pad_sequence([target.boxes for target in targets], batch_first=True)  # (B, S_max, 4)
        layers, _, queries, _ = predictions.logits.shape
        found = predictions.boxes.float()
        index = labels[None, :, None].expand(layers, -1, queries, -1)  # (L, B, Q, S_max)
        wanted = boxes.float().expand(layers, -1, -1, -1)  # (L, B, S_max, 4)
        overlap = generalized_iou(cxcywh_to_xyxy(found)[:, :, :, None], cxcywh_to_xyxy(wanted)[:, :, None])
        distance = torch.cdist(found, wanted, p=1)  # (L, B, Q, S_max)
        return (
            self.class_weight * self._class_cost(predictions.logits, index)
            + self.l1_weight * distance
            - self.giou_weight * overlap
        )

    def _class_cost(self, logits: Tensor, index: Tensor) -> Tensor:
        """Cost of giving each query the class of each object: (L, B, Q, S_max)."""
        if self.class_cost == "softmax":
            return -logits.float().softmax(-1).gather(-1, index)
        return focal_cost(logits.float().gather(-1, index).sigmoid())


def _assign(cost: np.ndarray, repeats: int) -> tuple[np.ndarray, np.ndarray]:
    """Solve one image: (Q, S) costs to matched queries and objects, queries ascending."""
    queries, objects = cheapest(np.tile(cost, (1, repeats)))
    return queries, objects % max(cost.shape[1], 1)


def cheapest(cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The assignment with the lowest total of (Q, S) costs: matched queries, ascending, and objects."""
    # A diverged model gives NaN costs. Matching goes on, so that the loss itself turns NaN and the trainer can name the images.
    return linear_sum_assignment(np.nan_to_num(cost, nan=HUGE, posinf=HUGE, neginf=-HUGE))


def focal_cost(p: Tensor) -> Tensor:
    """Cost of classes of these probabilities where each is a sigmoid: the focal loss of having them less that of not."""
    return 0.25 * (1 - p) ** 2 * -(p + 1e-8).log() - 0.75 * p**2 * -(1 - p + 1e-8).log()
