"""Class and box heads of deformable detectors; they compute in float32 whatever the model's precision."""

import math

import torch
from torch import Tensor, nn

from panoptic_detr.models.layers import MLP, exact_linear

PRIOR = 0.01  # initial probability of every class


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logits of probabilities, finite at 0 and 1."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()


class ClassHead(nn.Module):
    """Linear classifier whose sigmoids all start at `PRIOR`, so that focal loss starts balanced (Lin et al., 2017)."""

    def __init__(self, hidden_dim: int, num_labels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_dim, num_labels)
        nn.init.constant_(self.linear.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, states: Tensor) -> Tensor:
        """Class logits (..., C) of states (..., D)."""
        return exact_linear(self.linear, states)


class BoxHead(nn.Module):
    """Perceptron whose outputs are logit-space offsets to a reference.

    `initial_size` is the logit of the initial width and height where the reference is a point; 0 where it is a box.
    """

    def __init__(self, hidden_dim: int, initial_size: float = 0.0) -> None:
        super().__init__()
        self.mlp = MLP(hidden_dim, hidden_dim, 4, 3)
        weight, bias = self.mlp.layers[-1].parameters()
        with torch.no_grad():
            weight.zero_()
            bias.copy_(torch.tensor([0.0, 0.0, initial_size, initial_size]))

    def forward(self, states: Tensor) -> Tensor:
        """Offsets (..., 4) of states (..., D)."""
        return self.mlp(states)


def shift_boxes(references: Tensor, offsets: Tensor) -> Tensor:
    """Boxes (..., 4) at logit-space offsets (..., 4) from reference points (..., 2) or boxes (..., 4)."""
    logits = nn.functional.pad(inverse_sigmoid(references), (0, offsets.shape[-1] - references.shape[-1]))
    return (offsets + logits).sigmoid()


class PredictionHeads(nn.Module):
    """Class and box heads of the decoder layers and, in two-stage detectors, of the encoder's proposals.

    Args:
        hidden_dim: width D.
        num_labels: class logits C.
        count: number of separate heads: one shared by all layers, or one per layer (iterative refinement).
        from_points: the first references are points; boxes then start at about an eighth of the image.
    """

    def __init__(self, hidden_dim: int, num_labels: int, count: int, *, from_points: bool) -> None:
        super().__init__()
        self.class_embed = nn.ModuleList(ClassHead(hidden_dim, num_labels) for _ in range(count))
        self.bbox_embed = nn.ModuleList(BoxHead(hidden_dim, -2.0 if from_points and not i else 0.0) for i in range(count))

    def logits(self, states: Tensor, layer: int) -> Tensor:
        """Class logits (..., C) of a layer's states (..., D)."""
        return self.class_embed[min(layer, len(self.class_embed) - 1)](states)

    def offsets(self, states: Tensor, layer: int) -> Tensor:
        """Logit-space box offsets (..., 4) of a layer's states (..., D)."""
        return self.bbox_embed[min(layer, len(self.bbox_embed) - 1)](states)
