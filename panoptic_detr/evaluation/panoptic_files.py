"""COCO-panoptic results on disk as something to score: a JSON with `annotations` and a folder of id PNGs.

Nothing in the JSON is trusted: ids, categories and file names are checked, areas are counted in the PNG, and a missing `bbox`,
`area` or `iscrowd` is fine. What is wrong is named with its file, image and segment.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import CategoryError, DataError, EvaluationError, SegmentMapError
from panoptic_detr.files import safe_path
from panoptic_detr.quality import Regions
from panoptic_detr.segment_maps import MAX_ID, read_id_png

ImageId = int | str
_LARGEST_CATEGORY_ID = 2**31 - 1


@dataclass(frozen=True)
class AnnotationSet:
    """The annotations of a JSON by image, and the folder of their PNGs.

    Attributes:
        path: the JSON.
        folder: the folder of id PNGs.
        entries: by image id, in the order of the JSON; checked when `regions` reads them.
        category_list: the JSON's `categories`, if it has them.
        image_names: file names of the images by id, where the JSON lists `images`.
    """

    path: Path
    folder: Path
    entries: dict[ImageId, Mapping[str, Any]]
    category_list: Any = None
    image_names: dict[ImageId, str] = field(default_factory=dict)

    def categories(self) -> CategoryTable:
        """The category table.

        Raises:
            EvaluationError: no `categories`, or a broken list.
        """
        rows = self.category_list
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise EvaluationError(f"{self.path}: 'categories' must be a list of objects with id, name and isthing")
        try:
            table = CategoryTable.from_coco(rows, where=str(self.path))
        except CategoryError as error:
            raise EvaluationError(str(error)) from None
        for category in table.categories:
            if abs(category.id) > _LARGEST_CATEGORY_ID:
                raise EvaluationError(f"{self.path}: category id {category.id} does not fit into 32 bits")
        return table

    def where(self, image_id: ImageId) -> str:
        """The place to name in messages about an image."""
        return f"{self.path}, image {image_id}"

    def regions(self, image_id: ImageId) -> Regions:
        """Read the id map of an image and the rows of its segments.

        Raises:
            EvaluationError: an ill-formed entry, an unsafe file name, or a PNG that cannot be read as an id map.
        """
        entry, where = self.entries[image_id], self.where(image_id)
        rows = [_segment_row(info, where) for info in _segments_info(entry, where)]
        path = _png_path(self.folder, entry.get("file_name"), where)
        try:
            segment_map = read_id_png(path)
        except SegmentMapError as error:
            raise EvaluationError(f"image {image_id}: {error}") from None
        return Regions.from_rows(segment_map, rows, f"{where} ({path.name})")

    def wrong_areas(self, image_id: ImageId, pixels: np.ndarray) -> list[str]:
        """A line for each segment whose `area` in the JSON is not its number of pixels; `pixels` is in the JSON's order."""
        infos = _segments_info(self.entries[image_id], self.where(image_id))
        return [
            f"{self.path.name} image {image_id} segment {info['id']}: area {str(info['area'])[:20]}, {count} pixels"
            for info, count in zip(infos, pixels.tolist(), strict=True)
            if "area" in info and info["area"] != count
        ]


def read_annotations(path: str | Path, folder: str | Path) -> AnnotationSet:
    """Read a COCO-panoptic JSON of ground truth or of results.

    Raises:
        EvaluationError: the JSON or the folder is missing, the JSON is broken, or its annotations are not one per image.
    """
    path, folder = Path(path), Path(folder)
    content = _read_json(path)
    rows = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        raise EvaluationError(f"{path}: not a COCO-panoptic JSON: no list of 'annotations' in it (one per image)")
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder; it should hold the PNGs of {path}")
    entries: dict[ImageId, Mapping[str, Any]] = {}
    for index, row in enumerate(rows):
        image_id = _image_id(row, f"{path}, annotation {index}")
        if image_id in entries:
            raise EvaluationError(f"{path}: image {image_id} has more than one annotation; keep one per image")
        entries[image_id] = row
    return AnnotationSet(path, folder, entries, content.get("categories"), _image_names(content.get("images")))


def check_same_images(prediction: AnnotationSet, truth: AnnotationSet) -> list[str]:
    """Find predictions of another split: those whose image ids are the truth's by chance, so that the file names differ.

    The names of the images are compared where both JSONs list `images`. Elsewhere there are only those of the PNGs, which
    results may choose freely: they are noted, never refused. Folder and ending do not count, nor what stands around a name.

    Returns:
        A line for each image whose names differ.

    Raises:
        EvaluationError: both list the images that they share, and none has the same name on both sides.
    """
    shared = [image_id for image_id in truth.entries if image_id in prediction.entries]
    listed = [i for i in shared if i in truth.image_names and i in prediction.image_names]
    if listed:
        names = {i: (prediction.image_names[i], truth.image_names[i]) for i in listed}
        differing = [i for i, (mine, theirs) in names.items() if not _alike(_stem(mine), _stem(theirs))]
    else:
        pairs = {i: (prediction.entries[i].get("file_name"), truth.entries[i].get("file_name")) for i in shared}
        names = {i: (a, b) for i, (a, b) in pairs.items() if isinstance(a, str) and isinstance(b, str)}
        differing = [
            i for i, (mine, theirs) in names.items() if not (_alike(_stem(mine), _stem(theirs)) or _tells(_stem(mine), i))
        ]
    if listed and len(differing) == len(names):
        mine, theirs = names[differing[0]]
        raise EvaluationError(
            f"{prediction.path}: these are predictions of other images: image {differing[0]} is {_show(mine)} there but "
            f"{_show(theirs)} in {truth.path}, and no other image has the same name on both sides; predict the images of this "
            "ground truth (its split), or give the ground truth of the predicted ones"
        )
    return [f"image {i}: {_show(names[i][0])}, truth {_show(names[i][1])}" for i in differing]


def check_same_names(prediction: AnnotationSet, categories: CategoryTable) -> list[str]:
    """Find predictions of another class table, where the predictions' JSON lists its categories.

    Returns:
        A line for each category id that has another name there. Names differ between tools, so some are only noted.

    Raises:
        EvaluationError: they share several ids, and none has the same name on both sides.
    """
    rows = prediction.category_list if isinstance(prediction.category_list, list) else []
    names = {
        row["id"]: row["name"] for row in rows if isinstance(row, dict) and isinstance(row.get("id"), int) and "name" in row
    }
    shared = [category for category in categories.categories if category.id in names]
    differing = [category for category in shared if names[category.id] != category.name]
    if len(differing) == len(shared) > 1:
        first = differing[0]
        raise EvaluationError(
            f"{prediction.path}: these are predictions of other categories: {first.id} is {_show(names[first.id])} there but "
            f"{_show(first.name)} in the truth, and no other id has the same name on both sides; give both the same categories"
        )
    return [f"category {c.id}: {_show(names[c.id])}, truth {_show(c.name)}" for c in differing]


def _image_names(rows: Any) -> dict[ImageId, str]:
    """File names by image id; what is no proper entry is left out, because nothing but a comparison needs it."""
    entries = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    pairs = ((row.get("id"), row.get("file_name")) for row in entries)
    return {i: name for i, name in pairs if isinstance(i, int | str) and isinstance(name, str)}


def _stem(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).stem.casefold()


def _alike(mine: str, theirs: str) -> bool:
    """Whether one name stands within the other as a whole number or word."""
    return any(re.search(rf"(?<!\d){re.escape(part)}(?!\d)", whole) for part, whole in ((mine, theirs), (theirs, mine)) if part)


def _tells(name: str, image_id: ImageId) -> bool:
    """Whether the image's id stands in a name, with or without zeros before it."""
    return re.search(rf"(?<!\d)0*{re.escape(str(image_id).casefold())}(?!\d)", name) is not None


def _png_path(folder: Path, name: Any, where: str) -> Path:
    """The file `name` inside `folder`; names from a JSON are not trusted."""
    if not isinstance(name, str) or not name:
        raise EvaluationError(f"{where}: file_name must be the name of the image's PNG, but is {_show(name)}")
    try:
        return safe_path(folder, name, where)
    except DataError as error:
        raise EvaluationError(str(error)) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise EvaluationError(f"{path}: no such file; give the COCO-panoptic JSON") from None
    except OSError as error:
        raise EvaluationError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # JSON and UTF-8 errors are both ValueErrors
        raise EvaluationError(f"{path}: not valid JSON ({error}); it may be truncated, write or download it again") from None


def _image_id(row: Any, where: str) -> ImageId:
    if not isinstance(row, dict):
        raise EvaluationError(f"{where}: must be an object with image_id, file_name and segments_info, but is {_show(row)}")
    image_id = row.get("image_id")
    if not isinstance(image_id, int | str) or isinstance(image_id, bool):
        raise EvaluationError(f"{where}: image_id must be a number or a name, but is {_show(image_id)}")
    return image_id


def _segments_info(entry: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    infos = entry.get("segments_info")
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise EvaluationError(f"{where}: segments_info must be a list with one object per segment; [] if there is none")
    return infos


def _segment_row(info: Mapping[str, Any], where: str) -> tuple[int, int, bool]:
    """(id, category id, iscrowd) of a segment."""
    segment_id, category_id, crowd = _integer(info.get("id")), _integer(info.get("category_id")), info.get("iscrowd", 0)
    if segment_id is None or not 0 <= segment_id <= MAX_ID:
        raise EvaluationError(f"{where}: segment id {_show(info.get('id'))} must be an integer from 0 to {MAX_ID} (24 bits)")
    where = f"{where}, segment {segment_id}"
    if category_id is None or abs(category_id) > _LARGEST_CATEGORY_ID:
        raise EvaluationError(f"{where}: category_id {_show(info.get('category_id'))} must be the integer id of a category")
    if crowd not in (0, 1):
        raise EvaluationError(f"{where}: iscrowd must be 0 or 1, but is {_show(crowd)}")
    return segment_id, category_id, crowd == 1


def _integer(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _show(value: Any) -> str:
    return repr(value)[:60]
