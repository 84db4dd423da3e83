"""Measure how many images a core can read and augment per second, by parts, against a pipeline that stacks masks.

Both pipelines read the same files, draw the same flips, crops and scales with the same code, and end with the same tensors:
normalised image, labels, boxes. One carries the segments as one id map, the other as a stack of S masks, the usual way. Without
`--root`, pictures of COCO's size (640x480, JPEG, about 11 segments) are made from two procedural scenes each.
"""

import json
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.table import Table
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from panoptic_detr.boxes import xyxy_to_cxcywh
from panoptic_detr.data.coco import CocoPanoptic, retarget
from panoptic_detr.data.scenes import make_scene, scene_categories
from panoptic_detr.data.transforms import Transform, normalize, train_transform
from panoptic_detr.segment_maps import measure as measure_segments
from panoptic_detr.segment_maps import write_id_png
from tools.benchmarks.measure import Figures, Stopwatch

PARTS = ("decode image", "decode map", "expand masks", "augment", "boxes", "normalise")


def run(*, root: Path | None = None, split: str = "val2017", images: int = 40, repeats: int = 3, seed: int = 0) -> Figures:
    """Time both pipelines on one core, image by image in turn, so that whatever else runs here slows both alike.

    Args:
        root: a data set in COCO's own layout; by default one is made.
        split: its part.
        images: how many; a smaller data set is gone through several times.
        repeats: passes, each with other random numbers.
        seed: of the augmentation.

    Returns:
        `images_per_second` of `map` and `stack`, `ratio`, `milliseconds` by pipeline and part, `segments` per image.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    try:
        if root is not None:
            return measure(CocoPanoptic.from_root(root, split), images, repeats, seed)
        with tempfile.TemporaryDirectory() as folder:
            write_coco_sized(Path(folder), images, seed)
            return measure(CocoPanoptic.from_root(folder, "val2017"), images, repeats, seed)
    finally:
        torch.set_num_threads(threads)


def measure(dataset: CocoPanoptic, images: int, repeats: int, seed: int) -> Figures:
    """The figures of `run` for a data set that is there."""
    transform, watches, segments = train_transform(), {"map": Stopwatch("cpu"), "stack": Stopwatch("cpu")}, 0
    for step in range(-2, images * repeats):  # the first two warm up
        i, draw_seed = step % min(images, len(dataset)), seed + images + step
        for watch, pipeline in zip(watches.values(), (with_map, with_stack), strict=True):
            boxes = pipeline(dataset, i, transform, torch.Generator().manual_seed(draw_seed), watch)
            segments += len(boxes) if step >= 0 else 0
            if step < 0:
                watch.laps.clear()
    count = images * repeats
    milliseconds = {name: {part: watch.mean()[part] for part in PARTS} for name, watch in watches.items()}
    rates = {name: 1000 / sum(parts.values()) for name, parts in milliseconds.items()}
    return {
        "images": count,
        "segments": segments / (2 * count),
        "images_per_second": rates,
        "ratio": rates["map"] / rates["stack"],
        "milliseconds": milliseconds,
    }


def with_map(dataset: CocoPanoptic, i: int, transform: Transform, draw: torch.Generator, watch: Stopwatch) -> Tensor:
    """The project's pipeline, part by part; boxes (S, 4) of the augmented picture."""
    with watch.lap():
        image, segment_map, labels = read(dataset, i, watch)
        moved, moved_map = watch.time("augment", lambda: transform.move(image, tv_tensors.Mask(segment_map)[None], draw))
        target = watch.time("boxes", lambda: retarget(moved_map.as_subclass(Tensor)[0], labels, i))
        watch.time("normalise", lambda: normalize(moved))
        return target.boxes


def with_stack(dataset: CocoPanoptic, i: int, transform: Transform, draw: torch.Generator, watch: Stopwatch) -> Tensor:
    """The same with one mask per segment; boxes (S, 4) of the augmented picture."""
    with watch.lap():
        image, segment_map, labels = read(dataset, i, watch)
        places = torch.arange(1, len(labels) + 1, dtype=segment_map.dtype)[:, None, None]
        masks = watch.time("expand masks", lambda: (segment_map == places).to(torch.uint8))  # (S, H, W)
        moved, stack = watch.time("augment", lambda: transform.move(image, tv_tensors.Mask(masks), draw))
        boxes = watch.time("boxes", lambda: boxes_of_stack(stack.as_subclass(Tensor)))
        watch.time("normalise", lambda: normalize(moved))
        return boxes


def boxes_of_stack(masks: Tensor) -> Tensor:
    """Boxes (S, 4), cxcywh as fractions, of the masks (S', H, W) that are not empty."""
    masks = masks[masks.flatten(1).any(1).bool()]
    xyxy = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
    height, width = masks.shape[1:]
    return xyxy_to_cxcywh(xyxy / torch.tensor([width, height, width, height]))


def read(dataset: CocoPanoptic, i: int, watch: Stopwatch) -> tuple[Tensor, Tensor, Tensor]:
    """Image (3, H, W) uint8, id map (H, W) and labels (S,) of a sample, as both pipelines read them."""
    image = watch.time("decode image", lambda: dataset.image(i))
    target = watch.time("decode map", lambda: dataset.target(i))
    assert target.segment_map is not None  # a data set with PNGs always has one
    return tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1)), target.segment_map, target.labels


def write_coco_sized(root: Path, count: int, seed: int) -> None:
    """Write 640x480 pictures, each of the left parts of two scenes, in COCO's own layout."""
    for folder in ("val2017", "panoptic_val2017", "annotations"):
        (root / folder).mkdir()
    annotations = []
    for i in range(count):
        left, right = (make_scene(2 * i + half, seed=seed, size=480) for half in range(2))
        # Red has the segment's number times 8, at most 72 (see scenes): bit 7 is free to tell the halves apart.
        right_map = np.where(right.segment_map > 0, right.segment_map + 128, 0)
        ids = np.concatenate([left.segment_map[:, :320], right_map[:, :320]], axis=1)
        image = np.concatenate([left.image[:, :320], right.image[:, :320]], axis=1)
        cv2.imwrite(str(root / "val2017" / f"{i}.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
        write_id_png(root / "panoptic_val2017" / f"{i}.png", ids)
        classes = {s["id"] + shift: s["category_id"] for scene, shift in ((left, 0), (right, 128)) for s in scene.segments_info}
        segments = [{"id": found, "category_id": classes[found]} for found in measure_segments(ids)]
        annotations.append({"image_id": i, "file_name": f"{i}.png", "segments_info": segments})
    images = [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in range(count)]
    content = {"images": images, "annotations": annotations, "categories": scene_categories().to_coco()}
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(content))


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    rates = result["images_per_second"]
    view = Table("CPU ms per image", "one id map", "mask stack", title=f"Loading, {result['segments']:.1f} segments per image")
    for part in PARTS:
        view.add_row(part, *(f"{result['milliseconds'][name][part]:.2f}" for name in ("map", "stack")))
    view.add_section()
    view.add_row("images per second and core", *(f"{rates[name]:.1f}" for name in ("map", "stack")))
    view.add_row("ratio", f"{result['ratio']:.2f}", "1")
    return [view]
