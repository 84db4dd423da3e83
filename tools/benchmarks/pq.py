"""Measure panoptic quality: milliseconds per pair and core by how id PNGs are read, beside other implementations.

All see the same 480 x 640 pairs of about 12 segments, image by image in turn where they can, so that whatever else runs here
slows all alike; ours must agree to 1e-12 with the straightforward way, panopticapi's: one `np.unique` over pairs of ids,
then a loop over segments in dictionaries. Also: memory use, boundary PQ, intervals, and a whole set with several workers.
"""

import importlib
import importlib.util
import json
import os
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from rich.table import Table

from panoptic_detr import segment_maps
from panoptic_detr.categories import CategoryTable
from panoptic_detr.evaluation import AnnotationSet, Reader, evaluate_panoptic, read_annotations, score_image
from panoptic_detr.id_runs import RunReader, can_read_runs
from panoptic_detr.parallel import usable_cores
from panoptic_detr.quality import PanopticQuality, Regions, intervals
from panoptic_detr.segment_maps import IdBuffer, encode_ids, read_id_png, resize_ids
from tools.benchmarks.measure import Figures, Stopwatch

SIZE, SEGMENTS = (480, 640), 12
TABLE = CategoryTable.from_coco([{"id": i, "name": f"category {i}", "isthing": int(i <= 8)} for i in range(1, 14)])
Rows = list[Figures]


def run(*, pairs: int = 200, images: int = 5000, flat_over: int = 20_000, seed: int = 0) -> Figures:
    """Time every way on one core, then memory, intervals and workers.

    Args:
        pairs: how many to make and score.
        images: of the whole set, in which the pairs come again and again under other ids.
        flat_over: pairs to score from memory while watching the process grow.
        seed: of the pairs.

    Returns:
        `milliseconds` per pair (CPU time of one core) by what was done; `growth_mib` from the first tenth of `flat_over` pairs
        to the last; `seconds` of wall-clock time of the whole set by workers, `cpu` its seconds of all cores; `intervals` the
        seconds of 2,000 draws of its images.
    """
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        truth, prediction = write_pairs(Path(folder), pairs, seed)
        places = repeat_pairs(truth, prediction, images)
        milliseconds = time_pairs(truth, prediction) | time_boundary(truth, prediction)
        for others in (time_hotcoco, time_panopticapi, time_torchmetrics):
            milliseconds |= others(truth, prediction)
        kept = [(prediction.regions(i), truth.regions(i)) for i in list(truth.entries)[:50]]
        counts = sorted({1, 2, usable_cores()})
        seconds = {workers: seconds_of(places, workers) for workers in counts}
        drawing = time_intervals(places)
    return {
        "pairs": pairs,
        "images": images,
        "milliseconds": milliseconds,
        "flat_over": flat_over,
        "growth_mib": growth(kept, flat_over),
        "seconds": {workers: wall for workers, (wall, _) in seconds.items()},
        "cpu": {workers: cpu for workers, (_, cpu) in seconds.items()},
        "intervals": drawing,
    }


@contextmanager
def decoded_by_opencv() -> Iterator[None]:
    """Without the decoder of the extra."""
    fast = segment_maps.fast_decoder
    segment_maps.fast_decoder = None
    try:
        yield
    finally:
        segment_maps.fast_decoder = fast


def read_by_opencv(path: Path, buffer: IdBuffer) -> np.ndarray:
    """An id map by OpenCV."""
    with decoded_by_opencv():
        return read_id_png(path, buffer)


def ways() -> dict[str, Callable[[], Reader]]:
    """How id PNGs can be read here, by name: what makes a reader."""
    found: dict[str, Callable[[], Reader]] = {}
    if can_read_runs():
        found["as runs (numba, libdeflate)"] = RunReader
    if segment_maps.fast_decoder is not None:
        found["as maps (imgread)"] = lambda: partial(read_id_png, buffer=IdBuffer())
    return found | {"as maps (OpenCV)": lambda: partial(read_by_opencv, buffer=IdBuffer())}


def time_pairs(truth: AnnotationSet, prediction: AnnotationSet) -> dict[str, float]:
    """Milliseconds per pair of this project, by how it reads, and of the baseline, which must agree.

    Raises:
        RuntimeError: they do not agree.
    """
    watch, baseline, from_memory = Stopwatch("cpu"), Baseline(), PanopticQuality(TABLE)
    readers = {name: (make(), make()) for name, make in ways().items()}
    scores = {name: PanopticQuality(TABLE) for name in readers}
    for pair in readers.values():  # what is compiled or loaded once
        score_image(PanopticQuality(TABLE), prediction, truth, next(iter(truth.entries)), pair)
    for image_id in truth.entries:
        with watch.lap():
            paths = [side.folder / str(side.entries[image_id]["file_name"]) for side in (truth, prediction)]
            true_rows, predicted_rows = (side.entries[image_id]["segments_info"] for side in (truth, prediction))
            for name, pair in readers.items():
                with watch.part(f"reading alone, {name}"):
                    for read, path in zip(pair, paths, strict=True):
                        read(path)
                watch.time(f"PNG, {name}", score_image, scores[name], prediction, truth, image_id, pair)
            maps = watch.time("straightforward, reading", lambda files: [read_plainly(file) for file in files], paths)
            watch.time("straightforward, counting", baseline.add, maps[0], maps[1], true_rows, predicted_rows)
            regions = prediction.regions(image_id), truth.regions(image_id)
            watch.time("memory", from_memory.update_regions, *regions)
    results = [*(score.compute().all.pq for score in (*scores.values(), from_memory)), baseline.pq()]
    if max(results) - min(results) > 1e-12:
        raise RuntimeError(f"PQ by the ways of reading, from memory and of the baseline differ: {results}")
    milliseconds = watch.mean()
    del milliseconds["total"]
    whole = milliseconds["straightforward, reading"] + milliseconds["straightforward, counting"]
    return milliseconds | {"straightforward, PNG": whole}


def time_boundary(truth: AnnotationSet, prediction: AnnotationSet) -> dict[str, float]:
    """Milliseconds per pair in memory with and without boundary PQ."""
    watch, plain, edges = Stopwatch("cpu"), PanopticQuality(TABLE), PanopticQuality(TABLE, boundary=True)
    for image_id in list(truth.entries)[:50]:
        regions = prediction.regions(image_id), truth.regions(image_id)
        with watch.lap():
            watch.time("memory, again", plain.update_regions, *regions)
            watch.time("memory, with boundary PQ", edges.update_regions, *regions)
    return {name: value for name, value in watch.mean().items() if name != "total"}


def time_intervals(places: Sequence[Path]) -> float:
    """Seconds of one core that intervals of a set of images take, once they are scored."""
    result = evaluate_panoptic(*places, workers=1, per_image=True, progress=False)
    started = time.process_time()
    intervals(result)
    return time.process_time() - started


def repeat_pairs(truth: AnnotationSet, prediction: AnnotationSet, images: int) -> tuple[Path, Path, Path, Path]:
    """JSONs of so many images, which name the same PNGs again and again: the four places of `evaluate_panoptic`."""
    for side in (truth, prediction):
        rows = list(side.entries.values())
        annotations = [{**rows[i % len(rows)], "image_id": i} for i in range(images)]
        content = {"annotations": annotations, "categories": side.category_list}
        side.path.with_suffix(".whole.json").write_text(json.dumps(content), encoding="utf-8")
    first, second = (side.path.with_suffix(".whole.json") for side in (truth, prediction))
    return first, truth.folder, second, prediction.folder


def seconds_of(places: Sequence[Path], workers: int) -> tuple[float, float]:
    """Seconds, and seconds of all cores together, that the evaluation of files takes with some workers."""
    wall, cpu = time.perf_counter(), sum(os.times()[:4])  # of this process and those that it had
    evaluate_panoptic(*places, workers=workers, progress=False)
    return time.perf_counter() - wall, sum(os.times()[:4]) - cpu


def growth(pairs: Sequence[tuple[Regions, Regions]], count: int) -> float:
    """MiB by which the process grows while it scores `count` pairs, after the first tenth of them."""
    quality, early = PanopticQuality(TABLE), 0
    for step in range(count):
        quality.update_regions(*pairs[step % len(pairs)])
        if step == count // 10:
            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - early) / 1024


class Baseline:
    """Panoptic quality in the straightforward way, for comparison."""

    def __init__(self) -> None:
        self.iou: dict[int, float] = defaultdict(float)
        self.counts: dict[int, list[int]] = defaultdict(lambda: [0, 0, 0])  # tp, fp, fn by category

    def add(self, truth: np.ndarray, prediction: np.ndarray, true_rows: Rows, predicted_rows: Rows) -> None:
        """Count one pair of (H, W) id maps."""
        true_segments, predicted = ({row["id"]: dict(row) for row in rows} for rows in (true_rows, predicted_rows))
        for segment_id, area in zip(*np.unique(prediction, return_counts=True), strict=True):
            if segment_id in predicted:
                predicted[segment_id]["area"] = int(area)
        codes, pixels = np.unique(truth.astype(np.uint64) * 256**3 + prediction.astype(np.uint64), return_counts=True)
        shared = {(int(code) // 256**3, int(code) % 256**3): int(n) for code, n in zip(codes, pixels, strict=True)}
        found: set[tuple[str, int]] = set()
        for (i, j), both in shared.items():
            if i not in true_segments or j not in predicted or true_segments[i]["iscrowd"]:
                continue
            category = true_segments[i]["category_id"]
            union = predicted[j]["area"] + true_segments[i]["area"] - both - shared.get((0, j), 0)
            if category == predicted[j]["category_id"] and both / union > 0.5:
                self.iou[category] += both / union
                self.counts[category][0] += 1
                found |= {("true", i), ("predicted", j)}
        self._count_others(true_segments, predicted, shared, found)

    def _count_others(
        self,
        true_segments: dict[int, Figures],
        predicted: dict[int, Figures],
        shared: dict[tuple[int, int], int],
        found: set[tuple[str, int]],
    ) -> None:
        crowds = {}
        for i, row in true_segments.items():
            if row["iscrowd"]:
                crowds[row["category_id"]] = i
            elif ("true", i) not in found:
                self.counts[row["category_id"]][2] += 1
        for j, row in predicted.items():
            ignored = shared.get((0, j), 0) + shared.get((crowds.get(row["category_id"], -1), j), 0)
            if ("predicted", j) not in found and ignored / row["area"] <= 0.5:
                self.counts[row["category_id"]][1] += 1

    def pq(self) -> float:
        """Mean PQ of the categories that occur."""
        return float(np.mean([self.iou[c] / (tp + fp / 2 + fn / 2) for c, (tp, fp, fn) in self.counts.items()]))


def read_plainly(path: Path) -> np.ndarray:
    """Ids (H, W) of a PNG the usual way, through Pillow and three channels of integers."""
    rgb = np.array(Image.open(path), dtype=np.uint32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]


def time_panopticapi(truth: AnnotationSet, prediction: AnnotationSet) -> dict[str, float]:
    """Milliseconds per pair of panopticapi itself; nothing if it is not installed."""
    if importlib.util.find_spec("panopticapi") is None:
        return {}
    api = importlib.import_module("panopticapi.evaluation")
    pairs = [(truth.entries[i], prediction.entries[i]) for i in truth.entries]
    categories = {row["id"]: row for row in TABLE.to_coco()}
    watch = Stopwatch("cpu")
    with watch.lap():
        api.pq_compute_single_core(0, pairs, str(truth.folder), str(prediction.folder), categories)
    return {"panopticapi, PNG": watch.mean()["total"] / len(pairs)}


def time_hotcoco(truth: AnnotationSet, prediction: AnnotationSet) -> dict[str, float]:
    """Milliseconds per pair of hotcoco (in Rust; it believes the areas in the JSON); nothing if it is not installed."""
    if importlib.util.find_spec("hotcoco") is None:
        return {}
    panoptic = importlib.import_module("hotcoco.panoptic")
    places = {"gt_folder": str(truth.folder), "pred_folder": str(prediction.folder)}
    watch = Stopwatch("cpu")
    with watch.lap():
        panoptic.PanopticEval(str(truth.path), str(prediction.path), **places).evaluate()
    return {"hotcoco, PNG": watch.mean()["total"] / len(truth.entries)}


def time_torchmetrics(truth: AnnotationSet, prediction: AnnotationSet, pairs: int = 3) -> dict[str, float]:
    """Milliseconds per pair of torchmetrics, from memory (without crowds); nothing if it is not installed."""
    if importlib.util.find_spec("torchmetrics") is None:
        return {}
    kinds = {isthing: {c.id for c in TABLE.categories if c.isthing == isthing} for isthing in (True, False)}
    module = importlib.import_module("torchmetrics.detection")
    metric = module.PanopticQuality(things=kinds[True], stuffs=kinds[False], allow_unknown_preds_category=True)
    watch, chosen = Stopwatch("cpu"), list(truth.entries)[:pairs]
    for image_id in chosen:
        maps = [torch.from_numpy(as_categories(side.regions(image_id)))[None] for side in (prediction, truth)]
        with watch.lap():
            metric.update(*maps)
    return {"torchmetrics, memory": watch.mean()["total"]}


def as_categories(regions: Regions) -> np.ndarray:
    """(H, W, 2) category and segment of every pixel; void is a category that is none."""
    order = np.argsort(regions.ids)
    places = np.searchsorted(regions.ids[order], regions.segment_map).clip(max=len(order) - 1)
    void = regions.ids[order][places] != regions.segment_map
    return np.stack([np.where(void, 99, regions.category_ids[order][places]), regions.segment_map], axis=-1)


def write_pairs(root: Path, count: int, seed: int) -> tuple[AnnotationSet, AnnotationSet]:
    """Write pairs with 24-bit ids, void, crowds, and predictions that are mostly right; read their JSONs back."""
    generator = np.random.default_rng(seed)
    annotations: dict[str, list[Figures]] = {"gt": [], "pred": []}
    for side in annotations:
        (root / side).mkdir()
    for index in range(count):
        centers = generator.uniform(0, 1, (SEGMENTS + 1, 2))
        categories = generator.integers(1, 14, SEGMENTS + 1)
        noisy = np.where(generator.random(SEGMENTS + 1) < 0.2, generator.integers(1, 14, SEGMENTS + 1), categories)
        ids = generator.choice(2**24 - 1, SEGMENTS + 1, replace=False) + 1
        ids[0] = 0  # void
        wobble = generator.normal(0, 0.03, (2, 30, 40))
        moved = centers + generator.normal(0, 0.02, centers.shape)
        own_ids = np.arange(1, SEGMENTS + 2)
        for side, places, names, kinds in (("gt", centers, ids, categories), ("pred", moved, own_ids, noisy)):
            segment_map = names[paint(places, wobble)]
            Image.fromarray(encode_ids(segment_map)).save(root / side / f"{index}.png")  # as COCO's own are written
            annotations[side].append(describe(index, segment_map, names, kinds, crowds=side == "gt" and index % 4 == 0))
    for side, rows in annotations.items():
        content = {"annotations": rows, "categories": TABLE.to_coco()}
        (root / f"{side}.json").write_text(json.dumps(content), encoding="utf-8")
    return read_annotations(root / "gt.json", root / "gt"), read_annotations(root / "pred.json", root / "pred")


def paint(centers: np.ndarray, wobble: np.ndarray) -> np.ndarray:
    """The nearest of (N, 2) centres for every pixel, with wavy borders: (H, W) indices."""
    rows, columns = np.meshgrid(*(np.linspace(0, 1, side) for side in (240, 320)), indexing="ij")
    rows, columns = (grid + cv2.resize(wave, (320, 240)) for grid, wave in ((rows, wobble[0]), (columns, wobble[1])))
    distances = [(rows - y) ** 2 + (columns - x) ** 2 for y, x in centers]
    return resize_ids(np.argmin(distances, axis=0), SIZE)


def describe(index: int, segment_map: np.ndarray, ids: np.ndarray, categories: np.ndarray, *, crowds: bool) -> Figures:
    """The annotation of a map; with `crowds` its first segment is one."""
    present, areas = np.unique(segment_map, return_counts=True)
    area_of = dict(zip(present.tolist(), areas.tolist(), strict=True))
    rows = [
        {"id": int(i), "category_id": int(category), "area": area_of[int(i)], "iscrowd": int(crowds and place == 1)}
        for place, (i, category) in enumerate(zip(ids, categories, strict=True))
        if i and int(i) in area_of
    ]
    return {"image_id": index, "file_name": f"{index}.png", "segments_info": rows}


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    milliseconds: Mapping[str, float] = result["milliseconds"]
    title = f"Panoptic quality, {result['pairs']} pairs of 480 x 640"
    view = Table("", "CPU ms per pair", "times hotcoco", title=title, title_justify="left")
    other = milliseconds.get("hotcoco, PNG")
    for name, value in milliseconds.items():
        view.add_row(name, f"{value:.2f}", f"{value / other:.2f}" if other and "PNG" in name else "")
    sums = Table("", "", title=f"A set of {result['images']} images", title_justify="left")
    for workers, seconds in result["seconds"].items():
        sums.add_row(f"seconds, {workers} worker(s); of all cores", f"{seconds:.1f}; {result['cpu'][workers]:.1f}")
    sums.add_row("seconds of 2,000 draws for intervals", f"{result['intervals']:.2f}")
    sums.add_row(f"growth over {result['flat_over']} pairs, MiB", f"{result['growth_mib']:.1f}")
    return [view, sums]
