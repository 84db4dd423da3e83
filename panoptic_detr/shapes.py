"""Checks of shapes, and the same thing done to every tensor in a structure.

PyTorch is imported where it is used, so that exported files can be read where it is not installed.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from panoptic_detr.errors import ShapeError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Value = TypeVar("Value")


def check_shape(name: str, value: "Tensor | np.ndarray", expected: Sequence[int | str]) -> None:
    """Raise `ShapeError` unless `value` has as many axes as `expected` and every integer in it agrees (strings are free)."""
    got = tuple(value.shape)
    fits = len(got) == len(expected) and all(isinstance(e, str) or e == g for e, g in zip(expected, got, strict=True))
    if not fits:
        raise ShapeError(f"{name} must be ({', '.join(map(str, expected))}), but got {got}")


def move(value: Value, device: "torch.device | str") -> Value:
    """Copy tensors, dataclasses of tensors and sequences of these to `device`; leave everything else as it is."""
    import torch

    # A copy to the host must be complete on return; one to a device may overlap with what follows there.
    overlap = torch.device(device).type != "cpu"
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=overlap))


def map_tensors(value: Value, function: "Callable[[Tensor], Tensor]") -> Value:
    """Apply a function to every tensor in a value made of tensors, dataclasses and sequences."""
    from torch import Tensor

    mapped: Any = value
    if isinstance(value, Tensor):
        mapped = function(value)
    elif isinstance(value, list | tuple):
        mapped = type(value)(map_tensors(item, function) for item in value)
    elif is_dataclass(value) and not isinstance(value, type):
        mapped = replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return mapped
