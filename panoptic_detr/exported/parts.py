"""The two networks of a file: from images to queries and maps, and from chosen queries and maps to masks.

They are traced apart, because what lies between them, the choice, is no work of a network.
"""

import io
import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.models import MaskHead, PanopticDETR, tracing
from panoptic_detr.models.masks import ProductMasks
from panoptic_detr.query_masks import cell_points, distance_from_boxes

if TYPE_CHECKING:
    import onnx

LARGEST, DEAD = 1e30, -3e30  # mask logits are cut at the one, dropped masks are set to the other
AVERAGES = "averages"  # the last word of the names of weights that only compute means
PER_QUERY = 4  # outputs of `Detection` that are rows of queries: logits, boxes, states, and one number each


class Detection(nn.Module):
    """Normalised images (B, 3, h, w) without padding to logits, boxes, what masks need of queries, and of images.

    Args:
        model: any of `list_models()`, in eval mode.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        """Logits (B, Q, C), boxes (B, Q, 4), states (B, Q, D), steepness (B, Q); with masks also maps (B, ...)."""
        output = self.model(images, torch.zeros_like(images[:, 0], dtype=torch.bool))
        rows, maps = [output.decoder_states, torch.zeros_like(output.boxes[-1, :, :, 0])], []
        if isinstance(self.model, PanopticDETR) and isinstance(self.model.mask_head, MaskHead):
            maps = self.model.mask_head.image_maps(output)
        elif output.masks is not None:
            masks = output.masks
            rows = [
                torch.cat([masks.embeddings[-1], masks.biases[-1][..., None]], dim=-1),  # (B, Q, E + 1)
                masks.steepness.expand_as(masks.biases[-1]),  # (B, Q)
            ]
            maps = [masks.pixels]
        return [output.logits[-1].float(), output.boxes[-1].float(), *rows, *maps]


class Segmentation(nn.Module):
    """Rows of chosen queries and the maps of their images (one for all, or one for each) to masks.

    Args:
        head: what makes masks.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, boxes: Tensor, states: Tensor, steepness: Tensor, *maps: Tensor) -> Tensor:
        """Boxes (K, 4), states (K, D) and so on to (K, h, w) logits."""
        if isinstance(self.head, ProductMasks):
            return self._product(boxes, states, steepness, maps[0])
        head = cast(MaskHead, self.head)
        closed = torch.zeros_like(maps[1][:, 0], dtype=torch.bool)  # (1 or K, h, w)
        return head.segment_rows(states, boxes, maps, closed)

    def _product(self, boxes: Tensor, states: Tensor, steepness: Tensor, pixels: Tensor) -> Tensor:
        padding = torch.zeros_like(pixels[0, 0], dtype=torch.bool)  # (h, w)
        margin = 1 / torch.stack([(~padding[0]).sum(), (~padding[:, 0]).sum()]).float()  # (2,)
        logits = (states[:, None, :-1] @ pixels.flatten(2))[:, 0] + states[:, -1:]  # (K, h * w)
        logits = logits - steepness[:, None] * distance_from_boxes(boxes, cell_points(padding), margin)
        return logits.reshape(boxes.shape[0], pixels.shape[2], pixels.shape[3])


class NormByProducts(nn.Module):
    """Group normalisation whose means over channels are 1 x 1 convolutions.

    Written with reshapes, as for ONNX, it makes OpenVINO turn every activation from channels-last to planes and back, which
    took a third of the time of masks in 8 bits.

    Args:
        norm: to do the work of, on (B, C, h, w).
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.eps, self.weight, self.bias = norm.eps, norm.weight, norm.bias
        width = norm.num_channels // norm.num_groups
        blocks = torch.kron(torch.eye(norm.num_groups), torch.full((width, width), 1 / width))  # (C, C)
        self.register_buffer(AVERAGES, blocks[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        averages = self.get_buffer(AVERAGES)
        # The limit changes nothing. Without it OpenVINO 2026.4 moves scales of 8 bits past the mean, and applies them twice.
        x = torch.maximum(x, torch.tensor(-LARGEST))
        means = F.conv2d(x.mean((2, 3), keepdim=True), averages)  # (B, C, 1, 1)
        squares = x.norm(dim=(2, 3), keepdim=True).square() / (x.shape[2] * x.shape[3])
        variances = (F.conv2d(squares, averages) - means * means).clamp(min=0)
        scale = (variances + self.eps).rsqrt() * self.weight[:, None, None]
        return x * scale + (self.bias[:, None, None] - means * scale)


def with_norms_by_products(head: nn.Module) -> nn.Module:
    """A copy of what makes masks that computes group normalisation so."""
    head = deepcopy(head)
    if isinstance(head, MaskHead):
        head.norms = nn.ModuleList(NormByProducts(norm) if isinstance(norm, nn.GroupNorm) else norm for norm in head.norms)
    return head


def trace(module: nn.Module, inputs: Sequence[Tensor], outputs: int, axes: Sequence[dict[int, str]]) -> "onnx.ModelProto":
    """Record what a module does, for any sizes of the named axes.

    Args:
        module: to record.
        inputs: examples.
        outputs: how many there are.
        axes: of each input, the axes whose sizes may change.
    """
    import onnx  # only here: a program of PyTorch needs no such thing

    from panoptic_detr.exported.graph import OPSET

    names = [f"input_{index}" for index in range(len(inputs))]
    stream = io.BytesIO()
    with torch.no_grad(), warnings.catch_warnings(), tracing.unpadded(), tracing.last_layer():
        warnings.simplefilter("ignore")  # about comparisons of sizes, which are true for all
        torch.onnx.export(
            module.eval(),
            tuple(inputs),
            stream,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=OPSET,
            input_names=names,
            output_names=[f"output_{index}" for index in range(outputs)],
            dynamic_axes=dict(zip(names, axes, strict=True)),
        )
    return onnx.load_model_from_string(stream.getvalue())


def trace_parts(model: nn.Module, side: int = 160) -> "tuple[onnx.GraphProto, onnx.GraphProto | None]":
    """The graphs of `Detection` and, of a model with masks, of `Segmentation`."""
    detection = Detection(model)
    images = torch.randn(2, 3, side, side + 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = detection.eval()(images)
    first = trace(detection, [images], len(found), [{0: "B", 2: "H", 3: "W"}]).graph
    if not isinstance(model, PanopticDETR):
        return first, None
    rows = [value[0, :3] for value in found[1:PER_QUERY]]  # 3 chosen queries
    maps = [value[:1] for value in found[PER_QUERY:]]
    axes = [{0: "K"} for _ in rows] + [
        {0: "R", **{axis: f"{index}_{axis}" for axis in range(2, value.dim())}} for index, value in enumerate(maps)
    ]
    return first, trace(Segmentation(with_norms_by_products(model.mask_head)), [*rows, *maps], 1, axes).graph
