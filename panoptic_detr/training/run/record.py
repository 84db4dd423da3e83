"""What a run's folder says about how it was made: settings, command, versions, git state, classes."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.reading import save_config
from panoptic_detr.config.stages import DetectorStage, TrainConfig
from panoptic_detr.errors import CheckpointError, TrainingError
from panoptic_detr.files import locked_folder, remove_stale_temporaries
from panoptic_detr.weights import write_atomically

PACKAGES = ("panoptic-detr", "torch", "torchvision", "lightning-fabric", "numpy", "scipy", "opencv-python-headless")


def check_run_folder(train: TrainConfig, command: str) -> str:
    """Make sure that a run can have its folder; nothing is written yet.

    Args:
        train: settings.
        command: name of the tool.

    Returns:
        The command that goes on with the run.

    Raises:
        TrainingError: the folder cannot be written, or holds another run and `train.resume` is off, or nothing to resume from.
    """
    folder = train.output
    last, best = (os.path.exists(folder / name) for name in ("last.pt", "best.pt"))
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


def _earlier_parts(folder: Path) -> list[Any]:
    try:
        return list(json.loads((folder / "run.json").read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError):
        return []


def _record() -> dict[str, Any]:
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
