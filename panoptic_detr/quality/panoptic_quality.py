"""Panoptic quality (Kirillov et al., CVPR 2019), streaming and exact, by panopticapi's definition.

`PanopticQuality` takes one image after the other; its state is a few integers per category, whatever the number of images, and
merging the states of processes or machines in any order gives bit-identical scores. `evaluate_panoptic` scores files.
What matches what, crowds and void: `matching.match_segments`. The other scores come from the same overlaps, on the way.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.quality.boundaries import BoundaryOverlaps, boundaries_together, measure_boundaries
from panoptic_detr.quality.counts import (
    ClassCounts,
    ErrorCounts,
    PanopticCounts,
    count_classes,
    count_images,
    count_segments,
)
from panoptic_detr.quality.matching import match_segments
from panoptic_detr.quality.overlaps import Overlaps, Regions, joint_runs, measure_overlaps, together
from panoptic_detr.quality.points import Loss, loss_of, mean_loss
from panoptic_detr.quality.semantic import PixelCounts

State = tuple[Any, ...]
_EXAMPLES = 3  # of each kind of note
_TOGETHER = 32  # images that are counted at once
_MANY_PAIRS = 2**16  # of segments of an image that had better not wait


class PanopticQuality:
    """Accumulates the counts of images and computes PQ from them.

    Args:
        categories: the table that category ids of predictions and truth refer to, or a COCO category list.
        per_image: keep the counts of every image too, for intervals and comparisons: about 1 kB an image.
        boundary: compute boundary PQ too, which takes about three times as long.
    """

    def __init__(
        self, categories: CategoryTable | Sequence[Mapping[str, object]], *, per_image: bool = False, boundary: bool = False
    ) -> None:
        self.categories = CategoryTable.of(categories)
        self.per_image, self.boundary = per_image, boundary
        self._images = 0
        self._counts = PanopticCounts()
        self._boundaries = PanopticCounts()
        self._by_image: list[tuple[str, dict[int, ClassCounts]]] = []
        self._notes = Notes()
        self._waiting: list[tuple[str, Overlaps, BoundaryOverlaps | None]] = []

    def empty(self) -> "PanopticQuality":
        """A fresh one that counts the same, for a part of the images."""
        return PanopticQuality(self.categories, per_image=self.per_image, boundary=self.boundary)

    def update(self, prediction: PanopticSegmentation, truth: PanopticSegmentation) -> None:
        """Count one image.

        Args:
            prediction: (H, W) result.
            truth: (H, W) ground truth; its segments may be crowds.

        Raises:
            EvaluationError: other sizes, an unknown category, or segments that do not fit their map; names the image.
        """
        check_segmentations(prediction, truth)
        name = truth.image_id if truth.image_id is not None else prediction.image_id
        image = f"image {self._images + 1} (in order)" if name is None else f"image {name}"
        self.update_regions(Regions.of(prediction, f"{image}, prediction"), Regions.of(truth, f"{image}, ground truth"), image)

    def update_regions(self, prediction: Regions, truth: Regions, name: str | None = None) -> Overlaps:
        """Count one image given as id maps with (id, category, crowd) rows, as `update`; returns what was counted."""
        for regions in (prediction, truth):
            self._check_categories(regions)
        runs = joint_runs(prediction, truth)
        overlaps = measure_overlaps(prediction, truth, runs)
        edges = measure_boundaries(overlaps, runs) if self.boundary else None
        self.count(overlaps, truth.where if name is None else name, edges)
        return overlaps

    def count(self, overlaps: Overlaps, name: str, boundaries: BoundaryOverlaps | None = None) -> None:
        """Count one image by its overlaps, of known categories; its boundaries are needed where these count."""
        self._waiting.append((name, overlaps, boundaries))
        self._images += 1
        if len(self._waiting) >= _TOGETHER or len(overlaps.truth) > _MANY_PAIRS:
            self._count_waiting()

    def _count_waiting(self) -> None:
        """Count the images that wait, all at once, which takes less than half the time of one by one."""
        if not self._waiting:
            return
        names, parts, edges = zip(*self._waiting, strict=True)
        self._waiting.clear()
        overlaps = together(parts)
        matching = match_segments(overlaps)
        self._counts.merge(count_segments(overlaps, matching))
        if self.boundary:
            smaller = match_segments(overlaps, boundaries_together(edges))
            self._boundaries.merge(PanopticCounts(count_classes(overlaps, smaller)))
        if self.per_image:
            self._by_image += zip(names, count_images(overlaps, matching), strict=True)

    def note(self, kind: str, examples: Iterable[str]) -> None:
        """Report an oddity that does not change how images are counted; see `PanopticQualityResult.notes`."""
        self._notes.add(kind, examples)

    def merge(self, other: "PanopticQuality") -> None:
        """Add the counts of another accumulator; the order of merging does not matter, not even in the last bit.

        Raises:
            EvaluationError: `other` has other categories.
        """
        if not isinstance(other, PanopticQuality):
            raise EvaluationError(f"only another PanopticQuality can be added, but got {other!r:.60}")
        mine, theirs = ({(c.id, c.name, c.isthing) for c in part.categories.categories} for part in (self, other))
        if different := sorted(mine ^ theirs):
            raise EvaluationError(f"scores over different categories cannot be added: {different[0]} is in one of them only")
        self.add_state(other.state())

    def state(self) -> State:
        """Everything accumulated, as plain tuples of numbers and strings: what processes send each other."""
        self._count_waiting()
        mine, edges = self._counts, self._boundaries.classes
        kinds = (mine.classes, mine.lost, mine.extra, self._notes.kinds, mine.points, mine.pixels, edges)
        tables = (tuple(sorted((key, *row) for key, row in rows.items())) for rows in kinds)
        images = ((name, tuple((i, *row) for i, row in sorted(rows.items()))) for name, rows in self._by_image)
        return self._images, *tables, tuple(sorted(images))

    def add_state(self, state: State) -> None:
        """Add what `state` of another accumulator over the same categories returned."""
        images, classes, lost, extra, notes, points, pixels, boundaries, by_image = state
        self._images += images
        lost, extra = ({i: ErrorCounts(*row) for i, *row in rows} for rows in (lost, extra))
        prices, areas = {i: tuple(row) for i, *row in points}, {i: PixelCounts(*row) for i, *row in pixels}
        self._counts.merge(PanopticCounts(_class_counts(classes), lost, extra, prices, areas))
        self._boundaries.merge(PanopticCounts(_class_counts(boundaries)))
        self._by_image += [(name, _class_counts(rows)) for name, rows in by_image]
        self._notes.merge(Notes({kind: (count, tuple(examples)) for kind, count, examples in notes}))

    def compute(self) -> "PanopticQualityResult":
        """The scores of all images so far."""
        self._count_waiting()
        table, counts = self.categories, self._counts
        per_class = {c.id: _class_quality(counts.classes.get(c.id, ClassCounts())) for c in table.categories}
        return PanopticQualityResult(
            all=_mean_quality(list(per_class.values())),
            things=_mean_quality([per_class[c.id] for c in table.things]),
            stuff=_mean_quality([per_class[c.id] for c in table.stuff]),
            per_class=per_class,
            categories=table,
            images=self._images,
            lost=dict(sorted(counts.lost.items())),
            extra=dict(sorted(counts.extra.items())),
            notes=tuple(self._notes.lines()),
            losses={i: loss_of(counts.points.get(i), q.tp + (q.fp + q.fn) / 2) for i, q in per_class.items()},
            pixels=dict(sorted(counts.pixels.items())),
            boundary={c.id: _class_quality(self._boundaries.classes.get(c.id, ClassCounts())) for c in table.categories}
            if self.boundary
            else None,
            by_image=tuple(sorted(self._by_image, key=lambda row: row[0])),
        )

    def _check_categories(self, regions: Regions) -> None:
        if self.categories.by_id.keys() >= set(regions.category_ids.tolist()):
            return
        rows = zip(regions.ids.tolist(), regions.category_ids.tolist(), strict=True)
        segment_id, category_id = next(row for row in rows if row[1] not in self.categories.by_id)
        known = sorted(self.categories.by_id)
        raise EvaluationError(
            f"{regions.where}: segment {segment_id} has category {category_id}, which the ground truth's categories do "
            f"not list ({len(known)} categories with ids {known[0]}..{known[-1]}); give both sides the same categories"
        )


def check_segmentations(prediction: object, truth: object) -> None:
    """`EvaluationError` for anything else."""
    for which, given in (("prediction", prediction), ("truth", truth)):
        if not isinstance(given, PanopticSegmentation):
            raise EvaluationError(f"{which} must be a PanopticSegmentation, but got {given!r:.100}")


class GroupQuality(NamedTuple):
    """Means over the categories of a group that occur in truth or prediction; fractions, all 0 if none does (n = 0)."""

    pq: float  # panoptic quality
    sq: float  # segmentation quality, the mean IoU of matched pairs
    rq: float  # recognition quality, the F1 score of the matching
    n: int  # categories in the mean


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
        losses: what each class lost, by cause and size (`points`), by category id; adds up to 1 - PQ.
        pixels: pixels of the semantic view, by category id (`semantic`).
        boundary: as `per_class` with boundary PQ; None if it was not asked for.
        by_image: counts of each image by category id, if they were asked for.
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
    losses: dict[int, Loss] = field(default_factory=dict)
    pixels: dict[int, PixelCounts] = field(default_factory=dict)
    boundary: dict[int, ClassQuality] | None = None
    by_image: tuple[tuple[str, dict[int, ClassCounts]], ...] = ()

    def groups(self) -> dict[str, list[int]]:
        """Category ids of "All", "Things" and "Stuff" that occur."""
        kinds = {"All": self.categories.categories, "Things": self.categories.things, "Stuff": self.categories.stuff}
        return {name: [c.id for c in part if any(self.per_class[c.id][3:])] for name, part in kinds.items()}

    def loss(self, category_ids: Iterable[int]) -> Loss:
        """What classes lost on the average, by cause and size (fractions of PQ)."""
        return mean_loss(self.losses[i] for i in category_ids)

    def boundary_quality(self, group: str) -> GroupQuality:
        """Boundary PQ of "All", "Things" or "Stuff"; zeros if it was not asked for."""
        return _mean_quality([self.boundary[i] for i in self.groups()[group]] if self.boundary else [])

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU of the semantic view over the classes that occur; None if there are none."""
        return _mean([counts.iou for counts in self.pixels.values()])

    @property
    def pq_dagger(self) -> float | None:
        """PQ-dagger: PQ of things, mean IoU by image of stuff; None if no class occurs."""
        stuff = [self.pixels.get(c.id, PixelCounts()).image_iou for c in self.categories.stuff]
        return _mean([self.per_class[c.id].pq for c in self.categories.things if any(self.per_class[c.id][3:])] + stuff)

    def as_dict(self) -> dict[str, object]:
        """The scores in panopticapi's layout: "All", "Things", "Stuff" and "per_class"."""
        groups = {"All": self.all, "Things": self.things, "Stuff": self.stuff}
        per_class = {i: {"pq": q.pq, "sq": q.sq, "rq": q.rq} for i, q in self.per_class.items()}
        return {**{name: group._asdict() for name, group in groups.items()}, "per_class": _ByCategory(per_class)}


def _class_counts(rows: Iterable[Sequence[int]]) -> dict[int, ClassCounts]:
    return {category_id: ClassCounts(*row) for category_id, *row in rows}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return math.fsum(known) / len(known) if known else None


def _class_quality(counts: ClassCounts) -> ClassQuality:
    """Scores of one category from its counts."""
    tp, fp, fn = counts.tp, counts.fp, counts.fn
    size = tp + 0.5 * fp + 0.5 * fn
    pq, rq = (counts.iou / size, tp / size) if size else (0.0, 0.0)
    return ClassQuality(pq, counts.iou / tp if tp else 0.0, rq, tp, fp, fn)


def _mean_quality(classes: list[ClassQuality]) -> GroupQuality:
    """Means over the categories that occur; `math.fsum` rounds once, so the order of categories does not matter."""
    present = [quality for quality in classes if quality.tp + quality.fp + quality.fn]
    n = len(present)
    if not n:
        return GroupQuality(0.0, 0.0, 0.0, 0)
    pq, sq, rq = (math.fsum(quality[score] for quality in present) / n for score in range(3))
    return GroupQuality(pq, sq, rq, n)


@dataclass
class Notes:
    """How often each kind of oddity occurred, and its first examples (up to three) in sorted order.

    The size does not depend on how many oddities there are, and merging gives the same notes in any order.
    """

    kinds: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)

    def add(self, kind: str, examples: Iterable[str]) -> None:
        """Note one oddity per example."""
        rows = list(examples)
        if rows:
            self.merge(Notes({kind: (len(rows), tuple(sorted(rows)[:_EXAMPLES]))}))

    def merge(self, other: "Notes") -> None:
        """Add the notes of another part."""
        for kind, (count, examples) in other.kinds.items():
            mine, known = self.kinds.get(kind, (0, ()))
            self.kinds[kind] = (mine + count, tuple(sorted(known + examples)[:_EXAMPLES]))

    def lines(self) -> list[str]:
        """One sentence per kind."""
        return [
            f"{kind}: {count} ({', '.join(examples)}{', ...' if count > len(examples) else ''})"
            for kind, (count, examples) in sorted(self.kinds.items())
        ]
