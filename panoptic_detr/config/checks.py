"""Rules that settings must keep, whichever file or command line they come from."""

import math
import re
from collections.abc import Mapping
from typing import Any

from panoptic_detr.errors import ConfigError

CLASS_SETTINGS = ("num_classes", "num_labels")
CLASSES_FROM_DATA = "the classes, and so their number, come from the categories of the annotations; leave it out"


def at_least(key: str, value: float | None, low: float) -> None:
    """Raise `ConfigError` if the value of a setting is given and less than `low`, infinite or no number."""
    if value is not None and not low <= value < math.inf:
        finite = "" if math.isfinite(value) else " and finite"
        raise ConfigError(f"setting {key!r} must be at least {low}{finite}, but got {value}")


def fraction(key: str, value: float | None) -> None:
    """Raise `ConfigError` if the value of a setting is given and outside [0, 1]."""
    if value is not None and not 0 <= value <= 1:
        raise ConfigError(f"setting {key!r} must be in [0, 1], but got {value}")


def check_hybrid_names(loss: Mapping[str, Any]) -> None:
    """Raise `ConfigError` for `hybrid_weight`, `hybrid.weight` and the like; every other unknown loss the criterion refuses."""
    for key, value in loss.items():
        dotted = f"{key}.{next(iter(value), '')}" if isinstance(value, Mapping) else key
        found = re.fullmatch(r"hybrid[._](weight|repeats|share|layers)", dotted)
        if found is not None:
            raise ConfigError(
                f"unknown setting 'loss.{dotted}'; did you mean 'loss.one_to_many_{found[1]}'? 'loss.hybrid' itself names "
                "a scheme: none, branch, epoch, layer or auto"
            )
