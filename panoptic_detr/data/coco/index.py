"""COCO-panoptic files: where they lie, what the JSON says (as compact arrays), and the pictures; every defect by name."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import DataError, SegmentMapError
from panoptic_detr.files import safe_path
from panoptic_detr.segment_maps import MAX_ID


@dataclass(frozen=True)
class CocoIndex:
    """A COCO-panoptic JSON as arrays, a tenth of the size of the parsed JSON (60 MB for COCO's training set).

    Attributes:
        image_ids: of each image, in the JSON's order.
        image_names: file name of each image, relative to the image folder.
        png_names: file name of each annotation, relative to the panoptic folder.
        offsets: (N + 1,) int64; the segments of image i are rows offsets[i] to offsets[i + 1] of the next three.
        segment_ids: (R,) int32.
        category_ids: (R,) int64.
        iscrowd: (R,) bool.
        categories: the table.
        path: the JSON, for messages.
    """

    image_ids: list[int | str]
    image_names: list[str]
    png_names: list[str]
    offsets: np.ndarray
    segment_ids: np.ndarray
    category_ids: np.ndarray
    iscrowd: np.ndarray
    categories: CategoryTable
    path: Path

    def segments_of(self, i: int) -> slice:
        """Rows of the segments of the i-th image."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))


def read_index(path: str | Path, *, categories: CategoryTable | None = None) -> CocoIndex:
    """Read a COCO-panoptic JSON.

    Args:
        path: the JSON.
        categories: the table to use instead of the JSON's own (for a model that knows more classes).

    Raises:
        DataError: missing, not JSON, or not a panoptic one; a repeated or unknown id; an image without annotation.
        CategoryError: an unusable category list.
    """
    path = Path(path)
    content = read_json(path)
    images, annotations = (_entries(content, key, path) for key in ("images", "annotations"))
    table = (
        CategoryTable.from_coco(_entries(content, "categories", path), where=str(path)) if categories is None else categories
    )
    if any(abs(category.id) >= 2**31 for category in table.categories):
        raise DataError(f"{path}: a category id has more than 31 bits; number the categories anew")
    names = {_field(entry, "id", f"{path}: images[{i}]"): entry for i, entry in enumerate(images)}
    if len(names) < len(images):
        repeated = _first_repeated([entry["id"] for entry in images])
        raise DataError(f"{path}: image id {repeated!r} is used more than once; every image needs an id of its own")
    by_image = _annotations_by_image(annotations, names, path)
    rows = [_segments(by_image[image_id], image_id, table, path) for image_id in names]
    return CocoIndex(
        image_ids=list(names),
        image_names=[_name(entry, f"{path}: image {image_id!r}") for image_id, entry in names.items()],
        png_names=[_name(by_image[image_id], f"{path}: annotation of image {image_id!r}") for image_id in names],
        offsets=np.cumsum([0, *(len(row) for row in rows)], dtype=np.int64),
        segment_ids=np.concatenate([row[:, 0] for row in rows] or [np.zeros(0)]).astype(np.int32),
        category_ids=np.concatenate([row[:, 1] for row in rows] or [np.zeros(0)]).astype(np.int64),
        iscrowd=np.concatenate([row[:, 2] for row in rows] or [np.zeros(0)]).astype(bool),
        categories=table,
        path=path,
    )


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: missing, unreadable, not JSON (truncated, say), or no object.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of the COCO-panoptic JSON") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); the file may be truncated: copy or download it again") from None
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: a COCO-panoptic JSON is an object with images, annotations, categories; this is a list or value"
        )
    return content


def renumber(segment_map: np.ndarray, segment_ids: np.ndarray, where: str) -> np.ndarray:
    """Replace each id by 1 + its position in `segment_ids`; both sides must have the same ids.

    Neighbouring pixels mostly have the same id, so runs of equal pixels are looked up instead of pixels: ten times faster.
    """
    flat = segment_map.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths, values = np.diff(starts, append=len(flat)), flat[starts]
    order = np.argsort(segment_ids)
    table = np.concatenate([[0], segment_ids[order]]).astype(np.int32)
    ranks = np.minimum(np.searchsorted(table, values), len(table) - 1)
    unknown = table[ranks] != values
    if unknown.any():
        value = int(values[unknown][0])
        raise SegmentMapError(
            f"{where}: {int(lengths[values == value].sum())} pixels have segment id {value}, which the JSON's segments_info "
            "does not list; add it there, or make the pixels 0 (void): `panoptic-detr data check --fix` can"
        )
    absent = np.bincount(ranks, minlength=len(table))[1:] == 0
    if absent.any():
        raise SegmentMapError(
            f"{where}: segment {int(table[1:][absent][0])} of the JSON has no pixel in the PNG; remove it from segments_info "
            "(`panoptic-detr data check --fix` can) or write the PNG again"
        )
    positions = np.concatenate([[0], order + 1]).astype(np.uint8 if len(table) <= 256 else np.int16)
    return np.repeat(positions[ranks], lengths).reshape(segment_map.shape)


def _entries(content: Mapping[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            f"{path}: '{key}' is {'missing' if key not in content else 'not a list of objects'}; a COCO-panoptic JSON has "
            "images, annotations (with segments_info) and categories; convert others with `panoptic-detr data convert`"
        )
    return entries


def _field(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if key not in entry:
        raise DataError(f"{where}: '{key}' is missing; check that the JSON is a COCO-panoptic one")
    value = entry[key]
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise DataError(f"{where}: '{key}' is {value!r}, but must be an integer or a text")
    return value


def _name(entry: Mapping[str, Any], where: str) -> str:
    name = str(_field(entry, "file_name", where))
    safe_path("the folder", name, where)
    return name


def _first_repeated(values: Sequence[Any]) -> Any:
    return next(value for value, count in Counter(values).items() if count > 1)


def _annotations_by_image(
    annotations: list[dict[str, Any]], images: Mapping[int | str, Any], path: Path
) -> dict[int | str, dict[str, Any]]:
    """The annotation of every image, exactly one each."""
    by_image = {_field(entry, "image_id", f"{path}: annotations[{i}]"): entry for i, entry in enumerate(annotations)}
    if len(by_image) < len(annotations):
        repeated = _first_repeated([entry["image_id"] for entry in annotations])
        raise DataError(f"{path}: image {repeated!r} has more than one annotation; a panoptic JSON has one per image")
    if extra := by_image.keys() - images.keys():
        raise DataError(f"{path}: {len(extra)} annotation(s) of images that are not listed (first: {_first(extra)}); list them")
    if bare := images.keys() - by_image.keys():
        raise DataError(
            f"{path}: {len(bare)} image(s) without annotation (first: {_first(bare)}); annotate them (with an empty "
            "segments_info if nothing is there) or remove them from 'images'"
        )
    return by_image


def _first(ids: set[int | str]) -> str:
    return repr(min(ids, key=str))


def _segments(annotation: Mapping[str, Any], image_id: int | str, table: CategoryTable, path: Path) -> np.ndarray:
    """Rows (id, category_id, iscrowd) of one annotation: (S, 3) int64."""
    where = f"{path}: image {image_id!r}"
    segments = _entries_of_image(annotation, where)
    rows = np.array([_segment(segment, table, where) for segment in segments], np.int64).reshape(-1, 3)
    if len(np.unique(rows[:, 0])) < len(rows):
        repeated = _first_repeated(rows[:, 0].tolist())
        raise DataError(f"{where}: segment id {repeated} is used more than once; ids must be unique within an image")
    return rows


def _entries_of_image(annotation: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    segments = annotation.get("segments_info")
    if not isinstance(segments, list) or not all(isinstance(segment, dict) for segment in segments):
        raise DataError(
            f"{where}: its annotation has no list 'segments_info', so this is not a panoptic JSON (COCO's instances_*.json, "
            "perhaps); convert it with `panoptic-detr data convert`"
        )
    return segments


def _segment(segment: Mapping[str, Any], table: CategoryTable, where: str) -> tuple[int, int, int]:
    segment_id = _field(segment, "id", f"{where}: a segment")
    where = f"{where}: segment {segment_id!r}"
    category_id, crowd = _field(segment, "category_id", where), segment.get("iscrowd", 0)
    if not isinstance(segment_id, int) or not 0 < segment_id <= MAX_ID:
        raise DataError(f"{where}: segment ids are integers from 1 to {MAX_ID} (0 is void in the PNG)")
    if category_id not in table.by_id:
        raise DataError(
            f"{where}: category {category_id!r} is not among the {len(table.categories)} categories; add or correct it"
        )
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd is {crowd!r}, but must be 0 or 1")
    return segment_id, category_id, int(crowd)
