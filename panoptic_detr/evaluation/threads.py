"""One function over many items in threads, with a progress bar.

Scoring spends its time in PNG decoding and NumPy, which run without the interpreter lock, so threads use all cores; they need
no copies, no start-up and no main guard in the caller's script.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from panoptic_detr.data.parallel import usable_cores

Item = TypeVar("Item")
Result = TypeVar("Result")


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
