"""LabelMe JSON files, one for each image, to COCO-panoptic."""

import base64
import binascii
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any

import cv2
import numpy as np

from panoptic_detr.data.coco import find_image, read_json
from panoptic_detr.data.convert.drawing import LARGEST_COORDINATE, are_coordinates, paint, region_of
from panoptic_detr.data.convert.output import Conversion, Labelled, write_dataset
from panoptic_detr.data.convert.sources import (
    Classes,
    Entry,
    find_by_key,
    number_classes,
    number_labels,
    read_categories,
    rows_of,
    stored_size,
)
from panoptic_detr.data.doctor import raw_values, show
from panoptic_detr.errors import DataError

CORNERS = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}  # points that a shape needs; other shapes have no area


def labelme(
    folder: Path,
    out: Path,
    split: str = "train",
    images: Path | None = None,
    stuff: list[str] | None = None,
    categories: Path | None = None,
    rest: str | None = None,
    copy_images: bool = False,
    workers: int | None = None,
) -> Conversion:
    """Convert LabelMe JSON files: polygons, rectangles, circles and masks.

    Shapes of one label and group_id are one segment; all shapes of a stuff label are one segment. Where segments overlap, the
    smaller one is on top. Shapes without area (points, lines) are skipped and counted.

    Args:
        folder: of the JSON files, folders below it included.
        out: root of the new data set.
        split: name of the new split.
        images: folder of the images, where they are looked up by their bare names; by default they lie beside their JSON.
        stuff: labels that are stuff; all others are things.
        categories: JSON with the `categories` to use, so that splits agree: that of the first split, say. By default the labels
            that occur, in alphabetical order.
        rest: name of a stuff class for all pixels of no segment; void by default.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.
    """
    files = find_by_key(folder, "", (".json",))
    if categories is not None:
        rows = read_categories(categories)
    else:
        labels = (_label(shape, path) for path in files.values() for shape in _shapes(read_json(path), path))
        rows = number_labels(labels, stuff or [])
    classes = number_classes(rows, str(categories or folder), rest)
    items = [(number, key, path) for number, (key, path) in enumerate(files.items(), start=1)]
    read = partial(_read, images=images, classes=classes)
    return write_dataset(read, items, classes, out=out, split=split, copy_images=copy_images, workers=workers)


def _shapes(content: Entry, path: Path) -> list[Entry]:
    return rows_of(content, "shapes", path, "so this is no LabelMe file; move it out of the folder")


def _label(shape: Entry, path: Path) -> str:
    if not isinstance(shape.get("label"), str):
        raise DataError(f"{path}: a shape's label is {show(shape.get('label'))}, but must be a text")
    return shape["label"]


def _read(item: tuple[int, str, Path], *, images: Path | None, classes: Classes) -> Labelled:
    number, key, path = item
    content = read_json(path)
    name = content.get("imagePath")
    if not isinstance(name, str):
        raise DataError(f"{path}: imagePath is {show(name)}, but must be a text")
    image = find_image(path.parent, name, str(path)) if images is None else _named(images, name, path)
    size = stored_size(image)
    _check_drawn_size(content, size, f"{path}: {image.name}")
    masks: dict[tuple[int, Any], np.ndarray] = {}
    notes: list[str] = []
    for place, shape in enumerate(_shapes(content, path)):
        segment = _segment_key(shape, place, classes, path)
        mask = _shape_mask(shape, size, f"{path}: shape {place}")
        if mask is None:
            notes.append(f"shape without area: {show(shape.get('shape_type'))}")
        else:
            masks[segment] = masks[segment] | mask if segment in masks else mask
    regions = [region for (c, _), mask in masks.items() if (region := region_of(mask, c)) is not None]
    return Labelled(image, f"{key}{image.suffix}", number, *paint(size, regions), notes)


def _named(images: Path, name: str, path: Path) -> Path:
    """The image of this name in a folder, wherever its JSON says it was."""
    return find_image(images, PureWindowsPath(name).name, str(path))


def _check_drawn_size(content: Entry, size: tuple[int, int], where: str) -> None:
    """LabelMe turns a picture upright by its EXIF orientation before it is drawn on; the data set has the stored pixels."""
    drawn = (content.get("imageHeight"), content.get("imageWidth"))
    if None not in drawn and drawn != size:
        raise DataError(
            f"{where} was drawn on at {show(drawn[1])}x{show(drawn[0])} pixels, but is stored at {size[1]}x{size[0]}: it was "
            "resized since, or turned by its EXIF orientation; save it as it was drawn on (upright, without EXIF)"
        )


def _segment_key(shape: Entry, place: int, classes: Classes, path: Path) -> tuple[int, Any]:
    """Shapes with the same key are one segment."""
    label = _label(shape, path)
    if label not in classes.id_of:
        raise DataError(f"{path}: label {label!r} is not among the categories {', '.join(classes.id_of)}; add or correct it")
    category_id, group = classes.id_of[label], shape.get("group_id")
    if not classes.isthing[category_id]:
        return category_id, "stuff"
    return category_id, ("shape", place) if group is None else ("group", str(group))


def _shape_mask(shape: Entry, size: tuple[int, int], where: str) -> np.ndarray | None:
    """(H, W) bool; None for a shape without area."""
    kind = shape.get("shape_type", "polygon")
    if not isinstance(kind, str) or kind not in CORNERS:
        return None
    points = _points(shape.get("points"), where)
    if len(points) < CORNERS[kind]:
        return None
    if kind == "mask":
        return _packed_mask(shape.get("mask"), points, size, where)
    canvas = np.zeros(size, np.uint8)
    if kind == "circle":
        radius = int(np.hypot(*(points[1] - points[0])).round())
        cv2.circle(canvas, tuple(points[0].round().astype(int).tolist()), radius, 1, cv2.FILLED)
    else:
        corners = points if kind == "polygon" else points[[0, 0, 1, 1]] * [1, 0] + points[[0, 1, 1, 0]] * [0, 1]
        cv2.fillPoly(canvas, [corners.round().astype(np.int32)], 1)
    return canvas.astype(bool)


def _points(rows: Any, where: str) -> np.ndarray:
    """(N, 2) float64 x, y."""
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 2 for row in rows):
        raise DataError(f"{where}: its points are {show(rows)}, but must be pairs of numbers")
    if not are_coordinates([value for row in rows for value in row]):
        raise DataError(f"{where}: its points {show(rows)} are not all numbers up to {LARGEST_COORDINATE}")
    return np.array(rows, np.float64).reshape(-1, 2)


def _packed_mask(text: Any, points: np.ndarray, size: tuple[int, int], where: str) -> np.ndarray:
    """A mask that LabelMe keeps as a picture of its box: base64 of a PNG, at the first point."""
    try:
        values = raw_values(base64.b64decode(text if isinstance(text, str) else "", validate=True))
    except (binascii.Error, ValueError):
        values = None
    if values is None:
        raise DataError(f"{where}: its mask is no picture in base64; draw it again")
    left, top = points[0].round().astype(int).tolist()
    whole = np.zeros(size, bool)
    rows, columns = np.nonzero(values)
    rows, columns = rows + top, columns + left
    inside = (rows >= 0) & (rows < size[0]) & (columns >= 0) & (columns < size[1])
    whole[rows[inside], columns[inside]] = True
    return whole
