"""What a run tells while it trains: a bar or lines, CSV logs, TensorBoard, diagnoses; the first process speaks for all."""

from collections.abc import Callable, Mapping

import numpy as np
from lightning_fabric import Fabric

from panoptic_detr.config.stages import TrainConfig
from panoptic_detr.training.run.log import Averages, Board, CsvLog, open_board, write_board, write_pictures
from panoptic_detr.training.run.state import RunState
from panoptic_detr.training.watch.diagnosis import Diagnosis
from panoptic_detr.training.watch.progress import Pace, TrainingProgress, rank_zero_console


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
        """Show and log what an evaluation has found."""
        first = next(iter(scores))
        shown = "  ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.say(f"step {state.step}: {shown}{f'  (best {first} so far)' if improved else ''}")
        self._write_row(self._scores, "scores", {"step": state.step, **scores})

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
        if log is not None:
            self._unless_disk_full(lambda: log.write(row))
        self._unless_disk_full(lambda: write_board(self._board, group, row))

    def _unless_disk_full(self, write: Callable[[], None]) -> None:
        """A log never ends a run: whether it goes on without room on the disk is decided by its checkpoints."""
        try:
            write()
        except OSError as error:
            if not self._told_of_loss:
                self.say(f"the log in {str(self.config.output)!r} cannot be written ({error.strerror}); rows will be missing")
            self._told_of_loss = True
