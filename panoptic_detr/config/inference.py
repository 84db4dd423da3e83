"""How predictions become maps: a section of a stage's settings that then travels with the checkpoint."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args, get_type_hints

import docstring_parser

from panoptic_detr.config.types import at_least, at_most, check_values, fits_type, fraction, type_name
from panoptic_detr.errors import ConfigError

PREFIX = "inference."
_THRESHOLDS = ("threshold", "stuff_threshold")  # these have options of their own, without the prefix
_OF_THE_WEIGHTS = ("image_mean", "image_std")  # these come with the weights, and have none
DuplicateStuff = Literal["union", "keep_first"]

# Without a setting: the paper's for classes that compete with "no object" (DETR). Classes that are each a sigmoid, trained with
# the focal loss, score lower (Deformable DETR, H-DETR): these two are rules of thumb, `evaluate --calibrate` finds better ones.
SOFTMAX_THRESHOLD = 0.85
SIGMOID_THRESHOLD, SIGMOID_STUFF_THRESHOLD = 0.4, 0.3
LARGEST_SIDE = 2**15  # pixels; a model that sees more needs hundreds of gigabytes


@dataclass(frozen=True)
class InferenceSettings:
    """Settings of prediction; the defaults are the paper's.

    Attributes:
        threshold: least probability of a query that is kept, exclusive; None for what suits the model's class head: 0.85 where
            classes compete with no-object (DETR), 0.4 for things and 0.3 for stuff where they do not (Deformable DETR, H-DETR).
        stuff_threshold: the same for stuff, where it differs.
        min_area: least pixels of a segment.
        min_visible: a thing that shows less than this share of its own mask is dropped; 0 keeps all.
        duplicate_stuff: "union" or "keep_first" (`merge_panoptic`).
        max_segments: masks per image, those of the highest scores; None for all that pass the threshold.
        short_side: images are resized to this short side before the model; None keeps their size.
        long_side: limit of the long side.
        image_mean: red, green and blue (0..1) that a model of another library's weights has subtracted; None for ImageNet's.
        image_std: what they are then divided by; None for ImageNet's.
    """

    threshold: float | None = None
    stuff_threshold: float | None = None
    min_area: int = 5
    min_visible: float = 0.0
    duplicate_stuff: DuplicateStuff = "union"
    max_segments: int | None = None
    short_side: int | None = 800
    long_side: int = 1333
    image_mean: Sequence[float] | None = None
    image_std: Sequence[float] | None = None

    def __post_init__(self) -> None:
        for name in ("threshold", "stuff_threshold", "min_visible"):
            fraction(f"inference.{name}", getattr(self, name))
        if self.duplicate_stuff not in get_args(DuplicateStuff):
            allowed = ", ".join(get_args(DuplicateStuff))
            raise ConfigError(f"setting 'inference.duplicate_stuff' must be one of {allowed}, but got {self.duplicate_stuff!r}")
        at_least("inference.min_area", self.min_area, 0)
        for name in ("max_segments", "short_side", "long_side"):
            at_least(f"inference.{name}", getattr(self, name), 1)
        for name in ("short_side", "long_side"):
            at_most(f"inference.{name}", getattr(self, name), LARGEST_SIDE)
        for name, low in (("image_mean", -1e6), ("image_std", 1e-6)):
            values = getattr(self, name) or (1.0, 1.0, 1.0)
            if len(values) != 3 or not all(low <= value <= 1e6 for value in values):
                raise ConfigError(
                    f"setting 'inference.{name}' must be three numbers, of a deviation above 0, but got {values!r}"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InferenceSettings":
        """Read settings saved with a checkpoint; what is not given keeps its default.

        Raises:
            ConfigError: a setting that does not exist, with the nearest one that does, or a value of the wrong type or range.
        """
        check_values("inference", cls, values)
        return cls(**values)

    def thresholds(self, no_object: bool) -> tuple[float, float]:
        """Thresholds of things and of stuff.

        A query is kept if its best class is a category (not "no object") and that class has a higher probability than this.

        Args:
            no_object: the model's classes compete with "no object" in a softmax; otherwise each is a sigmoid of its own.
        """
        if self.threshold is not None:
            things, stuff = self.threshold, self.threshold
        elif no_object:
            things, stuff = SOFTMAX_THRESHOLD, SOFTMAX_THRESHOLD
        else:
            things, stuff = SIGMOID_THRESHOLD, SIGMOID_STUFF_THRESHOLD
        return things, stuff if self.stuff_threshold is None else self.stuff_threshold

    def with_thresholds(self, threshold: float | None, stuff_threshold: float | None = None) -> "InferenceSettings":
        """These settings with thresholds that someone gave anew, for prediction and evaluation alike.

        Args:
            threshold: for things and stuff, whatever threshold of its own stuff had; None leaves both as they are.
            stuff_threshold: for stuff, where it differs.
        """
        chosen = self if threshold is None else replace(self, threshold=threshold, stuff_threshold=None)
        return chosen if stuff_threshold is None else replace(chosen, stuff_threshold=stuff_threshold)

    def to_dict(self) -> dict[str, object]:
        """Plain values, for checkpoints; `from_dict` reads them back."""
        return asdict(self)


def add_inference_options(parser: argparse.ArgumentParser) -> None:
    """An option for every setting of `InferenceSettings` but the thresholds, explained by its docstring."""
    group = parser.add_argument_group("settings that differ from the checkpoint's own, named as in training")
    explained = {
        entry.arg_name: entry.description or "" for entry in docstring_parser.parse(InferenceSettings.__doc__ or "").params
    }
    for name, kind in get_type_hints(InferenceSettings).items():
        if name in (*_THRESHOLDS, *_OF_THE_WEIGHTS):
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


def _reader(kind: object) -> Callable[[str], object]:
    """Read a value as a YAML file of training has it: a number, null for None, or a word."""

    def read(text: str) -> object:
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
