"""The one reader of annotated types: whether a plain value (from YAML, say) is of one, and what a message calls it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def keyword_types(function: Callable[..., Any]) -> dict[str, Any]:
    """Name and annotated type of everything that a function or a dataclass takes."""
    return {name: kind for name, kind in get_type_hints(function).items() if name != "return"}


def fits_type(value: object, wanted: Any) -> bool:
    """Whether a plain value is of an annotated type: int, float, bool, str, Literal, Sequence, Mapping, or a union."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(fits_type(value, part) for part in parts)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(fits_type(item, parts[0]) for item in value)
    if origin is Mapping:
        pairs = value.items() if isinstance(value, Mapping) else [(None, None)]
        return all(fits_type(key, parts[0]) and fits_type(item, parts[1]) for key, item in pairs)
    if wanted in (int, float):
        return isinstance(value, int if wanted is int else int | float) and not isinstance(value, bool)
    return isinstance(value, wanted)


def type_name(kind: Any) -> str:
    """An annotated type in the words of a message: "float or null", "one of union, keep_first"."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is None:
        return "a path" if kind is Path else "null" if kind is type(None) else kind.__name__
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is Sequence:
        return f"a list of {type_name(parts[0])}"
    if origin is Mapping:
        return "names with values" if parts[1] is object else f"names with values that are each a {type_name(parts[1])}"
    if origin in (list, dict):
        return str(kind).replace("typing.", "")
    if all(get_origin(part) is Literal for part in parts):
        return type_name(Literal[tuple(value for part in parts for value in get_args(part))])
    return " or ".join(type_name(part) for part in parts)
