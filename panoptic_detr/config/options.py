"""Options `--inference.NAME VALUE`: settings of prediction that differ from a checkpoint's own, named as in training."""

import argparse
from collections.abc import Callable
from typing import Any, get_type_hints

import docstring_parser

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.types import fits_type, type_name

PREFIX = "inference."
_THRESHOLDS = ("threshold", "stuff_threshold")  # these have options of their own, without the prefix


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """An option for every setting of `InferenceSettings` but the thresholds, explained by its docstring."""
    group = parser.add_argument_group("settings that differ from the checkpoint's own, named as in training")
    explained = {
        entry.arg_name: entry.description or "" for entry in docstring_parser.parse(InferenceSettings.__doc__ or "").params
    }
    for name, kind in get_type_hints(InferenceSettings).items():
        if name in _THRESHOLDS:
            continue
        group.add_argument(
            f"--{PREFIX}{name}",
            type=_reader(kind),
            default=argparse.SUPPRESS,
            metavar="VALUE",
            help=" ".join(explained[name].split()).replace("None", "null").replace("%", "%%"),
        )


def changed_settings(settings: InferenceSettings, options: argparse.Namespace) -> InferenceSettings:
    """A checkpoint's settings with those that the command line gives anew.

    Args:
        settings: of the checkpoint.
        options: what `add_inference_options` added, and `threshold` and `stuff_threshold` (see `with_thresholds`).

    Raises:
        ConfigError: a value out of its range.
    """
    given = {name.removeprefix(PREFIX): value for name, value in vars(options).items() if name.startswith(PREFIX)}
    changed = InferenceSettings.from_dict({**settings.to_dict(), **given})
    return changed.with_thresholds(options.threshold, options.stuff_threshold)


def _reader(kind: Any) -> Callable[[str], Any]:
    """Read a value as a YAML file of training has it: a number, null for None, or a word."""

    def read(text: str) -> Any:
        value = None if text == "null" else _number(text)
        if not fits_type(value, kind):
            raise argparse.ArgumentTypeError(f"must be {type_name(kind)}, but got {text!r}")
        return value

    return read


def _number(text: str) -> int | float | str:
    """A number where the text is one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
