"""Panoptic quality (Kirillov et al., CVPR 2019), streaming and exact, by panopticapi's definition.

`PanopticQuality` takes one image after the other; its state is a few integers per category, whatever the number of images, and
merging the states of processes or machines in any order gives bit-identical scores. `evaluate_panoptic` scores files.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.parallel import usable_cores
from panoptic_detr.evaluation.counts import ClassCounts, PanopticCounts, count_segments
from panoptic_detr.evaluation.errors import ErrorCounts, PanopticErrors, find_errors
from panoptic_detr.evaluation.notes import Notes
from panoptic_detr.evaluation.overlaps import EvaluationError, Overlaps, Regions, measure_overlaps
from panoptic_detr.evaluation.panoptic_files import (
    AnnotationSet,
    ImageId,
    check_same_images,
    check_same_names,
    read_annotations,
)
from panoptic_detr.evaluation.pq_result import ClassQuality, GroupQuality, PanopticQualityResult, class_quality, mean_quality
from panoptic_detr.evaluation.threads import map_in_threads, progress_bar
from panoptic_detr.structures import PanopticSegmentation

__all__ = ["ClassQuality", "EvaluationError", "GroupQuality", "PanopticQuality", "PanopticQualityResult", "evaluate_panoptic"]

State = tuple[Any, ...]


class PanopticQuality:
    """Accumulates the counts of images and computes PQ from them.

    Args:
        categories: the table that category ids of predictions and truth refer to, or a COCO category list.
    """

    def __init__(self, categories: CategoryTable | Sequence[Mapping[str, Any]]) -> None:
        self.categories = CategoryTable.of(categories)
        self._images = 0
        self._counts = PanopticCounts()
        self._errors = PanopticErrors()
        self._notes = Notes()

    def update(self, prediction: PanopticSegmentation, truth: PanopticSegmentation) -> None:
        """Count one image.

        Args:
            prediction: (H, W) result.
            truth: (H, W) ground truth; its segments may be crowds.

        Raises:
            EvaluationError: other sizes, an unknown category, or segments that do not fit their map; names the image.
        """
        name = truth.image_id if truth.image_id is not None else prediction.image_id
        image = f"image {self._images + 1} (in order)" if name is None else f"image {name}"
        self.update_regions(Regions.of(prediction, f"{image}, prediction"), Regions.of(truth, f"{image}, ground truth"))

    def update_regions(self, prediction: Regions, truth: Regions) -> Overlaps:
        """Count one image given as id maps with (id, category, crowd) rows, as `update`; returns what was counted."""
        for regions in (prediction, truth):
            self._check_categories(regions)
        overlaps = measure_overlaps(prediction, truth)
        self._counts.merge(count_segments(overlaps))
        self._errors.merge(find_errors(overlaps))
        self._images += 1
        return overlaps

    def note(self, kind: str, examples: Iterable[str]) -> None:
        """Report an oddity that does not change how images are counted; see `PanopticQualityResult.notes`."""
        self._notes.add(kind, examples)

    def merge(self, other: "PanopticQuality") -> None:
        """Add the counts of another accumulator; the order of merging does not matter, not even in the last bit.

        Raises:
            EvaluationError: `other` has other categories.
        """
        mine, theirs = ({(c.id, c.name, c.isthing) for c in part.categories.categories} for part in (self, other))
        if different := sorted(mine ^ theirs):
            raise EvaluationError(f"scores over different categories cannot be added: {different[0]} is in one of them only")
        self.add_state(other.state())

    def state(self) -> State:
        """Everything accumulated, as plain tuples of numbers and strings: what processes send each other."""
        return (
            self._images,
            tuple(sorted((i, *counts) for i, counts in self._counts.classes.items())),
            tuple(sorted((i, *counts) for i, counts in self._errors.lost.items())),
            tuple(sorted((i, *counts) for i, counts in self._errors.extra.items())),
            tuple(sorted((kind, *note) for kind, note in self._notes.kinds.items())),
        )

    def add_state(self, state: State) -> None:
        """Add what `state` of another accumulator over the same categories returned."""
        images, counts, lost, extra, notes = state
        self._images += images
        self._counts.merge(PanopticCounts({row[0]: ClassCounts(*row[1:]) for row in counts}))
        by_cause = ({row[0]: ErrorCounts(*row[1:]) for row in rows} for rows in (lost, extra))
        self._errors.merge(PanopticErrors(*by_cause))
        self._notes.merge(Notes({kind: (count, tuple(examples)) for kind, count, examples in notes}))

    def compute(self) -> PanopticQualityResult:
        """The scores of all images so far."""
        per_class = {c.id: class_quality(self._counts.of(c.id)) for c in self.categories.categories}
        return PanopticQualityResult(
            all=mean_quality(list(per_class.values())),
            things=mean_quality([per_class[c.id] for c in self.categories.things]),
            stuff=mean_quality([per_class[c.id] for c in self.categories.stuff]),
            per_class=per_class,
            categories=self.categories,
            images=self._images,
            lost=dict(sorted(self._errors.lost.items())),
            extra=dict(sorted(self._errors.extra.items())),
            notes=tuple(self._notes.lines()),
        )

    def _check_categories(self, regions: Regions) -> None:
        for segment_id, category_id in zip(regions.ids.tolist(), regions.category_ids.tolist(), strict=True):
            if category_id not in self.categories.by_id:
                known = sorted(self.categories.by_id)
                raise EvaluationError(
                    f"{regions.where}: segment {segment_id} has category {category_id}, which the ground truth's categories do "
                    f"not list ({len(known)} categories with ids {known[0]}..{known[-1]}); give both sides the same categories"
                )


def evaluate_panoptic(
    gt_json: str | Path,
    gt_folder: str | Path,
    pred_json: str | Path,
    pred_folder: str | Path,
    *,
    workers: int | None = None,
    progress: bool = True,
) -> PanopticQualityResult:
    """Score a folder of COCO-panoptic predictions.

    Every image of the ground truth counts: one without a prediction has all its segments missed. Areas are counted in the
    PNGs, so a wrong `area` in a JSON changes nothing. Such oddities are reported in the result's `notes`.

    Args:
        gt_json: COCO-panoptic ground truth with `annotations` and `categories`.
        gt_folder: its id PNGs.
        pred_json: predictions with `annotations`; `segments_info` needs only `id` and `category_id`.
        pred_folder: their id PNGs.
        workers: threads; by default one per usable core.
        progress: show a progress bar if there is a terminal.

    Raises:
        EvaluationError: something that cannot be scored; the message names file, image and segment and the remedy.
    """
    if workers is not None and workers < 1:
        raise EvaluationError(f"workers must be at least 1, but is {workers}")
    truth, prediction = read_annotations(gt_json, gt_folder), read_annotations(pred_json, pred_folder)
    quality = PanopticQuality(truth.categories())
    _note_images(quality, prediction, truth)
    chunks = _chunks(list(truth.entries), workers or usable_cores())
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("scoring", total=len(truth.entries))
        score = partial(_score_images, quality.categories, prediction, truth)
        for chunk, part in zip(chunks, map_in_threads(score, chunks, workers), strict=True):
            quality.merge(part)
            bar.advance(task, len(chunk))
    return quality.compute()


def _note_images(quality: PanopticQuality, prediction: AnnotationSet, truth: AnnotationSet) -> None:
    missing = [f"image {i}" for i in truth.entries if i not in prediction.entries]
    unknown = [f"image {i}" for i in prediction.entries if i not in truth.entries]
    renamed = check_same_images(prediction, truth)
    quality.note(
        "categories with other names than the truth's; matched by their ids", check_same_names(prediction, quality.categories)
    )
    quality.note("images whose file names differ from the truth's; matched by their ids", renamed)
    quality.note("images without a prediction, all their segments counted as missed", missing)
    quality.note("predictions for images that the ground truth does not have, not scored", unknown)


def _chunks(image_ids: list[ImageId], workers: int) -> list[list[ImageId]]:
    """Images that a thread scores before it reports: few enough that all threads are busy to the end."""
    size = max(1, min(16, len(image_ids) // (8 * workers)))
    return [image_ids[start : start + size] for start in range(0, len(image_ids), size)]


def _score_images(
    categories: CategoryTable, prediction: AnnotationSet, truth: AnnotationSet, image_ids: Sequence[ImageId]
) -> PanopticQuality:
    quality = PanopticQuality(categories)
    for image_id in image_ids:
        score_image(quality, prediction, truth, image_id)
    return quality


def score_image(quality: PanopticQuality, prediction: AnnotationSet, truth: AnnotationSet, image_id: ImageId) -> None:
    """Count one image of two annotation sets; one without a prediction has all its segments missed."""
    expected = truth.regions(image_id)
    found = image_id in prediction.entries
    if found:
        result = prediction.regions(image_id)
    else:
        result = Regions.from_rows(np.zeros_like(expected.segment_map), (), prediction.where(image_id))
    overlaps = quality.update_regions(result, expected)
    wrong = truth.wrong_areas(image_id, overlaps.truth_areas)
    if found:
        wrong += prediction.wrong_areas(image_id, overlaps.prediction_areas)
    quality.note("segments whose area in the JSON is wrong; their pixels count", wrong)
    quality.note(
        "segments with id 0, which usually means void; counted like any other",
        [regions.where for regions in (result, expected) if (regions.ids == 0).any()],
    )
