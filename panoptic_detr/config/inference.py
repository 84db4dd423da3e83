"""How predictions become maps: a section of a stage's settings that then travels with the checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from difflib import get_close_matches
from typing import Any, Literal, get_args

from panoptic_detr.config.checks import at_least, fraction
from panoptic_detr.errors import ConfigError

DuplicateStuff = Literal["union", "keep_first"]

# Without a setting: the paper's for classes that compete with "no object" (DETR). Classes that are each a sigmoid, trained with
# the focal loss, score lower (Deformable DETR, H-DETR): these two are rules of thumb, `evaluate --calibrate` finds better ones.
SOFTMAX_THRESHOLD = 0.85
SIGMOID_THRESHOLD, SIGMOID_STUFF_THRESHOLD = 0.4, 0.3


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
    """

    threshold: float | None = None
    stuff_threshold: float | None = None
    min_area: int = 5
    min_visible: float = 0.0
    duplicate_stuff: DuplicateStuff = "union"
    max_segments: int | None = None
    short_side: int | None = 800
    long_side: int = 1333

    def __post_init__(self) -> None:
        for name in ("threshold", "stuff_threshold", "min_visible"):
            fraction(f"inference.{name}", getattr(self, name))
        if self.duplicate_stuff not in get_args(DuplicateStuff):
            allowed = ", ".join(get_args(DuplicateStuff))
            raise ConfigError(f"setting 'inference.duplicate_stuff' must be one of {allowed}, but got {self.duplicate_stuff!r}")
        at_least("inference.min_area", self.min_area, 0)
        for name in ("max_segments", "short_side", "long_side"):
            at_least(f"inference.{name}", getattr(self, name), 1)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "InferenceSettings":
        """Read settings saved with a checkpoint; what is not given keeps its default.

        Raises:
            ConfigError: a setting that does not exist, with the nearest one that does.
        """
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                near = get_close_matches(key, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(names)}"
                raise ConfigError(f"there is no inference setting {key!r}; {hint}")
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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints; `from_dict` reads them back."""
        return asdict(self)
