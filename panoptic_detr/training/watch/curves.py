"""A picture of a run from its CSV files: losses, learning rate, scores."""

import csv
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

HIDDEN = ("step", "epoch", "lr", "seconds", "wait", "wait_share", "images", "gradient_norm", "confidence", "box_spread")


def draw_curves(folder: Path) -> Path | None:
    """Draw `curves.png` into a run's folder; None if nothing was logged."""
    log = _read(folder / "log.csv")
    if not log:
        return None
    scores = _read(folder / "scores.csv")
    figure = Figure(figsize=(15, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    for name in log:
        if name not in HIDDEN and "_layer" not in name:
            axes[0].plot(log["step"], log[name], label=name, linewidth=2 if name == "loss" else 1)
    axes[0].set(title="losses", yscale="log", xlabel="step")
    axes[0].legend(fontsize="x-small")
    axes[1].plot(log["step"], log["lr"])
    axes[1].set(title="learning rate", xlabel="step")
    for name in scores:
        if name != "step":
            axes[2].plot(scores["step"], scores[name], marker="o", label=name)
    axes[2].set(title="scores on the validation set", xlabel="step")
    if scores:
        axes[2].legend(fontsize="x-small")
    path = folder / "curves.png"
    figure.savefig(path, dpi=100)
    return path


def _read(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file; what was not logged in a row is NaN."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]} if rows else {}
