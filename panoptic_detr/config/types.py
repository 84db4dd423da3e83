"""What every setting must keep, whoever gives it: its annotated type, its range, a name that exists."""

import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Real
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from panoptic_detr.errors import ConfigError

CLASS_SETTINGS = ("num_classes", "num_labels")
CLASSES_FROM_DATA = "the classes, and so their number, come from the categories of the annotations; leave it out"


def keyword_types(function: Callable[..., object]) -> dict[str, object]:
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
    if origin is list:
        return isinstance(value, list) and all(fits_type(item, parts[0]) for item in value)
    if origin is Mapping:
        pairs = value.items() if isinstance(value, Mapping) else [(None, None)]
        return all(fits_type(key, parts[0]) and fits_type(item, parts[1]) for key, item in pairs)
    if wanted in (int, float):
        return isinstance(value, int if wanted is int else int | float) and not isinstance(value, bool)
    return isinstance(value, origin or wanted)


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


def check_values(section: str, kind: type, values: Mapping[str, object]) -> None:
    """Check plain values, by name, that are to become a section of settings.

    Raises:
        ConfigError: a name that the section's dataclass does not have, with the nearest one, or a value of another type.
    """
    known = keyword_types(kind)
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean '{section}.{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"unknown setting '{section}.{name}'; {hint}")
        if not fits_type(value, known[name]):
            raise ConfigError(f"setting '{section}.{name}' must be {type_name(known[name])}, but got {value!r}")


def check_fields(section: str, config: object) -> None:
    """Check the types of a section of settings that Python code may have made; texts become paths, and tuples lists.

    Raises:
        ConfigError: a value of another type.
    """
    for name, kind in keyword_types(type(config)).items():
        value = getattr(config, name)
        meant = Path(value) if isinstance(value, str) else list(value) if isinstance(value, tuple) else value
        if not fits_type(value, kind) and fits_type(meant, kind):
            setattr(config, name, meant)
    check_values(section, type(config), vars(config))


def at_least(key: str, value: float | None, low: float) -> None:
    """Raise `ConfigError` if the value of a setting is given and less than `low`, infinite or no number."""
    _check_number(key, value)
    if value is not None and not low <= value < math.inf:
        finite = "" if math.isfinite(value) else " and finite"
        raise ConfigError(f"setting {key!r} must be at least {low}{finite}, but got {value}")


def at_most(key: str, value: float | None, high: float) -> None:
    """Raise `ConfigError` if the value of a setting is given and larger than `high`."""
    if value is not None and value > high:
        raise ConfigError(f"setting {key!r} must be at most {high}, but got {value}")


def fraction(key: str, value: float | None, most: float = 1) -> None:
    """Raise `ConfigError` if the value of a setting is given and outside [0, most]."""
    _check_number(key, value)
    if value is not None and not 0 <= value <= most:
        raise ConfigError(f"setting {key!r} must be in [0, {most:g}], but got {value}")


def _check_number(key: str, value: object) -> None:
    if value is not None and not isinstance(value, Real):
        raise ConfigError(f"setting {key!r} must be a number, but got {value!r}")
