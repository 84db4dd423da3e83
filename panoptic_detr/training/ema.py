"""An exponential moving average of the weights."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from panoptic_detr.training.processes import local, spread_like, whole


class AveragedWeights:
    """Average of a model's trained weights and of its floating-point buffers over the steps; other buffers are copied.

    So the running statistics of batch normalisation belong to the averaged weights, and counters are the model's own.

    The average follows faster at first, with decay min(decay, (1 + n) / (10 + n)) in the n-th step, so that a short run is not
    dominated by its random start.

    Args:
        model: whose weights to average; frozen parameters stay as they are and are not stored twice.
        decay: weight of the past in one step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self._average = {name: value.detach().clone() for name, value in _moving(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the model's weights after a step."""
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        live = _moving(model)
        names = [name for name in self._average if self._average[name].is_floating_point()]
        torch._foreach_lerp_([local(self._average[name]) for name in names], [local(live[name]) for name in names], 1 - keep)
        for name in self._average.keys() - set(names):
            self._average[name].copy_(live[name])

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """The model with the averaged weights, inside the context only."""
        live = {name: value.detach().clone() for name, value in _moving(model).items()}
        _copy(self._average, model)
        try:
            yield
        finally:
            _copy(live, model)

    def restart(self, model: nn.Module) -> None:
        """Begin anew from the model's weights of now."""
        self.steps = 0
        self._average = {name: value.detach().clone() for name, value in _moving(model).items()}

    def state_dict(self) -> dict[str, Tensor | int]:
        """For checkpoints; every process must call it."""
        return {"steps": self.steps, **whole(self._average)}

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from a checkpoint."""
        self.steps = int(state["steps"])
        for name, value in self._average.items():
            value.copy_(spread_like(torch.as_tensor(state[name]), value))


def _moving(model: nn.Module) -> dict[str, Tensor]:
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    return trained | dict(model.named_buffers())


@torch.no_grad()
def _copy(values: Mapping[str, Tensor], model: nn.Module) -> None:
    live = _moving(model)
    for name, value in values.items():
        local(live[name]).copy_(local(value))
