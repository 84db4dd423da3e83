"""COCO instances (polygons, run lengths, crowds), with or without COCO-stuff maps, to COCO-panoptic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_detr.data.coco import find_image, read_json
from panoptic_detr.data.convert.masks import segmentation_mask
from panoptic_detr.data.convert.output import (
    Conversion,
    Labelled,
    Region,
    check_size,
    fill_rest,
    paint,
    read_categories,
    region_of,
    with_rest,
    write_dataset,
)
from panoptic_detr.data.doctor import read_values, show
from panoptic_detr.errors import DataError
from panoptic_detr.files import safe_path
from panoptic_detr.images import read_image

Entry = dict[str, Any]


@dataclass(frozen=True)
class _Settings:
    """What is the same for all images."""

    images: Path
    where: str
    things: frozenset[int]
    rest_id: int
    stuff_maps: Path | None
    stuff_offset: int
    stuff: frozenset[int]


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

    Returns:
        What was written.
    """
    content = read_json(annotations)
    instance_rows = _rows(content, "categories", annotations)
    if (stuff_maps is None) != (stuff_categories is None):
        raise DataError(
            "stuff maps need their categories and the other way round: give both --stuff_maps and --stuff_categories"
        )
    table, rest_id = with_rest(_category_rows(instance_rows, stuff_categories), rest, str(annotations))
    ids = [frozenset(category.id for category in group) for group in (table.things, table.stuff)]
    settings = _Settings(Path(images), str(annotations), ids[0], rest_id, stuff_maps, stuff_offset, ids[1])
    items = _by_image(content, annotations)
    read = partial(_read, settings=settings)
    return write_dataset(read, items, out=out, split=split, categories=table, copy_images=copy_images, workers=workers)


def _rows(content: Mapping[str, Any], key: str, path: Path) -> list[Entry]:
    rows = content.get(key)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path}: '{key}' is no list of objects; a COCO instances JSON has images, annotations, categories")
    return rows


def _category_rows(instance_rows: Sequence[Entry], stuff_categories: Path | None) -> list[Entry]:
    """Every category of the instances as a thing, then those of the stuff maps that are not among them as stuff."""
    things = [{**row, "isthing": 1} for row in instance_rows]
    thing_ids = {show(row.get("id")) for row in things}
    stuff = [] if stuff_categories is None else read_categories(stuff_categories)
    return [*things, *({**row, "isthing": 0} for row in stuff if show(row.get("id")) not in thing_ids)]


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


def _read(item: tuple[Entry, list[Entry]], *, settings: _Settings) -> Labelled:
    entry, annotations = item
    where = f"{settings.where}: image {entry['id']!r}"
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise DataError(f"{where}: file_name is {show(name)}, but must be a text")
    image = find_image(settings.images, name, where)
    size = read_image(image).shape[:2]
    notes: list[str] = []
    regions = [region for row in annotations if (region := _region(row, size, settings, where, notes)) is not None]
    places = paint(size, regions)
    visible = np.bincount(places.ravel(), minlength=len(regions) + 1)[1:]
    notes += ["instance wholly covered by smaller ones"] * int((visible == 0).sum())
    segments = [(region.category_id, region.iscrowd) for region in regions]
    if settings.stuff_maps is not None:
        _add_stuff(places, segments, settings, name, where)
    fill_rest(places, segments, settings.rest_id)
    name = str(Path(name).with_suffix(image.suffix).as_posix())
    return Labelled(image, name, entry["id"], places, segments, notes)


def _region(row: Entry, size: tuple[int, int], settings: _Settings, where: str, notes: list[str]) -> Region | None:
    where = f"{where}, annotation {show(row.get('id'))}"
    category_id, crowd = row.get("category_id"), row.get("iscrowd", 0)
    if not isinstance(category_id, int) or isinstance(category_id, bool) or category_id not in settings.things:
        raise DataError(f"{where}: category_id {show(category_id)} is not among the categories; add or correct it")
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd is {show(crowd)}, but must be 0 or 1")
    mask = segmentation_mask(row.get("segmentation"), size, where)
    region = region_of(mask, category_id, iscrowd=bool(crowd))
    if region is None:
        notes.append("instance without a pixel (degenerate or empty segmentation)")
    return region


def _add_stuff(places: np.ndarray, segments: list[tuple[int, bool]], settings: _Settings, name: str, where: str) -> None:
    """Put the stuff map below the instances; values of no stuff category are void. In place."""
    path = safe_path(settings.stuff_maps or Path(), str(Path(name).with_suffix(".png")), where)
    values = read_values(path) + settings.stuff_offset
    check_size(values.shape, places.shape, f"{where}, stuff map {path}")
    free = places == 0
    for category_id in np.unique(values[free]).tolist():
        if category_id in settings.stuff:
            segments.append((category_id, False))
            places[free & (values == category_id)] = len(segments)
