"""The doctor reads the JSON: what can be used of it, and every defect that shows without looking at a picture."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from panoptic_detr.data.coco import DataPaths, read_json
from panoptic_detr.data.doctor.kinds import Defect, show
from panoptic_detr.errors import DataError
from panoptic_detr.files import safe_path

Entry = dict[str, Any]


@dataclass(frozen=True)
class ImageTask:
    """One image for the doctor to look at.

    Attributes:
        entry: of the JSON's `images`; its id is usable.
        annotation: of the JSON's `annotations`; None if it has none.
        broken: the JSON already shows a defect of this image that cannot be repaired.
    """

    entry: Entry
    annotation: Entry | None
    broken: bool

    @property
    def image_id(self) -> int | str:
        """The image's id."""
        return self.entry["id"]


@dataclass
class Listing:
    """A JSON as the doctor could read it.

    Attributes:
        split: name of the part.
        paths: where it lies.
        defects: what the JSON alone shows.
        categories: usable entries by id.
        category_rows: the entries as they were, without exact repetitions.
        tasks: the images.
        head: everything in the JSON but the three lists.
        sound: the categories can be used, so that a repaired copy makes sense.
    """

    split: str
    paths: DataPaths
    defects: list[Defect] = field(default_factory=list)
    categories: dict[int, Entry] = field(default_factory=dict)
    category_rows: list[Entry] = field(default_factory=list)
    tasks: list[ImageTask] = field(default_factory=list)
    head: Entry = field(default_factory=dict)
    sound: bool = True

    def add(self, kind: str, what: str, image_id: int | str | None = None, *, repairable: bool = False) -> None:
        """Note a defect of the JSON."""
        self.defects.append(Defect(kind, what, self.split, image_id, str(self.paths.annotations), repairable=repairable))


def read_listing(paths: DataPaths, split: str) -> Listing:
    """Read a JSON as far as it can be read; nothing in it raises."""
    listing = Listing(split, paths)
    try:
        content = read_json(paths.annotations)
    except DataError as error:
        listing.add("json_unreadable", str(error))
        listing.sound = False
        return listing
    lists = {key: _list(content, key, listing) for key in ("images", "annotations", "categories")}
    listing.head = {key: value for key, value in content.items() if key not in lists}
    _read_categories(lists["categories"], listing)
    images, broken = _read_images(lists["images"], listing)
    annotations = _read_annotations(lists["annotations"], set(images), broken, listing)
    for image_id, entry in images.items():
        if image_id not in annotations:
            listing.add("annotation_missing", "no annotation has its image_id", image_id)
        listing.tasks.append(ImageTask(entry, annotations.get(image_id), image_id in broken or image_id not in annotations))
    return listing


def _usable_id(value: object) -> bool:
    """Ids are integers or texts."""
    return isinstance(value, int | str) and not isinstance(value, bool)


def _name_problem(entry: Entry, folder: Path) -> Defect | None:
    """What is wrong with an entry's file_name; None if nothing."""
    name = entry.get("file_name")
    if not isinstance(name, str):
        return Defect("image_invalid", f"file_name is {show(name)}")
    try:
        safe_path(folder, name, "")
    except DataError:
        return Defect("file_name_unsafe", f"file_name {show(name)}")
    if not name.isascii() or any(letter.isspace() for letter in name):
        return Defect("file_name_unusual", f"file_name {show(name)}")
    return None


def _list(content: Entry, key: str, listing: Listing) -> list[Any]:
    entries = content.get(key)
    if isinstance(entries, list):
        return entries
    listing.add("json_structure", f"'{key}' is {'missing' if key not in content else 'no list'}")
    listing.sound = False
    return []


def _read_categories(rows: list[Any], listing: Listing) -> None:
    for number, row in enumerate(rows):
        problem = _category_problem(row)
        if problem:
            listing.add("category_invalid", f"categories[{number}]: {problem}")
            listing.sound = False
            continue
        same = listing.categories.get(row["id"])
        if same is None:
            listing.categories[row["id"]] = row
            listing.category_rows.append(row)
            continue
        listing.add(
            "category_duplicate", f"id {row['id']} is {show(same['name'])} and {show(row['name'])}", repairable=same == row
        )
        listing.sound = listing.sound and same == row
    names = Counter(str(row["name"]) for row in listing.category_rows)
    for name in (name for name, count in names.items() if count > 1):
        listing.add("category_name_repeated", f"{names[name]} categories are called {show(name)}")


def _category_problem(row: Any) -> str:
    if not isinstance(row, dict):
        return f"{show(row)} is no object"
    category_id, name, isthing = (row.get(key) for key in ("id", "name", "isthing"))
    if not isinstance(category_id, int) or isinstance(category_id, bool) or abs(category_id) >= 2**31:
        return f"id is {show(category_id)}"
    if not isinstance(name, str):
        return f"category {category_id}: name is {show(name)}"
    return "" if isthing in (0, 1) else f"category {category_id} ({show(name)}): isthing is {show(isthing)}"


def _read_images(rows: list[Any], listing: Listing) -> tuple[dict[int | str, Entry], set[int | str]]:
    """Usable entries by id, and the ids among them that are broken for good."""
    images: dict[int | str, Entry] = {}
    broken: set[int | str] = set()
    files: dict[str, int | str] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not _usable_id(row.get("id")):
            found = row.get("id") if isinstance(row, dict) else row
            listing.add("image_invalid", f"images[{number}]: {'id is ' if isinstance(row, dict) else ''}{show(found)}")
            continue
        image_id = row["id"]
        if image_id in images:
            same = images[image_id] == row
            listing.add("image_duplicate", f"images[{number}] uses it again", image_id, repairable=same)
            broken |= set() if same else {image_id}
            continue
        images[image_id] = row
        if not _check_name(row, listing.paths.images, image_id, listing):
            broken.add(image_id)
        elif files.setdefault(row["file_name"], image_id) != image_id:
            listing.add(
                "image_file_duplicate",
                f"file_name {show(row['file_name'])} is also image {files[row['file_name']]!r}",
                image_id,
            )
            broken.add(image_id)
    return images, broken


def _read_annotations(
    rows: list[Any], images: set[int | str], broken: set[int | str], listing: Listing
) -> dict[int | str, Entry]:
    """The annotation of each image."""
    annotations: dict[int | str, Entry] = {}
    files: dict[str, int | str] = {}
    for row, image_id in _entries_of_images(rows, images, listing):
        if image_id in annotations:
            same = annotations[image_id] == row
            listing.add("annotation_duplicate", "a second annotation has its image_id", image_id, repairable=same)
            broken |= set() if same else {image_id}
            continue
        annotations[image_id] = row
        if not _check_name(row, listing.paths.panoptic, image_id, listing):
            broken.add(image_id)
        elif files.setdefault(row["file_name"], image_id) != image_id:
            other = files[row["file_name"]]
            listing.add("png_shared", f"file_name {show(row['file_name'])} is also of image {other!r}", image_id)
            broken.add(image_id)
        if not isinstance(row.get("segments_info"), list):
            listing.add("annotation_invalid", f"segments_info is {show(row.get('segments_info'))}", image_id)
            broken.add(image_id)
    return annotations


def _entries_of_images(rows: list[Any], images: set[int | str], listing: Listing) -> Iterator[tuple[Entry, int | str]]:
    """Annotations with the id of the listed image that they belong to."""
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or not _usable_id(row.get("image_id")):
            found = f"image_id is {show(row.get('image_id'))}" if isinstance(row, dict) else show(row)
            listing.add("annotation_invalid", f"annotations[{number}]: {found}")
        elif row["image_id"] not in images:
            listing.add("annotation_without_image", f"annotations[{number}]", row["image_id"])
        else:
            yield row, row["image_id"]


def _check_name(entry: Entry, folder: Path, image_id: int | str, listing: Listing) -> bool:
    """Note what is wrong with the file name; whether the name can be used."""
    problem = _name_problem(entry, folder)
    if problem is None:
        return True
    kind = "annotation_invalid" if problem.kind == "image_invalid" and "image_id" in entry else problem.kind
    listing.add(kind, problem.what, image_id)
    return problem.kind == "file_name_unusual"
