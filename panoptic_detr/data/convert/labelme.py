"""LabelMe JSON files, one for each image, to COCO-panoptic."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import isfinite
from pathlib import Path, PureWindowsPath
from typing import Any

import cv2
import numpy as np

from panoptic_detr.data.coco import find_image, read_json
from panoptic_detr.data.convert.output import (
    LARGEST_COORDINATE,
    Conversion,
    Labelled,
    fill_rest,
    paint,
    read_categories,
    region_of,
    with_rest,
    write_dataset,
)
from panoptic_detr.data.convert.pairs import find_by_key
from panoptic_detr.data.doctor import raw_values, show
from panoptic_detr.errors import DataError
from panoptic_detr.images import read_image

CORNERS = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}  # points that a shape needs; other shapes have no area


@dataclass(frozen=True)
class _Settings:
    """What is the same for all files; `isthing` and `ids` by label."""

    images: Path | None
    ids: dict[str, int]
    isthing: dict[int, bool]
    rest_id: int


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

    Returns:
        What was written.
    """
    files = find_by_key(Path(folder), "", (".json",))
    rows = read_categories(categories) if categories is not None else _found_categories(list(files.values()), stuff or [])
    table, rest_id = with_rest(rows, rest, str(categories or folder))
    ids = {category.name: category.id for category in table.categories}
    isthing = {category.id: category.isthing for category in table.categories}
    settings = _Settings(None if images is None else Path(images), ids, isthing, rest_id)
    items = [(number, key, path) for number, (key, path) in enumerate(files.items(), start=1)]
    read = partial(_read, settings=settings)
    return write_dataset(read, items, out=out, split=split, categories=table, copy_images=copy_images, workers=workers)


def _found_categories(files: Sequence[Path], stuff: Sequence[str]) -> list[dict[str, Any]]:
    labels = {_label(shape, path) for path in files for shape in _shapes(read_json(path), path)}
    absent = [label for label in stuff if label not in labels]
    if absent:
        raise DataError(f"no shape has the stuff label {absent[0]!r}; the labels are {', '.join(sorted(labels)[:20])}")
    return [{"id": i, "name": name, "isthing": int(name not in stuff)} for i, name in enumerate(sorted(labels), start=1)]


def _shapes(content: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    shapes = content.get("shapes")
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise DataError(f"{path}: no list 'shapes', so this is no LabelMe file; move it out of the folder")
    return shapes


def _label(shape: dict[str, Any], path: Path) -> str:
    if not isinstance(shape.get("label"), str):
        raise DataError(f"{path}: a shape's label is {show(shape.get('label'))}, but must be a text")
    return shape["label"]


def _read(item: tuple[int, str, Path], *, settings: _Settings) -> Labelled:
    number, key, path = item
    content = read_json(path)
    name = content.get("imagePath")
    if not isinstance(name, str):
        raise DataError(f"{path}: imagePath is {show(name)}, but must be a text")
    beside = path.parent if settings.images is None else settings.images
    bare = name if settings.images is None else PureWindowsPath(name).name
    image = find_image(beside, bare, str(path))
    size = read_image(image).shape[:2]
    _check_drawn_size(content, size, f"{path}: {image.name}")
    masks: dict[tuple[int, Any], np.ndarray] = {}
    notes: list[str] = []
    for place, shape in enumerate(_shapes(content, path)):
        where = f"{path}: shape {place}"
        segment = _segment_key(shape, place, settings, path)
        mask = _shape_mask(shape, size, where)
        if mask is None:
            notes.append(f"shape without area: {show(shape.get('shape_type'))}")
        else:
            masks[segment] = masks[segment] | mask if segment in masks else mask
    regions = [region for (c, _), mask in masks.items() if (region := region_of(mask, c)) is not None]
    places = paint(size, regions)
    segments = [(region.category_id, False) for region in regions]
    fill_rest(places, segments, settings.rest_id)
    return Labelled(image, f"{key}{image.suffix}", number, places, segments, notes)


def _check_drawn_size(content: dict[str, Any], size: tuple[int, int], where: str) -> None:
    """LabelMe turns a picture upright by its EXIF orientation before it is drawn on; the data set has the stored pixels."""
    drawn = (content.get("imageHeight"), content.get("imageWidth"))
    if None not in drawn and drawn != size:
        raise DataError(
            f"{where} was drawn on at {show(drawn[1])}x{show(drawn[0])} pixels, but is stored at {size[1]}x{size[0]}: it was "
            "resized since, or turned by its EXIF orientation; save it as it was drawn on (upright, without EXIF)"
        )


def _segment_key(shape: dict[str, Any], place: int, settings: _Settings, path: Path) -> tuple[int, Any]:
    """Shapes with the same key are one segment."""
    label = _label(shape, path)
    if label not in settings.ids:
        raise DataError(f"{path}: label {label!r} is not among the categories {', '.join(settings.ids)}; add or correct it")
    category_id, group = settings.ids[label], shape.get("group_id")
    if not settings.isthing[category_id]:
        return category_id, "stuff"
    return category_id, ("shape", place) if group is None else ("group", str(group))


def _shape_mask(shape: dict[str, Any], size: tuple[int, int], where: str) -> np.ndarray | None:
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
    values = [value for row in rows for value in row]
    if not all(isinstance(value, int | float) and abs(value) <= LARGEST_COORDINATE and isfinite(value) for value in values):
        raise DataError(f"{where}: its points {show(rows)} are not all numbers up to {LARGEST_COORDINATE}")
    return np.array(values, np.float64).reshape(-1, 2)


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
