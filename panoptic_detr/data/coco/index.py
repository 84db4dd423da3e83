"""A COCO-panoptic JSON as compact arrays, for training and scoring; a defect is refused by name."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco.defects import Defect, ImageId, show
from panoptic_detr.data.coco.entries import Entries, read_entries, usable_segments
from panoptic_detr.errors import CategoryError, DataError

_TOLERATED = ("image_file_duplicate", "png_shared")  # odd, but each image is read as it is listed
_COUNTED = {
    "annotation_without_image": "annotation(s) of images that are not listed",
    "annotation_missing": "image(s) without annotation",
}


@dataclass(frozen=True)
class CocoIndex:
    """A COCO-panoptic JSON as arrays, a tenth of the size of the parsed JSON (60 MB for COCO's training set)."""

    image_ids: list[ImageId]  # of each image, in the JSON's order
    image_names: list[str]  # file name of each image, relative to the image folder
    png_names: list[str]  # file name of each annotation, relative to the panoptic folder
    offsets: np.ndarray  # (N + 1,) int64; the segments of image i are rows offsets[i] to offsets[i + 1] of the next three
    segment_ids: np.ndarray  # (R,) int32
    category_ids: np.ndarray  # (R,) int64
    iscrowd: np.ndarray  # (R,) bool
    categories: CategoryTable  # the table
    path: Path  # the JSON, for messages

    def segments_of(self, i: int) -> slice:
        """Rows of the segments of the i-th image."""
        return slice(int(self.offsets[i]), int(self.offsets[i + 1]))


def read_index(path: str | Path, *, categories: CategoryTable | None = None) -> CocoIndex:
    """Read a COCO-panoptic JSON; `categories` is the table to use instead of its own, for a model that knows more classes.

    Raises:
        DataError: missing, not JSON, or not a panoptic one; a repeated or unknown id; an image without annotation.
        CategoryError: an unusable category list.
    """
    found = read_entries(path, categories=categories)
    for defect in found.defects:
        if defect.severity == "error" and defect.kind not in _TOLERATED:
            _refuse(defect, found)
    table = categories or CategoryTable.from_coco(found.category_rows, where=str(path))
    rows = [_segments(found, image_id) for image_id in found.images]
    together = np.concatenate([np.zeros((0, 3), np.int64), *rows])  # (R, 3)
    return CocoIndex(
        image_ids=list(found.images),
        image_names=[str(entry["file_name"]) for entry in found.images.values()],
        png_names=[str(found.annotations[image_id]["file_name"]) for image_id in found.images],
        offsets=np.cumsum([0, *map(len, rows)], dtype=np.int64),
        segment_ids=together[:, 0].astype(np.int32),
        category_ids=together[:, 1].copy(),
        iscrowd=together[:, 2].astype(bool),
        categories=table,
        path=Path(path),
    )


def _segments(found: Entries, image_id: ImageId) -> np.ndarray:
    """Rows (id, category_id, iscrowd) of the segments of an image: (S, 3) int64."""
    segments = usable_segments(
        found.annotations[image_id]["segments_info"],
        found.categories,
        lambda defect: _refuse(replace(defect, image_id=image_id), found),
    )
    rows = [(row["id"], row["category_id"], row["iscrowd"]) for row in segments]
    return np.array(rows, np.int64).reshape(-1, 3)


def _refuse(defect: Defect, found: Entries) -> NoReturn:
    if defect.kind in _COUNTED:
        ids = [other.image_id for other in found.defects if other.kind == defect.kind]
        what, where = f"{len(ids)} {_COUNTED[defect.kind]} (first: {defect.image_id!r})", ""
    else:
        what, where = defect.what, _where(defect)
    kind = CategoryError if defect.kind in ("category_invalid", "category_duplicate") else DataError
    raise kind(": ".join(part for part in (str(found.path), where, what) if part) + f"; {defect.remedy}")


def _where(defect: Defect) -> str:
    if defect.image_id is None:
        return defect.place
    image = f"image {show(defect.image_id)}"
    if defect.segment_id is not None and not defect.place:
        return f"{image}: segment {show(defect.segment_id)}"
    return f"{defect.place} of {image}" if defect.place and defect.segment_id is None else image
