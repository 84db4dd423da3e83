"""One function over many items on all cores, and processes that neither hang as they start nor outlive who started them.

Where there are several threads, processes are started by a server without those of communication or GPU libraries
(`forkserver`): forked off a training run's process, they could wait for ever for a lock of a thread that they do not have. A
script of one's own calls what starts processes under `if __name__ == "__main__":`, as Python asks for.
"""

import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any, TypeVar

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from panoptic_detr.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

FEW = 16  # items that are done before processes have started
MOST = 64  # workers of one job on a machine of few cores, whatever somebody asks for


def parallel_map(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    threads: bool = False,
    forks: bool = False,
    description: str = "",
    chunk: int | None = None,
) -> Iterator[Result]:
    """Yield `function(item)` for every item, in the order of the items.

    Args:
        function: for processes other than forks, picklable (a function of a module, or a `partial` of one); sent once.
        items: as many as wanted.
        workers: processes or threads; by default one per usable core, but no process for few items; 0 or 1 stays in the calling
            thread.
        threads: in threads instead of processes.
        forks: in forks of this process, which begin at once with all that it holds, where the system has them (Linux); for a
            function that calls nothing of what has threads of its own, such as PyTorch.
        description: text of the progress bar; no bar if empty.
        chunk: items sent to a process at once; by default about 1/16 of its share, at most 64.

    Raises:
        InputError: fewer workers than none.
        ChildProcessError: a process was ended from outside.
        Exception: whatever `function` raises for the first item that fails; items not yet begun are then dropped.
    """
    if workers is not None and workers < 0:
        raise InputError(f"workers must be 0 or more, but got {workers}; 0 works in the calling process")
    if workers is None:
        workers = usable_cores() if threads or len(items) > FEW else 1
    with (
        progress_bar(shown=bool(description)) as bar,
        _pool(function, bounded(min(workers, len(items))), threads=threads, forks=forks) as pool,
    ):
        task = bar.add_task(description, total=len(items))
        chunk = chunk or max(1, min(64, len(items) // (16 * max(1, workers))))
        results = map(function, items) if pool is None else pool.map(function if threads else _call, items, chunksize=chunk)
        try:
            for result in results:
                bar.advance(task)
                yield result
        except BrokenProcessPool:
            raise ChildProcessError(
                "a process that worked on a part was ended from outside, by the system perhaps because memory ran out; run it "
                "again, with fewer workers (--workers 1 needs no other process)"
            ) from None


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], *, threads: int, ahead: int
) -> Generator[Result, None, None]:
    """Yield `function(item)` in order, while threads already work on the next items: never more than `ahead` of them.

    Args:
        function: called in the threads.
        items: taken one by one, in the calling thread.
        threads: at least 1.
        ahead: results that may wait for whoever takes them, at least 1; this bounds the memory.

    Raises:
        Exception: whatever `function` raises, at its item; items not yet begun are then dropped.
    """
    coming, waiting = iter(items), deque[Future[Result]]()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="ahead")
    try:
        for item in coming:
            waiting.append(pool.submit(function, item))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def usable_cores() -> int:
    """Cores that this process may run on (a container or `taskset` may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def can_fork() -> bool:
    """Whether this process may have forks: on Linux, unless it is itself one of those that may have no children."""
    return sys.platform == "linux" and not multiprocessing.current_process().daemon


def bounded(workers: int) -> int:
    """So many workers, or the most that make sense: thousands would only take the memory of all others."""
    return min(workers, max(MOST, 4 * usable_cores()))


def process_context() -> BaseContext:
    """How processes are started now: forked off this one while it has one thread, off a server later.

    The server begins at once, with all that is loaded here of this project: a process then takes milliseconds instead of the
    seconds that it takes to import PyTorch.
    """
    if sys.platform == "win32":
        return multiprocessing.get_context("spawn")
    if sys.platform == "linux" and len(os.listdir("/proc/self/task")) == 1:
        return multiprocessing.get_context("fork")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] == "panoptic_detr"])
    try:
        forkserver.ensure_running()
    except ChildProcessError:  # this process was forked off one that has a server, and Python takes that for its own
        return multiprocessing.get_context("spawn")
    return context


def start_worker() -> None:
    """What a process does first: one thread, so that the processes do not fight for the cores, and an end with its parent's.

    Ctrl-C reaches whole process groups; the parent decides what becomes of its workers.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def progress_bar(*, shown: bool = True) -> Progress:
    """A bar with count and remaining time on the terminal's error stream; nothing where there is no terminal."""
    console = Console(stderr=True, markup=False)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    return Progress(TextColumn("{task.description}"), *columns, console=console, disable=not (shown and console.is_terminal))


@contextmanager
def speed_bar(description: str, total: int | None, *, done: int = 0, unit: str = "/s") -> Iterator[Callable[[], None]]:
    """A progress bar that says how fast it moves; what is given advances it by one."""
    with progress_bar() as bar:
        task = bar.add_task(description, total=total, completed=done)

        def advance() -> None:
            bar.advance(task)
            bar.update(task, description=f"{description}, {bar.tasks[0].speed or 0:.1f}{unit}")

        yield advance


def track(items: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    """The items, of which there are `total`, under a progress bar."""
    with progress_bar() as bar:
        yield from bar.track(items, total, description=description)


@contextmanager
def _pool(function: Callable[[Item], Result], workers: int, *, threads: bool, forks: bool) -> Iterator[Executor | None]:
    """Threads, or processes that hold the function; None for the calling thread."""
    if workers <= 1:
        yield None
        return
    pool: Executor
    if threads:
        pool = ThreadPoolExecutor(workers, thread_name_prefix="worker")
    else:
        context = (reporting_forks() if forks else None) or process_context()
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_with, initargs=(function,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_function: Callable[[Any], Any] | None = None  # what this process of a pool calls, each its own


def _start_with(function: Callable[[Any], Any]) -> None:
    global _function
    _function = function
    # A progress bar's own would wait for its lock, which a thread may hold that is not here.
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
    start_worker()


def _call(item: Any) -> Any:
    assert _function is not None
    return _function(item)


def _end_with_the_parent() -> None:
    """However it ends, SIGKILL included: the system closes its end of a pipe."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


PATIENCE = 10.0  # seconds for a process to come up, which takes milliseconds; doubled with each attempt
ATTEMPTS = 5


def reporting_forks() -> BaseContext | None:
    """How processes are started that begin at once with what this one holds: forks that report, on Linux; elsewhere None.

    A forked process can hang before its first line, where another thread of this one held a lock of the interpreter (CPython
    before 3.12). So every child reports, and one that does not is ended and forked again: a server would have to import
    PyTorch first, in each of the processes of a launcher.
    """
    return _ReportingContext() if sys.platform == "linux" else None


if sys.platform == "linux":
    from multiprocessing import popen_fork
    from multiprocessing.context import ForkContext, ForkProcess

    class _ReportingFork(popen_fork.Popen):
        def _launch(self, process_obj: "_ReportingProcess") -> None:
            for attempt in range(ATTEMPTS):
                reports, process_obj.reports_to = os.pipe()
                try:
                    with warnings.catch_warnings():  # Python 3.12 warns of what is looked after here
                        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
                        super()._launch(process_obj)  # type: ignore[misc]  # the child does not come back from here
                    os.close(process_obj.reports_to)
                    if wait([reports], PATIENCE * 2**attempt):
                        return
                finally:
                    os.close(reports)
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                self.finalizer()  # type: ignore[misc]
            raise OSError(
                f"{ATTEMPTS} processes in a row did not come up; workers (--workers, data.workers) of 0 or 1 need none"
            )

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
