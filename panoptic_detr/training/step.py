"""One forward pass of training: model and criterion behind a single `forward`, what is frozen meanwhile, what saves memory."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from panoptic_detr.structures import Batch
from panoptic_detr.training.losses import Criterion, GlobalCounts, MaskCriterion
from panoptic_detr.training.watch.diagnosis import vital_signs


class Work:
    """A batch and the counts that its losses are divided by.

    Not a dataclass on purpose: Fabric casts and copies the tensors of dataclasses that enter a forward pass, and boxes in
    bfloat16 are off by pixels.
    """

    def __init__(self, batch: Batch, counts: GlobalCounts) -> None:
        self.batch = batch
        self.counts = counts


class TrainingStep(nn.Module):
    """Losses of a batch: of a detector or a panoptic model, by its criterion."""

    def __init__(self, model: nn.Module, criterion: Criterion | MaskCriterion) -> None:
        super().__init__()
        self.model = model
        self.criterion = criterion

    def forward(self, work: Work) -> dict[str, Tensor]:
        """Losses by name, `loss` being the weighted total to call `backward` on, and vital signs of the detector."""
        output = self.model(work.batch.images, work.batch.padding_mask)
        losses = self.criterion(output, work.batch.targets, work.counts)
        return {"loss": losses.total, **{name: value.detach() for name, value in losses.terms.items()}, **vital_signs(output)}


def freeze(modules: Sequence[nn.Module]) -> None:
    """Take modules out of training: no gradients (see `set_train_mode` for the rest)."""
    for module in modules:
        module.requires_grad_(False)


def remember_statistics(model: nn.Module) -> Callable[[], None]:
    """Keep the batch statistics that a forward pass moves, before it does.

    Returns:
        What puts them back, for a step that is left out.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    kept = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]

    def put_back() -> None:
        for buffer, value in kept:
            buffer.copy_(value)

    return put_back


def set_train_mode(model: nn.Module, frozen: Sequence[nn.Module] = ()) -> None:
    """Put a model in training mode, but its frozen parts in evaluation mode: no dropout, no new batch statistics."""
    model.train()
    for module in frozen:
        module.eval()


def recompute_layers(model: nn.Module) -> int:
    """Recompute encoder and decoder layers in the backward pass instead of keeping their activations.

    Returns:
        How many layers were found.
    """
    layers = transformer_layers(model)
    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    return len(layers)


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """Encoder and decoder layers of the detector inside."""
    return [layer for name, layer in model.named_modules() if _is_layer(name)]


def use_channels_last(model: nn.Module) -> None:
    """Keep convolution weights in channels-last order."""
    model.to(memory_format=torch.channels_last)


def _is_layer(name: str) -> bool:
    parts = name.split(".")
    return len(parts) >= 3 and parts[-3] in ("encoder", "decoder") and parts[-2] == "layers" and parts[-1].isdigit()
