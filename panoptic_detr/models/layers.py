"""Layers that the transformers share: multi-head attention, the feed-forward block, the box head, exact linear layers."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.models.cpu.dropout import Dropout, drop
from panoptic_detr.models.settings import check_heads


class MultiHeadAttention(nn.Module):
    """Multi-head attention through `scaled_dot_product_attention`, batch first (DETR paper, appendix A.1).

    Args:
        dim: model width D.
        num_heads: M; D must be a multiple of it.
        dropout: on the attention weights, in training.

    Attributes:
        linear: (input, weight, bias) to the projection; `optimize_for_inference` puts a faster one here.
    """

    linear: Callable[..., Tensor] = staticmethod(F.linear)

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            query: (B, N, D).
            key: (B, S, D); the same object as `query` saves one product.
            value: (B, S, D).
            mask: broadcastable to (B, M, N, S); bool with True where attention is allowed, or float to add.

        Returns:
            (B, N, D).
        """
        q, k = self._project_query_key(query, key)
        dim = self.out_proj.in_features
        v = self.linear(value, self.in_proj_weight[2 * dim :], self.in_proj_bias[2 * dim :])  # (B, S, D)
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in (q, k, v))  # (B, M, N | S, D / M)
        attended = self._attend(q, k, v, mask)  # (B, M, N, D / M)
        return self.out_proj(attended.transpose(1, 2).flatten(2))  # (B, N, D)

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """The attention weights themselves, (B, M, N, S) float32; for pictures, where N is small."""
        q, k = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2).float() for x in self._project_query_key(query, key))
        return _attention_weights(q, k, mask)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        share = self.dropout if self.training else 0.0
        if share and q.device.type == "cpu":  # PyTorch has no fused kernel for this: it computes the same, with slower dropout
            return drop(_attention_weights(q, k, mask), share) @ v
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=share)

    def _project_query_key(self, query: Tensor, key: Tensor) -> Sequence[Tensor]:
        dim = self.out_proj.in_features
        weight, bias = self.in_proj_weight, self.in_proj_bias
        if query is key:
            return self.linear(query, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=-1)
        return self.linear(query, weight[:dim], bias[:dim]), self.linear(key, weight[dim : 2 * dim], bias[dim : 2 * dim])


def _attention_weights(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """(B, M, N, S) from queries (B, M, N, D / M) and keys (B, M, S, D / M); the mask is that of `MultiHeadAttention`."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1)


class FeedForward(nn.Module):
    """Two linear layers with ReLU and dropout between them: (B, N, D) to (B, N, D)."""

    def __init__(self, dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.linear1 = nn.Linear(dim, ffn_dim)
        self.linear2 = nn.Linear(ffn_dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block, without its residual connection."""
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


def exact_linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """A linear layer (..., D) to (..., C) in full precision, under autocast and with half-precision weights as well.

    The last layers of a detector need it: bfloat16 has 8 bits for a class logit, and places a box in a wide image to a few
    pixels only.
    """
    with torch.autocast(x.device.type, enabled=False):
        if layer.weight.dtype in (torch.float32, torch.float64):
            return layer(x.to(layer.weight.dtype))
        return F.linear(x.float(), layer.weight.float(), layer.bias.float())


def reset_matrices(*modules: nn.Module) -> None:
    """Xavier-uniform weights for every matrix of a transformer, as in the papers."""
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)


class MLP(nn.Module):
    """Linear layers with ReLU between them, in full precision always; the box head is one of three layers."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int, num_layers: int) -> None:
        super().__init__()
        widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_dim) to (..., out_dim)."""
        *inner, last = (cast(nn.Linear, layer) for layer in self.layers)
        for layer in inner:
            x = F.relu(exact_linear(layer, x))
        return exact_linear(last, x)
