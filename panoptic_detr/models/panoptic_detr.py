"""A detector with a mask head: the panoptic model, for every detector of the package (DETR paper, section 4.4)."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor, nn

from panoptic_detr.shapes import map_tensors
from panoptic_detr.structures import DetectorOutput


class PanopticDETR(nn.Module):
    """A box detector and the mask head that reads its output.

    Args:
        detector: (images, padding_mask) to `DetectorOutput`.
        mask_head: (output, chosen queries) to mask logits.

    Attributes:
        detector_bf16: in training, run a frozen detector in bfloat16; what trains on its output stays float32, and so does
            evaluation. Off by default.
    """

    def __init__(self, detector: nn.Module, mask_head: nn.Module) -> None:
        super().__init__()
        self.detector = detector
        self.mask_head = mask_head
        self.detector_bf16 = False

    def forward(self, images: Tensor, padding_mask: Tensor) -> DetectorOutput:
        """Detect, as `DETR.forward` does; the output can `segment` chosen queries afterwards.

        A frozen detector runs without gradients.
        """
        trains = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.detector.parameters())
        half = self.detector_bf16 and self.training and not trains
        with torch.set_grad_enabled(trains), torch.autocast(images.device.type, torch.bfloat16) if half else nullcontext():
            output = self.detector(images, padding_mask)
        if half:
            output = map_tensors(output, lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)
        exported = torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()
        return output if exported else replace(output, segmenter=self.mask_head)  # torch.export returns values only

    def segment(self, output: DetectorOutput, queries: Sequence[Tensor]) -> list[Tensor]:
        """Mask logits (K_i, h/4, w/4) of the chosen queries (K_i,) of each image."""
        return self.mask_head(output, queries)
