"""Where the points went: what each segment costs its class, by cause and by size.

PQ of a class is S / D, with S the sum of the matched pairs' IoU and D = TP + FP / 2 + FN / 2 (Kirillov et al. 2019, eq. 1).
What is missing to 1 is (D - S) / D, and D - S is a sum over segments: a matched pair is short of 1 - IoU, a missed or an extra
segment of 1 / 2. So every segment has a price, prices add up to 1 - PQ exactly, and the loss of a group is the mean over its
classes, as its PQ is.
"""

from collections.abc import Iterable
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


def exact_sums(places: np.ndarray, units: np.ndarray, count: int) -> list[int]:
    """Sums by place of whole numbers below 2**54, by halves, whose sums are exact as float64 for 2**26 of them."""
    halves = (np.bincount(places, part, count).astype(np.int64).tolist() for part in (units >> 27, units & (2**27 - 1)))
    return [(high << 27) + low for high, low in zip(*halves, strict=True)]


def in_units(ious: np.ndarray) -> np.ndarray:
    """IoU in units of 2**-53, rounded down: int64."""
    return (ious * IOU_UNIT).astype(np.int64)


def lost_units(overlaps: Overlaps, matching: Matching, lost: np.ndarray, extra: np.ndarray) -> dict[int, Units]:
    """What segments cost, by category id.

    Args:
        overlaps: of an image or several.
        matching: who matches whom.
        lost: the cause of every missed segment, as a place in `ErrorCounts`, in order.
        extra: the cause of every extra one.
    """
    ids, true_classes, classes = overlaps.classes
    true_sizes, sizes = (np.searchsorted(_SIZE_ENDS, areas) for areas in (overlaps.truth_areas, overlaps.prediction_areas))
    of_void = np.where(4 * overlaps.on_void >= overlaps.prediction_areas, _VOID, _EXTRA)[matching.extra]
    parts = (
        (matching.truth, np.where(matching.ious <= 0.75, _BOUNDARY, _OUTLINE), true_classes, true_sizes),
        (np.flatnonzero(matching.missed), lost, true_classes, true_sizes),
        (np.flatnonzero(matching.extra), np.where(extra != _MISSED, extra, of_void), classes, sizes),
    )
    cells = [(kinds[rows] * len(CAUSES) + causes) * len(SIZES) + areas[rows] for rows, causes, kinds, areas in parts]
    units = [IOU_UNIT - in_units(matching.ious), *(np.full(len(part[0]), IOU_UNIT // 2) for part in parts[1:])]
    columns = len(CAUSES) * len(SIZES)
    sums = exact_sums(np.concatenate(cells), np.concatenate(units), len(ids) * columns)
    rows = {category_id: tuple(sums[i * columns : (i + 1) * columns]) for i, category_id in enumerate(ids.tolist())}
    return {category_id: row for category_id, row in rows.items() if any(row)}


def add_units(totals: dict[int, Units], category_id: int, units: Units) -> None:
    """Add what other images cost."""
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
