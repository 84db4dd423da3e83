"""What every benchmark needs: stopwatches for parts and products, a process of its own with its peak memory, the machine."""

import multiprocessing
import platform
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import torch
from torch import nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from panoptic_detr.errors import InputError
from panoptic_detr.parallel import usable_cores
from panoptic_detr.zoo import build_model

Result = TypeVar("Result")
Figures = dict[str, Any]  # what was measured, as plain values for JSON
Clock = Literal["wall", "cpu", "device"]
PRODUCTS = ("convolution", "mm", "bmm", "baddbmm", "attention")


class Stopwatch:
    """Seconds by part; of several laps the shortest counts, which is the one least disturbed by other programs.

    Args:
        clock: "wall"; "cpu": the time of all threads of this process, steadier on a busy machine (with one thread); or
            "device": wall time, with the GPU's queue empty at both ends of every part.
    """

    def __init__(self, clock: Clock = "wall") -> None:
        self.now = {"wall": time.perf_counter, "cpu": time.process_time, "device": _after_the_queue}[clock]
        self.laps: list[dict[str, float]] = []

    @contextmanager
    def lap(self) -> Iterator[None]:
        """Time everything within as `total`, and what is given to `time` within as parts."""
        self.laps.append(defaultdict(float))
        with self.part("total"):
            yield

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add what happens within to a part of the current lap."""
        start = self.now()
        yield
        self.laps[-1][name] += self.now() - start

    def time(self, name: str, work: Callable[..., Result], *arguments: object) -> Result:
        """Call a function and add its time to a part of the current lap."""
        with self.part(name):
            return work(*arguments)

    def best(self) -> dict[str, float]:
        """Seconds of each part in the shortest lap, so that parts and total belong together."""
        return dict(min(self.laps, key=lambda lap: lap["total"]))

    def mean(self) -> dict[str, float]:
        """Milliseconds of each part in all laps together, per lap."""
        sums: dict[str, float] = defaultdict(float)
        for lap in self.laps:
            for name, seconds in lap.items():
                sums[name] += 1000 * seconds / len(self.laps)
        return sums


def _after_the_queue() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


class Runner(Protocol):
    """Something that takes laps."""

    watch: Stopwatch

    @property
    def lap(self) -> Callable[..., None]:
        """Take one."""


class TimedModule(nn.Module):
    """A module whose calls count as a part of the current lap."""

    def __init__(self, module: nn.Module, watch: Stopwatch, part: str) -> None:
        super().__init__()
        self.module, self.watch, self.part_name = module, watch, part

    def forward(self, *inputs: object) -> object:
        """Call the module."""
        return self.watch.time(self.part_name, self.module, *inputs)


def take_turns(runners: Sequence[Runner], repeats: int, *arguments: int) -> None:
    """Let every runner take its laps in turn, so that whatever else runs here slows all alike; the first do not count."""
    for repeat in range(-1, repeats):
        for runner in runners:
            runner.lap(*arguments)
            if repeat < 0:
                runner.watch.laps.clear()


def random_model(name: str, threads: int | None) -> nn.Module:
    """A model with random weights, always the same, and so many threads to run it with."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    return build_model(name)


def autocast(bf16: bool, device: str = "cpu") -> AbstractContextManager[None]:
    """Bfloat16 autocast on a device, or nothing."""
    return torch.autocast(torch.device(device).type, torch.bfloat16) if bf16 else nullcontext()


def check_variants(names: Sequence[str], known: Collection[str]) -> None:
    """Raise `InputError` with the nearest name unless every variant exists."""
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, 1, 0.0)[0]
            raise InputError(f"there is no variant {name!r}; did you mean {near!r}? There are {', '.join(map(repr, known))}")


def in_own_process(function: Callable[..., Result], **arguments: object) -> Result:
    """Call a function of a module in a fresh interpreter, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, **arguments).result()


def peak_memory() -> float:
    """The largest resident size that this process ever had, in MiB.

    Linux keeps it per program (VmHWM). `ru_maxrss` would also count what the parent held when it started this process.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1024**2 if sys.platform == "darwin" else size / 1024


def machine() -> Figures:
    """The machine and the versions that figures depend on."""
    return {
        "cpu": _cpu_name(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


class ProductTimer(TorchDispatchMode):
    """Within this context every convolution, matrix product and attention, forward and backward, is run again and timed.

    The second run has its inputs and weights where the first one left them, and nothing around it; the best of two counts.

    Args:
        clock: "wall", or "cpu": the time of all threads of this process.
    """

    def __init__(self, clock: Clock = "wall") -> None:
        super().__init__()
        self.now = time.process_time if clock == "cpu" else time.perf_counter
        self.seconds: dict[str, float] = defaultdict(float)

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[object, ...] = (), kwargs: dict[str, object] | None = None
    ) -> object:
        """Run an operation; a product is run twice more."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if is_product(name):
            self.seconds[name] += min(self._seconds(func, args, kwargs) for _ in range(2))
        return result

    def _seconds(self, func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, object]) -> float:
        begin = self.now()
        func(*args, **kwargs)
        return self.now() - begin


def is_product(name: str) -> bool:
    """Whether an ATen operation is a convolution, a matrix product or attention: `convolution_backward`, `addmm`, ..."""
    return not name.endswith("_") and any(word in name for word in PRODUCTS)


def product_seconds(step: Callable[[], object], clock: Clock = "wall") -> dict[str, float]:
    """Seconds of the products in one call of a function that has run before, measured alone; the largest operation first."""
    with ProductTimer(clock) as timer:
        step()
    return dict(sorted(timer.seconds.items(), key=lambda item: -item[1]))
