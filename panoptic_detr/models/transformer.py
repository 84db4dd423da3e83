"""DETR's transformer: encoder over the feature cells, decoder over the object queries (DETR paper, appendix A.3, Fig. 10).

Layers are batch first. A layer gets its position terms ready-made: `position` is added to queries and keys of attention, never
to values; None means "no encoding at attention".
"""

from torch import Tensor, nn

from panoptic_detr.models.cpu.dropout import Dropout
from panoptic_detr.models.layers import FeedForward, MultiHeadAttention
from panoptic_detr.models.tracing import stack_layers


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward block, each with residual connection and LayerNorm.

    Args:
        dim: model width D.
        num_heads: attention heads.
        ffn_dim: inner width of the feed-forward block; 0 leaves the block out (DETR paper, section 4.2, "FFN").
        dropout: on attention weights and on both residual branches.
        pre_norm: normalise before each block instead of after it.
    """

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout) if ffn_dim else None
        self.norm2 = nn.LayerNorm(dim) if ffn_dim else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """Encode (B, N, D) cells; `mask` (B, 1, 1, N) is True where attention is allowed."""
        inner = self.norm1(x) if self.pre_norm else x
        keys = add(inner, position)
        x = x + self.dropout(self.self_attn(keys, keys, inner, mask))  # (B, N, D)
        x = x if self.pre_norm else self.norm1(x)
        return feed_forward(x, self.ffn, self.norm2, self.dropout, self.pre_norm)


class DecoderLayer(nn.Module):
    """Self-attention among the queries, cross-attention to the memory, feed-forward block; arguments as `EncoderLayer`."""

    def __init__(self, *, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.cross_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout) if ffn_dim else None
        self.norm3 = nn.LayerNorm(dim) if ffn_dim else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, query_position: Tensor | None, keys: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Decode (B, Q, D) queries.

        Args:
            x: (B, Q, D) decoder states.
            query_position: (B, Q, D) object-query term, or None.
            keys: (B, N, D) memory with its position term.
            memory: (B, N, D) values.
            mask: (B, 1, 1, N), True where attention is allowed, or None.

        Returns:
            (B, Q, D).
        """
        inner = self.norm1(x) if self.pre_norm else x
        queries = add(inner, query_position)
        x = x + self.dropout(self.self_attn(queries, queries, inner))  # (B, Q, D)
        x = x if self.pre_norm else self.norm1(x)
        inner = self.norm2(x) if self.pre_norm else x
        x = x + self.dropout(self.cross_attn(add(inner, query_position), keys, memory, mask))  # (B, Q, D)
        x = x if self.pre_norm else self.norm2(x)
        return feed_forward(x, self.ffn, self.norm3, self.dropout, self.pre_norm)


class Encoder(nn.Module):
    """A stack of encoder layers; zero layers return the input (DETR paper, Table 2)."""

    def __init__(self, layers: list[EncoderLayer], norm: nn.LayerNorm | None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm

    def forward(self, x: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """Encode (B, N, D) cells."""
        for layer in self.layers:
            x = layer(x, position, mask)
        return x if self.norm is None else self.norm(x)


class Decoder(nn.Module):
    """A stack of decoder layers whose every output goes through one shared LayerNorm.

    Args:
        layers: the layers.
        norm: the LayerNorm.
        renormalize: what it gives is also the next layer's input, and the last layer's passes it twice. Transformers' DETR does
            so where its config has `auxiliary_loss`, in training and at inference; the paper does not.
    """

    def __init__(self, layers: list[DecoderLayer], norm: nn.LayerNorm, *, renormalize: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.renormalize = renormalize

    def forward(self, x: Tensor, query_position: Tensor | None, keys: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Decode (B, Q, D) queries into the states of every layer, (L, B, Q, D)."""
        states = []
        for layer in self.layers:
            x = layer(x, query_position, keys, memory, mask)
            states.append(self.norm(x))
            x = states[-1] if self.renormalize else x
        if self.renormalize:
            states[-1] = self.norm(x)
        return stack_layers(states)  # (L, B, Q, D)


def add(x: Tensor, position: Tensor | None) -> Tensor:
    """`x` plus a position term, which may be absent."""
    return x if position is None else x + position


def feed_forward(x: Tensor, ffn: FeedForward | None, norm: nn.Module | None, dropout: nn.Module, pre_norm: bool) -> Tensor:
    """The feed-forward block with its residual connection and norm; the identity where the block is left out."""
    if ffn is None or norm is None:
        return x
    if pre_norm:
        return x + dropout(ffn(norm(x)))
    return norm(x + dropout(ffn(x)))


def build_encoder(*, num_layers: int, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool) -> Encoder:
    """Build an encoder; a pre-norm one ends in a LayerNorm."""
    layers = [
        EncoderLayer(dim=dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout, pre_norm=pre_norm)
        for _ in range(num_layers)
    ]
    return Encoder(layers, nn.LayerNorm(dim) if pre_norm else None)


def build_decoder(
    *, num_layers: int, dim: int, num_heads: int, ffn_dim: int, dropout: float, pre_norm: bool, renormalize: bool = False
) -> Decoder:
    """Build a decoder of at least one layer."""
    layers = [
        DecoderLayer(dim=dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout, pre_norm=pre_norm)
        for _ in range(num_layers)
    ]
    return Decoder(layers, nn.LayerNorm(dim), renormalize=renormalize)
