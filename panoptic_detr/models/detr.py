"""DETR: a backbone, a transformer, and one class and one box head on every decoder layer (DETR paper, section 3)."""

from typing import Literal

import torch
from torch import Tensor, nn

from panoptic_detr.models.backbones import Backbone, NormKind, build_backbone
from panoptic_detr.models.layers import MLP, exact_linear, reset_matrices
from panoptic_detr.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding, attention_mask, has_padding
from panoptic_detr.models.settings import check_counts, check_heads, check_memory, check_shares, check_width
from panoptic_detr.models.transformer import Decoder, Encoder, add, build_decoder, build_encoder
from panoptic_detr.structures import DetectorOutput, FeatureLevel

Encoding = Literal["sine", "learned", "none"]
Place = Literal["attention", "input", "none"]
PARTS: dict[Encoding, int] = {"sine": 4, "learned": 2, "none": 1}  # of the width: axes, and for each sines and cosines


class DETR(nn.Module):
    """The box detector that the panoptic model extends.

    Args:
        backbone: feature levels, fine to coarse; the last one feeds the transformer.
        encoder: over the cells of the last level.
        decoder: over the object queries.
        position_encoding: maps a padding mask (B, h, w) to (B, D, h, w), or None.
        hidden_dim: model width D.
        num_labels: class slots without no-object.
        num_queries: object queries Q.
        encoder_position: where the encoder sees the spatial encoding (DETR paper, Table 3).
        decoder_position: where the decoder's keys see it.
        query_position: where the object queries enter: "attention" of every layer, or once at the "input".

    Attributes:
        mask_channels: channels of the output's `features`, fine to coarse.
        no_object: the last class slot means "no object"; losses and keep rule follow it.
    """

    no_object = True

    def __init__(
        self,
        backbone: Backbone,
        encoder: Encoder,
        decoder: Decoder,
        *,
        position_encoding: nn.Module | None,
        hidden_dim: int,
        num_labels: int,
        num_queries: int,
        encoder_position: Place = "attention",
        decoder_position: Place = "attention",
        query_position: Literal["attention", "input"] = "attention",
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.input_proj = nn.Conv2d(backbone.num_channels[-1], hidden_dim, 1)
        self.encoder = encoder
        self.decoder = decoder
        self.position_encoding = position_encoding
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.class_embed = nn.Linear(hidden_dim, num_labels + 1)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.encoder_position = encoder_position
        self.decoder_position = decoder_position
        self.query_position = query_position
        self.hidden_dim = hidden_dim
        self.num_labels = num_labels
        self.mask_channels = tuple(backbone.num_channels[:-1])

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Detect.

        Args:
            images: (B, 3, H, W) normalised, zero on padding.
            padding_mask: (B, H, W) bool, True on padding.

        Returns:
            Logits and boxes of every decoder layer, and the features that the mask head needs.
        """
        padded = has_padding(padding_mask)
        *finer, last = self.backbone(images, padding_mask)
        projected = self.input_proj(last.features)  # (B, D, h, w)
        tokens = projected.flatten(2).transpose(1, 2)  # (B, N, D)
        position = self._spatial_position(last.padding_mask, tokens)
        mask = attention_mask(last.padding_mask) if padded else None  # None is faster
        if self.encoder_position == "input":
            tokens = add(tokens, position)
        memory = self.encoder(tokens, position if self.encoder_position == "attention" else None, mask)  # (B, N, D)
        states = self._decode(memory, position, mask)  # (L, B, Q, D)
        return DetectorOutput(
            logits=exact_linear(self.class_embed, states),
            boxes=self.bbox_embed(states).sigmoid(),
            decoder_states=states[-1],
            memory=FeatureLevel(memory.transpose(1, 2).reshape(projected.shape), last.padding_mask, last.stride),
            projected=projected,
            features=tuple(finer),
            no_object=self.no_object,
        )

    def _decode(self, memory: Tensor, position: Tensor | None, mask: Tensor | None) -> Tensor:
        """Run the decoder: (B, N, D) memory to (L, B, Q, D) states."""
        queries = self.query_embed.weight.to(memory.dtype).expand(memory.shape[0], -1, -1)  # (B, Q, D)
        start, term = (torch.zeros_like(queries), queries) if self.query_position == "attention" else (queries, None)
        keys = add(memory, position) if self.decoder_position == "attention" else memory
        if self.decoder_position == "input" and self.encoder_position != "input":
            keys = memory = add(memory, position)
        return self.decoder(start, term, keys, memory, mask)

    def _spatial_position(self, padding_mask: Tensor, like: Tensor) -> Tensor | None:
        if self.position_encoding is None:
            return None
        return self.position_encoding(padding_mask).flatten(2).transpose(1, 2).to(like.dtype)  # (B, N, D)


def build_detr(
    *,
    num_labels: int = 91,
    backbone: str = "resnet50",
    dilation: bool = False,
    backbone_norm: NormKind = "frozen",
    pretrained_backbone: bool | str = False,
    drop_path: float | None = None,
    num_queries: int = 100,
    hidden_dim: int = 256,
    num_heads: int = 8,
    decoder_heads: int | None = None,
    encoder_layers: int = 6,
    decoder_layers: int = 6,
    ffn_dim: int = 2048,
    decoder_ffn_dim: int | None = None,
    dropout: float = 0.1,
    pre_norm: bool = False,
    position_encoding: Encoding = "sine",
    position_table_size: int = 50,
    encoder_position: Place = "attention",
    decoder_position: Place = "attention",
    query_position: Literal["attention", "input"] = "attention",
    renormalize: bool = False,
) -> DETR:
    """Build DETR with the paper's numbers as defaults; `dilation=True` is DC5, `ffn_dim=0` removes the feed-forward blocks.

    `position_table_size` is for `position_encoding="learned"`: rows and columns of the largest feature map (image / stride).
    `drop_path` is the stochastic depth of a Swin backbone, by default 0.2. `decoder_heads` and `decoder_ffn_dim` are for a
    decoder whose heads or feed-forward blocks differ from the encoder's; `renormalize` see `Decoder`.

    Raises:
        InputError: a setting that is out of its range, or settings that do not fit together.
    """
    check_counts(1, num_labels=num_labels, num_queries=num_queries, decoder_layers=decoder_layers)
    check_counts(1, position_table_size=position_table_size)
    decoder_heads = num_heads if decoder_heads is None else decoder_heads
    decoder_ffn_dim = ffn_dim if decoder_ffn_dim is None else decoder_ffn_dim
    check_counts(0, encoder_layers=encoder_layers, ffn_dim=ffn_dim, decoder_ffn_dim=decoder_ffn_dim)
    check_shares(dropout=dropout)
    for heads in (num_heads, decoder_heads):
        check_heads(hidden_dim, heads)
    check_width(hidden_dim, PARTS[position_encoding])
    layers = encoder_layers + decoder_layers
    check_memory(hidden_dim=hidden_dim, ffn_dim=max(ffn_dim, decoder_ffn_dim), layers=layers, rows=num_queries + num_labels)
    encoder = build_encoder(
        num_layers=encoder_layers, dim=hidden_dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout, pre_norm=pre_norm
    )
    decoder = build_decoder(
        num_layers=decoder_layers,
        dim=hidden_dim,
        num_heads=decoder_heads,
        ffn_dim=decoder_ffn_dim,
        dropout=dropout,
        pre_norm=pre_norm,
        renormalize=renormalize,
    )
    reset_matrices(encoder, decoder)
    return DETR(
        build_backbone(backbone, norm=backbone_norm, dilation=dilation, pretrained=pretrained_backbone, drop_path=drop_path),
        encoder,
        decoder,
        position_encoding=_build_encoding(position_encoding, hidden_dim, position_table_size),
        hidden_dim=hidden_dim,
        num_labels=num_labels,
        num_queries=num_queries,
        encoder_position=encoder_position,
        decoder_position=decoder_position,
        query_position=query_position,
    )


def _build_encoding(kind: Encoding, hidden_dim: int, table_size: int) -> nn.Module | None:
    if kind == "none":
        return None
    return SinePositionEncoding(hidden_dim // 2) if kind == "sine" else LearnedPositionEncoding(hidden_dim // 2, table_size)
