"""Where a model looks: encoder, decoder and mask-head attention, sampling points of deformable detectors, and pictures of them.

A model keeps no attention weights. `look` runs it once and remembers what went INTO its attention modules; the weights are then
computed again for the points and queries that are drawn, and for nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from panoptic_detr.errors import AttentionError
from panoptic_detr.images import Picture, as_rgb
from panoptic_detr.models import MaskHead
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.structures import DetectorOutput
from panoptic_detr.visualization.draw import (
    default_font_size,
    draw_boxes,
    draw_plate,
    enlarged,
    label_text,
    segment_colors,
    side_by_side,
)

Inputs = tuple[Any, ...]  # of an attention module: tensors, and what is known of their levels


@dataclass(frozen=True)
class Sampling:
    """Where deformable attention reads for one query."""

    points: np.ndarray  # (N, 2) x, y as fractions of the image
    weights: np.ndarray  # (N,) sum to 1 over the points of one head, so to the number of heads in all


@dataclass(frozen=True)
class Look:
    """One image's way through a model."""

    detector: nn.Module  # the box detector
    mask_head: MaskHead | None  # the mask head, if the model has one
    output: DetectorOutput  # what the model said
    encoder_inputs: list[Inputs]  # arguments of each encoder layer's self-attention
    decoder_inputs: list[Inputs]  # arguments of each decoder layer's cross-attention
    shapes: list[tuple[int, int]]  # (height, width) in cells of each level of the memory

    @property
    def has_decoder_maps(self) -> bool:
        """Whether the decoder attends to every cell (`decoder_attention`) or to sampling points (`decoder_sampling`)."""
        return hasattr(_attentions(self.detector, "decoder")[0], "weights")

    @property
    def has_encoder_maps(self) -> bool:
        """Whether the encoder has layers that attend to every cell (`encoder_attention`)."""
        layers = _attentions(self.detector, "encoder")
        return bool(layers) and hasattr(layers[0], "weights")

    @torch.no_grad()
    def encoder_attention(self, points: Sequence[tuple[float, float]], *, layer: int = -1) -> np.ndarray:
        """What given points of the image attend to in the encoder (DETR paper, Fig. 3).

        Args:
            points: (x, y), fractions of the image.
            layer: encoder layer; the last by default.

        Returns:
            (P, h, w) weights, mean over heads; each map sums to 1.

        Raises:
            AttentionError: the encoder has no such layer or is deformable.
        """
        height, width = self.shapes[0]
        cells = [min(int(y * height), height - 1) * width + min(int(x * width), width - 1) for x, y in points]
        return self._maps("encoder", layer, cells)

    @torch.no_grad()
    def decoder_attention(self, queries: Sequence[int], *, layer: int = -1) -> np.ndarray:
        """What chosen object queries attend to in the decoder (DETR paper, Fig. 6).

        Returns:
            (K, h, w) weights, mean over heads; each map sums to 1.

        Raises:
            AttentionError: the decoder has no such layer or is deformable (see `decoder_sampling`).
        """
        return self._maps("decoder", layer, list(queries))

    @torch.no_grad()
    def decoder_sampling(self, queries: Sequence[int], *, layer: int = -1) -> list[Sampling]:
        """Where chosen object queries of a deformable detector read (Deformable DETR, Fig. 6).

        Raises:
            AttentionError: the decoder has no such layer, or attends to everything (see `decoder_attention`).
        """
        module, arguments = self._pick("decoder", layer)
        if not hasattr(module, "where_to_look"):
            raise AttentionError("this decoder attends to every cell: it has attention maps instead of sampling points")
        query, references, _, shapes = arguments[:4]
        rows = list(queries)
        locations, weights = module.where_to_look(
            query[:, rows], references[:, rows], shapes
        )  # (1, K, M, L, P, 2), (1, K, M, L, P)
        pairs = zip(locations[0].flatten(1, 3), weights[0].flatten(1), strict=True)
        return [Sampling(points.float().cpu().numpy(), weight.float().cpu().numpy()) for points, weight in pairs]

    @torch.no_grad()
    def mask_attention(self, queries: Sequence[int]) -> np.ndarray:
        """The mask head's attention maps of chosen queries (DETR paper, Fig. 8).

        Returns:
            (K, M, h, w) weights; the maps of a query sum to 1 together.

        Raises:
            AttentionError: the model has no mask head.
        """
        if self.mask_head is None:
            raise AttentionError("this model is a detector without a mask head; its '..._panoptic' variant has mask attention")
        attention, features = self.mask_head.attention, self.output.memory.features
        chosen = torch.tensor(list(queries), dtype=torch.long, device=features.device)
        closed = self.mask_head.closed_cells(self.output, torch.zeros_like(chosen), chosen)
        return attention(self.output.decoder_states[0, chosen], attention.keys(features), closed).float().cpu().numpy()

    def _pick(self, part: str, layer: int) -> tuple[Any, Inputs]:
        """A layer's attention module and what went into it."""
        inputs = self.encoder_inputs if part == "encoder" else self.decoder_inputs
        if not -len(inputs) <= layer < len(inputs):
            raise AttentionError(f"the {part} has {len(inputs)} layer(s); there is no layer {layer}")
        return _attentions(self.detector, part)[layer], inputs[layer]

    def _maps(self, part: str, layer: int, rows: list[int]) -> np.ndarray:
        """Weights of K queries over the cells of all levels as maps (K, h, w) over those of the finest; sums stay."""
        module, (query, key, *rest) = self._pick(part, layer)
        if not hasattr(module, "weights"):
            raise AttentionError(f"this {part} is deformable: it has sampling points instead of attention maps; draw those")
        mask = rest[1] if len(rest) > 1 else None
        weights: Tensor = module.weights(query[:, rows], key, mask)[0].mean(0)  # (K, N)
        height, width = self.shapes[0]
        parts = weights.float().cpu().split([h * w for h, w in self.shapes], dim=1)
        total = torch.zeros(len(weights), height, width)
        for cells, shape in zip(parts, self.shapes, strict=True):
            level = cells.unflatten(1, shape)[:, None]
            spread = nn.functional.interpolate(level, size=(height, width), mode="nearest")[:, 0]
            scale = cells.sum(1) / spread.flatten(1).sum(1).clamp(min=1e-12)
            total += spread * scale[:, None, None]
        return total.numpy()


@torch.no_grad()
def look(model: nn.Module, images: Tensor, padding_mask: Tensor | None = None) -> Look:
    """Run a model on one image and remember what its attention was computed from.

    Args:
        model: any detector or panoptic model of the package, in eval mode.
        images: (1, 3, H, W) normalised.
        padding_mask: (1, H, W) bool; none is padding by default.

    Raises:
        AttentionError: more than one image, padding, or a model in training mode.
    """
    if len(images) != 1 or (padding_mask is not None and bool(padding_mask.any())):
        raise AttentionError(f"attention is drawn for one image without padding at a time, but got {len(images)}, or padding")
    if model.training:
        raise AttentionError("the model is in training mode, where dropout changes attention; call model.eval() before")
    detector: nn.Module = getattr(model, "detector", model)
    kept: dict[nn.Module, Inputs] = {}
    modules = {part: _attentions(detector, part) for part in ("encoder", "decoder")}
    hooks = [m.register_forward_pre_hook(lambda m, args: kept.__setitem__(m, args)) for part in modules.values() for m in part]
    try:
        blank = torch.zeros(images.shape[0], *images.shape[2:], dtype=torch.bool, device=images.device)
        output = model(images, blank if padding_mask is None else padding_mask)
    finally:
        for hook in hooks:
            hook.remove()
    encoder, decoder = ([kept[module] for module in modules[part]] for part in ("encoder", "decoder"))
    return Look(detector, getattr(model, "mask_head", None), output, encoder, decoder, _shapes(output, decoder))


def boxes_of_queries(output: DetectorOutput) -> np.ndarray:
    """Boxes of the last layer for the first image: (Q, 4) cxcywh, fractions of the image."""
    return output.boxes[-1, 0].detach().float().cpu().numpy()


def draw_look(
    image: Picture,
    prediction: PanopticSegmentation,
    seen: Look,
    *,
    points: Sequence[tuple[float, float]] = ((0.5, 0.5),),
    layer: int = -1,
    scale: int = 1,
) -> dict[str, np.ndarray]:
    """Every picture of attention that a model has, for the segments that it predicted.

    Args:
        image: path or array (see `as_rgb`).
        prediction: its segments name the queries.
        seen: from `look` on the same image.
        points: of the image, (x, y) as fractions of it, for the encoder.
        layer: of encoder and decoder.
        scale: enlarge the image so many times.

    Returns:
        Pictures by name: "encoder", "decoder" and "masks", as far as the model has them and predicted something.
    """
    picture, drawn = enlarged(image, scale), {}
    if seen.has_encoder_maps:
        drawn["encoder"] = draw_point_attention(picture, seen.encoder_attention(points, layer=layer), points)
    kept = [(s, color) for s, color in zip(prediction.segments, segment_colors(prediction), strict=True) if s.query is not None]
    if not kept:
        return drawn
    queries = [segment.query for segment, _ in kept if segment.query is not None]
    colors, boxes = np.stack([color for _, color in kept]), boxes_of_queries(seen.output)[queries]
    names = [label_text(segment, prediction) for segment, _ in kept]
    if seen.has_decoder_maps:
        drawn["decoder"] = draw_object_attention(picture, seen.decoder_attention(queries, layer=layer), colors)
    else:
        drawn["decoder"] = draw_sampling(picture, seen.decoder_sampling(queries, layer=layer), colors)
    draw_boxes(drawn["decoder"], boxes, [(red, green, blue) for red, green, blue in colors.tolist()], names)
    if seen.mask_head is not None:
        largest = max(range(len(kept)), key=lambda index: (kept[index][0].isthing, kept[index][0].area))
        maps = seen.mask_attention([queries[largest]])[0]
        drawn["masks"] = draw_mask_attention(picture, maps, box_cxcywh=boxes[largest], name=names[largest])
    return drawn


def heat(image: Picture, attention: np.ndarray) -> np.ndarray:
    """An attention map (h, w) over the darkened grey image, from dark violet to yellow: (H, W, 3) uint8 RGB.

    The weights may have any scale; their lowest 5% and highest 0.5% are cut off.
    """
    grey = _grey(image)
    strength = _strength(attention, grey.shape[:2])[..., None]
    colors = cv2.applyColorMap(np.round(strength * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return _bytes(grey * 0.55 * (1 - 0.75 * strength) + colors * (0.25 + 0.6 * strength))


def draw_point_attention(image: Picture, attention: np.ndarray, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """The image with numbered points, and beside it the attention (P, h, w) of each of them (Fig. 3)."""
    picture = as_rgb(image).copy()
    for number, point in enumerate(points, start=1):
        _mark(picture, point, str(number))
    maps = [heat(image, one) for one in attention]
    for one, point in zip(maps, points, strict=True):
        _mark(one, point, "")
    titles = ["image", *(f"point {number}" for number in range(1, len(maps) + 1))]
    return side_by_side([picture, *maps], titles, columns=min(len(titles), 3))


def draw_object_attention(image: Picture, attention: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Each object's decoder attention (K, h, w) in the object's colour (K, 3), all in one picture (Fig. 6)."""
    drawn = _grey(image) * 0.7
    for one, color in zip(attention, np.asarray(colors, np.float32), strict=True):
        strength = 0.9 * _strength(one, drawn.shape[:2])[..., None]
        drawn = drawn * (1 - strength) + color * strength
    return _bytes(drawn)


def draw_mask_attention(
    image: Picture, attention: np.ndarray, *, box_cxcywh: np.ndarray | None = None, name: str = "object"
) -> np.ndarray:
    """The mask head's maps of one query, head by head, each on a scale of its own; titles say each one's share of the whole.

    Args:
        image: path or array (see `as_rgb`).
        attention: (M, h, w), one query of `Look.mask_attention`.
        box_cxcywh: (4,) the query's box, fractions of the image; if given, a picture of it comes first.
        name: what the query found.
    """
    total = attention.sum()
    titles = [f"head {head}: {100 * one.sum() / max(total, 1e-12):.0f}%" for head, one in enumerate(attention, start=1)]
    cells = [heat(image, one) for one in attention]
    if box_cxcywh is not None:
        subject = as_rgb(image).copy()
        draw_boxes(subject, box_cxcywh[None], [(255, 255, 255)], [""])
        cells, titles = [subject, *cells], [name, *titles]
    return side_by_side(cells, titles, columns=min(len(cells), 4 if box_cxcywh is None else 3))


def draw_sampling(image: Picture, samplings: Sequence[Sampling], colors: np.ndarray) -> np.ndarray:
    """Sampling points of deformable attention in the objects' colours (K, 3); the larger the dot, the larger the weight."""
    drawn = _bytes(_grey(image) * 0.7)
    height, width = drawn.shape[:2]
    largest = max(2.0, (height * width) ** 0.5 / 70)
    for sampling, color in zip(samplings, colors.tolist(), strict=True):
        top = max(float(sampling.weights.max()), 1e-12)
        for (x, y), weight in sorted(zip(sampling.points.tolist(), sampling.weights.tolist(), strict=True), key=lambda p: p[1]):
            if 0 <= x < 1 and 0 <= y < 1:
                radius = max(1, round(largest * (weight / top) ** 0.5))
                cv2.circle(drawn, (int(x * width), int(y * height)), radius, color, -1, cv2.LINE_AA)
    return drawn


def _attentions(detector: nn.Module, part: str) -> list[Any]:
    """The attention over the image of each layer: the encoder's self-attention, the decoder's cross-attention."""
    name = "self_attn" if part == "encoder" else "cross_attn"
    return [getattr(layer, name) for layer in getattr(detector, part).layers]


def _shapes(output: DetectorOutput, decoder_inputs: list[Inputs]) -> list[tuple[int, int]]:
    """Shapes of the memory's levels: a deformable decoder is told them, another one has a single level."""
    arguments = decoder_inputs[-1]
    if len(arguments) > 3 and not isinstance(arguments[3], Tensor) and arguments[3] is not None:
        return [(int(height), int(width)) for height, width in arguments[3]]
    height, width = output.memory.features.shape[-2:]
    return [(height, width)]


def _strength(attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map scaled so that its 5% quantile becomes 0 and its 99.5% quantile 1, smoothly enlarged to (height, width)."""
    low, high = (float(value) for value in np.quantile(attention, (0.05, 0.995)))
    small = ((attention - low) / max(high - low, 1e-12)).clip(0, 1).astype(np.float32)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR)


def _grey(image: Picture) -> np.ndarray:
    """(H, W, 3) float32 of three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(as_rgb(image), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)


def _bytes(picture: np.ndarray) -> np.ndarray:
    return np.round(picture).clip(0, 255).astype(np.uint8)


def _mark(picture: np.ndarray, point: tuple[float, float], text: str) -> None:
    """Draw a ringed dot, and a text beside it, in place."""
    x, y = int(point[0] * picture.shape[1]), int(point[1] * picture.shape[0])
    radius = max(3, default_font_size(picture.shape) // 3)
    cv2.circle(picture, (x, y), radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), radius, (213, 94, 0), -1, cv2.LINE_AA)
    if text:
        draw_plate(picture, (y + radius, x + radius), text, default_font_size(picture.shape), (213, 94, 0))
