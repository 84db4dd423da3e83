"""What a run's folder says about how it was made: settings, command, versions, git state, classes."""

import json
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from panoptic_detr.categories import CategoryTable
from panoptic_detr.checkpoints import CheckpointError, remove_stale_temporaries, write_atomically
from panoptic_detr.config import DetectorStage, TrainConfig
from panoptic_detr.config_reading import save_config
from panoptic_detr.training.failures import TrainingError

PACKAGES = ("panoptic-detr", "torch", "torchvision", "lightning-fabric", "numpy", "scipy", "opencv-python-headless")


def check_run_folder(train: TrainConfig, command: str) -> str:
    """Make sure that a run can have its folder; nothing is written yet.

    Args:
        train: settings.
        command: name of the tool.

    Returns:
        The command that goes on with the run.

    Raises:
        TrainingError: the folder cannot be written, or holds another run and `train.resume` is off.
    """
    folder = train.output
    if (folder / "last.pt").exists() and not train.resume:
        raise TrainingError(
            f"{str(folder)!r} holds a run already; go on with it (--train.resume true), name another folder "
            f"(--train.output), or remove it"
        )
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        why = "is not writable" if there.is_dir() else "is not a folder"
        raise _unwritable(folder, f"{str(there)!r} {why}")
    return f"panoptic-detr {command} --config {shlex.quote(str(folder / 'config.yaml'))} --train.resume true"


def write_record(stage: DetectorStage, categories: CategoryTable, first_step: int) -> None:
    """Make the run's folder and write there what the run is made with; what a killed run left half written is removed.

    Args:
        stage: settings, for `config.yaml`.
        categories: for `categories.json`.
        first_step: steps that are done already. `run.json` (command, versions, git state) gets one entry for each part of a
            run that was continued.

    Raises:
        TrainingError: the folder cannot be written.
    """
    folder = stage.train.output
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_stale_temporaries(folder)
        save_config(stage, folder / "config.yaml")
        categories.save(folder / "categories.json")
        parts = [*(_earlier_parts(folder) if first_step else []), {"first_step": first_step, **_record()}]
        text = json.dumps({"parts": parts}, indent=1)
        write_atomically(folder / "run.json", lambda stream: stream.write(text.encode()))
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
