"""Panoptic quality (Kirillov et al., CVPR 2019), streaming and exact, by panopticapi's definition.

`PanopticQuality` takes one image after the other; its state is a few integers per category, whatever the number of images, and
merging the states of processes or machines in any order gives bit-identical scores. `evaluate_panoptic` scores files.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.quality.counts import ClassCounts, PanopticCounts, count_segments
from panoptic_detr.quality.error_kinds import ErrorCounts, PanopticErrors, find_errors
from panoptic_detr.quality.notes import Notes
from panoptic_detr.quality.overlaps import Overlaps, Regions, measure_overlaps
from panoptic_detr.quality.result import PanopticQualityResult, class_quality, mean_quality

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
