"""Which learning rate: raise it step by step and look at the loss (Smith 2017, "Cyclical learning rates", section 3.3)."""

import csv
import io
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from panoptic_detr.errors import TrainingError
from panoptic_detr.files import write_whole
from panoptic_detr.training.optimizer import set_rates
from panoptic_detr.training.step import set_train_mode
from panoptic_detr.training.trainer import Trainer

LOWEST, HIGHEST = 1e-3, 1e2  # times the rates of the settings
SMOOTHING = 0.9
DIVERGED = 2.0  # times the lowest smoothed loss
BELOW_LOWEST = 10.0  # the rate of the lowest loss is nearly too high; a tenth of it is a good one


@dataclass(frozen=True)
class RangeTest:
    """The losses of a rising learning rate.

    Attributes:
        rates: of transformer and heads, rising.
        losses: of each step.
        smoothed: their moving average.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]

    @property
    def suggestion(self) -> float:
        """A tenth of the rate at which the smoothed loss is lowest."""
        return self.rates[int(np.argmin(self.smoothed))] / BELOW_LOWEST

    def draw(self, path: Path, used: float) -> None:
        """Draw the losses over the rates, the suggestion, and the rate of the settings."""
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color="0.8", label="loss of a step")
        axes.plot(self.rates, self.smoothed, label="smoothed")
        axes.axvline(self.suggestion, color="tab:green", label=f"suggestion {self.suggestion:.1e}")
        axes.axvline(used, color="tab:gray", linestyle=":", label=f"optimizer.lr {used:.1e}")
        low, high = min(self.smoothed), max(self.smoothed)
        axes.set(
            xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - 0.1 * (high - low), high + 0.1 * (high - low))
        )
        axes.legend()
        figure.savefig(path, dpi=100)

    def write(self, path: Path) -> None:
        """Write rates and losses as CSV."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(("lr", "loss", "smoothed"))
        writer.writerows(zip(self.rates, self.losses, self.smoothed, strict=True))
        write_whole(path, text.getvalue().encode())


def range_test(trainer: Trainer, steps: int) -> RangeTest:
    """Train with a rate that rises from step to step, until the loss explodes; the trainer is of no more use afterwards.

    Args:
        trainer: before its first step.
        steps: from a thousandth to a hundred times the rates of the settings.

    Raises:
        TrainingError: the loss is not finite from the start.
    """
    set_train_mode(trainer.model, trainer.frozen)
    factors, losses = np.geomspace(LOWEST, HIGHEST, steps).tolist(), list[float]()
    for factor, group in zip(factors, trainer.batches(), strict=False):
        set_rates(trainer.optimizer, factor)
        values = trainer.try_step(group)
        if not all(math.isfinite(values[name]) for name in ("loss", "gradient_norm")):
            break
        losses.append(values["loss"])
        smoothed = smooth(losses)
        if len(losses) > steps // 10 and smoothed[-1] > DIVERGED * min(smoothed):
            break
    if len(losses) < 2:
        raise TrainingError(
            "the loss is not finite at a thousandth of optimizer.lr, so no learning rate helps; look at the data"
        )
    rates = [trainer.rates.lr * factor for factor in itertools.islice(factors, len(losses))]
    return RangeTest(rates, losses, smooth(losses))


def smooth(values: Sequence[float]) -> list[float]:
    """Exponential moving average, without the pull of its start (Kingma and Ba 2015, section 3)."""
    average, smoothed = 0.0, []
    for count, value in enumerate(values, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * value
        smoothed.append(average / (1 - SMOOTHING**count))
    return smoothed
