"""Panoptic quality of folders of files."""

import threading
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.panoptic_files import AnnotationSet, ImageId, Reader, read_annotations
from panoptic_detr.evaluation.same_images import as_images_of, check_same_names, other_kinds
from panoptic_detr.id_runs import RunReader, can_read_runs
from panoptic_detr.parallel import bounded, can_fork, parallel_map, progress_bar, usable_cores
from panoptic_detr.quality import FilmQuality, Overlaps, PanopticQuality, PanopticQualityResult, Regions, State
from panoptic_detr.segment_maps import IdBuffer, read_id_png

MANY = 1000  # images for which to load what reads runs takes less time than it saves


def evaluate_panoptic(
    gt_json: str | Path,
    gt_folder: str | Path,
    pred_json: str | Path,
    pred_folder: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
    per_image: bool = False,
    boundary: bool = False,
) -> PanopticQualityResult:
    """Score a folder of COCO-panoptic predictions.

    Images are matched by file name where both JSONs list `images` (`as_images_of`), else by id. Every image of the ground truth
    counts: one without a prediction has all its segments missed. Areas are counted in the
    PNGs, so a wrong `area` in a JSON changes nothing. Such oddities are reported in the result's `notes`.

    Args:
        gt_json: COCO-panoptic ground truth with `annotations` and `categories`.
        gt_folder: its id PNGs.
        pred_json: predictions with `annotations`; `segments_info` needs only `id` and `category_id`.
        pred_folder: their id PNGs.
        workers: by default one per usable core: threads, or for a thousand images and more on Linux forked processes, which do
            not wait for each other's interpreter.
        progress: show a progress bar if there is a terminal.
        per_image: keep the counts of every image in the result, for intervals and comparisons.
        boundary: compute boundary PQ too.

    Raises:
        EvaluationError: something that cannot be scored; the message names file, image and segment and the remedy.
        ChildProcessError: one of the processes was ended from outside.
    """
    truth, prediction = read_annotations(gt_json, gt_folder), read_annotations(pred_json, pred_folder)
    asked = {"per_image": per_image, "boundary": boundary}
    return score_annotations(truth, prediction, workers=workers, progress=progress, **asked)[0]


def score_annotations(
    truth: AnnotationSet,
    prediction: AnnotationSet,
    *,
    workers: int | None = None,
    progress: bool = True,
    per_image: bool = False,
    boundary: bool = False,
) -> tuple[PanopticQualityResult, AnnotationSet]:
    """Score predictions as `evaluate_panoptic`; they are returned too, under the image ids of the truth."""
    check_scoring(truth, workers)
    quality = PanopticQuality(truth.categories(), per_image=per_image, boundary=boundary)
    prediction = match_images(quality, prediction, truth)
    workers, forks = bounded(workers or usable_cores()), len(truth.entries) >= MANY and can_fork()
    chunks = _chunks(list(truth.entries), workers)
    score = partial(_score_images, quality, prediction, truth, Readers(len(truth.entries)))
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("scoring", total=len(truth.entries))
        parts = parallel_map(score, chunks, workers=workers, threads=not forks, forks=forks, chunk=1)
        for chunk, part in zip(chunks, parts, strict=True):
            quality.add_state(part)
            bar.advance(task, len(chunk))
    return quality.compute(), prediction


def check_scoring(truth: AnnotationSet, workers: int | None) -> None:
    """`EvaluationError` where nothing is to be scored, or nobody to do it."""
    if workers is not None and not (isinstance(workers, int) and workers >= 1):
        raise EvaluationError(f"workers must be at least 1, a whole number, but is {workers!r}")
    if not truth.entries:
        raise EvaluationError(f"{truth.path}: there is no annotation in it, so nothing to score; give another ground truth")


def match_images(
    quality: PanopticQuality | FilmQuality,
    prediction: AnnotationSet,
    truth: AnnotationSet,
    wanted: Collection[ImageId] | None = None,
) -> AnnotationSet:
    """The predictions under the image ids of the truth, of which `wanted` are scored; what is odd about them is noted."""
    other_names = check_same_names(prediction, quality.categories)
    quality.note("categories with other names than the truth's; matched by their ids", other_names)
    kinds = other_kinds(prediction, quality.categories)
    quality.note("categories that are things on one side and stuff on the other; the truth's kind counts", kinds)
    prediction, notes = as_images_of(prediction, truth, wanted)
    for kind, images in notes:
        quality.note(kind, images)
    return prediction


def _chunks(image_ids: list[ImageId], workers: int) -> list[list[ImageId]]:
    """Images that a worker scores before it reports: fewer towards the end, so that all workers are busy to it."""
    chunks, start = [], 0
    while start < len(image_ids):
        size = max(1, min(64, (len(image_ids) - start) // (8 * workers)))
        chunks.append(image_ids[start : start + size])
        start += size
    return chunks


def _score_images(
    whole: PanopticQuality,
    prediction: AnnotationSet,
    truth: AnnotationSet,
    readers: "Readers",
    image_ids: Sequence[ImageId],
) -> State:
    quality = whole.empty()
    for image_id in image_ids:
        score_image(quality, prediction, truth, image_id, readers.pair)
    return quality.state()


class Readers(threading.local):
    """What reads the id PNGs of predictions and truth with the least time; every thread has its own, and so has a fork.

    Each reads into the memory of the one before.

    Args:
        images: how many there are.
    """

    def __init__(self, images: int) -> None:
        make = RunReader if reads_runs(images) else lambda: partial(read_id_png, buffer=IdBuffer())
        self.pair: tuple[Reader, Reader] = make(), make()


def reads_runs(images: int) -> bool:
    """Whether the PNGs of so many images are read as runs."""
    return images >= MANY and can_read_runs()


def score_image(
    quality: PanopticQuality,
    prediction: AnnotationSet,
    truth: AnnotationSet,
    image_id: ImageId,
    readers: tuple[Reader, Reader] = (read_id_png, read_id_png),
) -> None:
    """Count one image of two annotation sets; one without a prediction has all its segments missed."""
    pair = read_pair(prediction, truth, image_id, readers)
    note_oddities(quality, prediction, truth, image_id, pair, quality.update_regions(*pair, str(image_id)))


def note_oddities(
    quality: PanopticQuality | FilmQuality,
    prediction: AnnotationSet,
    truth: AnnotationSet,
    image_id: ImageId,
    pair: tuple[Regions, Regions],
    overlaps: Overlaps,
) -> None:
    """Note what is odd about an image, of which these regions, prediction and truth, were counted."""
    wrong = truth.wrong_areas(image_id, overlaps.truth_areas)
    if image_id in prediction.entries:
        wrong += prediction.wrong_areas(image_id, overlaps.prediction_areas)
    quality.note("segments whose area in the JSON is wrong; their pixels count", wrong)
    quality.note(
        "segments with id 0, which usually means void; counted like any other",
        [regions.where for regions in pair if (regions.ids == 0).any()],
    )


def read_pair(
    prediction: AnnotationSet, truth: AnnotationSet, image_id: ImageId, readers: tuple[Reader, Reader]
) -> tuple[Regions, Regions]:
    """Prediction and truth of an image; all void where there is no prediction."""
    expected = truth.regions(image_id, readers[1])
    if image_id in prediction.entries:
        return prediction.regions(image_id, readers[0]), expected
    nothing = np.zeros(expected.pixels.shape, np.int32)
    return Regions.from_rows(nothing, (), prediction.where(image_id)), expected
