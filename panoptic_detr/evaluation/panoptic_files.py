"""COCO-panoptic results on disk as something to score: a JSON with `annotations` and a folder of id PNGs.

Nothing in the JSON is trusted: ids, categories and file names are checked, areas are counted in the PNG, and a missing `bbox`,
`area` or `iscrowd` is fine. What is wrong is named with its file, image and segment.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from panoptic_detr.categories import LARGEST_ID, CategoryTable
from panoptic_detr.data.coco import read_json
from panoptic_detr.data.coco.defects import ImageId, show
from panoptic_detr.data.coco.entries import is_id, is_integer
from panoptic_detr.errors import CategoryError, DataError, EvaluationError, SegmentMapError
from panoptic_detr.files import path_fault, safe_path
from panoptic_detr.id_runs import IdRuns
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import Regions
from panoptic_detr.segment_maps import MAX_ID, measure, read_id_png

Reader = Callable[[Path], np.ndarray | IdRuns]  # of an id PNG


@dataclass(frozen=True)
class AnnotationSet:
    """The annotations of a JSON by image, and the folder of their PNGs."""

    path: Path  # the JSON
    folder: Path  # the folder of id PNGs
    entries: dict[ImageId, Mapping[str, object]]  # by image id, in the order of the JSON; checked when `regions` reads them
    category_list: object = None  # the JSON's `categories`, if it has them
    # file names of the images by id, where the JSON lists `images`
    image_names: dict[ImageId, str] = field(default_factory=dict)
    # film and frame of the images by id, where `images` says both
    frames: dict[ImageId, tuple[str, int]] = field(default_factory=dict)

    def categories(self) -> CategoryTable:
        """The category table.

        Raises:
            EvaluationError: no `categories`, or a broken list.
        """
        rows = self.category_list
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise EvaluationError(
                f"{self.path}: 'categories' must be a list of objects with id, name and isthing; where results have none, give "
                "the table of the truth"
            )
        try:
            return CategoryTable.from_coco(rows, where=str(self.path))
        except CategoryError as error:
            raise EvaluationError(str(error)) from None

    def where(self, image_id: ImageId) -> str:
        """The place to name in messages about an image."""
        return f"{self.path}, image {self.entries.get(image_id, {}).get('image_id', image_id)}"

    def regions(self, image_id: ImageId, read: Reader = read_id_png) -> Regions:
        """Read the id map of an image with `read`, and the rows of its segments.

        Raises:
            EvaluationError: an ill-formed entry, an unsafe file name, or a PNG that cannot be read as an id map.
        """
        entry, where = self.entries[image_id], self.where(image_id)
        rows = [_segment_row(info, where) for info in _segments_info(entry, where)]
        path = _png_path(self.folder, entry.get("file_name"), where)
        try:
            pixels = read(path)
        except SegmentMapError as error:
            raise EvaluationError(f"image {image_id}: {error}") from None
        return Regions.from_rows(pixels, rows, f"{where} ({path.name})")

    def segmentation(self, image_id: ImageId, categories: CategoryTable) -> PanopticSegmentation:
        """Read the annotation of an image with areas and boxes from its pixels, and scores and queries where it has them.

        Raises:
            EvaluationError: as `regions`; no annotation of this image; a segment of an unknown category or without a pixel.
        """
        where = self.where(image_id)
        if image_id not in self.entries:
            raise EvaluationError(f"{where}: there is no result for it; predict it, or leave it out (--image-ids, --limit)")
        regions, infos = self.regions(image_id), _segments_info(self.entries[image_id], where)
        up = int((regions.ids == 0).any())  # a listed segment 0 is a segment, and 0 in a result is void
        found, segments = measure(regions.segment_map + up), []
        rows = zip(infos, (regions.ids + up).tolist(), regions.category_ids.tolist(), regions.iscrowd.tolist(), strict=True)
        for info, number, category_id, crowd in rows:
            category = categories.by_id.get(category_id)
            if category is None:
                raise EvaluationError(f"{where}: segment {number - up} has category {category_id}, unknown to the data set")
            if number not in found:
                raise EvaluationError(f"{where}: segment {number - up} has no pixel in its PNG; leave it out, or paint it")
            score, query = info.get("score", 1.0), info.get("query")
            if not isinstance(score, int | float) or not (query is None or is_integer(query)):
                raise EvaluationError(f"{where}: segment {number - up}: score must be a number and query an integer")
            segments.append(Segment(number, category_id, category.isthing, float(score), *found[number], query, crowd))
        return PanopticSegmentation(regions.segment_map + up, segments, categories, image_id=image_id)

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
    for place in (path, folder):
        if fault := path_fault(place):
            raise EvaluationError(f"{place!r} is {fault}")
    path, folder = Path(path), Path(folder)
    content = read_json(path, error=EvaluationError)
    rows = content.get("annotations")
    if not isinstance(rows, list):
        raise EvaluationError(f"{path}: not a COCO-panoptic JSON: no list of 'annotations' in it (one per image)")
    if not folder.is_dir():
        raise EvaluationError(f"{folder}: no such folder; it should hold the PNGs of {path}")
    entries: dict[ImageId, Mapping[str, object]] = {}
    for index, row in enumerate(rows):
        image_id = _image_id(row, f"{path}, annotation {index}")
        if image_id in entries:
            raise EvaluationError(f"{path}: image {image_id} has more than one annotation; keep one per image")
        entries[image_id] = row
    images = content.get("images")
    return AnnotationSet(path, folder, entries, content.get("categories"), image_names(images), _frames(images))


def folder_of(path: Path) -> Path:
    """Where the PNGs of a results JSON are, if nobody says: `panoptic` beside it, or the folder of its own name."""
    beside = path.parent / "panoptic"
    return beside if beside.is_dir() else path.with_suffix("")


def read_panoptic(
    path: str | Path, folder: str | Path, categories: CategoryTable | None = None
) -> Iterator[PanopticSegmentation]:
    """Read ground truth or results in COCO-panoptic files, image by image, for `PanopticQuality` or to look at.

    Args:
        path: the JSON, with `annotations`.
        folder: its id PNGs.
        categories: its table, where the JSON has none: that of the truth.

    Raises:
        EvaluationError: what cannot be read; the message names file, image and segment.
    """
    annotations = read_annotations(path, folder)
    table = categories or annotations.categories()
    return (annotations.segmentation(image_id, table) for image_id in annotations.entries)


def image_names(rows: object) -> dict[ImageId, str]:
    """File names by image id; what is no proper entry is left out, because nothing but a comparison needs it."""
    pairs = ((row.get("id"), row.get("file_name")) for row in _objects(rows))
    return {i: name for i, name in pairs if is_id(i) and isinstance(name, str)}


def _frames(rows: object) -> dict[ImageId, tuple[str, int]]:
    """`video_id` and `frame_id` by image id."""
    places = ((row.get("id"), row.get("video_id"), row.get("frame_id")) for row in _objects(rows))
    return {i: (str(film), frame) for i, film, frame in places if is_id(i) and is_id(film) and is_integer(frame)}


def _objects(rows: object) -> list[dict[str, object]]:
    return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []


def _png_path(folder: Path, name: object, where: str) -> Path:
    """The file `name` inside `folder`; names from a JSON are not trusted."""
    if not isinstance(name, str) or not name:
        raise EvaluationError(f"{where}: file_name must be the name of the image's PNG, but is {show(name)}")
    try:
        return safe_path(folder, name, where)
    except DataError as error:
        raise EvaluationError(str(error)) from None


def _image_id(row: object, where: str) -> ImageId:
    if not isinstance(row, dict):
        raise EvaluationError(f"{where}: must be an object with image_id, file_name and segments_info, but is {show(row)}")
    image_id = row.get("image_id")
    if not is_id(image_id):
        raise EvaluationError(f"{where}: image_id must be a number or a name, but is {show(image_id)}")
    return image_id


def _segments_info(entry: Mapping[str, object], where: str) -> list[dict[str, object]]:
    infos = entry.get("segments_info")
    if not isinstance(infos, list) or not all(isinstance(info, dict) for info in infos):
        raise EvaluationError(f"{where}: segments_info must be a list with one object per segment; [] if there is none")
    return infos


def _segment_row(info: Mapping[str, object], where: str) -> tuple[int, int, bool]:
    """(id, category id, iscrowd) of a segment."""
    segment_id, category_id, crowd = info.get("id"), info.get("category_id"), info.get("iscrowd", 0)
    if not is_integer(segment_id) or not 0 <= segment_id <= MAX_ID:
        raise EvaluationError(f"{where}: segment id {show(segment_id)} must be an integer from 0 to {MAX_ID} (24 bits)")
    if not is_integer(category_id) or abs(category_id) > LARGEST_ID:
        there = f"{where}, segment {segment_id}"
        raise EvaluationError(f"{there}: category_id {show(category_id)} must be the integer id of a category")
    if crowd not in (0, 1):
        raise EvaluationError(f"{where}, segment {segment_id}: iscrowd must be 0 or 1, but is {show(crowd)}")
    return segment_id, category_id, crowd == 1
