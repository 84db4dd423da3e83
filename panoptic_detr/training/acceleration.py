"""Ways to make a model fit or go faster that do not change what it computes, or only its last digits."""

from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


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
