"""What converters read: lists of a JSON, files by name, sizes of pictures, and the classes with their numbers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco import read_json
from panoptic_detr.data.coco.defects import show
from panoptic_detr.data.coco.entries import Entry, is_integer
from panoptic_detr.errors import DataError
from panoptic_detr.images import exif_orientation, read_image, turned_back
from panoptic_detr.segment_maps import MOST_PIXELS, resize_ids

VOID = -1  # in a map of places: void in any case, whatever the rest is


@dataclass(frozen=True)
class Classes:
    """The classes of a new data set."""

    table: CategoryTable  # all of them
    rest_id: int | None = None  # category id of the pixels of no segment; None if those are void

    @cached_property
    def isthing(self) -> dict[int, bool]:
        """By category id."""
        return {category.id: category.isthing for category in self.table.categories}

    @cached_property
    def id_of(self) -> dict[str, int]:
        """Category id by name."""
        return {category.name: category.id for category in self.table.categories}


def number_classes(rows: Sequence[Entry], where: str, rest: str | None = None, stuff: Sequence[str] | None = None) -> Classes:
    """The classes of COCO categories.

    Args:
        rows: the categories.
        where: for messages.
        rest: name of the class of all pixels of no segment: one of the stuff categories, or a new one; None for void.
        stuff: names of categories that are stuff; others that do not say what they are (isthing) are things. None: all say so.

    Raises:
        CategoryError: unusable categories.
        DataError: `rest` is a thing, or a name in `stuff` is no category, or one that says that it is a thing.
    """
    rows = [{**row, "id": whole(row["id"])} if "id" in row else row for row in rows]
    if stuff is not None:  # a rest that nobody drew is a new class, and stuff anyway
        drawn = [name for name in stuff if name != rest or any(row.get("name") == name for row in rows)]
        rows = _with_isthing(rows, drawn, where)
    table = CategoryTable.from_coco(rows, where=where)
    if rest is None:
        return Classes(table)
    if not rest.strip():
        raise DataError(f"the rest cannot be {rest!r}; name a stuff class, such as --rest background, or leave --rest out")
    known = next((category for category in table.categories if category.name == rest), None)
    if known is None:
        new = max(category.id for category in table.categories) + 1
        return Classes(CategoryTable.from_coco([*rows, {"id": new, "name": rest, "isthing": 0}], where=where), new)
    if known.isthing:
        raise DataError(f"{where}: the rest cannot be {rest!r}, which is a thing; name a stuff category or a new one")
    return Classes(table, known.id)


def _with_isthing(rows: Sequence[Entry], stuff: Sequence[str], where: str) -> list[Entry]:
    names = [row.get("name") for row in rows]
    for name in stuff:
        if name not in names:
            known = ", ".join(sorted(map(str, names))[:20])
            raise DataError(f"{where}: no shape has the stuff label {name!r} that --stuff names; the labels are {known}")
        if any(row.get("name") == name and row.get("isthing") == 1 for row in rows):
            raise DataError(
                f"{where}: --stuff names {name!r}, but the categories say that it is a thing (isthing 1); correct one of them"
            )
    return [{**row, "isthing": row.get("isthing", int(row.get("name") not in stuff))} for row in rows]


def alike(names: Iterable[str]) -> list[str]:
    """A warning for each group of names that differ in case or blanks only: a slip of the hand makes classes of its own."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.split()).casefold(), []).append(name)
    return [
        f"the labels {', '.join(map(repr, group))} differ in case or blanks only, and are classes of their own; correct "
        "them if they are meant to be one"
        for group in groups.values()
        if len(group) > 1
    ]


def whole(value: object) -> object:
    """A whole number written as a float (1.0, as pandas does it) as an integer; everything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2**53 else value


def rows_of(content: Entry, key: str, path: Path, hint: str) -> list[Entry]:
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
    return rows_of(
        read_json(path, what="a COCO JSON: that is an object with categories"),
        "categories",
        path,
        'write {"categories": [{"id": 1, "name": "cat", "isthing": 1}]}',
    )


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


@dataclass(frozen=True)
class Sizes:
    """How an image was annotated and how it is stored.

    Attributes:
        drawn: (height, width) of the annotations.
        stored: (height, width) of the file.
        turn: EXIF orientation by which the file was turned when it was annotated.
    """

    drawn: tuple[int, int]
    stored: tuple[int, int]
    turn: int = 1

    def as_stored(self, mask: np.ndarray) -> np.ndarray:
        """A mask of the annotations in the pixels of the file, by the nearest pixel centre."""
        mask = turned_back(mask, self.turn)
        return mask if mask.shape == self.stored else resize_ids(mask, self.stored)


def sizes_of(entry: Entry, keys: tuple[str, str], image: Path, where: str, resize: bool) -> Sizes:
    """Sizes at which an image was annotated and at which it is stored; they differ with `resize` only.

    Where EXIF turns the file by a quarter, annotations of its upright size, or of that size scaled, were made on the upright
    picture, and are turned back with it.

    Args:
        entry: of the JSON.
        keys: of height and width in it; the stored size counts where they are missing.
        image: the file.
        where: for messages.
        resize: annotations of a picture that was turned or resized since are to follow it.

    Raises:
        DataError: no sizes; or they differ, and `resize` is off or cannot help.
        PictureError: no readable picture.
    """
    stored = stored_size(image)
    height, width = (whole(entry.get(key)) for key in keys)
    if any(side is not None and not (is_integer(side) and side > 0) for side in (height, width)):
        raise DataError(
            f"{where}: {keys[1]} {show(width)} and {keys[0]} {show(height)} are no size; correct them to those of the picture "
            "that was annotated, or leave them out"
        )
    if not is_integer(height) or not is_integer(width) or (height, width) == stored:
        return Sizes(stored, stored)
    sizes = f"{where}: annotated at {width}x{height} pixels, but {image} is stored at {stored[1]}x{stored[0]}"
    turn = orientation if (orientation := exif_orientation(image.read_bytes())) > 4 else 1
    upright, as_stored = _alike((width, height), stored), _alike((height, width), stored)
    if not resize and turn > 1 and upright:
        raise DataError(
            f"{sizes}, and its EXIF orientation ({turn}) asks viewers to turn it: save it upright, without EXIF, as it was "
            "annotated, or give --resize_annotations true to turn the annotations back"
        )
    if not resize:
        raise DataError(
            f"{sizes}: it was resized or turned since; give the picture that was annotated, or --resize_annotations true to "
            "scale the annotations"
        )
    if height * width > MOST_PIXELS:
        raise DataError(f"{sizes}, which is too large to be scaled; correct the size in the JSON")
    if turn > 1 and upright == as_stored:
        raise DataError(
            f"{sizes}, and its EXIF orientation ({turn}) asks viewers to turn it: the proportions do not tell whether it was "
            "annotated as stored or upright, so nothing is scaled; save it as it was annotated, without EXIF"
        )
    return Sizes((height, width), stored, turn if upright else 1)


def _alike(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one size is the other scaled, up to the rounding of a pixel."""
    factor = (size[0] * size[1] / (other[0] * other[1])) ** 0.5
    return all(abs(a - b * factor) <= max(1.0, factor) for a, b in zip(size, other, strict=True))


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
