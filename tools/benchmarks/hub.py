"""Measure a folder of transformers, opened by its pipeline and here: the same file, the same weights, a picture to its map.

The model is that of `facebook/detr-resnet-50-panoptic` with random weights, written by transformers itself. Its class head is
fitted to the picture, so that a dozen queries are sure of a class and all others are no object, as in photographs.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from rich.table import Table

from panoptic_detr.coco_classes import PANOPTIC_LABELS, coco_categories
from panoptic_detr.data.scenes import make_scene
from panoptic_detr.images import save_picture
from panoptic_detr.inference import load_model
from tools.benchmarks.measure import Figures, in_own_process, peak_memory

Result = TypeVar("Result")

SURE = 12.0  # logit of the class that a query is sure of
THRESHOLD = 0.9  # the pipeline's own


def run(
    *, picture: Path | None = None, kept: int = 12, threads: int = 1, repeats: int = 3, folder: Path | None = None
) -> Figures:
    """Compare transformers' pipeline with this project on a model of published size.

    Args:
        picture: a photo; by default a drawn scene of 640 x 480 pixels.
        kept: queries of the 100 that both keep.
        threads: of torch.
        repeats: pictures of which the fastest counts; one before them does not.
        folder: where the model is written and stays; a temporary one by default.

    Returns:
        `rows` with seconds of CPU for a picture, MiB at most, MiB after the libraries were imported, and segments: masks of
        random weights are noise, of which the pipeline drops nearly all after it has computed them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = folder or Path(temporary) / "detr-resnet-50-panoptic"
        shown = picture or Path(temporary) / "scene.jpg"
        if picture is None:
            save_picture(shown, make_scene(0, size=640).image[:480])
        in_own_process(write_folder, folder=place, picture=shown, kept=kept)
        common = {"folder": place, "picture": shown, "threads": threads, "repeats": repeats}
        rows = [{"what": "transformers, pipeline", **in_own_process(with_transformers, **common)}]
        rows.append({"what": "here, fp32", **in_own_process(here, **common)})
        return {"kept": kept, "threads": threads, "rows": rows}


def write_folder(folder: Path, picture: Path, kept: int) -> None:
    """The published architecture with random weights, as transformers writes it."""
    from transformers import DetrConfig, DetrForSegmentation, DetrImageProcessor
    from transformers.image_utils import load_image

    torch.manual_seed(0)
    named = {category.id: category.name for category in coco_categories().categories}
    labels = {label: named.get(label, f"LABEL_{label}") for label in range(PANOPTIC_LABELS)}
    config = DetrConfig(id2label=labels, label2id={name: i for i, name in labels.items()})
    model, processor = DetrForSegmentation(config).eval(), DetrImageProcessor(format="coco_panoptic")
    with torch.no_grad():
        states = model.detr(**processor(load_image(str(picture)), return_tensors="pt")).last_hidden_state[0]  # (Q, D)
        wanted = torch.zeros(len(states), PANOPTIC_LABELS + 1)  # (Q, C + 1)
        wanted[kept:, -1] = SURE
        wanted[range(kept), sorted(named)[:: len(named) // kept][:kept]] = SURE
        head = model.detr.class_labels_classifier
        head.weight.copy_(torch.linalg.lstsq(states.double(), wanted.double(), driver="gelsd").solution.T)
        head.bias.zero_()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def with_transformers(folder: Path, picture: Path, threads: int, repeats: int) -> Figures:
    """Its pipeline, in this process."""
    from transformers import pipeline

    torch.set_num_threads(threads)
    before = peak_memory()
    segmenter = pipeline("image-segmentation", model=str(folder))
    found, seconds = timed(lambda: segmenter(str(picture), threshold=THRESHOLD), repeats)
    return {"seconds": seconds, "mib": peak_memory(), "libraries_mib": before, "segments": len(found)}


def here(folder: Path, picture: Path, threads: int, repeats: int) -> Figures:
    """This project, in this process."""
    torch.set_num_threads(threads)
    before = peak_memory()
    predictor = load_model(folder, device="cpu")
    found, seconds = timed(lambda: predictor(picture, THRESHOLD), repeats)
    return {"seconds": seconds, "mib": peak_memory(), "libraries_mib": before, "segments": len(found.segments)}


def timed(work: Callable[[], Result], repeats: int) -> tuple[Result, float]:
    """What it gives, and its least seconds of CPU."""
    result, laps = work(), []
    for _ in range(repeats):
        start = time.process_time()
        result = work()
        laps.append(time.process_time() - start)
    return result, min(laps)


def tables(result: Figures) -> list[Table]:
    """The figures of `run` for people."""
    title = f"a picture to its map, {result['kept']} queries kept, {result['threads']} thread(s)"
    view = Table("", "s of CPU", "times faster", "MiB at most", "of it libraries", "times less", "segments", title=title)
    first = result["rows"][0]
    for row in result["rows"]:
        ratios = first["seconds"] / row["seconds"], first["mib"] / row["mib"]
        cells = [
            f"{row['seconds']:.2f}",
            f"{ratios[0]:.1f}",
            f"{row['mib']:.0f}",
            f"{row['libraries_mib']:.0f}",
            f"{ratios[1]:.1f}",
        ]
        view.add_row(row["what"], *cells, str(row["segments"]))
    return [view]
