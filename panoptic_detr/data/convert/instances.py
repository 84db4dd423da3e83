"""COCO instances (polygons, run lengths, crowds), with or without COCO-stuff maps, to COCO-panoptic."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_detr.data.coco import find_image, read_json
from panoptic_detr.data.convert.drawing import Region, paint, region_of, segmentation_mask
from panoptic_detr.data.convert.output import Conversion, Labelled, write_dataset
from panoptic_detr.data.convert.sources import (
    Classes,
    Entry,
    check_size,
    number_classes,
    read_categories,
    rows_of,
    stored_size,
)
from panoptic_detr.data.doctor import read_values, show
from panoptic_detr.errors import DataError
from panoptic_detr.files import safe_path


def coco_instances(
    annotations: Path,
    images: Path,
    out: Path,
    split: str = "train",
    rest: str | None = None,
    stuff_maps: Path | None = None,
    stuff_categories: Path | None = None,
    stuff_offset: int = 0,
    copy_images: bool = False,
    workers: int | None = None,
) -> Conversion:
    """Convert COCO instances, with or without COCO-stuff maps.

    Where instances overlap, the smaller one is on top; crowds lie below all others, stuff below crowds.

    Args:
        annotations: the instances JSON.
        images: folder of the images.
        out: root of the new data set.
        split: name of the new split.
        rest: name of a stuff class for all pixels of no segment; void by default.
        stuff_maps: folder with a PNG for each image whose values are stuff categories (stuffthingmaps or stuff pixelmaps).
        stuff_categories: JSON with the list of their categories, such as COCO's stuff_train2017.json.
        stuff_offset: category id minus value in the maps: 1 for stuffthingmaps, 0 for stuff pixelmaps.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.
    """
    if (stuff_maps is None) != (stuff_categories is None):
        raise DataError(
            "stuff maps need their categories and the other way round: give both --stuff_maps and --stuff_categories"
        )
    content = read_json(annotations)
    things = [{**row, "isthing": 1} for row in _rows(content, "categories", annotations)]
    thing_ids = {show(row.get("id")) for row in things}
    stuff = [] if stuff_categories is None else read_categories(stuff_categories)
    rows = [*things, *({**row, "isthing": 0} for row in stuff if show(row.get("id")) not in thing_ids)]
    classes = number_classes(rows, str(annotations), rest)
    items = _by_image(content, annotations)
    read = partial(
        _read, where=str(annotations), images=images, classes=classes, stuff_maps=stuff_maps, stuff_offset=stuff_offset
    )
    return write_dataset(read, items, classes, out=out, split=split, copy_images=copy_images, workers=workers)


def _rows(content: Mapping[str, Any], key: str, path: Path) -> list[Entry]:
    return rows_of(content, key, path, "a COCO instances JSON has images, annotations, categories")


def _by_image(content: Mapping[str, Any], path: Path) -> list[tuple[Entry, list[Entry]]]:
    """Every image entry with its annotations."""
    groups: dict[int | str, tuple[Entry, list[Entry]]] = {}
    for number, row in enumerate(_rows(content, "images", path)):
        image_id = row.get("id")
        if not isinstance(image_id, int | str) or isinstance(image_id, bool) or image_id in groups:
            raise DataError(f"{path}: images[{number}]: id {show(image_id)} is no number or text, or is used already")
        groups[image_id] = row, []
    for number, row in enumerate(_rows(content, "annotations", path)):
        image_id = row.get("image_id")
        if not isinstance(image_id, int | str) or isinstance(image_id, bool) or image_id not in groups:
            raise DataError(f"{path}: annotations[{number}]: image_id {show(image_id)} is not among the images")
        groups[image_id][1].append(row)
    return list(groups.values())


def _read(
    item: tuple[Entry, list[Entry]],
    *,
    where: str,
    images: Path,
    classes: Classes,
    stuff_maps: Path | None,
    stuff_offset: int,
) -> Labelled:
    entry, annotations = item
    where = f"{where}: image {entry['id']!r}"
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise DataError(f"{where}: file_name is {show(name)}, but must be a text")
    image = find_image(images, name, where)
    size = stored_size(image)
    drawn = [_region(row, size, classes, f"{where}, annotation {show(row.get('id'))}") for row in annotations]
    regions = [region for region in drawn if region is not None]
    notes = ["instance without a pixel (degenerate or empty segmentation)"] * (len(drawn) - len(regions))
    places, segments = paint(size, regions)
    visible = np.bincount(places.ravel(), minlength=len(regions) + 1)[1:]
    notes += ["instance wholly covered by smaller ones"] * int((visible == 0).sum())
    if stuff_maps is not None:
        path = safe_path(stuff_maps, str(Path(name).with_suffix(".png")), where)
        values = read_values(path) + stuff_offset
        check_size(values.shape, size, f"{where}, stuff map {path}")
        _add_stuff(places, segments, values, classes)
    return Labelled(image, Path(name).with_suffix(image.suffix).as_posix(), entry["id"], places, segments, notes)


def _region(row: Entry, size: tuple[int, int], classes: Classes, where: str) -> Region | None:
    category_id, crowd = row.get("category_id"), row.get("iscrowd", 0)
    if not isinstance(category_id, int) or isinstance(category_id, bool) or not classes.isthing.get(category_id):
        raise DataError(f"{where}: category_id {show(category_id)} is not among the categories; add or correct it")
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd is {show(crowd)}, but must be 0 or 1")
    return region_of(segmentation_mask(row.get("segmentation"), size, where), category_id, iscrowd=bool(crowd))


def _add_stuff(places: np.ndarray, segments: list[tuple[int, bool]], values: np.ndarray, classes: Classes) -> None:
    """Put the stuff map below the instances; values of no stuff category are void. In place."""
    free = places == 0
    for category_id in np.unique(values[free]).tolist():
        if classes.isthing.get(category_id) is False:
            segments.append((category_id, False))
            places[free & (values == category_id)] = len(segments)
