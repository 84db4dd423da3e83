"""One command for every job: `panoptic-detr <job> ...` is `python tools/<job>.py ...`.

panoptic-detr --help
panoptic-detr data scenes --help
"""

import ast
import contextlib
import difflib
import importlib
import importlib.metadata
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from panoptic_detr.errors import InputError

JOBS = (
    "train_detector",
    "train_masks",
    "train",
    "evaluate",
    "predict",
    "export",
    "visualize",
    "data",
    "configs",
    "convert_checkpoint",
    "hub",
    "benchmark",
    "demo",
)

OK, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

Main = Callable[[Sequence[str] | None], int | None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job named by the first argument with the rest of the arguments.

    Args:
        argv: the command line without the program's name; that of this process by default.

    Returns:
        What the job returned (0 for None), 1 where it failed on its input, 2 for a command line that cannot be run,
        130 after Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return OK if arguments else USAGE
    if arguments[0] == "--version":
        print(f"panoptic-detr {importlib.metadata.version('panoptic-detr')}")
        return OK
    job = arguments[0].replace("-", "_")
    problem = why_not(job)
    if problem:
        print(f"panoptic-detr: {problem}", file=sys.stderr)
        return USAGE
    # Broken pictures are named by our own errors. OpenCV reads this when it is imported; libpng's own lines stay.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    return run(lambda rest: _main_of(job)(rest), arguments[1:], f"panoptic-detr {job}")


def main_of_script(path: str) -> NoReturn:
    """Run the job that a script in `tools/` is called after."""
    sys.exit(main([Path(path).stem, *sys.argv[1:]]))


def run(job: Main, argv: Sequence[str] | None, name: str) -> int:
    """Call a job's `main`; an error about its input becomes one message instead of a traceback.

    Set PANOPTIC_DETR_TRACEBACK=1 to see where the error was raised.

    Args:
        job: a tool's `main`.
        argv: its arguments.
        name: how the message names the job.

    Returns:
        The exit status, as `main` documents it.
    """
    try:
        return job(argv) or OK
    except KeyboardInterrupt:
        print(f"{name}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (InputError, OSError) as error:  # any other is a fault of the program, and its traceback is wanted
        if os.environ.get("PANOPTIC_DETR_TRACEBACK", "0") not in ("", "0"):
            raise
        print(f"{name}: {error}", file=sys.stderr)
        return FAILED


def usage() -> str:
    """The help text: every job with the first line of its docstring."""
    width = max(map(len, JOBS))
    lines = [f"  {job:<{width}}  {summary(_script(job))}" for job in JOBS]
    return "\n".join(
        [
            "Panoptic segmentation with DETR, Deformable DETR and H-DETR.",
            "",
            "usage: panoptic-detr <job> [options]        panoptic-detr <job> --help",
            "",
            "jobs:",
            *lines,
            "",
            "`panoptic-detr --version` prints the version. Dashes and underscores in a job's name mean the same.",
        ]
    )


def summary(script: Path) -> str:
    """First line of a script's docstring, read without importing the script."""
    if not script.is_file():
        return "(not in this installation)"
    text = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def why_not(job: str) -> str | None:
    """Why a job cannot be run, with the way out; None if it can."""
    if job not in JOBS:
        near = difflib.get_close_matches(job, JOBS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"the jobs are {', '.join(JOBS)}."
        return f"there is no job '{job}'; {hint} `panoptic-detr --help` lists them all."
    if not _script(job).is_file():
        return f"the job '{job}' is not in this installation ({_script(job)} is missing); install panoptic-detr again."
    return None


def _main_of(job: str) -> Main:
    """A job's `main`; libraries are imported here, which takes seconds."""
    with _interrupts_end_at_once(f"panoptic-detr {job}"):
        main: Main = importlib.import_module(f"panoptic_detr.commands.{job}").main
    return main


@contextlib.contextmanager
def _interrupts_end_at_once(name: str) -> Iterator[None]:
    """Leave at Ctrl-C without an exception, of which libraries that are being imported make errors of their own."""

    def leave(*_: object) -> None:
        os.write(2, f"{name}: interrupted\n".encode())  # print may be at work when the signal comes
        os._exit(INTERRUPTED)  # nothing is under way yet

    python_handles = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not python_handles or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _script(job: str) -> Path:
    return Path(__file__).with_name(f"{job}.py")


if __name__ == "__main__":
    sys.exit(main())
