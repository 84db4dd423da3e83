"""PQ, SQ and RQ (Kirillov et al., CVPR 2019) as values: of each category, and their means over everything, things and stuff."""

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from panoptic_detr.categories import CategoryTable
from panoptic_detr.quality.counts import ClassCounts
from panoptic_detr.quality.error_kinds import ErrorCounts


class GroupQuality(NamedTuple):
    """Means over the categories of a group that occur in truth or prediction; fractions, all 0 if none does (n = 0).

    Attributes:
        pq: panoptic quality.
        sq: segmentation quality, the mean IoU of matched pairs.
        rq: recognition quality, the F1 score of the matching.
        n: categories in the mean.
    """

    pq: float
    sq: float
    rq: float
    n: int


class ClassQuality(NamedTuple):
    """Scores (fractions) and counts of one category; scores are 0 where it never occurs."""

    pq: float
    sq: float
    rq: float
    tp: int
    fp: int
    fn: int


class _ByCategory(dict[int, dict[str, float]]):
    """Scores by category id; the id as a string, which is what JSON makes of it, is found too."""

    def __missing__(self, key: object) -> dict[str, float]:
        if isinstance(key, str) and key.lstrip("-").isdigit():
            return self[int(key)]
        raise KeyError(key)


@dataclass(frozen=True)
class PanopticQualityResult:
    """PQ, SQ and RQ of everything, of things, of stuff and of each category.

    Attributes:
        all: every category.
        things: the countable ones.
        stuff: the uncountable ones.
        per_class: by category id; every category of the table.
        categories: the table.
        images: number of images scored.
        lost: why true segments were not matched, by category id; each adds up to its FN.
        extra: why predicted segments were not matched, by category id; each adds up to its FP.
        notes: what was odd but did not stop the evaluation.
    """

    all: GroupQuality
    things: GroupQuality
    stuff: GroupQuality
    per_class: dict[int, ClassQuality]
    categories: CategoryTable
    images: int = 0
    lost: dict[int, ErrorCounts] = field(default_factory=dict)
    extra: dict[int, ErrorCounts] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The scores in panopticapi's layout: "All", "Things", "Stuff" and "per_class"."""
        groups = {"All": self.all, "Things": self.things, "Stuff": self.stuff}
        per_class = {i: {"pq": q.pq, "sq": q.sq, "rq": q.rq} for i, q in self.per_class.items()}
        return {**{name: group._asdict() for name, group in groups.items()}, "per_class": _ByCategory(per_class)}


def class_quality(counts: ClassCounts) -> ClassQuality:
    """Scores of one category from its counts."""
    tp, fp, fn = counts.tp, counts.fp, counts.fn
    size = tp + 0.5 * fp + 0.5 * fn
    pq, rq = (counts.iou / size, tp / size) if size else (0.0, 0.0)
    return ClassQuality(pq, counts.iou / tp if tp else 0.0, rq, tp, fp, fn)


def mean_quality(classes: list[ClassQuality]) -> GroupQuality:
    """Means over the categories that occur; `math.fsum` rounds once, so the order of categories does not matter."""
    present = [quality for quality in classes if quality.tp + quality.fp + quality.fn]
    n = len(present)
    if not n:
        return GroupQuality(0.0, 0.0, 0.0, 0)
    pq, sq, rq = (math.fsum(quality[field] for quality in present) / n for field in range(3))
    return GroupQuality(pq, sq, rq, n)
