"""What a run needs besides the weights to go on exactly where it was: counters and the state of every random generator."""

import random
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass
class RunState:
    """Counters of a run.

    Attributes:
        step: optimizer steps done.
        epoch: the current pass over the data, from 0.
        batch: batches of this pass that are done, per process.
        best: best score so far; None before the first evaluation.
        evaluations_since_best: for early stopping.
        skipped: steps skipped because of non-finite values.
        evaluated: the step after which the model was last evaluated.
        first_losses: of the first steps, to compare later ones with.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    best: float | None = None
    evaluations_since_best: int = 0
    skipped: int = 0
    evaluated: int = 0
    first_losses: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def capture_random_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch of this process, in values that a checkpoint may hold."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() and torch.cuda.is_initialized() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put every generator back to a captured state."""
    version, values, gauss = state["python"]
    random.setstate((version, tuple(values), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
