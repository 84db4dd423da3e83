"""One function over many items on all cores, with a progress bar."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

import cv2
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
