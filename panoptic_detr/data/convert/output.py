"""How every converter writes: images with their segments in, a COCO-panoptic data set out, complete or not at all."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from panoptic_detr.data.coco import DataPaths, check_split_name, make_split, split_parts, with_ending
from panoptic_detr.data.coco.entries import Entry
from panoptic_detr.data.convert.sources import Classes
from panoptic_detr.errors import DataError
from panoptic_detr.files import make_folder, safe_path, staged_folder, write_json
from panoptic_detr.images import place_image
from panoptic_detr.parallel import parallel_map
from panoptic_detr.segment_maps import MAX_ID, measure, write_id_png

Item = TypeVar("Item")

CROWDS = "crowds (groups that are not told apart), so this class is neither learnt nor scored"


@dataclass
class Labelled:
    """One image with its segments, as a converter reads it."""

    image: Path  # the picture's file
    file_name: str  # its name in the output
    image_id: int | str  # its id in the output
    # (H, W) int32 of the image's size: i + 1 the i-th segment, 0 nothing (void, or the rest), VOID void in any case
    places: np.ndarray
    segments: list[tuple[int, bool]]  # category_id and iscrowd of each; those without a pixel are left out of the output
    notes: list[str] = field(default_factory=list)  # what was skipped, as short texts that are counted


@dataclass
class Conversion:
    """What a conversion wrote."""

    output: Path  # the JSON or folder
    images: int = 0  # how many
    segments: int = 0  # how many
    pixels: int = 0  # of all images
    void: int = 0  # those of no segment
    notes: Counter[str] = field(default_factory=Counter)  # how often what was skipped
    warnings: list[str] = field(default_factory=list)  # what is legal, and probably not meant

    def count(self, pixels: int, void: int, segments: int) -> None:
        """Add one image."""
        self.images += 1
        self.pixels += pixels
        self.void += void
        self.segments += segments

    def lines(self) -> list[str]:
        """What to tell the user."""
        share = f", {self.void / self.pixels:.1%} of the pixels void" if self.pixels else ""
        rows = [f"{count} times: {note}" for note, count in self.notes.most_common()]
        warnings = [f"warning: {warning}" for warning in self.warnings]
        return [*warnings, *rows, f"{self.images} images, {self.segments} segments{share}: {self.output}"]


def write_dataset(
    read: Callable[[Item], Labelled],
    items: Sequence[Item],
    classes: Classes,
    *,
    out: Path,
    split: str,
    copy_images: bool,
    workers: int | None,
    crowds: str = "",
    warnings: Sequence[str] = (),
) -> Conversion:
    """Convert every item and write the data set in COCO's own layout; it appears complete or not at all.

    Args:
        read: makes one item a labelled image; picklable.
        items: whatever `read` takes.
        classes: the categories, and what fills the pixels of no segment.
        out: root of the data set; other splits may be there already.
        split: name of this one.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.
        crowds: what to do if all segments of a class are crowds, which is hardly ever meant.
        warnings: what else the conversion should tell.

    Raises:
        DataError: an unusable input, two images of one name, or the split is there already.
    """
    check_split_name(split)
    if not items:
        raise DataError("there is no image to convert; check the folders and the suffixes of the file names")
    parts, single = split_parts(split), Counter[int]()
    conversion = Conversion(Path(out) / parts[-1], warnings=[*warnings])
    with staged_folder(out, parts) as staged:
        folders = make_split(staged, split)
        work = partial(_convert, read=read, rest_id=classes.rest_id, folders=folders, copy_images=copy_images)
        rows: dict[str, tuple[Entry, Entry]] = {}
        for entry, annotation, notes in parallel_map(work, items, workers=workers, description=f"convert {split}"):
            if rows.setdefault(annotation["file_name"], (entry, annotation))[0] is not entry:
                raise DataError(f"two images want the annotation {annotation['file_name']!r}; rename {entry['file_name']!r}")
            pixels, areas = entry["width"] * entry["height"], [row["area"] for row in annotation["segments_info"]]
            conversion.count(pixels, pixels - sum(areas), len(areas))
            conversion.notes.update(notes)
            for row in annotation["segments_info"]:
                single[row["category_id"]] += not row["iscrowd"]  # a key for every class that occurs
        names = [classes.table.by_id[category_id].name for category_id, count in sorted(single.items()) if not count]
        conversion.warnings += [f"ALL segments of {name!r} are {CROWDS}{crowds}" for name in names]
        with open(folders.annotations, "w", encoding="utf-8") as file:
            lists = {"images": (row[0] for row in rows.values()), "annotations": (row[1] for row in rows.values())}
            head = {"info": {"description": f"converted: {split}"}}
            write_json(file, head, {"categories": classes.table.to_coco(), **lists})
    return conversion


def _convert(
    item: Item, *, read: Callable[[Item], Labelled], rest_id: int | None, folders: DataPaths, copy_images: bool
) -> tuple[Entry, Entry, list[str]]:
    """Read and write one image: its entries of `images` and `annotations`, and the notes."""
    labelled = read(item)
    where = f"image {labelled.image_id!r} ({labelled.image})"
    if len(labelled.segments) > MAX_ID:
        raise DataError(f"{where}: {len(labelled.segments)} segments are more than ids have room for")
    segment_map = _fill_rest(labelled, rest_id)
    measures = measure(segment_map)
    png_name = with_ending(labelled.file_name, ".png")
    png = safe_path(folders.panoptic, png_name, where)
    make_folder(png.parent)
    write_id_png(png, segment_map)
    place_image(labelled.image, folders.images, labelled.file_name, copy=copy_images)
    segments_info = [
        {"id": i, "category_id": c, "iscrowd": int(crowd), "area": measures[i][0], "bbox": list(measures[i][1])}
        for i, (c, crowd) in enumerate(labelled.segments, start=1)
        if i in measures
    ]
    height, width = segment_map.shape
    entry = {"id": labelled.image_id, "file_name": labelled.file_name, "width": width, "height": height}
    return entry, {"image_id": labelled.image_id, "file_name": png_name, "segments_info": segments_info}, labelled.notes


def _fill_rest(labelled: Labelled, rest_id: int | None) -> np.ndarray:
    """The id map (H, W): what is nothing becomes the rest class, in one segment with what was drawn of that class."""
    places, segments = labelled.places, labelled.segments
    if rest_id is not None:
        drawn = next((i for i, (category_id, _) in enumerate(segments) if category_id == rest_id), len(segments))
        if drawn == len(segments):
            segments.append((rest_id, False))
        places[places == 0] = drawn + 1
    return np.maximum(places, 0)
