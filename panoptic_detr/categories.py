"""The category table: which label index means which category, what it is called, whether it is a thing, its colour.

A detector knows label indices 0..num_labels-1; a data set knows category ids. The table holds the map between them explicitly
and travels with every checkpoint. Two conventions exist:

- `labels="contiguous"`: label i is the i-th category of the data set in the order of ids. Used for everything trained here.
- `labels="id"`: label index = category id, with unused slots for the gaps. Used by the published checkpoints (91 slots for
  COCO detection, 250 for COCO panoptic).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, get_args

from panoptic_detr.errors import CategoryError
from panoptic_detr.files import read_file

LabelRule = Literal["contiguous", "id"]
PlainValues = dict[str, Any]  # values for JSON and checkpoints
LARGEST_ID = 2**31 - 1  # of a category


@dataclass(frozen=True)
class Category:
    """One class of the data set: its id, name, thing or stuff, colour (RGB, 0..255)."""

    id: int
    name: str
    isthing: bool
    color: tuple[int, int, int]

    @property
    def kind(self) -> Literal["thing", "stuff"]:
        """The word for `isthing`."""
        return "thing" if self.isthing else "stuff"

    def __str__(self) -> str:
        """Name and kind, as messages show them."""
        return f"{self.name!r} ({self.kind})"


@dataclass(frozen=True)
class CategoryTable:
    """The categories of a data set in the order of their ids, and the label index of each.

    Attributes:
        categories: sorted by id.
        num_labels: label slots of a detector for this table (without the no-object slot).
        labels: the convention that maps label indices to ids (module docstring).
    """

    categories: tuple[Category, ...]
    num_labels: int
    labels: LabelRule = "contiguous"

    def __post_init__(self) -> None:
        _check_unique("id", [category.id for category in self.categories])
        if not self.categories:
            raise CategoryError("the category list is empty; a panoptic data set needs at least one category")
        if not isinstance(self.num_labels, Integral) or self.labels not in get_args(LabelRule):
            raise CategoryError(
                f"num_labels must be a whole number and labels one of {', '.join(get_args(LabelRule))}, but they are "
                f"{self.num_labels!r} and {self.labels!r}"
            )
        if self.labels == "id" and (low := self.categories[0].id) < 0:
            raise CategoryError(f"category id {low} is negative; with labels='id' ids must be label indices")
        needed = self.categories[-1].id + 1 if self.labels == "id" else len(self.categories)
        if self.num_labels < needed:
            raise CategoryError(
                f"{self.num_labels} label slots are too few: labels={self.labels!r} with "
                f"{len(self.categories)} categories (highest id {self.categories[-1].id}) needs {needed}"
            )

    @classmethod
    def from_coco(
        cls,
        categories: Iterable[Mapping[str, object]],
        *,
        labels: LabelRule = "contiguous",
        num_labels: int | None = None,
        where: str = "the category list",
    ) -> "CategoryTable":
        """Read the `categories` list of a COCO-panoptic JSON.

        Args:
            categories: entries with `id`, `name`, `isthing` and, if given, `color`; any order, any gaps.
            labels: convention for label indices.
            num_labels: label slots; by default as few as the convention needs.
            where: what to call the list in errors, for example the file.

        Raises:
            CategoryError: an entry without id, name or isthing, a repeated id, or too few slots.
        """
        _check_list(categories)
        try:
            rows = sorted(map(read_category, categories), key=lambda category: category.id)
        except CategoryError as error:
            raise CategoryError(f"{where}: {error}") from None
        if not rows:
            raise CategoryError(f"{where}: no categories; a COCO-panoptic JSON lists them under 'categories'")
        needed = rows[-1].id + 1 if labels == "id" else len(rows)
        return cls(tuple(rows), needed if num_labels is None else num_labels, labels)

    @classmethod
    def of(
        cls, categories: "CategoryTable | Sequence[Mapping[str, object]]", *, num_labels: int | None = None
    ) -> "CategoryTable":
        """Accept a table or a COCO list; for a list the label rule follows from the number of label slots.

        A list whose length equals `num_labels` is contiguous (so is any list when `num_labels` is None); otherwise label
        index = category id, as in the published checkpoints.
        """
        if isinstance(categories, CategoryTable):
            return categories
        _check_list(categories)
        rows = list(categories)
        rule: LabelRule = "contiguous" if num_labels in (None, len(rows)) else "id"
        return cls.from_coco(rows, labels=rule, num_labels=num_labels)

    @cached_property
    def by_id(self) -> dict[int, Category]:
        """Category id to category."""
        return {category.id: category for category in self.categories}

    @cached_property
    def by_label(self) -> dict[int, Category]:
        """Label index to category; slots of no category are absent."""
        if self.labels == "id":
            return self.by_id
        return dict(enumerate(self.categories))

    @cached_property
    def label_of(self) -> dict[int, int]:
        """Category id to label index."""
        return {category.id: label for label, category in self.by_label.items()}

    @property
    def things(self) -> tuple[Category, ...]:
        """The countable categories."""
        return tuple(category for category in self.categories if category.isthing)

    @property
    def stuff(self) -> tuple[Category, ...]:
        """The uncountable categories."""
        return tuple(category for category in self.categories if not category.isthing)

    def to_coco(self) -> list[PlainValues]:
        """The `categories` list of a COCO-panoptic JSON."""
        return [{"id": c.id, "name": c.name, "isthing": int(c.isthing), "color": list(c.color)} for c in self.categories]

    def to_dict(self) -> PlainValues:
        """Plain values, for checkpoints and JSON; `from_dict` reads them back."""
        return {"labels": self.labels, "num_labels": self.num_labels, "categories": self.to_coco()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "CategoryTable":
        """Read what `to_dict` wrote; `CategoryError` if it did not."""
        if not isinstance(values, Mapping) or {"categories", "labels", "num_labels"} - values.keys():
            raise CategoryError(f"a class table is an object with categories, labels and num_labels, but got {values!r:.60}")
        return cls.from_coco(values["categories"], labels=values["labels"], num_labels=values["num_labels"])

    def save(self, path: str | Path) -> None:
        """Write the table as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> "CategoryTable":
        """Read a table written by `save`; `CategoryError` if that is another file."""
        try:
            values = json.loads(read_file(path))
        except ValueError as error:
            raise CategoryError(f"{path}: not a class table that was saved here: {error}") from None
        return cls.from_dict(values)

    def differences(self, other: "CategoryTable") -> list[str]:
        """One sentence for each way in which `other` means something else; empty if labels mean the same in both."""
        mine, theirs = self.by_label, other.by_label
        lines = []
        for label in sorted(mine.keys() | theirs.keys()):
            here, there = mine.get(label), theirs.get(label)
            if here is None or there is None or (here.name, here.isthing) != (there.name, there.isthing):
                lines.append(f"label {label}: {here or 'no category'} here, {there or 'no category'} there")
        if self.num_labels != other.num_labels:
            lines.append(f"{self.num_labels} label slots here, {other.num_labels} there")
        return lines


def default_color(category_id: int) -> tuple[int, int, int]:
    """A stable, well-spread colour for a category that brings none: hue by the golden ratio, two brightness bands."""
    import colorsys

    hue = (category_id * 0.618033988749895) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.65, 0.95 if category_id % 2 else 0.7)
    return round(red * 255), round(green * 255), round(blue * 255)


def read_category(entry: object) -> Category:
    """One entry of the `categories` of a COCO-panoptic JSON; a colour that is none is replaced.

    Raises:
        CategoryError: no object, or without a usable id, name or isthing.
    """
    if not isinstance(entry, Mapping):
        raise CategoryError(f"category {entry!r} is no object with id, name and isthing")
    missing = [key for key in ("id", "name", "isthing") if key not in entry]
    if missing:
        raise CategoryError(
            f"category {dict(entry)!r} has no {' and no '.join(missing)}; "
            "each category needs an integer id, a name, and isthing 1 (countable) or 0 (stuff)"
        )
    category_id, name, isthing, color = (entry.get(key) for key in ("id", "name", "isthing", "color"))
    if problem := no_integer(category_id):
        raise CategoryError(f"category id {category_id!r} {problem}")
    assert isinstance(category_id, int)
    if abs(category_id) > LARGEST_ID:
        raise CategoryError(f"category id {category_id} does not fit into 32 bits; number the categories anew")
    if not isinstance(name, str):
        raise CategoryError(f"category {category_id} has name {name!r}, but a name is a text; give it one")
    if isthing not in (0, 1):
        raise CategoryError(f"category {category_id} has isthing={isthing!r}; expected 0 or 1")
    valid = isinstance(color, list | tuple) and len(color) == 3 and all(isinstance(v, int) and 0 <= v <= 255 for v in color)
    rgb = (color[0], color[1], color[2]) if valid and color is not None else default_color(category_id)
    return Category(category_id, name, bool(isthing), rgb)


def no_integer(value: object) -> str:
    """What keeps an id from being an integer, and the way out; empty for an integer."""
    if isinstance(value, bool):
        return "is a truth value, but ids are integers"
    if isinstance(value, int):
        return ""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return f"is not an integer; write {int(value)}"
    if isinstance(value, str) and value.strip().removeprefix("-").isdecimal():
        return f"is a text, not an integer; write {int(value)}"
    return "is not an integer"


def _check_list(categories: object) -> None:
    if not isinstance(categories, Iterable):
        raise CategoryError(f"categories must be a CategoryTable or a COCO list, but got {categories!r}")


def _check_unique(what: str, values: Sequence[int]) -> None:
    repeated = sorted({value for value in values if values.count(value) > 1})
    if repeated:
        raise CategoryError(f"category {what} {repeated[0]} is used more than once; every category needs its own")
