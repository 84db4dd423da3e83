"""What a run says about itself before it starts: what trains at which rate, what is frozen, how long it is; and its record."""

import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.training.optimizer import ParameterGroup

PACKAGES = ("panoptic-detr", "torch", "torchvision", "lightning-fabric", "numpy", "scipy", "opencv-python-headless")


def print_groups(console: Console, model: nn.Module, groups: Sequence[ParameterGroup], lines: Sequence[str]) -> None:
    """Show which parameters train at which rate and which are frozen.

    Args:
        console: where to.
        model: the whole model.
        groups: what the optimizer trains.
        lines: facts about the run, one per line below the table.
    """
    table = Table(title="parameters", title_justify="left")
    for column, justify in (("group", "left"), ("values", "right"), ("learning rate", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for group in groups:
        table.add_row(group.name, f"{group.size:,}", f"{group.lr:.1e}")
    frozen = sum(parameter.numel() for parameter in model.parameters()) - sum(group.size for group in groups)
    if frozen:
        table.add_row("frozen", f"{frozen:,}", "-")
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def write_record(folder: Path, categories: CategoryTable) -> None:
    """Write what the run was made with: `run.json` (command, versions, git state) and the class table."""
    (folder / "run.json").write_text(json.dumps(_record(), indent=1), encoding="utf-8")
    categories.save(folder / "categories.json")


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
