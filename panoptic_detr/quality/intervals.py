"""How far a score would move with other images: bootstrap intervals, and the paired difference of two sets of predictions.

The images are drawn again with replacement, as many as there are, some 2,000 times; each draw has a score, and the middle 95 %
of these is the interval (Efron and Tibshirani 1993, chapter 13). Two predictions of the same images are compared draw by draw
(paired), so what makes an image hard for both does not count as a difference. Counts of images are added, nothing is looked at
again.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError
from panoptic_detr.quality.counts import ClassCounts
from panoptic_detr.quality.panoptic_quality import PanopticQualityResult

FEW_IMAGES = 10  # below which draws of the same few say nothing about others
_GROUP_SCORES = [f"{group} {score}" for group in ("All", "Things", "Stuff") for score in ("PQ", "SQ", "RQ")]
_BLOCK = 100  # draws at a time, which keeps the memory small


class Interval(NamedTuple):
    """A score or a difference of scores (fractions), and the ends of its interval."""

    value: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Of a difference: the interval leaves 0 out."""
        return self.low > 0 or self.high < 0


def intervals(
    result: PanopticQualityResult, *, resamples: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """Intervals of PQ, SQ and RQ of "All", "Things" and "Stuff" ("All PQ", ...), and of PQ of each class (`interval_names`).

    Raises:
        EvaluationError: the result has no counts by image (`per_image=True`).
    """
    names, scores = _scores([result], resamples, seed)
    return _spread(names, scores[0], level)


def difference_intervals(
    first: PanopticQualityResult,
    second: PanopticQualityResult,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Intervals of `second` minus `first`, named as in `intervals`.

    Raises:
        EvaluationError: without counts by image, or of other images or categories.
    """
    if [name for name, _ in first.by_image] != [name for name, _ in second.by_image] or first.categories != second.categories:
        raise EvaluationError("two results are compared image by image, but these are of other images or other categories")
    names, scores = _scores([first, second], resamples, seed)
    return _spread(names, scores[1] - scores[0], level)


def interval_names(categories: CategoryTable) -> dict[int, str]:
    """What the interval of each category (by id) is called: its name, with the id where that name means something else too."""
    taken = Counter([*_GROUP_SCORES, *(category.name for category in categories.categories)])
    return {
        category.id: category.name if taken[category.name] == 1 else f"{category.name} (id {category.id})"
        for category in categories.categories
    }


def image_quality(counts: Mapping[int, ClassCounts]) -> float:
    """PQ of one image with all its classes together; 1 if there is nothing to find."""
    tp, fp, fn, units = map(sum, zip(*counts.values(), strict=True)) if counts else (0, 0, 0, 0)
    size = tp + (fp + fn) / 2
    return ClassCounts(tp, fp, fn, units).iou / size if size else 1.0


def _spread(names: Sequence[str], scores: np.ndarray, level: float) -> dict[str, Interval]:
    """Intervals from (draws + 1, N) scores, the first row without drawing."""
    low, high = np.quantile(scores[1:], [(1 - level) / 2, (1 + level) / 2], axis=0)
    rows = zip(names, scores[0].tolist(), low.tolist(), high.tolist(), strict=True)
    return {name: Interval(*values) for name, *values in rows}


def _scores(results: Sequence[PanopticQualityResult], resamples: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Scores (results, 1 + resamples, N) of the images themselves and of every draw; the same draws for each result."""
    tables, generator = [_table(result) for result in results], np.random.default_rng(seed)
    images = len(tables[0])
    members = _members(results)
    drawn = [[_all_scores(table.sum(0)[None], members)] for table in tables]
    for start in range(0, resamples, _BLOCK):
        rows = min(_BLOCK, resamples - start)
        places = generator.integers(0, images, (rows, images)) + images * np.arange(rows)[:, None]
        weights = np.bincount(places.ravel(), minlength=rows * images).reshape(rows, images).astype(np.float64)
        for table, scores in zip(tables, drawn, strict=True):
            sums = (weights @ table.reshape(images, -1)).reshape(rows, *table.shape[1:])
            scores.append(_all_scores(sums, members))
    names = [*_GROUP_SCORES, *interval_names(results[0].categories).values()]
    return names, np.stack([np.concatenate(scores) for scores in drawn])


def _table(result: PanopticQualityResult) -> np.ndarray:
    """Matched pairs, (FP + FN) / 2 and sum of IoU of every image and class: (images, classes, 3)."""
    if not result.by_image:
        raise EvaluationError("intervals need the counts of every image; score with per_image=True (evaluate --intervals)")
    place = {category.id: index for index, category in enumerate(result.categories.categories)}
    table = np.zeros((len(result.by_image), len(place), 3))
    for row, (_, classes) in enumerate(result.by_image):
        for category_id, counts in classes.items():
            table[row, place[category_id]] = counts.tp, (counts.fp + counts.fn) / 2, counts.iou
    return table


def _members(results: Sequence[PanopticQualityResult]) -> list[np.ndarray]:
    """(classes,) bool of each group."""
    categories = results[0].categories.categories
    things = np.array([category.isthing for category in categories])
    return [np.ones(len(categories), dtype=bool), things, ~things]


def _all_scores(sums: np.ndarray, members: Sequence[np.ndarray]) -> np.ndarray:
    """(draws, 9 + classes) PQ, SQ, RQ of the groups and PQ of the classes from (draws, classes, 3) sums; 0 where nothing is."""
    tp, errors, iou = np.moveaxis(sums, -1, 0)  # (draws, classes) each
    size = tp + errors
    present = size > 0
    pq, sq, rq = iou / np.where(present, size, 1), iou / np.where(tp > 0, tp, 1), tp / np.where(present, size, 1)
    columns = []
    for chosen in members:
        counted = np.maximum((present & chosen).sum(1), 1)
        columns += [(score * chosen).sum(1) / counted for score in (pq, sq, rq)]
    return np.concatenate([np.stack(columns, axis=1), pq], axis=1)
