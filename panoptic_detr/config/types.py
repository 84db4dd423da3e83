"""What every setting must keep, whoever gives it: its annotated type, its range, a name that exists."""

import math
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from panoptic_detr.errors import ConfigError

CLASS_SETTINGS = ("num_classes", "num_labels")
CLASSES_FROM_DATA = "the classes, and so their number, come from the categories of the annotations; leave it out"


def fits_type(value: object, wanted: object) -> bool:
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
    return isinstance(wanted, type) and isinstance(value, wanted)


def type_name(kind: object) -> str:
    """An annotated type in the words of a message: "float or null", "one of union, keep_first"."""
    arguments, origin = get_args(kind), get_origin(kind)
    if origin is None and isinstance(kind, type):
        return "a path" if kind is Path else "null" if kind is type(None) else kind.__name__
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if origin in (list, dict):
        return str(kind).replace("typing.", "")
    if all(get_origin(argument) is Literal for argument in arguments):
        return f"one of {', '.join(str(value) for argument in arguments for value in get_args(argument))}"
    return " or ".join(type_name(argument) for argument in arguments)


def check_values(section: str, kind: type, values: Mapping[str, object]) -> None:
    """Check plain values, by name, that are to become a section of settings.

    Raises:
        ConfigError: a name that the section's dataclass does not have, with the nearest one, or a value of another type.
    """
    known = get_type_hints(kind)
    for name, value in values.items():
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"did you mean '{section}.{near[0]}'?" if near else f"there are {', '.join(known)}"
            raise ConfigError(f"unknown setting '{section}.{name}'; {hint}")
        if not fits_type(value, known[name]):
            raise ConfigError(f"setting '{section}.{name}' must be {type_name(known[name])}, but got {value!r}")


def at_least(key: str, value: float | None, low: float) -> None:
    """Raise `ConfigError` if the value of a setting is given and less than `low`, infinite or no number."""
    if value is not None and not low <= value < math.inf:
        finite = "" if math.isfinite(value) else " and finite"
        raise ConfigError(f"setting {key!r} must be at least {low}{finite}, but got {value}")


def fraction(key: str, value: float | None) -> None:
    """Raise `ConfigError` if the value of a setting is given and outside [0, 1]."""
    if value is not None and not 0 <= value <= 1:
        raise ConfigError(f"setting {key!r} must be in [0, 1], but got {value}")
