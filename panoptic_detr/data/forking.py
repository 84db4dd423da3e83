"""Loader processes that are known to have come up.

A forked process can hang before its first line: another thread of the parent, one of PyTorch's communication threads say, may
hold a lock of the interpreter in the moment of the fork, and in the child nobody gives it back (CPython before 3.12). The
parent would wait for its batches forever. Here every child reports, and one that does not is ended and forked again.
"""

import os
import signal
import sys
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from typing import Any

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
