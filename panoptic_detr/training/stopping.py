"""What ends a run before its last step: a signal, a loader process that died, numbers that are not finite.

A signal only raises a flag: `Trainer` finishes its step, saves, and says how to go on.
"""

import math
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType

import torch

from panoptic_detr.errors import CheckpointError, TrainingError
from panoptic_detr.structures import Batch
from panoptic_detr.weights import write_atomically

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], None]


class StopRequest:
    """Inside this context SIGINT, SIGTERM and SIGHUP only raise a flag, so that the step at hand can be finished and saved.

    A second signal interrupts at once. SIGHUP is what a lost connection or a closed terminal sends; `nohup` ignores it.
    """

    def __init__(self) -> None:
        self.received: str | None = None
        self._handling = ExitStack()

    def __enter__(self) -> "StopRequest":
        self._handling.enter_context(_handled_by(self._note))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handling.close()

    def __bool__(self) -> bool:
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Inside this context SIGTERM and SIGHUP end the work at once, as Ctrl-C does: a KeyboardInterrupt that names the signal.

    A `StopRequest` inside has its own way: that of a training, which finishes its step.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    with _handled_by(interrupt):
        yield


@contextmanager
def _handled_by(handler: Handler) -> Iterator[None]:
    """Send the signals that ask for an end to a handler; nowhere in other threads than the first, which cannot do that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def handle(number: int, frame: FrameType | None) -> None:
        if signal.Signals(number).name == "SIGHUP":  # the terminal is gone, and whoever writes to it gets an error
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in terminals:
                os.dup2(nowhere, terminal)
            os.close(nowhere)
        handler(number, frame)

    ignored = {number for number in SIGNALS[2:] if signal.getsignal(number) is signal.SIG_IGN}
    previous = {number: signal.signal(number, handle) for number in SIGNALS if number not in ignored}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


@contextmanager
def explained_worker_death() -> Iterator[None]:
    """Say in one line why a loader process that died ends the run."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"{' '.join(str(error).split()).rstrip('. ')}. Often memory or shared memory (/dev/shm) has run out: lower "
            "data.workers, or set it to 0 to load in the training process and see the error itself"
        ) from error


def describe_nonfinite(step: int, values: Mapping[str, float], group: Sequence[Batch], saved: Path | None) -> str:
    """One sentence about a step with infinite or undefined values.

    Args:
        step: number of the step, from 0.
        values: losses and gradient norm by name.
        group: its batches.
        saved: where the batches were kept.
    """
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    ids = ", ".join(str(image_id) for batch in group for image_id in batch.image_ids)
    where = f"; the batch is kept in {str(saved)!r}" if saved else ""
    return f"step {step} is not finite ({', '.join(wrong[:4])}) on images {ids}{where}"


def save_batch(group: Sequence[Batch], folder: Path, step: int, rank: int = 0) -> Path | None:
    """Keep the batches of a step as plain tensors (`torch.load(path, weights_only=True)`); None if the disk refuses."""
    content = [
        {
            "images": batch.images.cpu(),
            "padding_mask": batch.padding_mask.cpu(),
            "image_ids": list(batch.image_ids),
            "labels": [target.labels.cpu() for target in batch.targets],
            "boxes": [target.boxes.cpu() for target in batch.targets],
            "segment_maps": [None if t.segment_map is None else t.segment_map.cpu() for t in batch.targets],
        }
        for batch in group
    ]
    try:
        return write_atomically(
            folder / f"nonfinite_step_{step:08d}_rank_{rank}.pt", lambda stream: torch.save(content, stream)
        )
    except CheckpointError:
        return None
