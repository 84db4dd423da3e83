"""COCO instances (polygons, run lengths, crowds), with or without COCO-stuff maps, to COCO-panoptic."""

from collections.abc import Hashable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np

from panoptic_detr.categories import no_integer
from panoptic_detr.data.coco import find_image, read_json, with_ending
from panoptic_detr.data.coco.entries import Entry, is_id
from panoptic_detr.data.convert.drawing import Region, paint, region_of, segmentation_mask
from panoptic_detr.data.convert.output import Conversion, Labelled, write_dataset
from panoptic_detr.data.convert.sources import (
    Classes,
    Sizes,
    check_size,
    number_classes,
    read_categories,
    rows_of,
    sizes_of,
    whole,
)
from panoptic_detr.data.doctor import read_values, show
from panoptic_detr.errors import DataError
from panoptic_detr.files import safe_path

INSTANCES_JSON = "a COCO instances JSON: that is an object with images, annotations, categories"
STUFF, CROWD = -2, -1  # layers below the objects


def coco_instances(
    annotations: Path,
    images: Path,
    out: Path,
    split: str = "train",
    rest: str | None = None,
    stuff_maps: Path | None = None,
    stuff_categories: Path | None = None,
    stuff_offset: int = 0,
    stuff: list[str] | None = None,
    crowds: Literal["groups", "objects"] = "groups",
    resize_annotations: bool = False,
    copy_images: bool = False,
    workers: int | None = None,
) -> Conversion:
    """Convert COCO instances, with or without COCO-stuff maps.

    Where instances overlap, the smaller one is on top; crowds lie below all others, stuff below crowds. Categories that say
    isthing keep it; pieces of a stuff class in an image are one segment.

    Args:
        annotations: the instances JSON.
        images: folder of the images.
        out: root of the new data set.
        split: name of the new split.
        rest: name of a stuff class for all pixels of no segment; void by default.
        stuff_maps: folder with a PNG for each image whose values are stuff categories (stuffthingmaps or stuff pixelmaps).
        stuff_categories: JSON with the list of their categories, such as COCO's stuff_train2017.json.
        stuff_offset: category id minus value in the maps: 1 for stuffthingmaps, 0 for stuff pixelmaps.
        stuff: names of categories that are stuff: `--stuff sky,road` or `--stuff sky road`. Others are things unless their
            category says otherwise.
        crowds: what annotations with iscrowd 1 are: groups that are not told apart, or objects like all others.
        resize_annotations: annotations follow an image that was resized since, from the size in the JSON to the file's, and one
            that EXIF turns by a quarter if their size is that of the upright picture.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.
    """
    if (stuff_maps is None) != (stuff_categories is None):
        raise DataError(
            "stuff maps need their categories and the other way round: give both --stuff_maps and --stuff_categories"
        )
    content = read_json(annotations, what=INSTANCES_JSON)
    rows = _rows(content, "categories", annotations)
    ids = {show(whole(row.get("id"))) for row in rows}
    below = [] if stuff_categories is None else read_categories(stuff_categories)
    rows += [{**row, "isthing": 0} for row in below if show(whole(row.get("id"))) not in ids]
    classes = number_classes(rows, str(annotations), rest, stuff or [])
    as_objects = crowds == "objects"
    source = _Source(str(annotations), images, classes, as_objects, resize_annotations, stuff_maps, stuff_offset)
    return write_dataset(
        partial(_read, source=source),
        _by_image(content, annotations),
        classes,
        out=out,
        split=split,
        copy_images=copy_images,
        workers=workers,
        crowds="; a labelling tool's brush export does that to single objects: --crowds objects takes them as such",
    )


def _rows(content: Entry, key: str, path: Path) -> list[Entry]:
    return rows_of(content, key, path, "a COCO instances JSON has images, annotations, categories")


def _by_image(content: Entry, path: Path) -> list[tuple[Entry, list[Entry]]]:
    """Every image entry with its annotations."""
    groups: dict[int | str, tuple[Entry, list[Entry]]] = {}
    for number, row in enumerate(_rows(content, "images", path)):
        image_id = whole(row.get("id"))
        if not is_id(image_id) or image_id in groups:
            reason = "is used already" if is_id(image_id) else "must be an integer or a text"
            raise DataError(f"{path}: images[{number}]: id {show(image_id)} {reason}; give every image an id of its own")
        groups[image_id] = {**row, "id": image_id}, []
    for number, row in enumerate(_rows(content, "annotations", path)):
        image_id = whole(row.get("image_id"))
        if not is_id(image_id) or image_id not in groups:
            raise DataError(f"{path}: annotations[{number}]: image_id {show(image_id)} is not among the images")
        groups[image_id][1].append(row)
    return list(groups.values())


@dataclass(frozen=True)
class _Source:
    """What is the same for all images; `where` names the JSON in messages."""

    where: str
    images: Path
    classes: Classes
    crowds_are_objects: bool
    resize: bool
    stuff_maps: Path | None
    stuff_offset: int


def _read(item: tuple[Entry, list[Entry]], *, source: _Source) -> Labelled:
    entry, annotations = item
    where = f"{source.where}: image {entry['id']!r}"
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise DataError(f"{where}: file_name is {show(name)}, but must be a text")
    image = find_image(source.images, name, where)
    sizes = sizes_of(entry, ("height", "width"), image, where, source.resize)
    regions: dict[Hashable, Region] = {}
    notes: list[str] = []
    for place, row in enumerate(annotations):
        region = _region(row, sizes, source, f"{where}, annotation {show(row.get('id'))}")
        if region is None:
            notes.append("instance without a pixel (degenerate or empty segmentation)")
            continue
        key: Hashable = place if region.iscrowd or region.layer != STUFF else ("stuff", region.category_id)
        regions[key] = regions[key].joined(region) if key in regions else region
    places, segments = paint(sizes.stored, list(regions.values()))
    visible = np.bincount(places.ravel(), minlength=len(segments) + 1)[1:]
    notes += ["instance wholly covered by smaller ones"] * int((visible == 0).sum())
    if source.stuff_maps is not None:
        path = safe_path(source.stuff_maps, with_ending(name, ".png"), where)
        values = read_values(path) + source.stuff_offset
        check_size(values.shape, sizes.stored, f"{where}, stuff map {path}")
        _add_stuff(places, segments, values, source.classes)
    return Labelled(image, image.relative_to(source.images).as_posix(), entry["id"], places, segments, notes)


def _region(row: Entry, sizes: Sizes, source: _Source, where: str) -> Region | None:
    category_id, crowd = whole(row.get("category_id")), row.get("iscrowd", 0)
    if no_integer(category_id) or category_id not in source.classes.isthing:
        problem = no_integer(category_id) or "is not among the categories; add or correct it"
        raise DataError(f"{where}: category_id {show(category_id)} {problem}")
    if crowd not in (0, 1):
        raise DataError(f"{where}: iscrowd is {show(crowd)}, but must be 0 or 1")
    crowd = bool(crowd) and not source.crowds_are_objects
    layer = (CROWD if crowd else 0) if source.classes.isthing[category_id] else STUFF
    mask = segmentation_mask(row.get("segmentation"), sizes.drawn, where)
    return region_of(sizes.as_stored(mask), category_id, iscrowd=crowd, layer=layer)


def _add_stuff(places: np.ndarray, segments: list[tuple[int, bool]], values: np.ndarray, classes: Classes) -> None:
    """Put the stuff map below the instances; values of no stuff category are void. In place."""
    free = places == 0
    for category_id in np.unique(values[free]).tolist():
        if classes.isthing.get(category_id) is False:
            if (category_id, False) not in segments:
                segments.append((category_id, False))
            places[free & (values == category_id)] = segments.index((category_id, False)) + 1
