"""One function over many items on all cores, with a progress bar."""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    description: str = "",
    chunk: int | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items.

    Args:
        function: picklable (a function of a module, or a `partial` of one).
        items: as many as wanted.
        workers: processes; by default one per usable core; 0 or 1 stays in this process.
        description: text of the progress bar; no bar if empty.
        chunk: items sent to a process at once; by default about 1/16 of its share, at most 64.

    Raises:
        Exception: whatever `function` raises, as it was raised; later items are then not worked on.
    """
    workers = min(usable_cores() if workers is None else workers, len(items))
    with _bar(shown=bool(description)) as bar:
        task = bar.add_task(description, total=len(items))
        for result in _results(function, items, workers, chunk):
            bar.advance(task)
            yield result


def usable_cores() -> int:
    """Cores that this process may run on (a container or `taskset` may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _results(function: Callable[[Item], Result], items: Sequence[Item], workers: int, chunk: int | None) -> Iterator[Result]:
    if workers <= 1:
        yield from map(function, items)
        return
    # Forking starts at once and needs no main guard in the caller's script; the work is numpy and OpenCV only.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    chunk = chunk or max(1, min(64, len(items) // (16 * workers)))
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    try:
        yield from pool.map(function, items, chunksize=chunk)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    """One thread per process, so that the processes do not fight for the cores."""
    cv2.setNumThreads(0)


def _bar(*, shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        disable=not shown,
    )


PATIENCE = 10.0  # seconds for a process to come up, which takes milliseconds; doubled with each attempt
ATTEMPTS = 5


def loader_context() -> BaseContext | None:
    """How a loader starts its processes: forks that report, on Linux; None for PyTorch's own way."""
    return _ReportingContext() if sys.platform == "linux" else None


if sys.platform == "linux":
    from multiprocessing import popen_fork
    from multiprocessing.context import ForkContext, ForkProcess

    class _ReportingFork(popen_fork.Popen):
        def _launch(self, process_obj: "_ReportingProcess") -> None:
            for attempt in range(ATTEMPTS):
                reports, process_obj.reports_to = os.pipe()
                try:
                    super()._launch(process_obj)  # type: ignore[misc]  # the child does not come back from here
                    os.close(process_obj.reports_to)
                    if wait([reports], PATIENCE * 2**attempt):
                        return
                finally:
                    os.close(reports)
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.finalizer()  # type: ignore[misc]
            raise OSError(f"{ATTEMPTS} loader processes in a row did not come up; data.workers 0 reads without them")

    class _ReportingProcess(ForkProcess):
        reports_to: int

        @staticmethod
        def _Popen(process_obj: Any) -> popen_fork.Popen:  # noqa: N802 - multiprocessing's name
            return _ReportingFork(process_obj)

        def _bootstrap(self, parent_sentinel: int | None = None) -> int:
            os.close(self.reports_to)  # the parent sees the end of the pipe
            return super()._bootstrap(parent_sentinel)  # type: ignore[misc]

    class _ReportingContext(ForkContext):
        Process = _ReportingProcess


def map_in_threads(function: Callable[[Item], Result], items: Sequence[Item], workers: int | None) -> Iterator[Result]:
    """Yield `function(item)` in the order of the items.

    Args:
        function: does the work of one item.
        items: as many as wanted.
        workers: threads; by default one per usable core; 1 stays in the calling thread.

    Raises:
        Exception: whatever `function` raises for the first item that fails; items not yet begun are then dropped.
    """
    workers = usable_cores() if workers is None else workers
    if workers <= 1 or len(items) <= 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="scoring")
    try:
        yield from pool.map(function, items)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def progress_bar(*, shown: bool = True) -> Progress:
    """A bar with count and remaining time on the terminal's error stream; nothing where there is no terminal."""
    console = Console(stderr=True, markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=console, disable=not (shown and console.is_terminal))
