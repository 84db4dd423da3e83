"""From COCO-panoptic back: to COCO instances, and to semantic PNGs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from panoptic_detr.data.coco import CocoIndex, read_index
from panoptic_detr.data.convert.output import Conversion
from panoptic_detr.errors import DataError, SegmentMapError
from panoptic_detr.files import make_folder, safe_path, staged_file, staged_folder, write_json, write_whole
from panoptic_detr.parallel import parallel_map
from panoptic_detr.segment_maps import measure, read_id_png

Entry = dict[str, Any]


@dataclass(frozen=True)
class _Annotation:
    """One image's annotation as it is sent to a worker; rows are (segment id, category id, iscrowd)."""

    image_id: int | str
    image_name: str
    png: Path
    rows: list[tuple[int, int, bool]]


def to_instances(annotations: Path, panoptic: Path, out: Path, stuff: bool = False, workers: int | None = None) -> Conversion:
    """Convert COCO-panoptic to COCO instances: a run-length mask, box and area for each thing, from the pixels.

    Args:
        annotations: the COCO-panoptic JSON.
        panoptic: folder of its PNGs.
        out: the JSON to write.
        stuff: write stuff segments as instances too.
        workers: processes; by default one per core.

    Returns:
        What was written.
    """
    index = read_index(annotations)
    if out.exists():
        raise DataError(f"{out} is there already; choose another file or remove it first")
    kept = [category for category in index.categories.categories if category.isthing or stuff]
    categories = [row for row in index.categories.to_coco() if row["isthing"] or stuff]
    conversion, images = Conversion(out), []  # filled while the annotations are written
    work = partial(_instances, kept=frozenset(category.id for category in kept))

    def rows() -> Iterator[Entry]:
        for image, segments, void in parallel_map(work, _items(index, panoptic), workers=workers, description="convert"):
            images.append(image)
            _count(conversion, image["height"] * image["width"], void, 0)
            for segment in segments:
                conversion.segments += 1
                yield {"id": conversion.segments, "image_id": image["id"], **segment}

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

    Returns:
        What was written.
    """
    index = read_index(annotations)
    ids = [category.id for category in index.categories.categories]
    if void in ids or not 0 <= void < 65536 or min(ids) < 0 or max(ids) > 65535:
        raise DataError(
            f"category ids {min(ids)}..{max(ids)} and the void value {void} must be different values from 0 to 65535; "
            "choose another --void, or number the categories anew"
        )
    deep = max(*ids, void) > 255
    name = out.name or "semantic"
    conversion = Conversion(out)
    with staged_folder(out.parent, [name]) as staged:
        folder = make_folder(staged / name)
        work = partial(_semantic, folder=folder, void=void, deep=deep)
        for pixels, nothing, segments in parallel_map(work, _items(index, panoptic), workers=workers, description="convert"):
            _count(conversion, pixels, nothing, segments)
        text = json.dumps({"void": void, "categories": index.categories.to_coco()}, indent=1)
        (folder / "categories.json").write_text(text, encoding="utf-8")
    return conversion


def _items(index: CocoIndex, panoptic: Path) -> list[_Annotation]:
    items = []
    for i, image_id in enumerate(index.image_ids):
        rows = index.segments_of(i)
        values = (index.segment_ids[rows], index.category_ids[rows], index.iscrowd[rows])
        segments = list(zip(*(column.tolist() for column in values), strict=True))
        png = safe_path(panoptic, index.png_names[i], f"{index.path}: image {image_id!r}")
        items.append(_Annotation(image_id, index.image_names[i], png, segments))
    return items


def _count(conversion: Conversion, pixels: int, void: int, segments: int) -> None:
    conversion.images += 1
    conversion.pixels += pixels
    conversion.void += void
    conversion.segments += segments


def _read_map(item: _Annotation) -> np.ndarray:
    """The id map; its ids must be those of the JSON."""
    ids = read_id_png(item.png)
    present, listed = set(np.unique(ids).tolist()) - {0}, {row[0] for row in item.rows}
    if present != listed:
        some = min(present ^ listed)
        side = "only in the PNG" if some in present else "only in the JSON"
        raise SegmentMapError(
            f"image {item.image_id!r}, {item.png}: segment {some} is {side}; mend it with `panoptic-detr data check --fix`"
        )
    return ids


def _instances(item: _Annotation, *, kept: frozenset[int]) -> tuple[Entry, list[Entry], int]:
    """The image's entry, its instances, and its void pixels."""
    ids = _read_map(item)
    measures, segments = measure(ids), []
    for segment_id, category_id, crowd in item.rows:
        if category_id not in kept:
            continue
        runs = coco_mask.encode(np.asfortranarray(ids == segment_id, dtype=np.uint8))
        area, box = measures[segment_id]
        mask = {"size": list(ids.shape), "counts": runs["counts"].decode("ascii")}
        plain = {"category_id": category_id, "iscrowd": int(crowd), "area": area, "bbox": list(box)}
        segments.append({**plain, "segmentation": mask})
    image = {"id": item.image_id, "file_name": item.image_name, "width": ids.shape[1], "height": ids.shape[0]}
    return image, segments, int((ids == 0).sum())


def _semantic(item: _Annotation, *, folder: Path, void: int, deep: bool) -> tuple[int, int, int]:
    """Write one semantic PNG; its pixels, void pixels and segments."""
    ids = _read_map(item)
    table = np.array(sorted([(0, void), *((row[0], row[1]) for row in item.rows)]))
    values = table[np.searchsorted(table[:, 0], ids), 1].astype(np.uint16 if deep else np.uint8)
    path = safe_path(folder, str(Path(item.image_name).with_suffix(".png")), f"image {item.image_id!r}")
    make_folder(path.parent)
    if path.exists():
        raise DataError(f"image {item.image_id!r}: another image wants {path.name} too; rename one of them")
    write_whole(path, cv2.imencode(".png", values)[1].tobytes())
    return ids.size, int((ids == 0).sum()), len(item.rows)
