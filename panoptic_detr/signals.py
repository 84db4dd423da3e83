"""Signals that ask for an end: Ctrl-C, a scheduler's SIGTERM, a lost connection.

Work that can be gone on with takes them as a request and ends after what it has at hand; other work is interrupted at once.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType, TracebackType

SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
Handler = Callable[[int, FrameType | None], None]


class StopRequest:
    """Inside this context SIGINT, SIGTERM and SIGHUP only raise a flag, so that the work at hand can be finished and saved.

    A second signal interrupts at once. SIGHUP is what a lost connection or a closed terminal sends; `nohup` ignores it.
    """

    def __init__(self) -> None:
        self.numbers: list[int] = []  # of the signals that came
        self._handling = ExitStack()

    def __enter__(self) -> "StopRequest":
        self._handling.enter_context(_handled_by(self._note))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._handling.close()

    def __bool__(self) -> bool:
        return bool(self.numbers)

    @property
    def received(self) -> str | None:
        """Name of the first signal."""
        return signal.Signals(self.numbers[0]).name if self.numbers else None

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.numbers:
            raise KeyboardInterrupt
        self.numbers.append(number)


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
