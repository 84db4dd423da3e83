"""The thresholds of the best panoptic quality on a data set: detectors differ in how sure of themselves they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.evaluation.evaluate import check_same_categories, pass_over
from panoptic_detr.inference import Precision, choose_for, merge_image
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.quality import PanopticQuality, State
from panoptic_detr.structures import Batch, DetectorOutput

CANDIDATES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)

Thresholds = tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """What every pair of thresholds gives."""

    settings: InferenceSettings  # the model's, with the best thresholds
    thresholds: Thresholds  # the best, of things and of stuff
    quality: float  # PQ of the best ones, a fraction
    before: float  # PQ of the thresholds that the settings had
    grid: dict[Thresholds, float]  # PQ by (threshold of things, threshold of stuff)
    images: int  # how many the choice rests on


def calibrate_thresholds(
    model: nn.Module,
    dataset: CocoPanoptic,
    *,
    categories: CategoryTable | None = None,
    settings: InferenceSettings | None = None,
    candidates: Sequence[float] = CANDIDATES,
    batch_size: int = 1,
    workers: int = 0,
    precision: Precision = "fp32",
    progress: bool = True,
) -> Calibration:
    """Try every pair of thresholds for things and stuff, in one pass of the model over the data, the pass of `evaluate_model`.

    Choose on images that are not those to be scored afterwards: the best of many pairs flatters itself; and in the precision of
    later use. `candidates` are the thresholds to try, `settings` have those to compare with; the rest is as there.

    Raises:
        EvaluationError: the model is in training mode, or its categories are not the data set's.
    """
    table, settings = categories or dataset.categories, settings or InferenceSettings()
    check_same_categories(table, dataset.categories)
    sweep = _Sweep(dataset.categories, table, settings, list(product(candidates, candidates)))
    pass_over(
        model,
        dataset,
        sweep.add,
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        title="calibrating",
        shown=progress,
    )
    return sweep.result(len(dataset))


class _Sweep:
    """Panoptic quality for many pairs of thresholds at once; the last settings tried are those that the model has.

    Args:
        truth_categories: of the data set.
        categories: of the model.
        settings: merging rules; its own thresholds are tried too.
        pairs: to try.
    """

    def __init__(
        self,
        truth_categories: CategoryTable,
        categories: CategoryTable,
        settings: InferenceSettings,
        pairs: Sequence[Thresholds],
    ) -> None:
        self.categories, self.settings, self.pairs = categories, settings, pairs
        self.tried = [*(replace(settings, threshold=pair[0], stuff_threshold=pair[1]) for pair in pairs), settings]
        self.qualities = [PanopticQuality(truth_categories) for _ in self.tried]

    def add(self, output: DetectorOutput, batch: Batch, truths: Sequence[PanopticSegmentation]) -> None:
        """Score a batch: masks are computed once, for every query that any pair keeps."""
        logits = output.logits[-1].float().cpu()  # (B, Q, C)
        choices = [[choose_for(rows, self.categories, one, output.no_object) for one in self.tried] for rows in logits]
        wanted = [sorted({query for choice in image for query in choice.queries}) for image in choices]
        masks = output.segment([torch.tensor(queries, dtype=torch.long, device=batch.images.device) for queries in wanted])
        for i, truth in enumerate(truths):
            seen: dict[tuple[int, ...], State] = {}  # many pairs keep the same queries, and so give the same map
            for choice, one, quality in zip(choices[i], self.tried, self.qualities, strict=True):
                key = tuple(choice.queries)
                if key not in seen:
                    rows = masks[i][[wanted[i].index(query) for query in key]]
                    alone = PanopticQuality(quality.categories)
                    alone.update(merge_image(choice, rows, batch, i, self.categories, one), truth)
                    seen[key] = alone.state()
                quality.add_state(seen[key])

    def result(self, images: int) -> Calibration:
        """The best pair; among equals, the one nearest to the middle of the equals."""
        *scores, before = (quality.compute().all.pq for quality in self.qualities)
        grid = dict(zip(self.pairs, scores, strict=True))
        equal = sorted(pair for pair, value in grid.items() if value == max(scores))
        things, stuff = equal[len(equal) // 2]
        best = replace(self.settings, threshold=things, stuff_threshold=stuff)
        return Calibration(best, (things, stuff), max(scores), before, grid, images)
