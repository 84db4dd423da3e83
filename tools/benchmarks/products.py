"""The time that a step must at least take: its convolutions and matrix products, each repeated alone on the same inputs."""

import time
from collections import defaultdict
from collections.abc import Callable

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from tools.benchmarks.measure import Clock

PRODUCTS = ("convolution", "mm", "bmm", "baddbmm", "attention")


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
