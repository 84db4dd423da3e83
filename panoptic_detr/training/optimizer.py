"""How the weights change: AdamW with the papers' parameter groups, the schedule of its rates, and averages of the weights."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from panoptic_detr.config.stages import OptimizerConfig
from panoptic_detr.errors import InputError
from panoptic_detr.training.processes import local, spread_like, whole

OFFSET_NAMES = ("sampling_offsets", "reference_points")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate."""

    name: str  # `backbone`, `offsets` or `transformer and heads`
    parameters: list[nn.Parameter]  # what is trained; frozen parameters are in no group
    lr: float  # learning rate before the schedule

    @property
    def size(self) -> int:
        """Trained values."""
        return sum(parameter.numel() for parameter in self.parameters)


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[ParameterGroup]:
    """Split the trainable parameters: backbone (DETR paper, section 4), offsets (Deformable DETR, A.4), the rest.

    Raises:
        InputError: nothing is trainable.
    """
    rates = {
        "backbone": config.lr * config.backbone_lr_scale,
        "offsets": config.lr * config.offset_lr_scale,
        "transformer and heads": config.lr,
    }
    members: dict[str, list[nn.Parameter]] = {name: [] for name in rates}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            members[_group_of(name)].append(parameter)
    groups = [ParameterGroup(name, members[name], rate) for name, rate in rates.items() if members[name] and rate > 0]
    if not groups:
        raise InputError("nothing to train: every parameter is frozen or has learning rate 0")
    return groups


def freeze_groups_at_rest(model: nn.Module, config: OptimizerConfig) -> list[nn.Module]:
    """Freeze what the settings give a learning rate of zero, so that it costs no gradient.

    Returns:
        The largest modules that are at rest as a whole, for evaluation mode: batch statistics are not to move either.
    """
    at_rest = set()
    for name, parameter in model.named_parameters():
        scale = {"backbone": config.backbone_lr_scale, "offsets": config.offset_lr_scale}.get(_group_of(name), 1.0)
        if scale == 0:
            parameter.requires_grad_(False)
            at_rest.add(parameter)
    return _covered(model, at_rest)


def _covered(module: nn.Module, parameters: set[nn.Parameter]) -> list[nn.Module]:
    """The largest modules all of whose parameters, and there are some, are among these."""
    own = set(module.parameters())
    if own and own <= parameters:
        return [module]
    return [found for child in module.children() for found in _covered(child, parameters)] if own & parameters else []


def build_optimizer(
    groups: Sequence[ParameterGroup], config: OptimizerConfig, *, loss_scaling: bool = False
) -> torch.optim.AdamW:
    """AdamW over the groups; fused, which on CPUs is four to six times as fast as the loops, except with fp16 loss scaling.

    Args:
        groups: from `parameter_groups`.
        config: weight decay.
        loss_scaling: fp16 training, where gradients must be unscaled before they are clipped.
    """
    device = groups[0].parameters[0].device.type
    fused = not loss_scaling and device in ("cpu", "cuda")
    parts = [{"params": group.parameters, "lr": group.lr, "base_lr": group.lr} for group in groups]
    return torch.optim.AdamW(parts, weight_decay=config.weight_decay, fused=fused)


def rate_factor(step: int, total_steps: int, drop_unit: int, config: OptimizerConfig) -> float:
    """The schedule: what to multiply every learning rate with.

    Args:
        step: optimizer steps done, from 0.
        total_steps: of the run.
        drop_unit: steps per unit of `config.drop_at` (steps per epoch, or 1).
        config: schedule, warm-up and drops.
    """
    warmup_steps = round(config.warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if config.schedule == "step":
        return config.drop_factor ** sum(step >= drop * drop_unit for drop in config.drop_at)
    done = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its own rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def _group_of(parameter_name: str) -> str:
    parts = parameter_name.split(".")
    if "backbone" in parts:
        return "backbone"
    return "offsets" if any(part in OFFSET_NAMES for part in parts) else "transformer and heads"


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
