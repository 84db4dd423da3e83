"""The folder of a run: who may have it, its checkpoints, and the record of how it was made."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.reading import save_config
from panoptic_detr.config.stages import DetectorStage, TrainConfig
from panoptic_detr.errors import CheckpointError, TrainingError
from panoptic_detr.files import check_path, locked_folder, remove_stale_temporaries, sync_folder
from panoptic_detr.weights import Checkpoint, load_checkpoint, save_checkpoint, write_atomically


class RunFiles:
    """Checkpoints in a run's folder.

    Args:
        folder: of the run.
        keep_last: how many checkpoints to keep; if more than one, each as `step_<n>.pt`, the newest also as `last.pt`.
    """

    def __init__(self, folder: Path, keep_last: int = 1) -> None:
        self.folder = folder
        self.keep_last = keep_last

    @property
    def last(self) -> Path:
        """The newest checkpoint, with everything that a resume needs."""
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best score, for use: without the training part."""
        return self.folder / "best.pt"

    def save_last(self, checkpoint: Checkpoint, step: int) -> None:
        """Write `last.pt`; there is a complete one at every moment. Older ones go when there are too many."""
        if self.keep_last == 1:
            save_checkpoint(self.last, checkpoint)
            return
        kept = save_checkpoint(self.folder / f"step_{step:08d}.pt", checkpoint)
        temporary = self.folder / ".last.pt.link"
        temporary.unlink(missing_ok=True)
        try:
            os.link(kept, temporary)
            os.replace(temporary, self.last)
            sync_folder(self.folder)
        except OSError:  # a file system without hard links
            save_checkpoint(self.last, checkpoint)
        for path in sorted(self.folder.glob("step_*.pt"))[: -self.keep_last]:
            path.unlink()

    def save_best(self, checkpoint: Checkpoint) -> None:
        """Write `best.pt`."""
        save_checkpoint(self.best, replace(checkpoint, training=None))

    def load_last(self) -> Checkpoint | None:
        """The checkpoint to go on from, if there is one.

        Raises:
            CheckpointError: the file is damaged.
        """
        if not self.last.exists():
            return None
        return load_checkpoint(self.last)


PACKAGES = ("panoptic-detr", "torch", "torchvision", "lightning-fabric", "numpy", "scipy", "opencv-python-headless")


def check_run_folder(train: TrainConfig, command: str) -> str:
    """Make sure that a run can have its folder; nothing is written yet.

    Args:
        train: settings.
        command: name of the tool.

    Returns:
        The command that goes on with the run.

    Raises:
        TrainingError: the folder cannot be written, or holds another run and `train.resume` is off, or one
            seed where there were several, or the reverse, or nothing to resume from.
    """
    folder = train.output
    check_path(folder)
    last, best = (os.path.exists(folder / name) for name in ("last.pt", "best.pt"))
    several = any(folder.glob("seed_*/last.pt"))
    if (last or best) if train.runs > 1 else several:
        held = "runs of several seeds" if several else "a run of one seed"
        raise TrainingError(
            f"{str(folder)!r} holds {held}, and train.runs is {train.runs}; "
            "name another folder (--train.output), or give train.runs as it was"
        )
    if (last or best) and not train.resume:
        raise TrainingError(
            f"{str(folder)!r} holds a run already; go on with it (--train.resume true), name another folder "
            f"(--train.output), or remove it"
        )
    if best and not last:
        raise TrainingError(
            f"{str(folder)!r} has no last.pt to go on from, but a best.pt, which a new run would overwrite; start one from its "
            f"weights (--model.weights {shlex.quote(str(folder / 'best.pt'))}) in another folder (--train.output)"
        )
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is not a folder"
        raise _unwritable(folder, f"{str(there)!r} {why}")
    return f"panoptic-detr {command} --config {shlex.quote(str(folder / 'config.yaml'))} --train.resume true"


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Keep other runs out of a folder for as long as this one lasts, however it ends; where the system has no locks, nothing.

    Raises:
        TrainingError: another run is at work there, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(folder, error.strerror or str(error)) from None
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_folder(folder))
        except BlockingIOError:
            raise TrainingError(
                f"another run is at work in {str(folder)!r}; wait for its end, or name another folder (--train.output)"
            ) from None
        yield


def write_record(stage: DetectorStage, categories: CategoryTable, first_step: int | None) -> None:
    """Write into the run's folder what the run is made with; what a killed run left half written is removed.

    Args:
        stage: settings, for `config.yaml`.
        categories: for `categories.json`.
        first_step: steps that are done already where a run is continued; None for a new one. `run.json` (command, versions,
            git state) gets one entry for each part of a run.

    Raises:
        TrainingError: the folder cannot be written.
    """
    folder = stage.train.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(folder)
        earlier = [] if first_step is None else _earlier_parts(folder)
        text = json.dumps({"parts": [*earlier, {"first_step": first_step or 0, **_record()}]}, indent=1)
        write_atomically(folder / "run.json", lambda stream: stream.write(text.encode()))
        categories.save(folder / "categories.json")
        save_config(stage, folder / "config.yaml")
    except (OSError, CheckpointError) as error:
        raise _unwritable(folder, getattr(error, "strerror", None) or str(error)) from None


def _unwritable(folder: Path, why: str) -> TrainingError:
    return TrainingError(f"the run's folder {str(folder)!r} cannot be written: {why}; name another (--train.output)")


def _earlier_parts(folder: Path) -> list[object]:
    try:
        return list(json.loads((folder / "run.json").read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError):
        return []


def _record() -> dict[str, object]:
    return {
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": {"commit": _git("rev-parse", "HEAD"), "changed files": _git("status", "--porcelain", "--untracked-files=no")},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says about the folder of this package; None if it is no checkout or there is no git."""
    try:
        found = subprocess.run(
            ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() if found.returncode == 0 else None
