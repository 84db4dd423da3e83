"""Measure panoptic quality: milliseconds per pair and core from PNG files and from memory, memory use, threads.

The baseline is the straightforward way, as panopticapi goes it: one `np.unique` over pairs of ids, then a loop over segments
in dictionaries. Both see the same 480 x 640 pairs of about 12 segments in turn, so that whatever else runs here slows both
alike, and must agree on PQ to 1e-12. Where panopticapi and hotcoco can be imported, they are timed on the same files too.
"""

import importlib
import importlib.util
import json
import resource
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from rich.table import Table

from panoptic_detr import segment_maps
from panoptic_detr.categories import CategoryTable
from panoptic_detr.evaluation import AnnotationSet, evaluate_panoptic, read_annotations, score_image
from panoptic_detr.parallel import usable_cores
from panoptic_detr.quality import PanopticQuality, Regions
from panoptic_detr.segment_maps import IdBuffer, encode_ids, read_id_png, resize_ids
from tools.benchmarks.measure import Figures, Stopwatch

SIZE, SEGMENTS = (480, 640), 12
TABLE = CategoryTable.from_coco([{"id": i, "name": f"category {i}", "isthing": int(i <= 8)} for i in range(1, 14)])
Rows = list[Figures]


def run(*, pairs: int = 200, flat_over: int = 20_000, seed: int = 0) -> Figures:
    """Time both ways on one core, then memory and threads.

    Args:
        pairs: how many to make and score.
        flat_over: pairs to score from memory while watching the process grow.
        seed: of the pairs.

    Returns:
        `milliseconds` per pair (CPU time of one core) by what was done; how many times faster than the baseline, which
        knows files only, from PNG (`png_ratio`) and from memory (`memory_ratio`), and than its counting alone
        (`counting_ratio`); `decoding_share` of the time from PNG; `growth_mib` from the first tenth of `flat_over` pairs to
        the last; `seconds` of wall-clock time by threads.
    """
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        truth, prediction = write_pairs(Path(folder), pairs, seed)
        milliseconds = time_pairs(truth, prediction)
        milliseconds |= time_opencv(truth, prediction) | time_panopticapi(truth, prediction) | time_hotcoco(truth, prediction)
        kept = [(prediction.regions(i), truth.regions(i)) for i in list(truth.entries)[:50]]
        places = (truth.path, truth.folder, prediction.path, prediction.folder)
        counts = sorted({1, 2, usable_cores()})
        seconds = {workers: wall_clock(places, workers) for workers in counts}
    return {
        "pairs": pairs,
        "milliseconds": milliseconds,
        "png_ratio": milliseconds["baseline, PNG"] / milliseconds["PNG"],
        "memory_ratio": milliseconds["baseline, PNG"] / milliseconds["memory"],
        "counting_ratio": milliseconds["baseline, memory"] / milliseconds["memory"],
        "decoding_share": milliseconds["decoding"] / milliseconds["PNG"],
        "flat_over": flat_over,
        "growth_mib": growth(kept, flat_over),
        "seconds": seconds,
    }


def time_pairs(truth: AnnotationSet, prediction: AnnotationSet) -> dict[str, float]:
    """Milliseconds per pair of this project and of the baseline, which must agree.

    Raises:
        RuntimeError: they do not agree.
    """
    watch, ours, baseline, from_memory = Stopwatch("cpu"), PanopticQuality(TABLE), Baseline(), PanopticQuality(TABLE)
    buffers = IdBuffer(), IdBuffer()
    for image_id in truth.entries:
        with watch.lap():
            paths = [side.folder / str(side.entries[image_id]["file_name"]) for side in (truth, prediction)]
            true_rows, predicted_rows = (side.entries[image_id]["segments_info"] for side in (truth, prediction))
            watch.time("decoding", lambda files: [read_id_png(*pair) for pair in zip(files, buffers, strict=True)], paths)
            watch.time("PNG", score_image, ours, prediction, truth, image_id, buffers)
            maps = watch.time("baseline, reading", lambda files: [read_plainly(file) for file in files], paths)
            watch.time("baseline, memory", baseline.add, maps[0], maps[1], true_rows, predicted_rows)
            regions = prediction.regions(image_id), truth.regions(image_id)
            watch.time("memory", from_memory.update_regions, *regions)
    results = [ours.compute().all.pq, from_memory.compute().all.pq, baseline.pq()]
    if max(results) - min(results) > 1e-12:
        raise RuntimeError(f"PQ from files, from memory and of the baseline differ: {results}")
    milliseconds = watch.mean()
    del milliseconds["total"]
    return milliseconds | {"baseline, PNG": milliseconds["baseline, reading"] + milliseconds["baseline, memory"]}


def wall_clock(places: Sequence[Path], workers: int) -> float:
    """Seconds that the evaluation of files takes with some threads."""
    started = time.perf_counter()
    evaluate_panoptic(*places, workers=workers)
    return time.perf_counter() - started


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


def time_opencv(truth: AnnotationSet, prediction: AnnotationSet) -> dict[str, float]:
    """Milliseconds per pair with OpenCV's decoder; nothing where it is the only one (without the extra fast-pq)."""
    fast = segment_maps.fast_decoder
    if fast is None:
        return {}
    segment_maps.fast_decoder = None
    watch, quality, buffers = Stopwatch("cpu"), PanopticQuality(TABLE), (IdBuffer(), IdBuffer())
    try:
        with watch.lap():
            for image_id in truth.entries:
                score_image(quality, prediction, truth, image_id, buffers)
    finally:
        segment_maps.fast_decoder = fast
    return {"PNG, decoded by OpenCV": watch.mean()["total"] / len(truth.entries)}


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
    view = Table("per pair of 480 x 640", "CPU ms", title=f"Panoptic quality, {result['pairs']} pairs", title_justify="left")
    for name, value in result["milliseconds"].items():
        view.add_row(name, f"{value:.2f}")
    view.add_section()
    view.add_row("times faster than the baseline, PNG", f"{result['png_ratio']:.1f}")
    view.add_row("times faster than the baseline, memory against PNG", f"{result['memory_ratio']:.1f}")
    view.add_row("times faster than the baseline's counting alone", f"{result['counting_ratio']:.1f}")
    view.add_row("share of decoding, PNG", f"{result['decoding_share']:.0%}")
    view.add_row(f"growth over {result['flat_over']} pairs, MiB", f"{result['growth_mib']:.1f}")
    for workers, seconds in result["seconds"].items():
        view.add_row(f"pairs per second, {workers} thread(s), wall-clock", f"{result['pairs'] / seconds:.0f}")
    return [view]
