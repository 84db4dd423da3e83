"""What converters read: lists of a JSON, files by name, sizes of pictures, and the classes with their numbers."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco import read_json
from panoptic_detr.errors import DataError
from panoptic_detr.images import read_image

Entry = dict[str, Any]


@dataclass(frozen=True)
class Classes:
    """The classes of a new data set.

    Attributes:
        table: all of them.
        rest_id: category id of the pixels of no segment; None if those are void.
    """

    table: CategoryTable
    rest_id: int | None = None

    @cached_property
    def isthing(self) -> dict[int, bool]:
        """By category id."""
        return {category.id: category.isthing for category in self.table.categories}

    @cached_property
    def id_of(self) -> dict[str, int]:
        """Category id by name."""
        return {category.name: category.id for category in self.table.categories}


def number_classes(rows: Sequence[Entry], where: str, rest: str | None = None) -> Classes:
    """The classes of COCO categories with isthing.

    Args:
        rows: the categories.
        where: for messages.
        rest: name of the class of all pixels of no segment: one of the stuff categories, or a new one; None for void.

    Raises:
        CategoryError: unusable categories.
        DataError: `rest` is a thing.
    """
    table = CategoryTable.from_coco(rows, where=where)
    if rest is None:
        return Classes(table)
    known = next((category for category in table.categories if category.name == rest), None)
    if known is None:
        new = max(category.id for category in table.categories) + 1
        return Classes(CategoryTable.from_coco([*rows, {"id": new, "name": rest, "isthing": 0}], where=where), new)
    if known.isthing:
        raise DataError(f"{where}: the rest cannot be {rest!r}, which is a thing; name a stuff category or a new one")
    return Classes(table, known.id)


def number_labels(labels: Iterable[str], stuff: Sequence[str]) -> list[Entry]:
    """COCO categories of labels, in alphabetical order from 1.

    Raises:
        DataError: a stuff label that does not occur.
    """
    names = sorted(set(labels))
    absent = [label for label in stuff if label not in names]
    if absent:
        raise DataError(f"no shape has the stuff label {absent[0]!r}; the labels are {', '.join(names[:20])}")
    return [{"id": i, "name": name, "isthing": int(name not in stuff)} for i, name in enumerate(names, start=1)]


def rows_of(content: Mapping[str, Any], key: str, path: Path, hint: str) -> list[Entry]:
    """A list of objects in a JSON.

    Raises:
        DataError: there is no such list; `hint` is the way out.
    """
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: '{key}' is no list of objects; {hint}")
    return rows


def read_categories(path: Path) -> list[Entry]:
    """The `categories` of a COCO JSON (of another split, say) or of a JSON that is `{"categories": [...]}` and no more."""
    return rows_of(read_json(path), "categories", path, 'write {"categories": [{"id": 1, "name": "cat", "isthing": 1}]}')


def find_by_key(folder: Path, suffix: str, endings: Sequence[str]) -> dict[str, Path]:
    """Files in a folder and below by their relative name without suffix and ending.

    Raises:
        DataError: no such folder, or two files with one key.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in endings or not path.stem.endswith(suffix) or not path.is_file():
            continue
        key = (path.relative_to(folder).parent / path.stem.removesuffix(suffix)).as_posix()
        if key in found:
            raise DataError(f"{path} and {found[key]} are told apart by their ending only; rename or remove one of them")
        found[key] = path
    return found


def stored_size(image: Path) -> tuple[int, int]:
    """(height, width) of a picture as it is stored; it is decoded whole, so that a broken one is refused."""
    height, width = read_image(image).shape[:2]
    return height, width


def check_size(shape: tuple[int, ...], image_shape: tuple[int, ...], where: str) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        DataError: they differ.
    """
    if shape != image_shape:
        raise DataError(
            f"{where}: the mask is {shape[1]}x{shape[0]} pixels, but the image is {image_shape[1]}x{image_shape[0]}; "
            "they must be equal: write the mask again at the image's stored size"
        )
