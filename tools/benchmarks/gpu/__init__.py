"""Everything about a GPU in one command: is it right, how fast is it, how much memory does it take.

    python -m tools.benchmarks gpu --minutes 8 --output gpu.json         # on a machine with a GPU
    python -m tools.benchmarks gpu --device cpu --tiny true              # the same logic anywhere, in miniature

The parts run one after the other, the most telling first, each in a process and within a time of its own: one
that fails, crashes the device's driver or hangs ends alone. After every case its figures, or its traceback, are in the file.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table

from panoptic_detr.files import write_whole
from tools.benchmarks.gpu.device import Job
from tools.benchmarks.gpu.parts import PARTS
from tools.benchmarks.measure import Figures, check_variants, machine

ROOT = Path(__file__).resolve().parents[3]
ENOUGH = 10.0  # seconds that must be left for another part
LAST_LINES = 30  # of what a part said on its way down


def run(
    *,
    minutes: float = 8.0,
    output: Path = Path("gpu.json"),
    parts: Sequence[str] = tuple(PARTS),
    device: str = "cuda",
    tiny: bool = False,
) -> Figures:
    """Check and measure the whole package on a GPU, part by part, within a given time.

    Args:
        minutes: for all parts together; what does not fit is named as not run.
        output: JSON file, complete after every part.
        parts: names of the parts to run, in order; by default all.
        device: "cuda", or "cpu" for the logic alone.
        tiny: small models and images.

    Returns:
        For each part its `state` ("done", "failed", "out of time" or "not run"), `seconds`, the `rows` that it got to, and
        of a failed part what it said last.
    """
    check_variants(parts, PARTS)
    end = time.monotonic() + 60 * minutes
    result: Figures = {"machine": machine(), "device": device, "tiny": tiny, "parts": {}}
    for name in parts:
        left = end - time.monotonic()
        limit = min(PARTS[name].seconds, left)
        enough = left >= min(ENOUGH, PARTS[name].seconds)
        result["parts"][name] = run_part(name, Job(device, tiny), limit) if enough else {"state": "not run", "rows": []}
        write_whole(output, json.dumps(result, indent=1).encode())
        print(f"{name}: {result['parts'][name]['state']}", file=sys.stderr, flush=True)
    return result


def run_part(name: str, job: Job, limit: float) -> Figures:
    """Run one part in a process of its own, for at most `limit` seconds, and collect what it wrote until then."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows, said = Path(folder) / "rows.jsonl", Path(folder) / "said.txt"
        with said.open("wb") as stream:
            process = subprocess.Popen(command(name, job, rows), stdout=stream, stderr=stream, start_new_session=True, cwd=ROOT)
            try:
                state = "done" if process.wait(limit) == 0 else "failed"
            except subprocess.TimeoutExpired:
                state = "out of time"
            finally:
                with contextlib.suppress(ProcessLookupError):  # and whatever it started, which may hang as well
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        lines = rows.read_text().splitlines() if rows.exists() else []
        figures: Figures = {"state": state, "seconds": time.monotonic() - started, "rows": [json.loads(row) for row in lines]}
        if state != "done":
            figures["said"] = said.read_text(errors="replace").splitlines()[-LAST_LINES:]
    return figures


def command(name: str, job: Job, rows: Path) -> list[str]:
    """The program of a part, which writes its rows to a file."""
    return [sys.executable, "-m", "tools.benchmarks.gpu", name, json.dumps(asdict(job)), str(rows)]


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people: what became of the parts, and a table for each."""
    view = Table("part", "state", "seconds", "cases", "failed cases", "said last", title="parts")
    for name, part in result["parts"].items():
        failed = sum("error" in row for row in part["rows"])
        said = " ".join(part.get("said", ())[-1:])
        view.add_row(name, part["state"], f"{part.get('seconds', 0):.0f}", str(len(part["rows"])), str(failed), said)
    return [view, *(_table(name, part) for name, part in result["parts"].items() if part["rows"])]


def _table(name: str, part: Figures) -> Table:
    rows = [_flat(row) for row in part["rows"]]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    view = Table(*columns, title=f"{name}: {part['state']}", title_justify="left")
    for row in rows:
        view.add_row(*(_short(row.get(column, "")) for column in columns))
    return view


def _flat(row: Figures) -> Figures:
    """Of an error its last line, which says what; of a group of figures each as a column."""
    flat: Figures = {}
    for name, value in row.items():
        if name == "error":
            flat[name] = value.strip().splitlines()[-1]
        elif isinstance(value, dict):
            flat |= {f"{name} {inner}": figure for inner, figure in value.items()}
        else:
            flat[name] = value
    return flat


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
