"""Questions about values and sizes, put so that `torch.compile`, `torch.export` and the tracer of `torch.onnx` can follow.

All three see shapes and no values, and sizes as symbols or tensors that must not be made plain numbers.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import cast

import torch
from torch import Tensor

_ASSUMED = [True]  # what tracers are told about padding; a list, because they read it like any other value
_LAST_ONLY = [False]  # whether what is recorded is for the last layer's outputs alone
_WHOLE_SAMPLING = [False]  # whether deformable sampling is recorded as one node


def is_traced() -> bool:
    """Whether what runs is being recorded instead of computed."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def assumes_padding() -> bool:
    """What tracers are told: there is padding, which is right for every batch, unless `unpadded` says otherwise."""
    return _ASSUMED[0]


@contextmanager
def _told(what: list[bool], value: bool) -> Iterator[None]:
    before, what[0] = what[0], value
    try:
        yield
    finally:
        what[0] = before


def unpadded() -> AbstractContextManager[None]:
    """Within this block tracers are told that there is no padding, so that what they make takes unpadded batches only."""
    return _told(_ASSUMED, False)


def last_layer() -> AbstractContextManager[None]:
    """Within this block decoders give the last layer's states only: their heads would compute the others for nobody."""
    return _told(_LAST_ONLY, True)


def whole_sampling(wanted: bool = True) -> AbstractContextManager[None]:
    """Within this block deformable sampling is recorded as one node, for runtimes that do better than GridSample."""
    return _told(_WHOLE_SAMPLING, wanted)


def keeps_sampling_whole() -> bool:
    """Whether deformable sampling is to be one node of what is recorded."""
    return _WHOLE_SAMPLING[0]


def stack_layers(states: Sequence[Tensor]) -> Tensor:
    """The (...) outputs of L layers as one (L, ...), or as (1, ...) within `last_layer`."""
    return torch.stack(list(states[-1:] if _LAST_ONLY[0] else states))


def at_most(count: int, available: int) -> int:
    """The smaller number."""
    if isinstance(available, Tensor):  # a size in the tracer of torch.onnx
        return cast(int, torch.minimum(torch.tensor(count), available))
    return cast(int, torch.sym_min(count, available))
