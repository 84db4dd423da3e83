"""Questions about values and sizes, put so that `torch.compile`, `torch.export` and the tracer of `torch.onnx` can follow.

All three see shapes and no values, and sizes as symbols or tensors that must not be made plain numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor

_ASSUMED = [True]  # what tracers are told about padding; a list, because they read it like any other value


def is_traced() -> bool:
    """Whether what runs is being recorded instead of computed."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def assumes_padding() -> bool:
    """What tracers are told: there is padding, which is right for every batch, unless `unpadded` says otherwise."""
    return _ASSUMED[0]


@contextmanager
def unpadded() -> Iterator[None]:
    """Within this block tracers are told that there is no padding, so that what they make takes unpadded batches only."""
    before, _ASSUMED[0] = _ASSUMED[0], False
    try:
        yield
    finally:
        _ASSUMED[0] = before


def at_most(count: int, available: int) -> int:
    """The smaller number."""
    if isinstance(available, Tensor):  # a size in the tracer of torch.onnx
        return cast(int, torch.minimum(torch.tensor(count), available))
    return cast(int, torch.sym_min(count, available))
