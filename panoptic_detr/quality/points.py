"""Where the points went: what each segment costs its class, by cause and by size.

PQ of a class is S / D, with S the sum of the matched pairs' IoU and D = TP + FP / 2 + FN / 2 (Kirillov et al. 2019, eq. 1).
What is missing to 1 is (D - S) / D, and D - S is a sum over segments: a matched pair is short of 1 - IoU, a missed or an extra
segment of 1 / 2. So every segment has a price, prices add up to 1 - PQ exactly, and the loss of a group is the mean over its
classes, as its PQ is.
"""

from collections.abc import Iterable, Sequence
from operator import add

import numpy as np

from panoptic_detr.quality.matching import Matching
from panoptic_detr.quality.overlaps import Overlaps

IOU_UNIT = 2**53
# The first four and "missed" are the causes of `ErrorCounts`.
CAUSES = ("wrong_class", "merged", "split", "bad_mask", "missed", "extra", "void", "boundary", "outline")
MEANING = {
    "wrong_class": "found under the name of another class (IoU above 0.5 with it)",
    "merged": "several things in one predicted segment",
    "split": "one thing in several predicted segments",
    "bad_mask": "found, but with an IoU of 0.25 to 0.5 only",
    "missed": "nothing of the class is there",
    "extra": "predicted where nothing of the class is",
    "void": "predicted with a quarter or more of its pixels on void, and not matched",
    "boundary": "matched with an IoU of 0.5 to 0.75",
    "outline": "matched with an IoU above 0.75, and short of 1",
}
SIZES = ("small", "medium", "large")  # COCO's: up to 32 x 32 pixels, up to 96 x 96, larger
_SIZE_ENDS = (32**2, 96**2)
_MISSED, _EXTRA, _VOID, _BOUNDARY, _OUTLINE = (CAUSES.index(name) for name in CAUSES[4:])

Units = tuple[int, ...]  # by cause and size, row by row, in units of 2**-53 of a segment
Loss = dict[str, tuple[float, ...]]  # cause -> small, medium, large; fractions of PQ


def lost_units(overlaps: Overlaps, matching: Matching, lost: Sequence[int], extra: Sequence[int]) -> dict[int, Units]:
    """What the segments of an image cost, by category id.

    Args:
        overlaps: of the image.
        matching: who matches whom.
        lost: the cause of every missed segment, as a place in `ErrorCounts`, in order.
        extra: the cause of every extra one.
    """
    true_sizes = np.searchsorted(_SIZE_ENDS, overlaps.truth_areas).tolist()
    sizes = np.searchsorted(_SIZE_ENDS, overlaps.prediction_areas).tolist()
    on_void = (4 * overlaps.on_void >= overlaps.prediction_areas).tolist()
    true_classes, classes = overlaps.truth_categories.tolist(), overlaps.prediction_categories.tolist()
    rows: list[tuple[int, int, int, int]] = []  # category, cause, size, units
    for row, iou in zip(matching.truth.tolist(), matching.ious.tolist(), strict=True):
        cause = _BOUNDARY if iou <= 0.75 else _OUTLINE
        rows.append((true_classes[row], cause, true_sizes[row], IOU_UNIT - int(iou * IOU_UNIT)))
    for row, cause in zip(np.flatnonzero(matching.missed).tolist(), lost, strict=True):
        rows.append((true_classes[row], cause, true_sizes[row], IOU_UNIT // 2))
    for column, cause in zip(np.flatnonzero(matching.extra).tolist(), extra, strict=True):
        known = cause if cause != _MISSED else _VOID if on_void[column] else _EXTRA
        rows.append((classes[column], known, sizes[column], IOU_UNIT // 2))
    found: dict[int, list[int]] = {}
    for category_id, cause, size, units in rows:
        found.setdefault(category_id, [0] * len(CAUSES) * len(SIZES))[cause * len(SIZES) + size] += units
    return {category_id: tuple(units) for category_id, units in found.items()}


def add_units(totals: dict[int, Units], category_id: int, units: Units) -> None:
    """Add what an image cost."""
    mine = totals.get(category_id)
    totals[category_id] = units if mine is None else tuple(map(add, mine, units))


def loss_of(units: Units | None, size: float) -> Loss:
    """What a class lost, as fractions of its PQ.

    Args:
        units: of the class; None if nothing of it was lost.
        size: its TP + FP / 2 + FN / 2.
    """
    shares = [value / IOU_UNIT / size for value in units] if units and size else [0.0] * len(CAUSES) * len(SIZES)
    return {cause: tuple(shares[i * len(SIZES) : (i + 1) * len(SIZES)]) for i, cause in enumerate(CAUSES)}


def mean_loss(losses: Iterable[Loss]) -> Loss:
    """What a group lost: the mean over the classes that occur."""
    rows = list(losses)
    means = {cause: np.mean([row[cause] for row in rows], axis=0).tolist() if rows else [0.0] * len(SIZES) for cause in CAUSES}
    return {cause: tuple(values) for cause, values in means.items()}
