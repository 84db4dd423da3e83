"""Where a model looks: encoder, decoder and mask-head attention, and the sampling points of deformable detectors.

A model keeps no attention weights. `look` runs it once and remembers what went INTO its attention modules; the weights are then
computed again for the points and queries that are drawn, and for nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from panoptic_detr.errors import AttentionError
from panoptic_detr.structures import DetectorOutput


@dataclass(frozen=True)
class Sampling:
    """Where deformable attention reads for one query.

    Attributes:
        points: (N, 2) x, y as fractions of the image.
        weights: (N,) sum to 1 over the points of one head, so to the number of heads in all.
    """

    points: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Look:
    """One image's way through a model.

    Attributes:
        detector: the box detector.
        mask_head: the mask head, if the model has one.
        output: what the model said.
        encoder_inputs: arguments of each encoder layer's self-attention.
        decoder_inputs: arguments of each decoder layer's cross-attention.
        shapes: (height, width) in cells of each level of the memory.
    """

    detector: Any
    mask_head: Any
    output: DetectorOutput
    encoder_inputs: list[tuple[Any, ...]]
    decoder_inputs: list[tuple[Any, ...]]
    shapes: list[tuple[int, int]]

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
        module, (query, key, *rest) = self._pick("encoder", layer)
        if not hasattr(module, "weights"):
            raise AttentionError("this encoder is deformable: it has sampling points instead of attention maps; draw those")
        height, width = self.shapes[0]
        cells = [min(int(y * height), height - 1) * width + min(int(x * width), width - 1) for x, y in points]
        mask = rest[1] if len(rest) > 1 else None
        weights = module.weights(query[:, cells], key, mask)[0].mean(0)  # (P, N)
        return self._as_maps(weights)

    @torch.no_grad()
    def decoder_attention(self, queries: Sequence[int], *, layer: int = -1) -> np.ndarray:
        """What chosen object queries attend to in the decoder (DETR paper, Fig. 6).

        Returns:
            (K, h, w) weights, mean over heads; each map sums to 1.

        Raises:
            AttentionError: the decoder has no such layer or is deformable (see `decoder_sampling`).
        """
        module, (query, key, *rest) = self._pick("decoder", layer)
        if not hasattr(module, "weights"):
            raise AttentionError("this decoder is deformable: it has sampling points instead of attention maps; draw those")
        mask = rest[1] if len(rest) > 1 else None
        return self._as_maps(module.weights(query[:, list(queries)], key, mask)[0].mean(0))

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

    def _pick(self, part: str, layer: int) -> tuple[Any, tuple[Any, ...]]:
        """A layer's attention module and what went into it."""
        inputs = self.encoder_inputs if part == "encoder" else self.decoder_inputs
        if not -len(inputs) <= layer < len(inputs):
            raise AttentionError(f"the {part} has {len(inputs)} layer(s); there is no layer {layer}")
        return _attentions(self.detector, part)[layer], inputs[layer]

    def _as_maps(self, weights: Tensor) -> np.ndarray:
        """(K, N) weights over the cells of all levels to (K, h, w) over those of the finest; sums stay."""
        height, width = self.shapes[0]
        parts = weights.float().cpu().split([h * w for h, w in self.shapes], dim=1)
        total = torch.zeros(len(weights), height, width)
        for part, shape in zip(parts, self.shapes, strict=True):
            level = part.unflatten(1, shape)[:, None]
            spread = nn.functional.interpolate(level, size=(height, width), mode="nearest")[:, 0]
            scale = part.sum(1) / spread.flatten(1).sum(1).clamp(min=1e-12)
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
    detector: Any = getattr(model, "detector", model)
    kept: dict[nn.Module, tuple[Any, ...]] = {}
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


def _attentions(detector: Any, part: str) -> list[Any]:
    """The attention over the image of each layer: the encoder's self-attention, the decoder's cross-attention."""
    name = "self_attn" if part == "encoder" else "cross_attn"
    return [getattr(layer, name) for layer in getattr(detector, part).layers]


def _shapes(output: DetectorOutput, decoder_inputs: list[tuple[Any, ...]]) -> list[tuple[int, int]]:
    """Shapes of the memory's levels: a deformable decoder is told them, another one has a single level."""
    arguments = decoder_inputs[-1]
    if len(arguments) > 3 and not isinstance(arguments[3], Tensor) and arguments[3] is not None:
        return [(int(height), int(width)) for height, width in arguments[3]]
    height, width = output.memory.features.shape[-2:]
    return [(height, width)]
