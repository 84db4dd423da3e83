"""The log of a run as CSV, for TensorBoard where that is installed, and as a picture of its curves."""

import csv
import importlib.util
import io
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from matplotlib import color_sequences
from matplotlib.figure import Figure

from panoptic_detr.files import write_whole
from panoptic_detr.training.watch.diagnosis import VAL_LOSS, learning_verdict

Row = Mapping[str, object]  # numbers, names of classes


class CsvLog:
    """Rows of values by name, appended and flushed one at a time.

    Args:
        path: the file; rows of an earlier part of the same run are kept up to `resume_step`.
        resume_step: rows after this step belong to steps that are done again, and are removed. 0 starts a new file.
    """

    def __init__(self, path: Path, resume_step: int = 0) -> None:
        self.path = path
        self.columns: list[str] = []
        kept = self._rows_up_to(resume_step) if resume_step and path.is_file() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        if kept:
            self._rewrite(list(kept[0]), kept)
        else:
            path.unlink(missing_ok=True)

    def write(self, row: Row) -> None:
        """Append a row; a name that is new becomes a column."""
        new = [name for name in row if name not in self.columns]
        if new:
            self._rewrite([*self.columns, *new], self._read() if self.columns else [])
        size = self.path.stat().st_size
        try:
            with open(self.path, "a", newline="", encoding="utf-8") as stream:
                csv.writer(stream).writerow([_text(row[name]) if name in row else "" for name in self.columns])
        except OSError:
            os.truncate(self.path, size)  # half a row would spoil the next one
            raise

    def _rewrite(self, columns: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(columns)
        writer.writerows([row.get(name, "") for name in columns] for row in rows)
        write_whole(self.path, text.getvalue().encode())  # a run that is killed here keeps its log
        self.columns = list(columns)

    def _read(self) -> list[dict[str, str]]:
        with open(self.path, newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    def _rows_up_to(self, step: int) -> list[dict[str, str]]:
        """Complete rows; the last line may have been cut short by a kill."""
        rows = [row for row in self._read() if None not in row.values() and row.get("step", "").isdigit()]
        return [row for row in rows if int(row["step"]) <= step]


class Averages:
    """Means of the values added since the last `take`."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Add one step's values."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, and start again."""
        means = {name: value / self._counts[name] for name, value in self._sums.items()}
        self._sums, self._counts = {}, {}
        return means


class Board(Protocol):
    """What is used of TensorBoard's `SummaryWriter`."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Add one number to one curve."""

    def add_image(self, tag: str, img_tensor: np.ndarray, global_step: int, *, dataformats: str) -> None:
        """Add one picture to one series."""

    def close(self) -> None:
        """Write what is still waiting to be written."""


def open_board(folder: Path, resume_step: int) -> Board | None:
    """A TensorBoard writer that hides what an earlier part of the run wrote after `resume_step`; None if not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=resume_step + 1 if resume_step else None)


def write_board(board: Board | None, group: str, row: Mapping[str, float]) -> None:
    """Add a row of the CSV log to the curves of a group."""
    if board is None:
        return
    for name, value in row.items():
        if name != "step" and not math.isnan(value):
            board.add_scalar(f"{group}/{name.replace(' ', '_')}", value, int(row["step"]))


def write_classes(board: Board | None, rows: Sequence[Row], step: int) -> None:
    """Add PQ, SQ and RQ of every class to curves of its own."""
    if board is None:
        return
    for row in rows:
        for score in ("pq", "sq", "rq"):
            board.add_scalar(f"{score.upper()} of classes/{row['name']}", float(str(row[score])), step)


def write_pictures(board: Board, pictures: Mapping[str, np.ndarray], step: int) -> None:
    """Add (H, W, 3) uint8 RGB pictures, each to the series of its name."""
    for name, picture in pictures.items():
        board.add_image(f"samples/{name}", picture, step, dataformats="HWC")


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else "" if value is None else str(value)


TITLES = {"over": "overfitting", "gap": "a wide gap", "under": "underfitting"}
HIDDEN = ("step", "epoch", "lr", "seconds", "wait", "wait_share", "images", "gradient_norm", "confidence", "box_spread")


def draw_curves(folder: Path) -> Path | None:
    """Draw `curves.png` into a run's folder; None if nothing was logged."""
    log = read_log(folder / "log.csv")
    if not log:
        return None
    scores = read_log(folder / "scores.csv")
    figure = Figure(figsize=(17, 4), layout="constrained")
    axes = figure.subplots(1, 3)
    axes[0].set_prop_cycle(color=color_sequences["tab20"])  # ten colours are fewer than some models have losses
    beside = {"fontsize": "x-small", "loc": "center left", "bbox_to_anchor": (1, 0.5)}  # a legend inside would hide curves
    shown = [name for name in log if name not in HIDDEN and "_layer" not in name]
    for name in shown:
        axes[0].plot(log["step"], log[name], label=name, linewidth=2 if name == "loss" else 1)
    if VAL_LOSS in scores:
        axes[0].plot(scores["step"], scores[VAL_LOSS], "k--o", markersize=3, label=VAL_LOSS)
    positive = any(np.nanmax(log[name], initial=0) > 0 for name in shown)
    axes[0].set(title="losses", yscale="log" if positive else "linear", xlabel="step")
    axes[0].legend(**beside)
    axes[1].plot(log["step"], log["lr"])
    axes[1].set(title="learning rate", xlabel="step")
    for name in scores:
        if name not in ("step", VAL_LOSS):
            axes[2].plot(scores["step"], 100 * scores[name], marker="o", label=name)
    axes[2].set(title="scores on the validation set (%)", xlabel="step")
    kind, _ = learning_verdict(loss_curve(folder))
    if kind in TITLES:
        axes[0].set(title=f"losses: {TITLES[kind]}")
    if scores.keys() - {"step", VAL_LOSS}:
        axes[2].legend(**beside)
    path = folder / "curves.png"
    figure.savefig(path, dpi=100)
    return path


def loss_curve(folder: Path) -> list[tuple[int, float, float]]:
    """What `learning_verdict` reads: step, mean training loss since the evaluation before, and validation loss of each."""
    log, scores = read_log(folder / "log.csv"), read_log(folder / "scores.csv")
    if "loss" not in log or VAL_LOSS not in scores:
        return []
    rows, before = [], 0.0
    for step, val in zip(scores["step"], scores[VAL_LOSS], strict=True):
        between = log["loss"][(log["step"] > before) & (log["step"] <= step)]
        rows.append((int(step), float(between.mean()) if len(between) else math.nan, float(val)))
        before = step
    return rows


def read_log(path: Path) -> dict[str, np.ndarray]:
    """Columns of a CSV file; what was not logged in a row is NaN."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]} if rows else {}
