"""Whether a plain value is of an annotated type: the one reader of types, for settings and overrides."""

from collections.abc import Sequence
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin


def fits_type(value: Any, wanted: Any) -> bool:
    """Whether a plain value (from YAML, say) is of an annotated type: int, float, bool, str, Literal, Sequence, or a union."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(fits_type(value, part) for part in parts)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(fits_type(item, parts[0]) for item in value)
    if wanted in (int, float):
        return isinstance(value, int if wanted is int else int | float) and not isinstance(value, bool)
    return isinstance(value, wanted)
