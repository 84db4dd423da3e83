"""Deformable DETR (Zhu et al., 2021) and H-DETR (Jia et al., 2023) in one detector.

H-DETR is the two-stage refining detector with mixed query selection, look forward twice and, in training, `num_one_to_many`
more queries, which see each other but not the others. At inference they are not even built.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd
from typing import Literal

import torch
from torch import Tensor, nn

from panoptic_detr.errors import InputError
from panoptic_detr.models.backbones import Backbone, NormKind, build_backbone, resize_padding_mask
from panoptic_detr.models.deformable.attention import DeformableAttention
from panoptic_detr.models.deformable.heads import ClassHead, PredictionHeads
from panoptic_detr.models.deformable.queries import LearnedQueries, Proposals
from panoptic_detr.models.deformable.transformer import (
    Decoded,
    DeformableDecoder,
    DeformableEncoder,
    EncoderKind,
    LayerSizes,
    TokenPyramid,
    build_deformable_decoder,
    build_deformable_encoder,
    flatten_levels,
)
from panoptic_detr.models.layers import reset_matrices
from panoptic_detr.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding
from panoptic_detr.models.settings import check_anchors, check_counts, check_groups, check_memory, check_memory_level
from panoptic_detr.structures import DetectorOutput, FeatureLevel, Predictions


class InputProjections(nn.Module):
    """Backbone features to model width: 1x1 convolutions with GroupNorm, and 3x3 stride-2 ones for the extra coarse levels.

    Args:
        num_channels: of the backbone levels that are used.
        hidden_dim: width D.
        num_extra: coarser levels to add.
        groups: of the GroupNorm; None for 32, or as many as the width allows.
    """

    def __init__(self, num_channels: Sequence[int], hidden_dim: int, num_extra: int, groups: int | None = None) -> None:
        super().__init__()
        groups = groups or gcd(32, hidden_dim, hidden_dim // 4)  # 32, but never a group of one channel
        convolutions = [nn.Conv2d(channels, hidden_dim, 1) for channels in num_channels]
        for index in range(num_extra):
            convolutions.append(nn.Conv2d(hidden_dim if index else num_channels[-1], hidden_dim, 3, stride=2, padding=1))
        for weight, bias in (convolution.parameters() for convolution in convolutions):
            nn.init.xavier_uniform_(weight)
            nn.init.zeros_(bias)
        pairs = [nn.Sequential(convolution, nn.GroupNorm(groups, hidden_dim)) for convolution in convolutions]
        self.levels = nn.ModuleList(pairs)

    def forward(self, features: Sequence[FeatureLevel], padding_mask: Tensor) -> list[FeatureLevel]:
        """Project the backbone's levels, fine to coarse, and append the extra ones; `padding_mask` is the images'."""
        levels = [
            FeatureLevel(projection(level.features), level.padding_mask, level.stride)
            for projection, level in zip(self.levels[: len(features)], features, strict=True)
        ]
        coarsest = features[-1]
        for projection in self.levels[len(features) :]:
            maps = projection(coarsest.features)
            mask = resize_padding_mask(padding_mask, maps.shape[-2:])
            coarsest = FeatureLevel(maps, mask, coarsest.stride * 2)
            levels.append(coarsest)
        return levels


class DenseHeads(nn.Module):
    """Linear classifiers of single tokens before and after the encoder, for the dense auxiliary loss (beyond the papers)."""

    def __init__(self, hidden_dim: int, num_labels: int) -> None:
        super().__init__()
        self.projected = ClassHead(hidden_dim, num_labels)
        self.memory = ClassHead(hidden_dim, num_labels)

    def forward(self, levels: Sequence[FeatureLevel], tokens: TokenPyramid, memory: Tensor) -> tuple[FeatureLevel, ...]:
        """Class logits (B, C, h, w) of every level: first those of the projected features, then those of the memory."""
        groups = [self.projected(tokens.features), self.memory(memory)]  # (B, N, C) each
        return tuple(
            FeatureLevel(tokens.level(index, logits), level.padding_mask, level.stride)
            for logits in groups
            for index, level in enumerate(levels)
        )


class DeformableDETR(nn.Module):
    """A detector with deformable attention over several feature levels; `build_deformable_detr` says what the numbers mean.

    The coarsest `num_backbone_levels` levels of the backbone go through `input_proj` to the encoder, whose tokens the decoder's
    queries read; those are learned, or proposals of the encoder (two-stage).

    Attributes:
        mask_channels: channels of the output's `features`, fine to coarse.
        no_object: False, each class slot is a sigmoid of its own; losses and keep rule follow it.
    """

    no_object = False

    def __init__(
        self,
        backbone: Backbone,
        input_proj: InputProjections,
        encoder: DeformableEncoder,
        decoder: DeformableDecoder,
        queries: LearnedQueries | Proposals,
        heads: PredictionHeads,
        *,
        hidden_dim: int,
        num_labels: int,
        num_backbone_levels: int,
        num_queries: int,
        num_one_to_many: int = 0,
        memory_level: int = -1,
        dense_heads: DenseHeads | None = None,
        position_encoding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_proj = input_proj
        self.position_encoding = position_encoding or SinePositionEncoding(hidden_dim // 2, offset=-0.5)
        self.level_embed = nn.Parameter(torch.randn(len(input_proj.levels), hidden_dim))
        self.encoder = encoder
        self.decoder = decoder
        self.queries = queries
        self.heads = heads
        self.dense_heads = dense_heads
        self.hidden_dim = hidden_dim
        self.num_labels = num_labels
        self.num_backbone_levels = num_backbone_levels
        self.num_queries = num_queries
        self.num_one_to_many = num_one_to_many
        self.memory_level = range(num_backbone_levels)[memory_level]
        finer = len(backbone.num_channels) - num_backbone_levels + self.memory_level
        self.mask_channels = tuple(backbone.num_channels[:finer])

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Detect, as `DETR.forward` does.

        `memory` and `projected` are those of the memory level (by default the backbone's last, stride 32, DC5 16; never the
        extra coarse one).
        """
        features = self.backbone(images, padding_mask)
        levels = self.input_proj(features[-self.num_backbone_levels :], padding_mask)
        tokens = flatten_levels(levels, self.position_encoding, self.level_embed)
        memory = self.encoder(tokens)  # (B, N, D)
        groups = [self.num_queries, self.num_one_to_many] if self.training and self.num_one_to_many else [self.num_queries]
        if isinstance(self.queries, Proposals):
            proposals = self.queries.propose(memory, tokens, self.heads, head=len(self.decoder.layers))
            queries = self.queries(proposals, tokens, groups)
        else:
            proposals, queries = None, self.queries(images.shape[0], groups)
        decoded = self.decoder(queries, memory, tokens, self.heads)
        first = queries.groups[0]
        at = self.memory_level
        return DetectorOutput(
            logits=decoded.logits[:, :, :first],
            boxes=decoded.boxes[:, :, :first],
            decoder_states=decoded.states[-1, :, :first],
            memory=FeatureLevel(tokens.level(at, memory), levels[at].padding_mask, levels[at].stride),
            projected=levels[at].features,
            features=tuple(features[: len(self.mask_channels)]),
            no_object=self.no_object,
            one_to_many=_second_group(decoded, first),
            proposals=proposals,
            dense=self.dense_heads(levels, tokens, memory) if self.training and self.dense_heads is not None else (),
        )


def _second_group(decoded: Decoded, first: int) -> Predictions | None:
    if decoded.logits.shape[2] <= first:
        return None
    return Predictions(decoded.logits[:, :, first:], decoded.boxes[:, :, first:])


def reset_transformer(transformer: nn.Module) -> None:
    """Set the papers' initial weights: Xavier-uniform matrices, and deformable attention's own start."""
    reset_matrices(transformer)
    for module in transformer.modules():
        if isinstance(module, DeformableAttention):
            module.reset_parameters()


def build_deformable_detr(
    *,
    num_labels: int = 91,
    backbone: str = "resnet50",
    dilation: bool = False,
    backbone_norm: NormKind = "frozen",
    pretrained_backbone: bool | str = False,
    drop_path: float | None = None,
    backbone_levels: Sequence[int] = (1, 2, 3, 4),
    num_levels: int = 4,
    num_backbone_levels: int = 3,
    num_queries: int = 300,
    num_one_to_many: int = 0,
    hidden_dim: int = 256,
    num_heads: int = 8,
    num_points: int = 4,
    decoder_heads: int | None = None,
    decoder_points: int | None = None,
    encoder: EncoderKind = "deformable",
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    ffn_dim: int = 1024,
    decoder_ffn_dim: int | None = None,
    dropout: float = 0.1,
    position_encoding: Literal["sine", "learned"] = "sine",
    position_table_size: int = 50,
    norm_groups: int | None = None,
    box_refine: bool = False,
    two_stage: bool = False,
    mixed_selection: bool = False,
    look_forward_twice: bool = False,
    anchor_size: float = 0.05,
    memory_level: int = -1,
    dense_aux: bool = False,
) -> DeformableDETR:
    """Build a deformable detector with Deformable DETR's numbers as defaults.

    Args:
        num_labels: class logits C.
        backbone: see `build_backbone`.
        dilation: DC5.
        backbone_norm: "frozen" or "batch".
        pretrained_backbone: ImageNet weights: true fetches them, a path reads them from a file.
        drop_path: stochastic depth of a Swin backbone, by default 0.2.
        backbone_levels: backbone stages to compute; those finer than the memory are handed to the mask head.
        num_levels: levels L of the transformer.
        num_backbone_levels: at most so many of them come from the backbone; the others are strided convolutions.
        num_queries: queries Q.
        num_one_to_many: further queries in training (H-DETR's hybrid branch).
        hidden_dim: width D.
        num_heads: heads M.
        num_points: sampling points P per level and head.
        decoder_heads: heads of the decoder, where they differ from the encoder's.
        decoder_points: the same for its sampling points.
        encoder: "deformable", or "dense" self-attention over all tokens (small images).
        encoder_layers: may be 0.
        decoder_layers: at least 1.
        ffn_dim: inner width of the feed-forward blocks, at least 1.
        decoder_ffn_dim: the same for the decoder's, where it differs.
        dropout: in training.
        position_encoding: "sine", or "learned" rows and columns.
        position_table_size: with learned ones: rows and columns of the largest level.
        norm_groups: groups of the projections' GroupNorm; by default 32, or as many as leave no group a single channel.
        box_refine: iterative bounding box refinement, with heads of its own for each layer.
        two_stage: queries proposed by the encoder's tokens.
        mixed_selection: with `two_stage`: learned content, proposed position.
        look_forward_twice: with `box_refine`: box gradients reach two layers.
        anchor_size: with `two_stage`: side of the finest anchors as a fraction of the image.
        memory_level: which of the used backbone levels the mask head attends to: -1 the coarsest (stride 32), 0 the finest;
            images of about 100 pixels need a finer one than the paper's.
        dense_aux: token classifiers for the dense auxiliary loss.

    Raises:
        InputError: a setting that is out of its range, or settings that do not fit together.
    """
    check_counts(1, num_labels=num_labels, num_queries=num_queries, decoder_layers=decoder_layers)
    check_counts(1, num_backbone_levels=num_backbone_levels)
    check_counts(0, num_one_to_many=num_one_to_many, encoder_layers=encoder_layers)
    _check_switches(encoder, box_refine, two_stage, mixed_selection, look_forward_twice)
    sizes = LayerSizes(hidden_dim, num_levels, num_heads, num_points, ffn_dim, dropout)
    decoder_sizes = replace(
        sizes,
        num_heads=num_heads if decoder_heads is None else decoder_heads,
        num_points=num_points if decoder_points is None else decoder_points,
        ffn_dim=ffn_dim if decoder_ffn_dim is None else decoder_ffn_dim,
    )
    check_counts(1, position_table_size=position_table_size)
    check_groups(hidden_dim, norm_groups)
    check_anchors(anchor_size, num_levels)
    total, layers = num_queries + num_one_to_many, encoder_layers + decoder_layers
    heads = decoder_layers + two_stage if box_refine else 1
    check_memory(hidden_dim=hidden_dim, ffn_dim=ffn_dim, layers=layers, rows=total + num_labels * heads)
    body = build_backbone(
        backbone,
        norm=backbone_norm,
        dilation=dilation,
        levels=backbone_levels,
        pretrained=pretrained_backbone,
        drop_path=drop_path,
    )
    used = min(num_backbone_levels, num_levels, len(body.num_channels))
    check_memory_level(memory_level, used)
    transformer = (
        build_deformable_encoder(sizes, kind=encoder, num_layers=encoder_layers),
        build_deformable_decoder(
            decoder_sizes, num_layers=decoder_layers, refine=box_refine, look_forward_twice=look_forward_twice
        ),
    )
    for part in transformer:
        reset_transformer(part)
    return DeformableDETR(
        body,
        InputProjections(body.num_channels[-used:], hidden_dim, num_levels - used, norm_groups),
        *transformer,
        Proposals(hidden_dim, anchor_size, total if mixed_selection else 0) if two_stage else LearnedQueries(hidden_dim, total),
        PredictionHeads(hidden_dim, num_labels, heads, from_points=not two_stage),
        hidden_dim=hidden_dim,
        num_labels=num_labels,
        num_backbone_levels=used,
        num_queries=num_queries,
        num_one_to_many=num_one_to_many,
        memory_level=memory_level,
        dense_heads=DenseHeads(hidden_dim, num_labels) if dense_aux else None,
        position_encoding=LearnedPositionEncoding(hidden_dim // 2, position_table_size)
        if position_encoding == "learned"
        else None,
    )


def _check_switches(encoder: str, box_refine: bool, two_stage: bool, mixed_selection: bool, look_forward_twice: bool) -> None:
    if encoder not in ("deformable", "dense"):
        raise InputError(f"encoder must be 'deformable' or 'dense', but got {encoder!r}")
    if mixed_selection and not two_stage:
        raise InputError("mixed_selection takes the queries' positions from proposals: set two_stage=True as well")
    if look_forward_twice and not box_refine:
        raise InputError("look_forward_twice is about refined boxes: set box_refine=True as well")
