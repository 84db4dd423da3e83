"""How every converter writes: images with their regions in, a COCO-panoptic data set out, complete or not at all."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco import DataPaths, read_json
from panoptic_detr.errors import DataError
from panoptic_detr.files import make_folder, place_image, safe_path, staged_folder, write_json
from panoptic_detr.images import read_image
from panoptic_detr.parallel import parallel_map
from panoptic_detr.segment_maps import MAX_ID, measure, write_id_png

Item = TypeVar("Item")
Entry = dict[str, Any]

LARGEST_COORDINATE = 100_000  # pixels; no picture is that wide


@dataclass(frozen=True)
class Region:
    """One annotated thing or piece of stuff, before it is painted.

    Attributes:
        category_id: of its class.
        patch: (h, w) bool mask; cut out of the image's, so that hundreds of regions take little memory.
        top: row of the patch in the image.
        left: column of the patch in the image.
        iscrowd: a group that is not told apart.
    """

    category_id: int
    patch: np.ndarray
    top: int
    left: int
    iscrowd: bool = False


@dataclass
class Labelled:
    """One image with its regions, as a converter reads it.

    Attributes:
        image: the picture's file.
        file_name: its name in the output.
        image_id: its id in the output.
        places: (H, W) int32: 0 void, i + 1 the i-th segment.
        segments: category_id and iscrowd of each; those without a pixel are left out of the output.
        notes: what was skipped, as short texts that are counted.
    """

    image: Path
    file_name: str
    image_id: int | str
    places: np.ndarray
    segments: list[tuple[int, bool]]
    notes: list[str] = field(default_factory=list)


@dataclass
class Conversion:
    """What a conversion wrote.

    Attributes:
        output: the JSON or folder.
        images: how many.
        segments: how many.
        pixels: of all images.
        void: those of no segment.
        notes: how often what was skipped.
    """

    output: Path
    images: int = 0
    segments: int = 0
    pixels: int = 0
    void: int = 0
    notes: Counter[str] = field(default_factory=Counter)

    def lines(self) -> list[str]:
        """What to tell the user."""
        share = f", {self.void / self.pixels:.1%} of the pixels void" if self.pixels else ""
        rows = [f"{count} times: {note}" for note, count in self.notes.most_common()]
        return [*rows, f"{self.images} images, {self.segments} segments{share}: {self.output}"]


def write_dataset(
    read: Callable[[Item], Labelled],
    items: Sequence[Item],
    *,
    out: str | Path,
    split: str,
    categories: CategoryTable,
    copy_images: bool = False,
    workers: int | None = None,
) -> Conversion:
    """Convert every item and write the data set in COCO's own layout; it appears complete or not at all.

    Args:
        read: makes one item a labelled image; picklable.
        items: whatever `read` takes.
        out: root of the data set; other splits may be there already.
        split: name of this one.
        categories: the table.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.

    Raises:
        DataError: an unusable input, two images of one name, or the split is there already.
    """
    parts = _split_parts(split)
    if not items:
        raise DataError("there is no image to convert; check the folders and the suffixes of the file names")
    conversion = Conversion(Path(out) / parts[-1])
    with staged_folder(out, parts) as staged:
        folders = DataPaths(make_folder(staged / parts[0]), make_folder(staged / parts[1]), staged / parts[2])
        make_folder(folders.annotations.parent)
        work = partial(_convert, read=read, folders=folders, copy_images=copy_images)
        rows: dict[str, tuple[Entry, Entry]] = {}
        for entry, annotation, notes in parallel_map(work, items, workers=workers, description=f"convert {split}"):
            if rows.setdefault(annotation["file_name"], (entry, annotation))[0] is not entry:
                raise DataError(f"two images want the annotation {annotation['file_name']!r}; rename {entry['file_name']!r}")
            _count(conversion, entry, annotation, notes)
        with open(folders.annotations, "w", encoding="utf-8") as file:
            lists = {"images": (row[0] for row in rows.values()), "annotations": (row[1] for row in rows.values())}
            write_json(file, {"info": {"description": f"converted: {split}"}}, {"categories": categories.to_coco(), **lists})
    return conversion


def paint(shape: tuple[int, int], regions: Sequence[Region]) -> np.ndarray:
    """Resolve overlaps: crowds lie lowest, then larger regions below smaller ones; of equal areas the later one is on top.

    Args:
        shape: (H, W) of the image.
        regions: in the order of the annotation.

    Returns:
        (H, W) int32: 0 where no region is, i + 1 for the i-th region.
    """
    places = np.zeros(shape, np.int32)
    order = sorted(range(len(regions)), key=lambda i: (not regions[i].iscrowd, -int(regions[i].patch.sum())))
    for i in order:
        region = regions[i]
        height, width = region.patch.shape
        places[region.top : region.top + height, region.left : region.left + width][region.patch] = i + 1
    return places


def region_of(mask: np.ndarray, category_id: int, *, iscrowd: bool = False) -> Region | None:
    """Cut a region out of an (H, W) mask; None if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    patch = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(bool)
    return Region(category_id, patch, top, left, iscrowd)


def read_categories(path: str | Path) -> list[Entry]:
    """The `categories` of a COCO JSON (of another split, say) or of a JSON that is `{"categories": [...]}` and no more.

    Raises:
        DataError: there is no such list.
    """
    rows = read_json(path).get("categories")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f'{path}: no list \'categories\'; write {{"categories": [{{"id": 1, "name": "cat", "isthing": 1}}]}}')
    return rows


def with_rest(rows: Sequence[Entry], rest: str | None, where: str) -> tuple[CategoryTable, int]:
    """The table of the categories, and the id of the stuff class for all pixels of no region (0: they are void).

    Args:
        rows: COCO categories with isthing.
        rest: name of the class: one of the stuff categories, or a new one; None for void.
        where: for messages.

    Raises:
        CategoryError: unusable categories.
        DataError: `rest` is a thing.
    """
    table = CategoryTable.from_coco(rows, where=where)
    if rest is None:
        return table, 0
    known = next((category for category in table.categories if category.name == rest), None)
    if known is not None and known.isthing:
        raise DataError(f"{where}: the rest cannot be {rest!r}, which is a thing; name a stuff category or a new one")
    if known is not None:
        return table, known.id
    new = max(category.id for category in table.categories) + 1
    return CategoryTable.from_coco([*rows, {"id": new, "name": rest, "isthing": 0}], where=where), new


def fill_rest(places: np.ndarray, segments: list[tuple[int, bool]], rest_id: int) -> None:
    """Void becomes the rest class, in one segment with what was drawn of that class; in place. rest_id 0 changes nothing."""
    if not rest_id:
        return
    drawn = next((i for i, (category_id, _) in enumerate(segments) if category_id == rest_id), len(segments))
    if drawn == len(segments):
        segments.append((rest_id, False))
    places[places == 0] = drawn + 1


def check_size(shape: tuple[int, int], image_shape: tuple[int, int], where: str) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        DataError: they differ.
    """
    if shape != image_shape:
        raise DataError(
            f"{where}: the mask is {shape[1]}x{shape[0]} pixels, but the image is {image_shape[1]}x{image_shape[0]}; "
            "they must be equal: write the mask again at the image's stored size"
        )


def _split_parts(split: str) -> list[str]:
    """Folders and JSON of a split, the JSON last."""
    if not split or not split.isprintable() or any(letter in split for letter in "/\\:") or split.startswith("."):
        raise DataError(f"split {split!r} is no folder name; use a word such as train or val")
    return [split, f"panoptic_{split}", f"annotations/panoptic_{split}.json"]


def _convert(
    item: Item, *, read: Callable[[Item], Labelled], folders: DataPaths, copy_images: bool
) -> tuple[Entry, Entry, list[str]]:
    """Read and write one image: its entries of `images` and `annotations`, and the notes."""
    labelled = read(item)
    where = f"image {labelled.image_id!r} ({labelled.image})"
    height, width = read_image(labelled.image).shape[:2]
    check_size(labelled.places.shape, (height, width), where)
    if len(labelled.segments) > MAX_ID:
        raise DataError(f"{where}: {len(labelled.segments)} segments are more than ids have room for")
    measures = measure(labelled.places)
    png_name = str(Path(labelled.file_name).with_suffix(".png").as_posix())
    png = safe_path(folders.panoptic, png_name, where)
    make_folder(png.parent)
    write_id_png(png, labelled.places)
    place_image(labelled.image, folders.images, labelled.file_name, copy=copy_images)
    segments_info = [
        {"id": i + 1, "category_id": c, "iscrowd": int(crowd), "area": measures[i + 1][0], "bbox": list(measures[i + 1][1])}
        for i, (c, crowd) in enumerate(labelled.segments)
        if i + 1 in measures
    ]
    entry = {"id": labelled.image_id, "file_name": labelled.file_name, "width": width, "height": height}
    return entry, {"image_id": labelled.image_id, "file_name": png_name, "segments_info": segments_info}, labelled.notes


def _count(conversion: Conversion, entry: Entry, annotation: Entry, notes: list[str]) -> None:
    pixels = entry["width"] * entry["height"]
    conversion.images += 1
    conversion.segments += len(annotation["segments_info"])
    conversion.pixels += pixels
    conversion.void += pixels - sum(row["area"] for row in annotation["segments_info"])
    conversion.notes.update(notes)
