"""Many pictures through one model: reading, the model and writing at the same time, with a few pictures in memory.

Threads read and decode ahead; the calling thread runs the model; other threads draw, compress and write what is done. OpenCV
and PyTorch leave Python's lock while they work, so on a machine with free cores the model does not wait for either side.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from operator import methodcaller
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import torch

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import PictureError
from panoptic_detr.inference.files import PictureFile
from panoptic_detr.inference.rasters import Raster
from panoptic_detr.inference.stream import Failure, PredictionFolder
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import map_ahead, usable_cores

Picture: TypeAlias = np.ndarray | Raster
Got = TypeVar("Got")
Watch: TypeAlias = Callable[[PictureFile, PanopticSegmentation | None], object]
_WINDOW = 4  # batches given to the model at once: among so many pictures, those of one size share a batch


class PictureModel(Protocol):
    """What predicts pictures: a `Predictor`, or anything that is called as one."""

    categories: CategoryTable
    batch_size: int

    def __call__(self, images: list[Any], /) -> list[PanopticSegmentation]:
        """The maps of a list of (H, W, 3) uint8 RGB pictures."""


@dataclass
class Outcome:
    """What a run over many pictures has to tell.

    Attributes:
        failed: pictures that could not be predicted, and why.
        done: pictures that were predicted.
        seconds: from the first picture to the last file.
        waiting: of these, what the model waited for pictures to be read or written.
        best_below: the best score of a query that was below its threshold.
    """

    failed: list[Failure] = field(default_factory=list)
    done: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    best_below: float = 0.0

    @property
    def wait_share(self) -> float:
        """Part of the time in which the model waited, 0..1."""
        return self.waiting / self.seconds if self.seconds else 0.0

    def summary(self, folder: PredictionFolder) -> str:
        """What was found and where it lies, in sentences."""
        found, categories = folder.found, folder.categories.by_id
        listed = ", ".join(f"{count} {categories[category_id].name}" for category_id, count in found.most_common(8))
        lines = [f"pictures: {len(folder)}, segments: {found.total()} ({listed or 'none'}), seconds: {self.seconds:.1f}"]
        if self.done:
            speed, waited = self.done / self.seconds, self.wait_share
            lines.append(f"{speed:.1f} pictures per second; for reading and writing the model waited {waited:.0%} of the time")
        more = f"{', overlays/' if folder.overlays else ''}{', tiff/' if folder.tiffs else ''}"
        lines.append(f"written to {folder.folder}: predictions.json, panoptic/{more}")
        if not found:
            score = f"the best score below it was {self.best_below:.2f}"
            lines.append(f"no query passed the threshold; {score}: try a lower --threshold")
        return "\n".join(lines)

    @classmethod
    def joined(cls, outcomes: "Sequence[Outcome]", files: Iterable[PictureFile] | None = None) -> "Outcome":
        """What several processes have to tell that worked at the same time; failures in the order of the pictures."""
        failed = {(failure.path, failure.image_id): failure for outcome in outcomes for failure in outcome.failed}
        keys = failed if files is None or not failed else ((Failure.of(file, "").path, file.image_id) for file in files)
        return cls(
            [failed[key] for key in keys if key in failed],
            sum(outcome.done for outcome in outcomes),
            max(outcome.seconds for outcome in outcomes),
            max(outcome.waiting for outcome in outcomes),
            max(outcome.best_below for outcome in outcomes),
        )


def nothing_read(what: str, failed: Iterable[Failure]) -> PictureError:
    """The error where nothing can be predicted: none of the pictures, or none of the films."""
    return PictureError("\n".join([f"none of the {what} could be read:", *(f"  {failure}" for failure in failed)]))


def predict_files(
    model: PictureModel,
    files: Iterable[PictureFile],
    folder: PredictionFolder,
    *,
    requests: Sequence[int] = (),
    watch: Watch | None = None,
    read: Callable[[PictureFile], Picture] = methodcaller("read"),
    threads: int | None = None,
) -> Outcome:
    """Predict pictures and write what is found into a folder.

    In memory are at most two windows of pictures (a window is what the model gets at once) and as many as there are threads,
    before the model and after it.

    Args:
        model: what predicts.
        files: the pictures; those that the folder has already are passed over.
        folder: where the results go.
        requests: once something is in it (put there by a signal, say), the run ends after the pictures at hand.
        watch: called with each picture and its map, or None where it failed; in the calling thread, in order.
        read: how a picture is read, such that the model takes it; in the threads.
        threads: for reading, and as many again for writing; by default one per usable core, at most 16.

    Returns:
        What failed, and how long things took.
    """
    threads = threads or min(16, usable_cores())
    outcome, window = Outcome(), model.batch_size * (1 if model.batch_size == 1 else _WINDOW)
    missing = (file for file in files if file not in folder)
    started = time.perf_counter()
    coming = map_ahead(partial(read_or_reason, read), missing, threads=threads, ahead=window + threads)
    with closing(coming), Writers(folder.add, threads, most=window + threads) as writers:
        while not requests:
            before = time.perf_counter()
            chunk = list(islice(coming, window))
            outcome.waiting += time.perf_counter() - before
            if not chunk:
                break
            for file, picture, result in predict_chunk(model, chunk):
                if isinstance(result, PanopticSegmentation):
                    outcome.waiting += writers.add(file, picture, result)
                    outcome.done += 1
                    low = (dropped.score for dropped in result.dropped if dropped.reason == "low score")
                    outcome.best_below = max(outcome.best_below, *low, 0.0)
                else:
                    outcome.failed.append(Failure.of(file, result))
                if watch is not None:
                    watch(file, result if isinstance(result, PanopticSegmentation) else None)
        outcome.waiting += writers.wait()
    outcome.seconds = time.perf_counter() - started
    return outcome


class Writers:
    """Threads that write what is done; `most` pieces of work may wait, then whoever adds another waits too."""

    def __init__(self, write: Callable[..., None], threads: int, *, most: int) -> None:
        self._write, self._most = write, most
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="writing")
        self._waiting: deque[Future[None]] = deque()

    def __enter__(self) -> "Writers":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def add(self, *work: object) -> float:
        """Hand over what `write` takes; returns the seconds for which there was no room for it. Raises what writing raised."""
        self._waiting.append(self._pool.submit(self._write, *work))
        return self.wait(self._most)

    def wait(self, room: int = 0) -> float:
        """Wait until no more than so many are under way; returns the seconds."""
        before = time.perf_counter()
        while len(self._waiting) > room:
            self._waiting.popleft().result()
        return time.perf_counter() - before


def predict_chunk(
    model: PictureModel, chunk: Sequence[tuple[PictureFile, Picture | str]]
) -> Iterator[tuple[PictureFile, Picture, PanopticSegmentation | str]]:
    """Each picture of a chunk with its map, or with the reason why it has none; in order."""
    pictures = [picture for _, picture in chunk if not isinstance(picture, str)]
    maps = iter(_maps(model, pictures))
    for file, picture in chunk:
        yield (file, np.zeros(0), picture) if isinstance(picture, str) else (file, picture, next(maps))


def _maps(model: PictureModel, pictures: list[Picture]) -> Sequence[PanopticSegmentation | str]:
    """The maps, one by one where the pictures do not fit the memory together; a reason for each that never does."""
    if not pictures:
        return []
    try:
        return model(pictures)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    if len(pictures) > 1:
        return [result for picture in pictures for result in _maps(model, [picture])]
    return ["too large for the memory; give a smaller copy, --inference.short_side or --tile"]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; on a CPU torch has no type of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def read_or_reason(read: Callable[[PictureFile], Got], file: PictureFile) -> tuple[PictureFile, Got | str]:
    """The picture, or the reason why there is none: it cannot be read, or its name cannot be written down."""
    try:
        str(file.path).encode()
        return file, read(file)
    except PictureError as error:
        return file, str(error).removeprefix(f"{file.path}: ")
    except UnicodeEncodeError:
        return file, "the name is not UTF-8; rename the file"
    except MemoryError:
        return file, "too large for the memory; give a smaller copy"
