"""The mask head: attention maps of chosen queries, refined by an FPN-like upsampler (DETR paper, section 4.4, Fig. 8).

Masks exist only for the queries that someone asked for. The head's group normalisation is per query, so running it on few
queries gives what running it on all of them would give for those. Of the first convolution, the part that sees the image is
the same for every query of an image: it is computed once, and only the attention channels are convolved per query.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import gcd
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.errors import InputError
from panoptic_detr.models.cpu.dropout import Dropout
from panoptic_detr.models.position_encoding import axis_centres
from panoptic_detr.models.settings import check_mask_head, check_shares
from panoptic_detr.query_masks import unpadded_extent
from panoptic_detr.structures import DetectorOutput

CHUNK_CELLS = 2**20  # mask cells computed at a time: 19 masks of an 800 x 1066 image, about 130 MB per activation
# On CPUs 4 such masks: the C library reuses blocks below 32 MB; larger ones come fresh from the kernel, page by page.
CPU_CHUNK_CELLS = 2**18


class AttentionMaps(nn.Module):
    """Where each query looks: multi-head attention weights over the memory, softmax over heads and positions jointly.

    Args:
        dim: model width D.
        num_heads: maps per query, M.
        dropout: on the maps, in training.
        scale_maps: multiply the maps by the number of heads times that of open cells, so that their mean there is 1. The paper
            does not; without it the head hardly sees its queries at first, and a short training starts slowly.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float = 0.0, scale_maps: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.scale = (dim / num_heads) ** -0.5
        self.scale_maps = scale_maps
        self.dropout = Dropout(dropout)
        self.q_linear = nn.Linear(dim, dim)
        self.k_linear = nn.Linear(dim, dim)
        for layer in (self.q_linear, self.k_linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)

    def keys(self, memory: Tensor) -> Tensor:
        """Project the memory once per image batch: (B, D, h, w) to (B, M, D / M, h * w)."""
        weight = self.k_linear.weight[:, :, None, None]
        return F.conv2d(memory, weight, self.k_linear.bias).unflatten(1, (self.num_heads, -1)).flatten(3)

    def forward(self, states: Tensor, keys: Tensor, closed: Tensor) -> Tensor:
        """Attend.

        Args:
            states: (K, D) decoder states of the chosen queries.
            keys: (K or 1, M, D / M, N) of each query's image, from `keys`.
            closed: (K or 1, h, w) bool, True where a query may not look: on padding at least.

        Returns:
            (K, M, h, w); each query's maps sum to 1 over heads and positions together, unless they are scaled.
        """
        queries = self.q_linear(states).unflatten(-1, (self.num_heads, -1)) * self.scale  # (K, M, D / M)
        scores = torch.einsum("kmc,kmcn->kmn", queries, keys.expand(states.shape[0], -1, -1, -1)).float()  # (K, M, N)
        scores = scores.masked_fill(closed.flatten(1)[:, None], -torch.inf)
        maps = scores.flatten(1).softmax(-1).view_as(scores)  # (K, M, N)
        if self.scale_maps:
            maps = maps * (self.num_heads * (~closed).flatten(1).sum(1))[:, None, None]
        return self.dropout(maps.reshape(*maps.shape[:2], *closed.shape[1:]))  # (K, M, h, w)


class MaskHead(nn.Module):
    """Mask logits for chosen queries of a detector's output.

    Args:
        dim: model width D.
        feature_channels: channels of the backbone features to merge, fine to coarse (C2, C3, C4). One feature more than three
            gives masks at half the stride, for small images.
        num_heads: attention maps per query.
        dropout: on the attention maps, in training.
        scale_maps: see `AttentionMaps`.
        inside_boxes: a query attends only inside of the box that the detector predicts for it, and one cell around. The paper
            does not; where an image holds dozens of things that look alike, such as cells under a microscope, the states of
            the decoder hardly say which of them is meant, and the box does.
        output_bias: initial bias of the mask logits.

    Raises:
        InputError: a size that is out of its range, or sizes that do not fit together; named as `build_model` names them.
    """

    def __init__(
        self,
        *,
        dim: int,
        feature_channels: Sequence[int],
        num_heads: int = 8,
        dropout: float = 0.0,
        scale_maps: bool = False,
        inside_boxes: bool = False,
        output_bias: float = 0.0,
    ) -> None:
        super().__init__()
        check_mask_head(dim, num_heads, len(feature_channels))
        check_shares(mask_dropout=dropout)
        self.inside_boxes = inside_boxes
        steps = len(feature_channels)
        context = [dim // 2 ** (step + 1) for step in range(steps)]  # 128, 64, 32
        widths = [dim + num_heads, dim + num_heads, *context, context[-1] // 2]
        self.attention = AttentionMaps(dim, num_heads, dropout, scale_maps)
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.GroupNorm(gcd(8, width), width) for width in widths[1:])
        self.adapters = nn.ModuleList(nn.Conv2d(c, w, 1) for c, w in zip(reversed(feature_channels), context, strict=True))
        self.out = nn.Conv2d(widths[-1], 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                _reset(module, bias=0.0)
        _reset(self.out, bias=output_bias)

    def forward(self, output: DetectorOutput, queries: Sequence[Tensor]) -> list[Tensor]:
        """Segment.

        Args:
            output: of any detector with this width.
            queries: for each image the (K_i,) int64 indices of the queries to segment; none at all is fine.

        Returns:
            For each image (K_i, h, w) mask logits at the stride of the finest feature (4), over the padded canvas.
        """
        if len(queries) != len(output.decoder_states):
            raise InputError(f"expected chosen queries for {len(output.decoder_states)} images, but got {len(queries)} lists")
        device = output.projected.device
        images = torch.cat([torch.full_like(q, image) for image, q in enumerate(queries)]).to(device)  # (K,)
        masks = self.segment(output, images, torch.cat(list(queries)).to(device))
        return list(masks.split([len(q) for q in queries]))

    def segment(self, output: DetectorOutput, images: Tensor, queries: Tensor) -> Tensor:
        """Masks (K, h, w) of chosen queries (K,) of images (K,), a few at a time."""
        keys, shared, *pyramid = maps = self.image_maps(output)
        closed = self.closed_cells(output, images, queries)  # (K or 1, h, w)
        states = output.decoder_states[images, queries]  # (K, D)
        cells = min(CHUNK_CELLS, CPU_CHUNK_CELLS) if shared.device.type == "cpu" else CHUNK_CELLS
        chunk = max(1, cells // pyramid[-1][0, 0].numel())
        chunks = [
            self._segment(
                states[rows], [_of_image(value, images[rows]) for value in maps], closed if len(closed) == 1 else closed[rows]
            )
            for rows in torch.arange(len(images), device=images.device).split(chunk)
        ]
        return torch.cat(chunks) if len(images) else self._nothing(keys, shared, pyramid)

    def image_maps(self, output: DetectorOutput) -> list[Tensor]:
        """What masks need of images, whatever the queries: keys (B, M, D / M, N), projected features, pyramid (B, C, h, w)."""
        pyramid = [adapter(level.features) for adapter, level in zip(self.adapters, reversed(output.features), strict=True)]
        return [self.attention.keys(output.memory.features), self._image_part(output.projected), *pyramid]

    def closed_cells(self, output: DetectorOutput, images: Tensor, queries: Tensor) -> Tensor:
        """Where chosen queries may not look in the memory.

        Args:
            output: of the detector.
            images: (K,) each query's image.
            queries: (K,) its index there.

        Returns:
            (K or 1, h, w) bool.
        """
        padding = _of_image(output.memory.padding_mask, images)
        return padding | cells_outside_boxes(output.boxes[-1][images, queries], padding) if self.inside_boxes else padding

    @property
    def _first(self) -> nn.Conv2d:
        return cast(nn.Conv2d, self.convs[0])

    def _image_part(self, projected: Tensor) -> Tensor:
        """The first convolution on the image's own channels, bias included: (B, D, h, w) to (B, D + M, h, w)."""
        first = self._first
        return F.conv2d(projected, first.weight[:, : -self.attention.num_heads], first.bias, padding=1)

    def segment_rows(self, states: Tensor, boxes: Tensor, maps: Sequence[Tensor], padding: Tensor) -> Tensor:
        """Masks of few queries, each with the maps of its image.

        Args:
            states: (K, D) of the queries.
            boxes: (K, 4) cxcywh.
            maps: of `image_maps`, (1 or K, ...) each.
            padding: (1 or K, h, w) bool of the memory.

        Returns:
            (K, h, w).
        """
        closed = padding | cells_outside_boxes(boxes, padding) if self.inside_boxes else padding
        return self._segment(states, maps, closed)

    def _segment(self, states: Tensor, maps: Sequence[Tensor], closed: Tensor) -> Tensor:
        keys, shared, *pyramid = maps
        seen = self.attention(states, keys, closed)  # (K, M, h, w)
        first = self._first
        x = F.conv2d(seen.to(shared.dtype), first.weight[:, -self.attention.num_heads :], padding=1).add_(shared)
        x = F.relu_(self.norms[0](x))  # (K, D + M, h, w)
        x = F.relu_(self.norms[1](self.convs[1](x)))  # (K, D / 2, h, w)
        for level, conv, norm in zip(pyramid, self.convs[2:], self.norms[2:], strict=True):
            x = F.interpolate(x, size=level.shape[-2:], mode="nearest").add_(level)
            x = F.relu_(norm(conv(x)))  # (K, D / 4 ..., 2h, 2w)
        return self.out(x).squeeze(1)

    def _nothing(self, keys: Tensor, shared: Tensor, pyramid: list[Tensor]) -> Tensor:
        """(0, h, w) that still depends on every parameter, so that distributed training does not wait for gradients."""
        touched = sum((p.sum() for p in self.parameters()), keys.new_zeros(()))
        return shared.new_zeros((0, *pyramid[-1].shape[-2:])) + 0 * touched


def cells_outside_boxes(boxes_cxcywh: Tensor, padding_mask: Tensor) -> Tensor:
    """Which cells of a feature map have their centre more than a cell outside of a box.

    Args:
        boxes_cxcywh: (K, 4), where 0..1 spans the unpadded image.
        padding_mask: (K or 1, h, w) bool, True on padding.

    Returns:
        (K, h, w) bool; of every box with its centre in the image, at least one cell is not outside.
    """
    boxes = boxes_cxcywh.detach().float()
    reach = boxes[:, 2:] / 2 + 1 / unpadded_extent(padding_mask)  # (K, 2)
    near_x, near_y = (
        (centres - boxes[:, axis, None]).abs() <= reach[:, axis, None]
        for axis, centres in enumerate(axis_centres(padding_mask))
    )  # (K, w), (K, h)
    return ~(near_y[:, :, None] & near_x[:, None, :])


def _reset(conv: nn.Conv2d, *, bias: float) -> None:
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)


def _of_image(values: Tensor, images: Tensor) -> Tensor:
    """Rows of `values` (B, ...) for each query; a batch of one image is broadcast instead of copied.

    Not `values[images]`, whose gradient several CPU threads add up in no fixed order.
    """
    return values if values.shape[0] == 1 else values.index_select(0, images)
