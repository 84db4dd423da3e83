"""What a run tells while it trains: a live bar or lines, CSV logs, TensorBoard, diagnoses; the first process speaks for all."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

import numpy as np
import torch
from lightning_fabric import Fabric
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from panoptic_detr.config.stages import TrainConfig
from panoptic_detr.training.run.log import Averages, Board, CsvLog, Row, open_board, write_board, write_classes, write_pictures
from panoptic_detr.training.run.state import RunState
from panoptic_detr.training.watch.diagnosis import Diagnosis, shown_score

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

REFRESH_SECONDS = 0.25
LINE_SECONDS = 30.0
SMOOTHING = 0.95
LONG_WAIT = 0.2  # share of the time from which on waiting for data is worth advice
HIDDEN = ("gradient_norm", "confidence", "box_spread")  # logged, not shown


def rank_zero_console(fabric: Fabric) -> Console:
    """Where the first process speaks; the others are silent and show no bar."""
    if fabric.is_global_zero:
        return Console(stderr=True, markup=False)
    return Console(stderr=True, quiet=True, force_terminal=False, markup=False)


class TrainingProgress:
    """Bar with loss, smoothed terms, learning rate, pace, waiting for data, memory and time left; one context per run.

    Args:
        total_steps: of the run.
        console: where to write; stderr by default, so that stdout stays for results.
    """

    def __init__(self, total_steps: int, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, markup=False)
        self.total_steps = total_steps
        self._first = self._done = 0
        self._started = self._shown = time.perf_counter()
        self._smooth: dict[str, float] = {}
        self._bar = Progress(
            TextColumn("[bold]train"),
            BarColumn(None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            expand=True,
            auto_refresh=False,
        )
        self._task = self._bar.add_task("train", total=total_steps)
        self._status = Text("", style="dim")
        self._live = Live(console=self.console, auto_refresh=False, get_renderable=lambda: Group(self._bar, self._status))

    def start_from(self, step: int) -> None:
        """Say how many steps were done in an earlier part of the run."""
        self._first = self._done = step
        self._bar.update(self._task, completed=step)

    def __enter__(self) -> "TrainingProgress":
        self._started = self._shown = time.perf_counter()
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.console.is_terminal:
            self._live.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar off the terminal inside the context, so that another one may stand there."""
        if not self.console.is_terminal:
            yield
            return
        self._live.transient = True
        self._live.stop()
        try:
            yield
        finally:
            self._live.transient = False
            self._live.start(refresh=True)

    def update(self, step: int, losses: Mapping[str, float], facts: Mapping[str, str]) -> None:
        """Take in a step; draws at most four times a second.

        Args:
            step: steps done.
            losses: of this step, by name; those of earlier decoder layers are not shown.
            facts: more to show, ready as text.
        """
        self._done = step
        for name, value in losses.items():
            if "_layer" not in name and name not in HIDDEN and math.isfinite(value):
                self._smooth[name] = SMOOTHING * self._smooth.get(name, value) + (1 - SMOOTHING) * value
        now = time.perf_counter()
        if self.console.is_terminal and now - self._shown >= REFRESH_SECONDS:
            self._shown = now
            self._bar.update(self._task, completed=step)
            self._status.plain = self._line(facts)
            self._live.refresh()
        elif not self.console.is_terminal and (
            now - self._shown >= LINE_SECONDS or step in (self._first + 1, self.total_steps)
        ):
            self._shown = now
            self.console.print(f"step {step}/{self.total_steps}  {self._line(facts)}", highlight=False, soft_wrap=True)

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        self.console.print(text, highlight=False, soft_wrap=True)

    def _line(self, facts: Mapping[str, str]) -> str:
        pace = (time.perf_counter() - self._started) / max(self._done - self._first, 1)
        parts = [f"{name} {value:.3f}" for name, value in self._smooth.items()]
        parts += [f"{name} {value}" for name, value in facts.items()]
        return "  ".join([*parts, f"left {duration(pace * (self.total_steps - self._done))}"])


def duration(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"


class Pace:
    """Speed of a run: images per second and the share of the time that is spent waiting for data, smoothed and in all."""

    def __init__(self) -> None:
        self._seconds = self._wait = self._images = 0.0
        self._steps, self._all_seconds, self._all_wait = 0, 0.0, 0.0

    def add(self, seconds: float, waited: float, images: int) -> None:
        """Take in a step: seconds of work, seconds of waiting for data before it, images of all processes."""
        self._seconds = SMOOTHING * self._seconds + seconds + waited
        self._wait = SMOOTHING * self._wait + waited
        self._images = SMOOTHING * self._images + images
        self._steps += 1
        if self._steps > 1:  # before the first step the loader starts
            self._all_seconds += seconds + waited
            self._all_wait += waited

    def summary(self) -> str:
        """One line about all steps but the first, with advice if they waited long; empty if there were none."""
        if not self._all_seconds:
            return ""
        share = self._all_wait / self._all_seconds
        line = f"steps waited for data {share:.0%} of the time"
        return line if share <= LONG_WAIT else f"{line}: raise data.workers, or set data.cache if the images fit in memory"

    def facts(self, device: torch.device) -> dict[str, str]:
        """Ready to show."""
        if not self._seconds:
            return {}
        return {
            "img/s": f"{self._images / self._seconds:.1f}",
            "wait": f"{self._wait / self._seconds:.0%}",
            "mem": f"{peak_memory(device) / 2**30:.1f}G",
        }


def peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: of the device, or of this process on a CPU; 0 where the system does not tell (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if resource is None:
        return 0
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


class Scores(dict[str, float]):
    """Scores by name, the one that decides first, and the tables behind them.

    Args:
        scores: fractions.
        classes: a row of scores, counts and points lost for each class that occurs.
        lost: what PQ of all was lost to, by cause; fractions.
    """

    def __init__(
        self, scores: Mapping[str, float] | None = None, classes: Sequence[Row] = (), lost: Mapping[str, float] | None = None
    ) -> None:
        super().__init__(scores or {})
        self.classes, self.lost = classes, lost or {}


class Reporter:
    """The voice of a run. `open` comes first; use as a context, which shows the bar.

    Args:
        fabric: says which process this is, how many there are, and on what device.
        train: folder, pace of the log, whether TensorBoard is wanted.
        total_steps: of the run.
    """

    def __init__(self, fabric: Fabric, train: TrainConfig, total_steps: int) -> None:
        self.fabric, self.config, self.total_steps = fabric, train, total_steps
        self.progress = TrainingProgress(total_steps, rank_zero_console(fabric))
        self._averages, self._pace = Averages(), Pace()
        self._diagnosis: Diagnosis | None = None
        self._log: CsvLog | None = None
        self._scores: CsvLog | None = None
        self._classes: CsvLog | None = None
        self._board: Board | None = None
        self._told_of_loss = False

    def open(self, state: RunState) -> None:
        """Open the logs where a run with these counters goes on."""
        self.progress.start_from(state.step)
        if not self.fabric.is_global_zero:
            return
        self._diagnosis = Diagnosis(self.total_steps, state.first_losses)
        self._unless_disk_full(lambda: self._open_logs(state))

    def _open_logs(self, state: RunState) -> None:
        folder = self.config.output
        self._log = CsvLog(folder / "log.csv", state.step)
        self._scores = CsvLog(folder / "scores.csv", state.evaluated)
        self._classes = CsvLog(folder / "classes.csv", state.evaluated)
        if self.config.tensorboard:
            self._board = open_board(folder / "tensorboard", state.step)

    def __enter__(self) -> "Reporter":
        self.progress.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.progress.__exit__(None, None, None)

    def step(
        self, state: RunState, losses: Mapping[str, float], *, rate: float, images: int, seconds: float, waited: float
    ) -> None:
        """Show and log a step.

        Args:
            state: counters after the step.
            losses: of the step by name, gradient norm and vital signs among them.
            rate: learning rate of the heads.
            images: of the step, in this process.
            seconds: of work.
            waited: seconds of waiting for its data.
        """
        images *= self.fabric.world_size
        self._pace.add(seconds, waited, images)
        if self._diagnosis is None:
            return
        self.progress.update(state.step, losses, {"lr": f"{rate:.2e}", **self._pace.facts(self.fabric.device)})
        for diagnosis in self._diagnosis.note(state.step, losses):
            self.say(diagnosis)
        self._averages.add({**losses, "seconds": seconds + waited, "wait": waited, "images": images})
        if state.step % self.config.log_every == 0 or state.step == self.total_steps:
            means = self._averages.take()
            row = {"step": state.step, "epoch": state.epoch, "lr": rate, **means}
            row["wait_share"] = means["wait"] / max(means["seconds"], 1e-9)
            self._write_row(self._log, "train", row)

    def scores(self, state: RunState, scores: Mapping[str, float], improved: bool) -> None:
        """Show what an evaluation has found, in per cent, and log it, as fractions."""
        first = next(iter(scores))
        shown = "  ".join(f"{name} {shown_score(name, value)}" for name, value in scores.items())
        self.say(f"step {state.step}: {shown}{f'  (best {first} so far)' if improved else ''}")
        self._write_row(self._scores, "scores", {"step": state.step, **scores})

    def tables(self, state: RunState, scores: Scores) -> None:
        """Log what an evaluation has found of every class, and what PQ was lost to."""
        for row in scores.classes:
            self._write(self._classes, {"step": state.step, **row})
        self._unless_disk_full(lambda: write_classes(self._board, scores.classes, state.step))
        self._unless_disk_full(lambda: write_board(self._board, "points lost", {"step": state.step, **scores.lost}))

    @property
    def wants_pictures(self) -> bool:
        """Whether there is a place for pictures of samples."""
        return self._board is not None

    def pictures(self, state: RunState, pictures: Mapping[str, np.ndarray]) -> None:
        """Log pictures (H, W, 3) uint8 by name."""
        board = self._board
        if board is not None:
            self._unless_disk_full(lambda: write_pictures(board, pictures, state.step))

    def say(self, text: str) -> None:
        """One line for whoever watches."""
        if self.fabric.is_global_zero:
            self.progress.message(text)

    def close(self) -> None:
        """Say how long steps waited for data, and write what is still waiting to be written."""
        if summary := self._pace.summary():
            self.say(summary)
        if self._board is not None:
            self._unless_disk_full(self._board.close)

    def _write_row(self, log: CsvLog | None, group: str, row: Mapping[str, float]) -> None:
        self._write(log, row)
        self._unless_disk_full(lambda: write_board(self._board, group, row))

    def _write(self, log: CsvLog | None, row: Row) -> None:
        if log is not None:
            self._unless_disk_full(lambda: log.write(row))

    def _unless_disk_full(self, write: Callable[[], None]) -> None:
        """A log never ends a run: whether it goes on without room on the disk is decided by its checkpoints."""
        try:
            write()
        except OSError as error:
            if not self._told_of_loss:
                self.say(f"the log in {str(self.config.output)!r} cannot be written ({error.strerror}); rows will be missing")
            self._told_of_loss = True
