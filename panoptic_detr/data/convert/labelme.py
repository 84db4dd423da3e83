"""LabelMe JSON files, one for each image, to COCO-panoptic."""

import base64
import binascii
from collections.abc import Hashable, Iterable
from functools import partial
from pathlib import Path, PureWindowsPath

import cv2
import numpy as np

from panoptic_detr.data.coco import find_image, read_json
from panoptic_detr.data.coco.entries import Entry
from panoptic_detr.data.convert.drawing import LARGEST_COORDINATE, Region, are_coordinates, paint, region_of
from panoptic_detr.data.convert.output import Conversion, Labelled, write_dataset
from panoptic_detr.data.convert.sources import (
    Classes,
    alike,
    find_by_key,
    number_classes,
    read_categories,
    rows_of,
    sizes_of,
)
from panoptic_detr.data.doctor import raw_values, show
from panoptic_detr.errors import DataError

CORNERS = {"polygon": 3, "rectangle": 2, "circle": 2}  # points that a shape with area needs
WITHOUT_AREA = ("point", "points", "line", "lines", "linestrip", "polyline", "keypoint")
LABELME_JSON = "a LabelMe JSON: that is an object with imagePath and shapes (move other files out of the folder)"
IGNORED = "__ignore__"  # LabelMe's own label for pixels that mean nothing


def labelme(
    folder: Path,
    out: Path,
    split: str = "train",
    images: Path | None = None,
    stuff: list[str] | None = None,
    categories: Path | None = None,
    rest: str | None = None,
    resize_annotations: bool = False,
    copy_images: bool = False,
    workers: int | None = None,
) -> Conversion:
    """Convert LabelMe JSON files: polygons, rectangles, circles, masks, and other shapes by their corners.

    Shapes of one label and group_id are one segment; all shapes of a stuff label are one segment. Where segments overlap, the
    smaller one is on top. Shapes without area (points, lines) are skipped and counted; `__ignore__` is void.

    Args:
        folder: of the JSON files, folders below it included.
        out: root of the new data set.
        split: name of the new split.
        images: folder of the images, where they are looked up by their bare names; by default they lie beside their JSON.
        stuff: labels that are stuff, `--stuff sky,grass` or `--stuff sky grass`; all others are things.
        categories: JSON with the `categories` to use, so that splits agree: that of the first split, say. By default the labels
            that occur, in alphabetical order.
        rest: name of a stuff class for all pixels of no segment; void by default.
        resize_annotations: shapes follow an image that was resized since, from the size in the JSON to the file's, and one that
            EXIF turns by a quarter if their size is that of the upright picture.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.
    """
    files = find_by_key(folder, "", (".json",))
    if not files:
        raise DataError(f"{folder}: no .json annotation lies there or below; name the folder of the LabelMe files")
    rows, warnings = _found_categories(files.values()) if categories is None else (read_categories(categories), [])
    declared = stuff or [] if categories is None else stuff  # without --stuff given categories must say it themselves
    classes = number_classes(rows, str(categories or folder), rest, declared)
    items = [(number, key, path) for number, (key, path) in enumerate(files.items(), start=1)]
    read = partial(_read, images=images, classes=classes, resize=resize_annotations)
    return write_dataset(
        read, items, classes, out=out, split=split, copy_images=copy_images, workers=workers, warnings=warnings
    )


def _found_categories(files: Iterable[Path]) -> tuple[list[Entry], list[str]]:
    """Every label that occurs, numbered in alphabetical order; and what is odd about them."""
    labels = sorted(
        {_label(shape, path) for path in files for shape in _shapes(read_json(path, what=LABELME_JSON), path)} - {IGNORED}
    )
    return [{"id": i, "name": name} for i, name in enumerate(labels, start=1)], alike(labels)


def _shapes(content: Entry, path: Path) -> list[Entry]:
    return rows_of(content, "shapes", path, "so this is no LabelMe file; move it out of the folder")


def _label(shape: Entry, path: Path) -> str:
    if not isinstance(shape.get("label"), str):
        raise DataError(f"{path}: a shape's label is {show(shape.get('label'))}, but must be a text")
    if not shape["label"].strip():
        raise DataError(f"{path}: a shape's label is {shape['label']!r}; name its class, or remove the shape")
    return shape["label"]


def _read(item: tuple[int, str, Path], *, images: Path | None, classes: Classes, resize: bool) -> Labelled:
    number, key, path = item
    content = read_json(path, what=LABELME_JSON)
    image = _find(content, path, images)
    sizes = sizes_of(content, ("imageHeight", "imageWidth"), image, str(path), resize)
    regions: dict[Hashable, Region] = {}
    notes: list[str] = []
    for place, shape in enumerate(_shapes(content, path)):
        category_id, segment = _segment_key(shape, place, classes, path)
        mask, note = _shape_mask(shape, sizes.drawn, f"{path}: shape {place}")
        if note:
            notes.append(f"{note}: {show(shape.get('shape_type'))}")
            category_id, segment = None, ("unknown", place)
        region = None if mask is None else region_of(sizes.as_stored(mask), category_id)
        if region is not None:
            regions[segment] = regions[segment].joined(region) if segment in regions else region
    return Labelled(image, f"{key}{image.suffix}", number, *paint(sizes.stored, list(regions.values())), notes)


def _find(content: Entry, path: Path, images: Path | None) -> Path:
    """The image beside its JSON, or in the folder of all images, where its bare name counts."""
    name = content.get("imagePath")
    if not isinstance(name, str):
        raise DataError(f"{path}: imagePath is {show(name)}, but must be a text")
    if images is not None:
        return find_image(images, PureWindowsPath(name).name, str(path), "imagePath")
    try:
        return find_image(path.parent, name, str(path), "imagePath")
    except DataError as error:
        raise DataError(f"{error}; if the images lie in a folder of their own, name it with --images") from None


def _segment_key(shape: Entry, place: int, classes: Classes, path: Path) -> tuple[int | None, Hashable]:
    """Category id (None: void), and a key: shapes with the same are one segment."""
    label = _label(shape, path)
    if label == IGNORED and label not in classes.id_of:
        return None, ("shape", place)
    if label not in classes.id_of:
        raise DataError(f"{path}: label {label!r} is not among the categories {', '.join(classes.id_of)}; add or correct it")
    category_id, group = classes.id_of[label], shape.get("group_id")
    if not classes.isthing[category_id]:
        return category_id, ("stuff", category_id)
    return category_id, ("shape", place) if group is None else ("group", category_id, str(group))


def _shape_mask(shape: Entry, size: tuple[int, int], where: str) -> tuple[np.ndarray | None, str]:
    """(H, W) bool, None for a shape without area; and a note unless the pixels are known to be the shape's."""
    kind = shape.get("shape_type") or "polygon"
    if not isinstance(kind, str) or kind in WITHOUT_AREA:
        return None, "shape without area"
    points = _points(shape.get("points"), where)
    if kind == "mask":
        return _packed_mask(shape.get("mask"), points, size, where), ""
    if kind not in CORNERS and len(points) == 2:  # an ellipse in a box, say
        return _filled("rectangle", points, size), "unknown shape, with area, so its box is void"
    if kind not in CORNERS:
        kind = "polygon"
    return (None, "shape without area") if len(points) < CORNERS[kind] else (_filled(kind, points, size), "")


def _filled(kind: str, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool of a polygon, of the box of all points, or of a circle around the first through the second."""
    canvas = np.zeros(size, np.uint8)
    if kind == "circle":
        radius = int(np.hypot(*(points[1] - points[0])).round())
        cv2.circle(canvas, tuple(points[0].round().astype(int).tolist()), radius, 1, cv2.FILLED)
        return canvas.astype(bool)
    (left, top), (right, bottom) = points.min(0), points.max(0)
    corners = points if kind == "polygon" else np.array([[left, top], [right, top], [right, bottom], [left, bottom]])
    cv2.fillPoly(canvas, [corners.round().astype(np.int32)], 1)
    return canvas.astype(bool)


def _points(rows: object, where: str) -> np.ndarray:
    """(N, 2) float64 x, y."""
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise DataError(f"{where}: its points are {show(rows)}, but must be pairs of numbers")
    if not are_coordinates([value for row in rows for value in row]):
        raise DataError(f"{where}: its points {show(rows)} are not all numbers up to {LARGEST_COORDINATE}")
    return np.array(rows, np.float64).reshape(-1, 2)


def _packed_mask(text: object, points: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """A mask that LabelMe keeps as a picture of its box: base64 of a PNG, at the first point."""
    try:
        values = raw_values(base64.b64decode(text if isinstance(text, str) else "", validate=True))
    except (binascii.Error, ValueError):
        values = None
    if values is None:
        raise DataError(f"{where}: its mask is no picture in base64; draw it again")
    if not len(points):
        raise DataError(f"{where}: its mask has no point, and the first says where it lies; draw it again")
    left, top = points[0].round().astype(int).tolist()
    whole = np.zeros(size, bool)
    rows, columns = np.nonzero(values)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    whole[rows[inside], columns[inside]] = True
    return whole
