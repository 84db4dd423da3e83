"""AdamW with the papers' parameter groups, and the learning-rate schedule as a pure function of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from panoptic_detr.config.stages import OptimizerConfig
from panoptic_detr.errors import InputError

OFFSET_NAMES = ("sampling_offsets", "reference_points")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a learning rate.

    Attributes:
        name: `backbone`, `offsets` or `transformer and heads`.
        parameters: what is trained; frozen parameters are in no group.
        lr: learning rate before the schedule.
    """

    name: str
    parameters: list[nn.Parameter]
    lr: float

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
