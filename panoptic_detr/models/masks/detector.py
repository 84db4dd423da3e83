"""Mask-DETR: a detector whose queries learn masks from the first step, for little data and little time.

Beyond the papers, but of their parts: DETR's encoder over the coarsest cells, Deformable DETR's two stages (queries for things
start where a map of the pyramid peaks), DETR's decoder with attention confined to the mask so far (Cheng et al., 2022), and a
mask as the product of a query and of pixel features at stride 4 or 2. A stuff class has one query of its own, always the same:
nothing needs to be matched, and no box has to say where a thin or scattered region lies.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from panoptic_detr.boxes import whole_image_box
from panoptic_detr.errors import InputError
from panoptic_detr.models.backbones import Backbone, NormKind, build_backbone
from panoptic_detr.models.layers import MLP, exact_linear, reset_matrices
from panoptic_detr.models.masks.pixels import ConvNorm, PixelDecoder, pool, top_values
from panoptic_detr.models.position_encoding import cell_centres, has_padding, sine_of_boxes
from panoptic_detr.models.settings import check_counts, check_heads, check_shares, check_width
from panoptic_detr.models.transformer import DecoderLayer, build_encoder
from panoptic_detr.query_masks import QueryMasks, unpadded_extent
from panoptic_detr.structures import DetectorOutput, FeatureLevel, Predictions

ABSENT = -12.0  # logit of a class that a query cannot have
PRIOR = -4.6  # logit of the probability 0.01
QUERY_STRIDE = 8  # of the cells that queries start from and look at
LONGEST_SIDE = 128  # cells: the longest wave of the position encoding


class Peaks(nn.Module):
    """Where things are: class logits and a box for every cell, and the cells that become queries.

    Args:
        dim: width of the cells.
        num_labels: class slots C.
        initial_size: of the boxes at the start, in cells.
    """

    def __init__(self, dim: int, num_labels: int, initial_size: float = 4.0) -> None:
        super().__init__()
        self.conv = ConvNorm(dim, dim, kernel=1)
        self.class_embed = nn.Linear(dim, num_labels)
        self.size_embed = nn.Linear(dim, 4)
        nn.init.constant_(self.class_embed.bias, PRIOR)
        nn.init.zeros_(self.size_embed.weight)
        self.size_embed.bias.data = torch.tensor([0.0, 0.0, *[math.log(initial_size)] * 2])

    def forward(self, level: FeatureLevel) -> tuple[Predictions, Tensor]:
        """Propose.

        Args:
            level: (B, D, h, w) cells.

        Returns:
            (1, B, N, C) logits with (1, B, N, 4) boxes, and the cells (B, N, D) that queries start from.
        """
        cells = self.conv(level.features).flatten(2).transpose(1, 2)  # (B, N, D)
        centres = cell_centres(level.padding_mask)  # (B, N, 2)
        shift, size = exact_linear(self.size_embed, cells).split(2, dim=-1)  # (B, N, 2) each, in cells and its logarithm
        step = 1 / unpadded_extent(level.padding_mask)[:, None]  # (B, 1, 2)
        boxes = torch.cat([centres + shift * step, size.clamp(-4, 6).exp() * step], dim=-1)
        return Predictions(exact_linear(self.class_embed, cells)[None], boxes[None]), cells


class MaskDETR(nn.Module):
    """A detector of things by seeded queries and of stuff by fixed ones; `build_mask_detr` says what the numbers mean.

    Attributes:
        mask_channels: channels of the output's `features`, fine to coarse.
        measures_in_cells: boxes are predicted in cells, so images may have other sizes than in training.
    """

    measures_in_cells = True

    def __init__(
        self,
        backbone: Backbone,
        pixel_decoder: PixelDecoder,
        peaks: Peaks,
        layers: Sequence[DecoderLayer],
        *,
        hidden_dim: int,
        num_labels: int,
        num_queries: int,
        stuff_labels: Sequence[int],
        pixel_dim: int,
        embedding_dim: int,
        box_steepness: float,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.pixel_decoder = pixel_decoder
        self.peaks = peaks
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(hidden_dim)
        self.seed = nn.Linear(hidden_dim, hidden_dim)
        self.stuff_embed = nn.Embedding(len(stuff_labels), hidden_dim)
        self.position = MLP(2 * hidden_dim, hidden_dim, hidden_dim, 2)
        self.class_embed = nn.Linear(hidden_dim, num_labels)
        self.bbox_embed = MLP(hidden_dim, hidden_dim, 4, 3)
        self.mask_embed = MLP(hidden_dim, hidden_dim, embedding_dim + 1, 3)
        self.pixel_embed = nn.Conv2d(pixel_dim, embedding_dim, 1)
        self.hidden_dim = hidden_dim
        self.num_labels = num_labels
        self.num_queries = num_queries
        self.stuff_labels = tuple(stuff_labels)
        self.box_steepness = box_steepness
        self.mask_channels = tuple(backbone.num_channels[:-1])
        nn.init.constant_(self.class_embed.bias, PRIOR / 2)
        last = self.bbox_embed.layers[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Detect, as `DETR.forward` does, before the first decoder layer too; the queries of stuff classes come last."""
        padded = has_padding(padding_mask)
        features = self.backbone(images, padding_mask)
        pyramid = self.pixel_decoder(features, padded)
        finest, coarsest = pyramid[0], pyramid[-1]
        fine = next(level for level in pyramid if level.stride == QUERY_STRIDE)
        pixels = self.pixel_embed(finest.features)  # (B, E, h, w)
        proposals, cells = self.peaks(fine)
        states, boxes, chosen = self._queries(proposals, cells, fine.padding_mask)
        memory = fine.features.flatten(2).transpose(1, 2)  # (B, N, D)
        centres = cell_centres(fine.padding_mask)  # (B, N, 2)
        keys = memory + self._sines(centres, fine.padding_mask).to(memory.dtype)
        small = pool(pixels, fine.features.shape[-2:]).flatten(2)  # (B, E, N)
        found = [self._predict(states, boxes, chosen)]
        for layer in self.layers:
            boxes = found[-1][1].detach()
            mask = self._open_cells(found[-1], small, centres, fine.padding_mask)
            states = layer(states, self.position(self._sines(boxes, fine.padding_mask)), keys, memory, mask)
            found.append(self._predict(states, boxes, chosen))
        logits, boxes, embeddings = (torch.stack(values) for values in zip(*found, strict=True))  # (L, B, Q, ...)
        masks = QueryMasks(
            embeddings[..., :-1], embeddings[..., -1], pixels, finest.padding_mask, boxes, self._steepness(logits)
        )
        return DetectorOutput(
            logits=logits,
            boxes=boxes,
            decoder_states=self.norm(states),
            memory=coarsest,
            projected=coarsest.features,
            features=tuple(features[:-1]),
            no_object=False,
            proposals=proposals,
            dense=(FeatureLevel(_as_map(proposals.logits[0], fine), fine.padding_mask, fine.stride),) if self.training else (),
            masks=masks,
            fixed_labels=self.stuff_labels,
        )

    def _queries(self, proposals: Predictions, cells: Tensor, padding_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """States (B, Q, D), boxes (B, Q, 4) and class logits of the proposals (B, Q, C) of all queries."""
        own = torch.full((len(self.stuff_labels), self.num_labels), ABSENT, device=cells.device)  # (S, C)
        for slot, label in enumerate(self.stuff_labels):
            own[slot, label] = 0.0  # filled one by one: an index list would be copied to the GPU, which waits for its queue
        logits = proposals.logits[0].detach().masked_fill((own == 0).any(0), ABSENT)  # (B, N, C)
        scores = logits.sigmoid().max(-1).values.masked_fill(padding_mask.flatten(1), 0).view(padding_mask.shape)
        best = top_values(scores, self.num_queries)[..., None]  # (B, K, 1)
        things = self.seed(cells.gather(1, best.expand(-1, -1, cells.shape[-1])))  # (B, K, D)
        batch = cells.shape[0]
        stuff = self.stuff_embed.weight.to(things.dtype).expand(batch, -1, -1)  # (B, S, D)
        boxes = proposals.boxes[0].detach().gather(1, best.expand(-1, -1, 4))  # (B, K, 4)
        whole = whole_image_box(boxes).expand(batch, stuff.shape[1], -1)
        given = logits.gather(1, best.expand(-1, -1, logits.shape[-1]))  # (B, K, C)
        return (
            torch.cat([things, stuff], dim=1),
            torch.cat([boxes, whole], dim=1),
            torch.cat([given, own.expand(batch, -1, -1)], dim=1),
        )

    def _predict(self, states: Tensor, boxes: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Class logits (B, Q, C), boxes (B, Q, 4) and mask embeddings with bias (B, Q, E + 1)."""
        states = self.norm(states)
        logits = exact_linear(self.class_embed, states)  # (B, Q, C)
        logits = torch.where(given <= ABSENT, torch.full_like(logits, ABSENT), logits + given)
        offsets = self.bbox_embed(states)  # (B, Q, 4)
        centre = boxes[..., :2] + 0.5 * offsets[..., :2].tanh() * boxes[..., 2:]
        size = (boxes[..., 2:].clamp(min=1e-3) * offsets[..., 2:].clamp(-3, 3).exp()).clamp(max=1.2)
        return logits, torch.cat([centre, size], dim=-1), self.mask_embed(states)

    def _open_cells(self, found: tuple[Tensor, Tensor, Tensor], small: Tensor, centres: Tensor, padding_mask: Tensor) -> Tensor:
        """Where queries may look: (B, 1, Q, N), their masks so far, or everything where these are empty."""
        logits, boxes, embeddings = (value.detach() for value in found)
        masks = embeddings[..., :-1] @ small.detach().to(embeddings.dtype) + embeddings[..., -1:]  # (B, Q, N)
        margin = 1 / unpadded_extent(padding_mask)[:, None, None]  # (B, 1, 1, 2)
        half = boxes[:, :, None, 2:] / 2 + margin  # (B, Q, 1, 2)
        outside = ((centres[:, None] - boxes[:, :, None, :2]).abs() / half - 1).clamp(min=0).sum(-1)  # (B, Q, N)
        masks = masks - self._steepness(logits[None])[:, None] * outside
        inside = ~padding_mask.flatten(1)[:, None]  # (B, 1, N)
        own = (masks > 0) & inside
        return (own | (inside & ~own.any(-1, keepdim=True)))[:, None]

    def _steepness(self, logits: Tensor) -> Tensor:
        """(Q,): things are bound to their boxes, stuff is not."""
        things = logits.new_full((logits.shape[2] - len(self.stuff_labels),), self.box_steepness, dtype=torch.float32)
        return torch.cat([things, things.new_zeros(len(self.stuff_labels))])

    def _sines(self, places: Tensor, padding_mask: Tensor) -> Tensor:
        """Position encoding of boxes (B, N, 4) or points (B, N, 2), in cells, so that crops teach what holds for whole images.

        Returns:
            (B, N, 2 * D) of boxes, (B, N, D) of points.
        """
        extent = unpadded_extent(padding_mask)[:, None]  # (B, 1, 2)
        in_cells = places * extent.repeat(1, 1, places.shape[-1] // 2) / LONGEST_SIDE
        return sine_of_boxes(in_cells, self.hidden_dim // 2)


class ProductMasks(nn.Module):
    """The mask head of a detector whose output has `masks` already: the product, for chosen queries only."""

    def forward(self, output: DetectorOutput, queries: Sequence[Tensor]) -> list[Tensor]:
        """Mask logits (K_i, h, w) of the chosen queries (K_i,) of each image."""
        if output.masks is None:
            raise InputError("the detector's output has no masks to multiply out; use MaskHead")
        return [output.masks.at_cells(image, chosen) for image, chosen in enumerate(queries)]


def _as_map(logits: Tensor, level: FeatureLevel) -> Tensor:
    """(B, N, C) as (B, C, h, w) of the level."""
    return logits.transpose(1, 2).reshape(logits.shape[0], logits.shape[2], *level.features.shape[-2:])


def build_mask_detr(
    *,
    num_labels: int = 91,
    backbone: str = "resnet50",
    backbone_norm: NormKind = "frozen",
    pretrained_backbone: bool | str = False,
    trained_stages: int | None = None,
    backbone_levels: Sequence[int] = (1, 2, 3, 4),
    num_queries: int = 60,
    stuff_labels: Sequence[int] = (),
    hidden_dim: int = 128,
    pixel_dim: int = 64,
    embedding_dim: int = 48,
    num_heads: int = 8,
    encoder_layers: int = 2,
    decoder_layers: int = 3,
    ffn_dim: int = 512,
    dropout: float = 0.0,
    box_steepness: float = 4.0,
) -> MaskDETR:
    """Build a Mask-DETR.

    Args:
        num_labels: class logits C.
        backbone: see `build_backbone`.
        backbone_norm: see `build_backbone`.
        pretrained_backbone: ImageNet weights: true fetches them, a path reads them from a file.
        trained_stages: how many of the last stages of the backbone train; None as in `build_backbone`.
        backbone_levels: backbone stages to compute, 2 (stride 8) among them; masks have the stride of the finest, so 0 is for
            thin and small regions.
        num_queries: queries for things.
        stuff_labels: labels of the stuff classes, each with a query of its own; training takes them from the data's categories.
        hidden_dim: width D of transformer and pyramid.
        pixel_dim: width of the pyramid at stride 4; half of it at stride 2.
        embedding_dim: width E of the product.
        num_heads: of attention.
        encoder_layers: over the coarsest cells; may be 0.
        decoder_layers: at least 1.
        ffn_dim: inner width of the feed-forward blocks.
        dropout: in training.
        box_steepness: how far mask logits of things fall at half a box size outside of their box; 0 leaves masks free.

    Raises:
        InputError: a setting that is out of its range, or settings that do not fit together.
    """
    check_counts(1, num_labels=num_labels, num_queries=num_queries, decoder_layers=decoder_layers, embedding_dim=embedding_dim)
    check_counts(0, encoder_layers=encoder_layers)
    check_shares(dropout=dropout)
    check_heads(hidden_dim, num_heads)
    check_width(hidden_dim, 4)
    _check_labels(stuff_labels, num_labels)
    body = build_backbone(
        backbone, norm=backbone_norm, levels=backbone_levels, pretrained=pretrained_backbone, trained_stages=trained_stages
    )
    encoder = build_encoder(
        num_layers=encoder_layers, dim=hidden_dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False
    )
    layers = [
        DecoderLayer(dim=hidden_dim, num_heads=num_heads, ffn_dim=ffn_dim, dropout=dropout, pre_norm=False)
        for _ in range(decoder_layers)
    ]
    reset_matrices(encoder, *layers)
    if 2 not in backbone_levels or len(backbone_levels) < 3:
        raise InputError(f"backbone_levels must hold 2 (stride 8), a finer and a coarser one, but got {list(backbone_levels)}")
    widths = [hidden_dim if stride >= QUERY_STRIDE else pixel_dim * stride // 4 for stride in body.strides]
    return MaskDETR(
        body,
        PixelDecoder(body.num_channels, widths, encoder),
        Peaks(hidden_dim, num_labels),
        layers,
        hidden_dim=hidden_dim,
        num_labels=num_labels,
        num_queries=num_queries,
        stuff_labels=stuff_labels,
        pixel_dim=widths[0],
        embedding_dim=embedding_dim,
        box_steepness=box_steepness,
    )


def _check_labels(stuff_labels: Sequence[int], num_labels: int) -> None:
    if len(set(stuff_labels)) < len(stuff_labels) or not all(0 <= label < num_labels for label in stuff_labels):
        raise InputError(f"stuff_labels must be different labels in 0..{num_labels - 1}, but got {list(stuff_labels)}")
