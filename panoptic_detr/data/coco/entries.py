"""The one reader of COCO-panoptic JSONs: what can be used of one, and every defect that shows without looking at a picture.

`read_index` is strict: it raises the first defect. The doctor collects them all.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeGuard

from panoptic_detr.categories import Category, CategoryTable, read_category
from panoptic_detr.data.coco.defects import Defect, ImageId, Report, show
from panoptic_detr.errors import CategoryError, DataError, InputError
from panoptic_detr.files import path_fault, safe_path
from panoptic_detr.segment_maps import MAX_ID

Entry = dict[str, Any]  # an object of a JSON; whatever may be in it


@dataclass
class Entries:
    """A COCO-panoptic JSON as far as it can be used."""

    path: Path  # the JSON
    # what the JSON alone shows; segments are looked at by `usable_segments`
    defects: list[Defect] = field(default_factory=list)
    categories: dict[int, Category] = field(default_factory=dict)  # usable ones by id
    category_rows: list[Entry] = field(default_factory=list)  # their entries as they were, without exact repetitions
    images: dict[ImageId, Entry] = field(default_factory=dict)  # entries with a usable id, by it
    annotations: dict[ImageId, Entry] = field(default_factory=dict)  # of these images
    broken: set[ImageId] = field(default_factory=set)  # images that show a defect which cannot be repaired
    head: Entry = field(default_factory=dict)  # everything in the JSON but the three lists
    sound: bool = True  # all lists are there and the categories can be used

    def add(self, kind: str, what: str, image_id: ImageId | None = None, *, place: str = "", repairable: bool = False) -> None:
        """Note a defect; an image that has one which cannot be repaired is broken."""
        defect = Defect(kind, what, "", image_id, str(self.path), repairable=repairable, place=place)
        self.defects.append(defect)
        if image_id is not None and defect.severity == "error" and not repairable:
            self.broken.add(image_id)


PANOPTIC_JSON = "a COCO-panoptic JSON: that is an object with images, annotations, categories"


def read_json(path: str | Path, *, error: type[InputError] = DataError, what: str = PANOPTIC_JSON) -> Entry:
    """Read a JSON object; `error` is what to raise, `what` the file should be, for messages.

    Raises:
        InputError: missing, unreadable, not JSON (truncated, say), or no object.
    """
    if fault := path_fault(path):
        raise error(f"{path}: this is {fault}")
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise error(f"{path}: no such file; give {what.partition(':')[0]}") from None
    except OSError as reason:
        if Path(path).is_dir():
            inside = sorted(Path(path).glob("*.json"))
            hint = f", such as {inside[0]}" if inside else "; there is none in it"
            raise error(f"{path}: this is a folder; name the JSON itself{hint}") from None
        raise error(f"{path}: cannot be read: {reason.strerror}") from None
    except (ValueError, RecursionError) as reason:  # JSON and UTF-8 errors are both ValueErrors
        raise error(f"{path}: not valid JSON ({reason}); it may be truncated: copy or download it again") from None
    if not isinstance(content, dict):
        raise error(f"{path}: not {what}; this is none")
    return content


def read_entries(path: str | Path, *, categories: CategoryTable | None = None) -> Entries:
    """Read a JSON as far as it can be read; nothing in it raises. `categories` is the table to use instead of its own.

    Raises:
        DataError: it is no JSON object at all.
    """
    found = Entries(Path(path))
    content = read_json(path)
    found.head = {key: value for key, value in content.items() if key not in ("categories", "images", "annotations")}
    if categories is None:
        _read_categories(_list(content, "categories", found), found)
    else:
        found.categories = categories.by_id
    _read_images(_list(content, "images", found), found)
    _read_annotations(_list(content, "annotations", found), found)
    for image_id in found.images:
        if image_id not in found.annotations:
            found.add("annotation_missing", "no annotation has its image_id", image_id)
    return found


def slashed(name: str) -> str:
    """A file name with slashes only; JSONs written on Windows have backslashes."""
    return name.replace("\\", "/")


def is_id(value: object) -> TypeGuard[ImageId]:
    """Ids of images are integers or texts."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def is_integer(value: object) -> TypeGuard[int]:
    """Ids of segments and categories are integers."""
    return isinstance(value, int) and not isinstance(value, bool)


def usable_segments(rows: Sequence[object], categories: Mapping[int, object], report: Report) -> Iterator[Entry]:
    """Segments with an id of their own; copies, so that repairs do not change what was read, with an iscrowd.

    Args:
        rows: the `segments_info` of an image; anything may be in it.
        categories: by id; a segment of none of them is reported, and handed on.
        report: is told every defect, without its image.
    """
    first: dict[int, Entry] = {}
    for number, row in enumerate(rows):
        place = f"segments_info[{number}]"
        problem = _segment_problem(row)
        if problem or not isinstance(row, dict):
            value = row.get("id") if isinstance(row, dict) else None
            told = {"segment_id": value} if is_id(value) else {"place": place}
            report(Defect("segment_invalid", problem, **told))
        elif row["id"] in first:
            what = f"segment id {row['id']} is used more than once"
            report(Defect("segment_duplicate", what, segment_id=row["id"], repairable=row == first[row["id"]], place=place))
        else:
            first[row["id"]] = row
            category_id = row.get("category_id")
            if not is_integer(category_id) or category_id not in categories:
                what = f"category {show(category_id)} is not among the {len(categories)} categories"
                what = what if "category_id" in row else "'category_id' is missing"
                report(Defect("category_unknown", what, segment_id=row["id"]))
            yield {**row, "iscrowd": int(row.get("iscrowd", 0))}


def is_segment_id(value: object) -> TypeGuard[int]:
    """Whether a segment can have this id; 0 is void."""
    return is_integer(value) and 0 < value <= MAX_ID


def _segment_problem(row: object) -> str:
    if not isinstance(row, dict):
        return f"{show(row)} is no object"
    if not is_segment_id(row.get("id")):
        return f"segment ids are integers from 1 to {MAX_ID} (0 is void in the PNG), but this is {show(row.get('id'))}"
    crowd = row.get("iscrowd", 0)
    return "" if crowd in (0, 1) else f"iscrowd is {show(crowd)}, but must be 0 or 1"


def _list(content: Entry, key: str, found: Entries) -> Sequence[object]:
    entries = content.get(key)
    if isinstance(entries, list):
        return entries
    found.add("json_structure", f"'{key}' is {'missing' if key not in content else 'not a list of objects'}")
    found.sound = False
    return []


def _read_categories(rows: Sequence[object], found: Entries) -> None:
    for row in rows:
        try:
            category = read_category(row)
        except CategoryError as error:
            found.add("category_invalid", str(error).partition(";")[0])
            found.sound = False
            continue
        known = found.categories.get(category.id)
        assert isinstance(row, dict)  # or it would be no category
        if known is None:
            found.categories[category.id] = category
            found.category_rows.append(row)
            continue
        same = row in found.category_rows
        what = f"category id {category.id} is used more than once: {show(known.name)} and {show(category.name)}"
        found.add("category_duplicate", what, repairable=same)
        found.sound = found.sound and same
    names = Counter(category.name for category in found.categories.values())
    for name, count in names.items():
        if count > 1:
            found.add("category_name_repeated", f"{count} categories are called {show(name)}")


def _read_images(rows: Sequence[object], found: Entries) -> None:
    files: dict[str, ImageId] = {}
    for place, row, image_id in _with_ids(rows, "images", "id", "image_invalid", found):
        if image_id in found.images:
            same = found.images[image_id] == row
            found.add(
                "image_duplicate", f"image id {image_id!r} is used more than once", image_id, place=place, repairable=same
            )
            continue
        found.images[image_id] = row
        if _check_name(row, image_id, "image_invalid", found):
            _check_shared(slashed(row["file_name"]), image_id, files, "image_file_duplicate", found)


def _read_annotations(rows: Sequence[object], found: Entries) -> None:
    files: dict[str, ImageId] = {}
    for place, row, image_id in _with_ids(rows, "annotations", "image_id", "annotation_invalid", found):
        if image_id not in found.images:
            found.add("annotation_without_image", "its image is not listed", image_id, place=place)
            continue
        if image_id in found.annotations:
            same = found.annotations[image_id] == row
            what = f"image {image_id!r} has more than one annotation"
            found.add("annotation_duplicate", what, image_id, place=place, repairable=same)
            continue
        found.annotations[image_id] = row
        if _check_name(row, image_id, "annotation_invalid", found, place="annotation"):
            _check_shared(slashed(row["file_name"]), image_id, files, "png_shared", found)
        if not isinstance(row.get("segments_info"), list):
            what = f"its annotation has no list 'segments_info' ({show(row.get('segments_info'))})"
            found.add("annotation_invalid", what, image_id)


def _with_ids(rows: Sequence[object], name: str, key: str, kind: str, found: Entries) -> Iterator[tuple[str, Entry, ImageId]]:
    """Entries with a usable id: their place in the list, the entry, the id."""
    for number, row in enumerate(rows):
        place = f"{name}[{number}]"
        if not isinstance(row, dict):
            found.add(kind, f"{show(row)} is no object", place=place)
        elif not is_id(row.get(key)):
            found.add(kind, _field_problem(row, key), place=place)
        else:
            yield place, row, row[key]


def _field_problem(row: Entry, key: str) -> str:
    return f"'{key}' is {show(row[key])}, but must be an integer or a text" if key in row else f"'{key}' is missing"


def _check_name(row: Entry, image_id: ImageId, kind: str, found: Entries, place: str = "") -> bool:
    """Note what is wrong with the file name; whether the name can be used."""
    name = row.get("file_name")
    if not isinstance(name, str):
        found.add(kind, _field_problem(row, "file_name"), image_id, place=place)
        return False
    try:
        safe_path("the folder", name, "")
    except DataError as error:
        found.add("file_name_unsafe", str(error).removeprefix(": ").partition(";")[0], image_id, place=place)
        return False
    if "\\" in name:
        found.add("file_name_backslash", f"file_name {show(name)}", image_id, place=place, repairable=True)
    if not name.isascii() or any(letter.isspace() for letter in name):
        found.add("file_name_unusual", f"file_name {show(name)}", image_id, place=place)
    return True


def _check_shared(name: str, image_id: ImageId, files: dict[str, ImageId], kind: str, found: Entries) -> None:
    first = files.setdefault(name, image_id)
    if first != image_id:
        found.add(kind, f"file_name {show(name)} is also of image {first!r}", image_id)
