"""From COCO-panoptic back: to COCO instances, and to semantic PNGs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from panoptic_detr.data.coco import CocoIndex, read_index, with_ending
from panoptic_detr.data.coco.entries import Entry
from panoptic_detr.data.convert.output import Conversion
from panoptic_detr.errors import DataError
from panoptic_detr.files import make_folder, safe_path, staged_file, staged_folder, write_json, write_whole
from panoptic_detr.parallel import parallel_map
from panoptic_detr.segment_maps import measure, read_id_png, renumber


def to_instances(annotations: Path, panoptic: Path, out: Path, stuff: bool = False, workers: int | None = None) -> Conversion:
    """Convert COCO-panoptic to COCO instances: a run-length mask, box and area for each thing, from the pixels.

    Args:
        annotations: the COCO-panoptic JSON.
        panoptic: folder of its PNGs.
        out: the JSON to write.
        stuff: write stuff segments as instances too.
        workers: processes; by default one per core.
    """
    index = read_index(annotations)
    if out.exists():
        raise DataError(f"{out} is there already; choose another file or remove it first")
    categories = [row for row in index.categories.to_coco() if row["isthing"] or stuff]
    conversion, images = Conversion(out), []  # filled while the annotations are written
    work = partial(_instances, kept=frozenset(row["id"] for row in categories))

    def rows() -> Iterator[Entry]:
        for image, segments, void in parallel_map(work, _items(index, panoptic), workers=workers, description="convert"):
            images.append(image)
            for number, segment in enumerate(segments, start=conversion.segments + 1):
                yield {"id": number, "image_id": image["id"], **segment}
            conversion.count(image["height"] * image["width"], void, len(segments))

    with staged_file(out) as file:
        write_json(file, {}, {"annotations": rows(), "images": images, "categories": categories})
    return conversion


def to_semantic(annotations: Path, panoptic: Path, out: Path, void: int = 255, workers: int | None = None) -> Conversion:
    """Convert COCO-panoptic to semantic PNGs: each pixel's value is its category id (16-bit where ids are above 255).

    Args:
        annotations: the COCO-panoptic JSON.
        panoptic: folder of its PNGs.
        out: folder to write; `categories.json` in it lists the categories.
        void: value of pixels of no segment; no category may have it.
        workers: processes; by default one per core.
    """
    index = read_index(annotations)
    ids = [category.id for category in index.categories.categories]
    if void in ids or not 0 <= void < 65536 or min(ids) < 0 or max(ids) > 65535:
        raise DataError(
            f"category ids {min(ids)}..{max(ids)} and the void value {void} must be different values from 0 to 65535; "
            "choose another --void, or number the categories anew"
        )
    name, conversion = out.name or "semantic", Conversion(out)
    with staged_folder(out.parent, [name]) as staged:
        folder = make_folder(staged / name)
        work = partial(_semantic, folder=folder, void=void, dtype=np.uint16 if max(*ids, void) > 255 else np.uint8)
        for pixels, nothing, segments in parallel_map(work, _items(index, panoptic), workers=workers, description="convert"):
            conversion.count(pixels, nothing, segments)
        text = json.dumps({"void": void, "categories": index.categories.to_coco()}, indent=1)
        (folder / "categories.json").write_text(text, encoding="utf-8")
    return conversion


@dataclass(frozen=True)
class _Annotation:
    """One image's annotation as it is sent to a worker; the arrays have an entry for each segment."""

    image_id: int | str
    image_name: str
    png: Path
    segment_ids: np.ndarray
    category_ids: np.ndarray
    iscrowd: np.ndarray

    def read(self) -> np.ndarray:
        """(H, W): 0 void, i + 1 the i-th segment."""
        return renumber(read_id_png(self.png), self.segment_ids, f"image {self.image_id!r}: {self.png}")


def _items(index: CocoIndex, panoptic: Path) -> list[_Annotation]:
    items = []
    for i, (image_id, name) in enumerate(zip(index.image_ids, index.image_names, strict=True)):
        rows, png = index.segments_of(i), safe_path(panoptic, index.png_names[i], f"{index.path}: image {image_id!r}")
        columns = (index.segment_ids[rows], index.category_ids[rows], index.iscrowd[rows])
        items.append(_Annotation(image_id, name, png, *columns))
    return items


def _instances(item: _Annotation, *, kept: frozenset[int]) -> tuple[Entry, list[Entry], int]:
    """The image's entry, its instances, and its void pixels."""
    places = item.read()
    measures, segments = measure(places), []
    for place, (category_id, crowd) in enumerate(zip(item.category_ids.tolist(), item.iscrowd.tolist(), strict=True), start=1):
        if category_id not in kept:
            continue
        runs = coco_mask.encode(np.asfortranarray(places == place, dtype=np.uint8))
        area, box = measures[place]
        mask = {"size": list(places.shape), "counts": runs["counts"].decode("ascii")}
        plain = {"category_id": category_id, "iscrowd": int(crowd), "area": area, "bbox": list(box)}
        segments.append({**plain, "segmentation": mask})
    height, width = places.shape
    image = {"id": item.image_id, "file_name": item.image_name, "width": width, "height": height}
    return image, segments, int((places == 0).sum())


def _semantic(item: _Annotation, *, folder: Path, void: int, dtype: type) -> tuple[int, int, int]:
    """Write one semantic PNG; its pixels, void pixels and segments."""
    places = item.read()
    path = safe_path(folder, with_ending(item.image_name, ".png"), f"image {item.image_id!r}")
    make_folder(path.parent)
    if path.exists():
        raise DataError(f"image {item.image_id!r}: another image wants {path.name} too; rename one of them")
    values = np.array([void, *item.category_ids], dtype)[places]
    write_whole(path, cv2.imencode(".png", values)[1].tobytes())
    return places.size, int((places == 0).sum()), len(item.category_ids)
