"""What every part of the GPU's measurement needs: models, batches, times and memory of the device, a row even of what fails."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panoptic_detr.structures import Batch, DetectorOutput
from panoptic_detr.zoo import PANOPTIC, build_model
from tools.benchmarks.measure import Figures, peak_memory
from tools.benchmarks.steps import patches

LABELS = 250  # of COCO panoptic
Rows = Iterator[Figures]
PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SMALL = {"hidden_dim": 32, "ffn_dim": 32, "encoder_layers": 1, "decoder_layers": 2, "num_queries": 20}
MODEL = "detr_r50" + PANOPTIC


@dataclass(frozen=True)
class Job:
    """Where to measure, and whether in miniature."""

    device: str = "cuda"
    tiny: bool = False

    @property
    def on_gpu(self) -> bool:
        """Whether there is a queue to wait for, and memory of the device to count."""
        return torch.device(self.device).type == "cuda"

    def build(self, name: str, **overrides: object) -> nn.Module:
        """A model with random weights, always the same, on the device."""
        torch.manual_seed(0)
        small = {**SMALL, "backbone": "resnet18", **({"num_one_to_many": 30} if name.startswith("h_") else {})}
        return build_model(name, num_labels=LABELS, **(small if self.tiny else {}), **overrides).to(self.device)

    def batch(self, images: int) -> Batch:
        """Noise with a few segments, the second image narrower than the first, so that there is padding."""
        height, width = (64, 96) if self.tiny else (800, 1066)
        sizes = [(height, width), *[(height, width * 3 // 4)] * (images - 1)]
        pixels, padding_mask = torch.zeros(images, 3, height, width), torch.ones(images, height, width, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        for index, (rows, columns) in enumerate(sizes):
            pixels[index, :, :rows, :columns] = torch.randn(3, rows, columns, generator=generator)
            padding_mask[index, :rows, :columns] = False
        targets = [patches(size, 3 if self.tiny else 12, LABELS) for size in sizes]
        return Batch(pixels, padding_mask, targets, sizes, sizes, list(range(images)))

    def settle(self) -> None:
        """Wait until the device has done everything."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable[[], object], repeats: int = 10) -> float:
        """Of one call, the best of `repeats`; two more before them do not count."""
        repeats, best = (1 if self.tiny else repeats), float("inf")
        for repeat in range(-1 if self.tiny else -2, repeats):
            self.settle()
            started = time.perf_counter()
            work()
            self.settle()
            best = min(best, time.perf_counter() - started) if repeat >= 0 else best
        return 1000 * best

    def forget_peak(self) -> None:
        """Count memory from here."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_mib(self) -> float:
        """Largest memory in use since then; on a CPU that of the process since its start."""
        return torch.cuda.max_memory_allocated() / 2**20 if self.on_gpu else peak_memory()

    def autocast(self, precision: str) -> AbstractContextManager[None]:
        """The context of a precision; without the cache of weights, which a captured graph must not read."""
        if precision == "fp32":
            return nullcontext()
        return torch.autocast(torch.device(self.device).type, TYPES[precision], cache_enabled=False)


def attempt(case: Figures, work: Callable[..., Figures], *arguments: object) -> Figures:
    """The case with its figures, or with the traceback of what went wrong."""
    try:
        return case | work(*arguments)
    except Exception:  # whatever it is: the other cases can still be measured
        return case | {"error": traceback.format_exc()}


def difference(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference, as a fraction of the expected one's."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm().clamp(min=1e-30))


def differences(found: DetectorOutput, expected: DetectorOutput) -> dict[str, float]:
    """Of the logits and of the boxes."""
    return {"logits": difference(found.logits, expected.logits), "boxes": difference(found.boxes, expected.boxes)}
