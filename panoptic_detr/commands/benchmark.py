"""Measure speed and memory by parts; the benchmarks lie in a checkout, not in the installed package.

panoptic-detr benchmark inference --masks [12] --variants "[plain, 'folded, channels-last, fused']"
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from panoptic_detr.commands.cli import run
from panoptic_detr.errors import InputError

CHECKOUT = Path(__file__).resolve().parents[2]


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m tools.benchmarks` of the checkout that this package lies in.

    Raises:
        InputError: the package was installed without its checkout.
    """
    if not (CHECKOUT / "tools" / "benchmarks" / "__main__.py").is_file():
        raise InputError(
            "the benchmarks are not part of the installed package; clone the repository, `pip install -e .` there, and call "
            "`panoptic-detr benchmark` or `python -m tools.benchmarks` again"
        )
    arguments = sys.argv[1:] if argv is None else argv
    path = os.pathsep.join(filter(None, (str(CHECKOUT), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "tools.benchmarks", *arguments]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=False).returncode


if __name__ == "__main__":
    sys.exit(run(main, None, "benchmark"))
