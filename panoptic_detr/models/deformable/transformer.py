"""Deformable DETR's transformer: an encoder over the tokens of all feature levels and a decoder that refines boxes.

Boxes, references and token centres are fractions of the UNPADDED image; `TokenPyramid.spread` turns them into fractions of each
padded level, which is what deformable attention reads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from panoptic_detr.models.cpu.dropout import Dropout
from panoptic_detr.models.deformable.attention import DeformableAttention
from panoptic_detr.models.deformable.heads import PredictionHeads, shift_boxes
from panoptic_detr.models.deformable.levels import level_sizes
from panoptic_detr.models.layers import FeedForward, MultiHeadAttention
from panoptic_detr.models.position_encoding import cell_centres
from panoptic_detr.models.settings import check_counts, check_heads, check_shares, check_width
from panoptic_detr.models.transformer import EncoderLayer as DenseLayer
from panoptic_detr.models.transformer import feed_forward
from panoptic_detr.query_masks import unpadded_extent
from panoptic_detr.structures import FeatureLevel

EncoderKind = Literal["deformable", "dense"]


@dataclass
class TokenPyramid:
    """The cells of all levels as one sequence, level after level, row by row."""

    features: Tensor  # (B, N, D)
    positions: Tensor  # (B, N, D) sine and level encoding
    padding_mask: Tensor  # (B, N) bool, True on padding
    shapes: list[tuple[int, int]]  # (height, width) of each level
    valid_ratios: Tensor  # (B, L, 2) unpadded share of each level's width and height
    centres: Tensor  # (B, N, 2) cell centres as fractions of the unpadded image; beyond 1 on padding

    def spread(self, references: Tensor) -> Tensor:
        """References (B, Q, 2 or 4) in the unpadded image as fractions of every padded level, (B, Q, L, 2 or 4)."""
        ratios = self.valid_ratios.repeat(1, 1, references.shape[-1] // 2)  # (B, L, 2 or 4)
        return references[:, :, None] * ratios[:, None]

    def level(self, index: int, features: Tensor) -> Tensor:
        """Cut the tokens (B, N, D) of one level out and fold them into a map, (B, D, h, w)."""
        height, width = self.shapes[index]
        start = sum(h * w for h, w in self.shapes[:index])
        cells = features[:, start : start + height * width].transpose(1, 2)  # (B, D, h * w)
        return cells.reshape(cells.shape[0], cells.shape[1], height, width)


def flatten_levels(levels: Sequence[FeatureLevel], position_encoding: nn.Module, level_embed: Tensor) -> TokenPyramid:
    """Turn feature maps of one width into tokens.

    Args:
        levels: L maps (B, D, h, w).
        position_encoding: padding mask (B, h, w) to (B, D, h, w).
        level_embed: (L, D), added to the positions so that levels can be told apart (section 4.1).
    """
    dtype = levels[0].features.dtype
    positions = [
        position_encoding(level.padding_mask).flatten(2).transpose(1, 2).to(dtype) + embed.to(dtype)
        for level, embed in zip(levels, level_embed, strict=True)
    ]  # (B, h * w, D) each
    extents = torch.stack([unpadded_extent(level.padding_mask) for level in levels], dim=1)  # (B, L, 2) as (w, h)
    shapes = [(level.features.shape[2], level.features.shape[3]) for level in levels]
    return TokenPyramid(
        features=torch.cat([level.features.flatten(2).transpose(1, 2) for level in levels], dim=1),
        positions=torch.cat(positions, dim=1),
        padding_mask=torch.cat([level.padding_mask.flatten(1) for level in levels], dim=1),
        shapes=shapes,
        valid_ratios=extents / level_sizes(shapes, extents),
        centres=torch.cat([cell_centres(level.padding_mask) for level in levels], dim=1),
    )


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention and feed-forward block, post-norm."""

    def __init__(self, attention: DeformableAttention, *, dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = attention
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, tokens: TokenPyramid, references: Tensor) -> Tensor:
        """Encode (B, N, D) tokens; references (B, N, L, 2) are their centres in every level."""
        attended = self.self_attn(x + tokens.positions, references, x, tokens.shapes, tokens.padding_mask)
        x = self.norm1(x + self.dropout(attended))
        return feed_forward(x, self.ffn, self.norm2, self.dropout, pre_norm=False)


class DeformableEncoder(nn.Module):
    """A stack of encoder layers, each with deformable attention or, for small images, dense self-attention over all tokens."""

    def __init__(self, layers: Sequence[DeformableEncoderLayer | DenseLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, tokens: TokenPyramid) -> Tensor:
        """Encode the pyramid's features: (B, N, D); zero layers return them as they are."""
        references = tokens.spread(tokens.centres)  # (B, N, L, 2)
        visible = ~tokens.padding_mask[:, None, None]  # (B, 1, 1, N)
        x = tokens.features
        for layer in self.layers:
            dense = isinstance(layer, DenseLayer)
            x = layer(x, tokens.positions, visible) if dense else layer(x, tokens, references)
        return x


class DeformableDecoderLayer(nn.Module):
    """Self-attention among queries, deformable cross-attention to the memory, feed-forward block, post-norm.

    As in the published checkpoints `norm2` follows the self-attention and `norm1` the cross-attention.
    """

    def __init__(self, attention: DeformableAttention, *, dim: int, num_heads: int, ffn_dim: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = MultiHeadAttention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.cross_attn = attention
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = Dropout(dropout)

    def forward(
        self, x: Tensor, positions: Tensor, references: Tensor, memory: Tensor, tokens: TokenPyramid, groups: Sequence[int]
    ) -> Tensor:
        """Decode (B, Q, D) queries.

        Args:
            x: (B, Q, D) decoder states.
            positions: (B, Q, D) position terms.
            references: (B, Q, 2 or 4) points or boxes in the unpadded image.
            memory: (B, N, D).
            tokens: the pyramid that the memory belongs to.
            groups: sizes of the query groups, which sum to Q.

        Returns:
            (B, Q, D).
        """
        x = self.norm2(x + self.dropout(self._self_attend(x, positions, groups)))
        attended = self.cross_attn(x + positions, tokens.spread(references), memory, tokens.shapes, tokens.padding_mask)
        x = self.norm1(x + self.dropout(attended))
        return feed_forward(x, self.ffn, self.norm3, self.dropout, pre_norm=False)

    def _self_attend(self, x: Tensor, positions: Tensor, groups: Sequence[int]) -> Tensor:
        # Queries see only their own group (H-DETR, Fig. 2). The blocks of the block mask are attended one by one, so the
        # masked ones, which are most of the matrix, are neither computed nor stored.
        keys = x + positions
        if len(groups) == 1:
            return self.self_attn(keys, keys, x)
        pairs = zip(keys.split(list(groups), dim=1), x.split(list(groups), dim=1), strict=True)
        return torch.cat([self.self_attn(key, key, value) for key, value in pairs], dim=1)  # (B, Q, D)


@dataclass
class Queries:
    """What the decoder starts from."""

    content: Tensor  # (B, Q, D) initial states
    positions: Tensor  # (B, Q, D) position terms
    references: Tensor  # (B, Q, 2) points or (B, Q, 4) boxes in the unpadded image
    groups: list[int]  # sizes of the groups that do not see each other, in order


@dataclass
class Decoded:
    """Every decoder layer's view of the queries: states (L, B, Q, D), logits (L, B, Q, C), boxes (L, B, Q, 4)."""

    states: Tensor
    logits: Tensor
    boxes: Tensor


class DeformableDecoder(nn.Module):
    """A stack of decoder layers around a list of references.

    Args:
        layers: the layers.
        refine: each layer's boxes are the next one's references (iterative bounding box refinement, section 4.2).
        look_forward_twice: the gradient of a layer's boxes also reaches the offsets of the layer before (DINO, section 3.5).
    """

    def __init__(self, layers: Sequence[DeformableDecoderLayer], *, refine: bool, look_forward_twice: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.refine = refine
        self.look_forward_twice = look_forward_twice

    def forward(self, queries: Queries, memory: Tensor, tokens: TokenPyramid, heads: PredictionHeads) -> Decoded:
        """Decode the queries against the memory (B, N, D)."""
        x, references = queries.content, queries.references
        base = references  # what the offsets count from: equal to `references` in value, not in gradient
        states, logits, boxes = [], [], []
        for index, layer in enumerate(self.layers):
            x = layer(x, queries.positions, references, memory, tokens, queries.groups)
            states.append(x)
            logits.append(heads.logits(x, index))
            offsets = heads.offsets(x, index)
            boxes.append(shift_boxes(base, offsets))
            if self.refine:
                # The next layer's box sends its gradient to these offsets, and no further back.
                base = shift_boxes(references, offsets) if self.look_forward_twice else boxes[-1].detach()
                references = boxes[-1].detach()
        return Decoded(torch.stack(states), torch.stack(logits), torch.stack(boxes))


@dataclass(frozen=True)
class LayerSizes:
    """What the layers of encoder and decoder share: width D, levels L, heads M, points P, feed-forward width, dropout.

    Raises:
        InputError: a size that is out of its range, or sizes that do not fit together.
    """

    dim: int
    num_levels: int
    num_heads: int
    num_points: int
    ffn_dim: int
    dropout: float

    def __post_init__(self) -> None:
        check_counts(1, num_levels=self.num_levels, num_points=self.num_points, ffn_dim=self.ffn_dim)
        check_shares(dropout=self.dropout)
        check_heads(self.dim, self.num_heads)
        check_width(self.dim, 4)

    def attention(self) -> DeformableAttention:
        """A new deformable attention of these sizes."""
        return DeformableAttention(self.dim, self.num_levels, self.num_heads, self.num_points)


def build_deformable_encoder(sizes: LayerSizes, *, kind: EncoderKind, num_layers: int) -> DeformableEncoder:
    """Build an encoder of `num_layers` layers, all of one kind."""
    dim, heads, ffn_dim, dropout = sizes.dim, sizes.num_heads, sizes.ffn_dim, sizes.dropout
    layers: list[DeformableEncoderLayer | DenseLayer] = []
    for _ in range(num_layers):
        if kind == "dense":
            layers.append(DenseLayer(dim=dim, num_heads=heads, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False))
        else:
            layers.append(DeformableEncoderLayer(sizes.attention(), dim=dim, ffn_dim=ffn_dim, dropout=dropout))
    return DeformableEncoder(layers)


def build_deformable_decoder(
    sizes: LayerSizes, *, num_layers: int, refine: bool, look_forward_twice: bool
) -> DeformableDecoder:
    """Build a decoder of at least one layer."""
    dim, heads, ffn_dim, dropout = sizes.dim, sizes.num_heads, sizes.ffn_dim, sizes.dropout
    layers = [
        DeformableDecoderLayer(sizes.attention(), dim=dim, num_heads=heads, ffn_dim=ffn_dim, dropout=dropout)
        for _ in range(num_layers)
    ]
    return DeformableDecoder(layers, refine=refine, look_forward_twice=look_forward_twice)
