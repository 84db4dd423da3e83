"""From the matching of images to what scores are made of: counts by class, the cause of every error, and what each costs.

Sums are exact: a matched pair's IoU, as a float64, lies in (0.5, 1] and is therefore a whole number of 2**-53. Counts hold that
whole number, so adding images, processes or machines in any order gives bit-identical scores, and the state never grows with
the number of images.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import add
from typing import NamedTuple, TypeVar

import numpy as np

from panoptic_detr.quality.matching import Matching, match_segments
from panoptic_detr.quality.overlaps import Overlaps
from panoptic_detr.quality.points import CAUSES, IOU_UNIT, SIZES, Units, add_units, exact_sums, in_units, lost_units
from panoptic_detr.quality.semantic import PixelCounts, count_pixels

BAD_MASK_IOU = 0.25


class ClassCounts(NamedTuple):
    """What PQ needs to know of one category."""

    tp: int = 0  # matched pairs
    fp: int = 0  # predicted segments without a match
    fn: int = 0  # true segments without a match
    iou_units: int = 0  # sum of the matched pairs' IoU in units of 2**-53

    @property
    def iou(self) -> float:
        """Sum of the matched pairs' IoU, correctly rounded."""
        return self.iou_units / IOU_UNIT


class ErrorCounts(NamedTuple):
    """Errors of one class, or of all, by cause. The first cause that applies, in this order, is the cause."""

    wrong_class: int = 0  # a segment of another class overlaps it with IoU above 0.5: the region was found, its name is wrong
    merged: int = 0  # one prediction of the class covers more than half of each of several true segments of the class
    duplicated: int = 0  # several predictions of the class lie, each with more than half of its pixels, on one true segment
    bad_mask: int = 0  # a segment of the class overlaps it with IoU from 0.25 to 0.5
    missed: int = 0  # none of these; for predictions: nothing of the class is there

    @property
    def total(self) -> int:
        """All causes together."""
        return sum(self)


NO_ERRORS = ErrorCounts()


@dataclass
class PanopticCounts:
    """Counts by category id, of categories that occurred.

    Attributes:
        classes: what PQ is computed from.
        lost: causes of the true segments without a match; they add up to FN.
        extra: causes of the predicted segments without a match; they add up to FP.
        points: what they and the matched pairs cost (`points`).
        pixels: the same maps without instances (`semantic`).
    """

    classes: dict[int, ClassCounts] = field(default_factory=dict)
    lost: dict[int, ErrorCounts] = field(default_factory=dict)
    extra: dict[int, ErrorCounts] = field(default_factory=dict)
    points: dict[int, Units] = field(default_factory=dict)
    pixels: dict[int, PixelCounts] = field(default_factory=dict)

    def merge(self, other: "PanopticCounts") -> None:
        """Add the counts of another image or process."""
        for category_id, counts in other.classes.items():
            _add(self.classes, category_id, counts)
        for mine, theirs in ((self.lost, other.lost), (self.extra, other.extra)):
            for category_id, errors in theirs.items():
                _add(mine, category_id, errors)
        for category_id, units in other.points.items():
            add_units(self.points, category_id, units)
        for category_id, pixels in other.pixels.items():
            _add(self.pixels, category_id, pixels)


def count_segments(overlaps: Overlaps, matching: Matching | None = None) -> PanopticCounts:
    """Count what was matched, and name the cause and the price of every false negative and false positive (`ErrorCounts`)."""
    matching = matching or match_segments(overlaps)
    lost, extra = _causes(overlaps, matching)
    ids, true_classes, classes = overlaps.classes
    return PanopticCounts(
        count_classes(overlaps, matching),
        _count_causes(ids, true_classes[matching.missed], lost),
        _count_causes(ids, classes[matching.extra], extra),
        lost_units(overlaps, matching, lost, extra),
        count_pixels(overlaps),
    )


def price_by_cause(overlaps: Overlaps) -> dict[str, float]:
    """What the segments of an image cost, all classes together, by cause (`points`); 1/2 for a segment without a match."""
    units = count_segments(overlaps).points.values()
    sums = [sum(column) / IOU_UNIT for column in zip(*units, strict=True)] or [0.0] * len(CAUSES) * len(SIZES)
    return {cause: sum(sums[i * len(SIZES) : (i + 1) * len(SIZES)]) for i, cause in enumerate(CAUSES)}


def count_classes(overlaps: Overlaps, matching: Matching) -> dict[int, ClassCounts]:
    """What PQ is computed from, by category id, of what was matched."""
    ids, true_classes, classes = overlaps.classes
    return {ids[place].item(): counts for place, counts in _count_matches(matching, true_classes, classes, len(ids))}


def count_images(overlaps: Overlaps, matching: Matching) -> list[dict[int, ClassCounts]]:
    """The same of each image by itself."""
    ids, true_classes, classes = overlaps.classes
    cells = (overlaps.truth_images * len(ids) + true_classes, overlaps.prediction_images * len(ids) + classes)
    found: list[dict[int, ClassCounts]] = [{} for _ in range(overlaps.images)]
    for cell, counts in _count_matches(matching, *cells, overlaps.images * len(ids)):
        image, place = divmod(cell, len(ids))
        found[image][ids[place].item()] = counts
    return found


def _count_matches(
    matching: Matching, true: np.ndarray, predicted: np.ndarray, cells: int
) -> Iterator[tuple[int, ClassCounts]]:
    """Counts of each cell that has some, from the cell of every true (G,) and predicted (P,) segment."""
    matched = true[matching.truth]
    columns = (matched, predicted[matching.extra], true[matching.missed])
    numbers = (np.bincount(column, minlength=cells).tolist() for column in columns)
    units = exact_sums(matched, in_units(matching.ious), cells)
    for cell, row in enumerate(zip(*numbers, units, strict=True)):
        if any(row):
            yield cell, ClassCounts(*row)


def _causes(overlaps: Overlaps, matching: Matching) -> tuple[np.ndarray, np.ndarray]:
    """The cause of every missed and of every extra segment, in order, as a place in `ErrorCounts`."""
    shared, same_class = overlaps.intersections, overlaps.same_class
    ious = shared / overlaps.unions  # a true segment has pixels, so no union is 0
    covered = same_class & (2 * shared > overlaps.truth_areas[overlaps.truth])
    lying = same_class & (2 * shared > overlaps.rated_areas[overlaps.prediction])
    covers, holds = np.bincount(overlaps.prediction[covered]), np.bincount(overlaps.truth[lying])
    applies = (
        ~overlaps.equal_names & overlaps.rated & (ious > 0.5),
        covered & _several(covers, overlaps.prediction),
        lying & _several(holds, overlaps.truth),
        same_class & (ious >= BAD_MASK_IOU),
    )
    causes = np.select(applies, range(len(applies)), len(applies))  # (K,) the first that applies to each pair
    lost, extra = (np.full(len(areas), len(applies)) for areas in (overlaps.truth_areas, overlaps.prediction_areas))
    np.minimum.at(lost, overlaps.truth, causes)
    np.minimum.at(extra, overlaps.prediction, causes)
    return lost[matching.missed], extra[matching.extra]


def _several(counts: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Where the count of a place is above 1; places behind the last have none."""
    return np.append(counts, 0)[np.minimum(places, len(counts))] > 1


def _count_causes(ids: np.ndarray, places: np.ndarray, causes: np.ndarray) -> dict[int, ErrorCounts]:
    """How often each cause occurred, by category id, from the category's place in `ids` and the cause of each error."""
    kinds = len(ErrorCounts._fields)
    rows = np.bincount(places * kinds + causes, minlength=len(ids) * kinds).reshape(-1, kinds).tolist()
    return {category_id: ErrorCounts(*row) for category_id, row in zip(ids.tolist(), rows, strict=True) if any(row)}


Counts = TypeVar("Counts", ClassCounts, ErrorCounts, PixelCounts)


def _add(totals: dict[int, Counts], category_id: int, counts: Counts) -> None:
    mine = totals.get(category_id)
    totals[category_id] = counts if mine is None else type(counts)(*map(add, mine, counts))
