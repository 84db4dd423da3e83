"""Measure what tiles cost: PQ of a large picture by tiles against the same seen whole, and things that a seam cuts in two.

A picture is a mosaic of drawn scenes. Two models see it: one that reads the truth, more or less well, whole and by tiles, which
shows what joining costs by itself; and, if given, a checkpoint, by tiles and scene by scene as it was trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from rich.table import Table

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.scenes import make_scene, scene_categories
from panoptic_detr.images import save_picture
from panoptic_detr.inference import Tiled, load_model, spans
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import PanopticQuality
from panoptic_detr.segment_maps import decode_ids, encode_ids, measure
from panoptic_detr.visualization.draw import overlay
from tools.benchmarks.measure import Figures

Noise: TypeAlias = tuple[float, float]  # share of things that are missed, pixels by which outlines are off
CUT = 0.2  # of a thing's pixels: two segments with so many of them each have cut it
STUFF = 10**6  # ids from here on are stuff, one for each class


def run(
    *,
    side: int = 2048,
    scene: int = 128,
    tile: int = 512,
    overlap: int = 128,
    checkpoint: Path | None = None,
    mosaic: int = 5,
    model_tile: int = 96,
    model_overlap: int = 48,
    seed: int = 0,
    output: Path | None = None,
) -> Figures:
    """Compare tiles with the whole.

    Args:
        side: of the picture that the reading model sees, in pixels.
        scene: side of a scene in it; a scene has one to five things.
        tile: side of a tile.
        overlap: of tiles.
        checkpoint: of a model that was trained on scenes of 96 x 96 pixels.
        mosaic: scenes along a side of its picture.
        model_tile: side of its tiles.
        model_overlap: of its tiles.
        seed: of the scenes and the noise.
        output: draw what the checkpoint sees by tiles, with the seams, into this picture.

    Returns:
        `rows` of what saw the picture: things, PQ whole and by tiles, and things that were cut by seams.
    """
    rows = []
    truth = mosaic_of(max(1, side // scene), scene, seed)[1]
    for name, noise in {"reads all": (0.0, 0.0), "misses 5%, outlines 2 pixels off": (0.05, 2.0)}.items():
        picture = encode_ids(truth.segment_map)
        (at_once,) = Reader(truth, noise, seed)([picture])
        (tiled,) = Tiled(Reader(truth, noise, seed), tile=tile, overlap=overlap)([picture])
        rows.append(row_of(f"{name}; tiles of {tile}, overlap {overlap}", truth, at_once, tiled))
    if checkpoint is not None:
        rows.append(with_checkpoint(checkpoint, mosaic, model_tile, model_overlap, seed, output))
    return {"rows": rows}


def with_checkpoint(checkpoint: Path, count: int, tile: int, overlap: int, seed: int, output: Path | None) -> Figures:
    """A trained model: each scene by itself against tiles that lie across the scenes."""
    predictor, (picture, truth) = load_model(checkpoint, device="cpu"), mosaic_of(count, 96, seed, split="val")
    scenes = [
        predictor(picture[y : y + 96, x : x + 96]) for y in range(0, len(picture), 96) for x in range(0, len(picture), 96)
    ]
    whole = put_together(scenes, count, predictor.categories)
    (tiled,) = Tiled(predictor, tile=tile, overlap=overlap)([picture])
    if output is not None:
        drawn = overlay(picture, tiled, labels=False)
        for span in spans(len(picture), tile, overlap)[1:]:
            drawn[span.first, ::6] = drawn[::6, span.first] = 255
        save_picture(output, drawn, quality=80)
    return row_of(f"trained, scene by scene against tiles of {tile}, overlap {overlap}", truth, whole, tiled)


class Reader:
    """A model that reads ids from the picture, with faults of its own in every call.

    Args:
        truth: what the ids are.
        noise: how well it reads.
        seed: of the faults.
    """

    batch_size = 1

    def __init__(self, truth: PanopticSegmentation, noise: Noise, seed: int) -> None:
        self.categories = truth.categories
        self._kinds = {segment.id: segment for segment in truth.segments}
        self._missed, self._off = noise
        self._draw = np.random.default_rng(seed)

    def __call__(self, pictures: Sequence[np.ndarray], /) -> list[PanopticSegmentation]:
        """What each picture says."""
        return [self._read(decode_ids(picture)) for picture in pictures]

    def _read(self, ids: np.ndarray) -> PanopticSegmentation:
        if self._off:
            ids = self._blurred(ids)
        for segment_id in measure(ids):
            if segment_id < STUFF and self._draw.random() < self._missed:
                ids = np.where(ids == segment_id, 0, ids)
        table = {segment_id: number for number, segment_id in enumerate(measure(ids), start=1)}
        small = np.zeros(ids.shape, np.int32)
        segments = []
        for segment_id, (area, box) in measure(ids).items():
            kind = self._kinds[segment_id]
            left, top, width, height = box
            window = (slice(top, top + height), slice(left, left + width))
            small[window][ids[window] == segment_id] = table[segment_id]
            segments.append(Segment(table[segment_id], kind.category_id, kind.isthing, 0.9, area, box))
        return PanopticSegmentation(small, segments, self.categories)

    def _blurred(self, ids: np.ndarray) -> np.ndarray:
        """Outlines that wander: every pixel takes the id of one nearby, by a smooth random field."""
        height, width = ids.shape
        coarse = self._draw.normal(0, self._off, (2, -(-height // 16) + 1, -(-width // 16) + 1)).astype(np.float32)
        dy, dx = (cv2.resize(field, (width, height), interpolation=cv2.INTER_CUBIC) for field in coarse)
        rows = np.clip(np.arange(height)[:, None] + dy.round().astype(int), 0, height - 1)
        columns = np.clip(np.arange(width)[None] + dx.round().astype(int), 0, width - 1)
        return ids[rows, columns]


def mosaic_of(count: int, side: int, seed: int, split: str = "train") -> tuple[np.ndarray, PanopticSegmentation]:
    """A picture of count x count scenes, and its truth: things numbered from 1, stuff of one class one segment."""
    table = scene_categories()
    picture = np.zeros((count * side, count * side, 3), np.uint8)
    ids = np.zeros(picture.shape[:2], np.int32)
    kinds: dict[int, tuple[int, bool, bool]] = {}
    for index in range(count * count):
        scene = make_scene(index, seed=seed, size=side, split=split)
        y, x = (side * at for at in divmod(index, count))
        picture[y : y + side, x : x + side] = scene.image
        for row in scene.segments_info:
            isthing = table.by_id[row["category_id"]].isthing
            number = len(kinds) + 1 if isthing else STUFF + row["category_id"]
            ids[y : y + side, x : x + side][scene.segment_map == row["id"]] = number
            kinds[number] = (row["category_id"], isthing, bool(row["iscrowd"]))
    segments = [
        Segment(number, kinds[number][0], kinds[number][1], 1.0, area, box, iscrowd=kinds[number][2])
        for number, (area, box) in measure(ids).items()
    ]
    return picture, PanopticSegmentation(ids, segments, table)


def put_together(parts: Sequence[PanopticSegmentation], count: int, table: CategoryTable) -> PanopticSegmentation:
    """Predictions of scenes as one of their mosaic; stuff of one class is one segment."""
    side = len(parts[0].segment_map)
    ids = np.zeros((count * side, count * side), np.int32)
    kinds: dict[int, Segment] = {}
    for index, part in enumerate(parts):
        y, x = (side * at for at in divmod(index, count))
        for segment in part.segments:
            number = len(kinds) + 1 if segment.isthing else STUFF + segment.category_id
            ids[y : y + side, x : x + side][part.segment_map == segment.id] = number
            kinds[number] = segment
    segments = [
        Segment(number, kinds[number].category_id, kinds[number].isthing, kinds[number].score, area, box)
        for number, (area, box) in measure(ids).items()
    ]
    return PanopticSegmentation(ids, segments, table)


def row_of(name: str, truth: PanopticSegmentation, whole: PanopticSegmentation, tiled: PanopticSegmentation) -> Figures:
    """PQ of both, and things that only the tiles have in two pieces."""
    scores = []
    for result in (whole, tiled):
        quality = PanopticQuality(truth.categories)
        quality.update(result, truth)
        scores.append(100 * quality.compute().all.pq)
    things = [segment for segment in truth.segments if segment.isthing and not segment.iscrowd]
    cuts = sum(cut(segment, truth, tiled) and not cut(segment, truth, whole) for segment in things)
    return {"name": name, "things": len(things), "pq_whole": scores[0], "pq_tiles": scores[1], "cut": cuts}


def cut(thing: Segment, truth: PanopticSegmentation, result: PanopticSegmentation) -> bool:
    """Whether two things of a result have a good part of a thing each."""
    left, top, width, height = thing.box
    window = (slice(top, top + height), slice(left, left + width))
    found = result.segment_map[window][truth.segment_map[window] == thing.id]
    things = {segment.id for segment in result.segments if segment.isthing}
    numbers, counts = np.unique(found, return_counts=True)
    return sum(n in things and c >= CUT * thing.area for n, c in zip(numbers.tolist(), counts.tolist(), strict=True)) > 1


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    view = Table("", "things", "PQ whole", "PQ by tiles", "cut in two")
    for row in result["rows"]:
        view.add_row(row["name"], str(row["things"]), f"{row['pq_whole']:.2f}", f"{row['pq_tiles']:.2f}", str(row["cut"]))
    return [view]
