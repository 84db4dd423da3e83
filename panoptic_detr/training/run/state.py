"""What a run needs besides the weights to go on exactly where it was: counters and the state of every random generator."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import Optimizer

from panoptic_detr.config.losses import LossConfig
from panoptic_detr.errors import CheckpointError
from panoptic_detr.training.optimizer import AveragedWeights
from panoptic_detr.training.processes import gather, spread_like, whole
from panoptic_detr.weights import Checkpoint

Values = dict[str, Any]  # by name, as they stand in the file


@dataclass
class RunState:
    """Counters of a run."""

    step: int = 0  # optimizer steps done
    epoch: int = 0  # the current pass over the data, from 0
    batch: int = 0  # batches of this pass that are done, per process
    best: float | None = None  # best score so far; None before the first evaluation
    evaluations_since_best: int = 0  # for early stopping
    skipped: int = 0  # steps skipped because of non-finite values
    evaluated: int = 0  # the step after which the model was last evaluated
    first_losses: list[float] = field(default_factory=list)  # of the first steps, to compare later ones with


@dataclass
class RunPart:
    """What a checkpoint holds besides the weights for a run to go on; plain values in the file."""

    state: RunState  # counters
    optimizer: Values  # its state dict, put together from all processes
    scaler: Values  # of the precision (loss scaling of fp16)
    random: list[Values]  # state of the generators of each process
    processes: int  # how many there were
    settings: Values  # the whole configuration
    ema: Values | None  # averages of the weights, where they are kept
    model: dict[str, Tensor] | None  # with averages, the weights that are trained: the checkpoint's own are then the averages

    def to_dict(self) -> Values:
        """Plain values, for the file."""
        return {**vars(self), "state": asdict(self.state)}

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> "RunPart":
        """The training part of a checkpoint.

        Raises:
            CheckpointError: there is none, or it lacks something.
        """
        where, values = repr(str(checkpoint.path or Path("checkpoint"))), checkpoint.training
        if values is None:
            raise CheckpointError(f"{where} has no training part to go on from; it was exported for use")
        try:
            settings: Values = dict(values["settings"])
            if "loss" in settings:  # earlier versions kept only those losses that someone had set
                settings["loss"] = {**vars(LossConfig()), **settings["loss"]}
            return cls(**{**values, "state": RunState(**values["state"]), "settings": settings})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{where} has a damaged training part ({error}); use an older checkpoint") from None


def capture_random_state() -> Values:
    """State of the generators of Python, NumPy and torch of this process, in values that a checkpoint may hold."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def restore_random_state(state: Values) -> None:
    """Put every generator back to a captured state."""
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def take_snapshot(
    fabric: Fabric,
    model: nn.Module,
    optimizer: Optimizer,
    ema: AveragedWeights | None,
    state: RunState,
    settings: Mapping[str, object],
) -> RunPart:
    """What the run needs to go on; every process must call it."""
    return RunPart(
        state=state,
        optimizer=whole(optimizer.state_dict()),
        scaler=fabric.strategy.precision.state_dict(),
        random=gather(fabric, capture_random_state()),
        processes=fabric.world_size,
        settings=dict(settings),
        ema=None if ema is None else ema.state_dict(),
        model=None if ema is None else {name: whole(value).detach().clone() for name, value in model.state_dict().items()},
    )


def restore_snapshot(
    checkpoint: Checkpoint, fabric: Fabric, model: nn.Module, optimizer: Optimizer, ema: AveragedWeights | None
) -> RunPart:
    """Put everything back, and return what was read.

    Raises:
        CheckpointError: the checkpoint was made for use, belongs to another model, or was written by more or fewer processes.
    """
    part, where = RunPart.of(checkpoint), repr(str(checkpoint.path or Path("checkpoint")))
    if part.processes != fabric.world_size:
        raise CheckpointError(
            f"{where} was written by {part.processes} processes and this run has {fabric.world_size}; an exact resume "
            "needs as many. Start a new run from its weights instead (--model.weights)"
        )
    live = model.state_dict()
    weights = {name: spread_like(value, live.get(name)) for name, value in (part.model or checkpoint.state_dict).items()}
    replace(checkpoint, state_dict=weights).load_into(model)
    sizes = [[len(group["params"]) for group in groups] for groups in (part.optimizer["param_groups"], optimizer.param_groups)]
    if sizes[0] != sizes[1]:
        raise CheckpointError(
            f"{where} trains groups of {sizes[0]} parameters and this run {sizes[1]}; a resume trains the same ones, so leave "
            "what freezes (optimizer.*_lr_scale, joint) as it was, or start a new run from its weights (--model.weights)"
        )
    rates = [(group["base_lr"], group["weight_decay"]) for group in optimizer.param_groups]
    optimizer.load_state_dict(_spread_optimizer(part.optimizer, optimizer))
    for group, (base_lr, weight_decay) in zip(optimizer.param_groups, rates, strict=True):
        group["base_lr"], group["weight_decay"] = base_lr, weight_decay  # today's settings win over the saved ones
    if part.scaler:  # a run in another precision had no loss scale; an empty one is refused
        fabric.strategy.precision.load_state_dict(part.scaler)
    if ema is not None and part.ema is not None:
        ema.load_state_dict(part.ema)
    elif ema is not None:
        ema.restart(model)  # switched on with this resume: it has averaged only the random weights from before loading
    restore_random_state(part.random[fabric.global_rank])
    return part


def _spread_optimizer(saved: Values, optimizer: Optimizer) -> Values:
    """The saved state, its tensors spread over the processes as the parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state = {
        index: {name: spread_like(value, parameters[index]) for name, value in values.items()}
        for index, values in saved["state"].items()
    }
    return {**saved, "state": state}


def changed_settings(before: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    """One sentence per setting that differs between the saved run and this one, but for those that may.

    A setting that only one of them has came or went with a version of the program, and means what it meant without.
    """
    lines = []
    for section in sorted(before.keys() & now.keys()):
        old, new = before[section], now[section]
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            names = sorted((old.keys() & new.keys()) - {"resume", "output"})
            lines += [f"{section}.{name}: {old[name]} -> {new[name]}" for name in names if old[name] != new[name]]
    return lines
