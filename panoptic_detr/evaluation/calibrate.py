"""The thresholds of the best panoptic quality on a data set: detectors differ in how sure of themselves they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.loading import make_loader
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.evaluate import check_same_categories
from panoptic_detr.inference import chosen_queries, merge_image
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import progress_bar
from panoptic_detr.quality import PanopticQuality, State
from panoptic_detr.structures import Batch

CANDIDATES = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95)

Thresholds = tuple[float, float]


@dataclass(frozen=True)
class Calibration:
    """What every pair of thresholds gives.

    Attributes:
        settings: the model's, with the best thresholds.
        thresholds: the best, of things and of stuff.
        quality: PQ of the best ones, a fraction.
        before: PQ of the thresholds that the settings had.
        grid: PQ by (threshold of things, threshold of stuff).
        images: how many the choice rests on.
    """

    settings: InferenceSettings
    thresholds: Thresholds
    quality: float
    before: float
    grid: dict[Thresholds, float]
    images: int


@torch.no_grad()
def calibrate_thresholds(
    model: nn.Module,
    dataset: CocoPanoptic,
    *,
    categories: CategoryTable | None = None,
    settings: InferenceSettings | None = None,
    candidates: Sequence[float] = CANDIDATES,
    batch_size: int = 1,
    workers: int = 0,
    progress: bool = True,
) -> Calibration:
    """Try every pair of thresholds for things and stuff, in one pass of the model over the data.

    Choose on images that are not those to be scored afterwards: the best of many pairs flatters itself.

    Args:
        model: a panoptic model in eval mode.
        dataset: with evaluation's transform.
        categories: what the model's labels mean; the data set's own by default.
        settings: merging rules, and the thresholds to compare with.
        candidates: thresholds to try.
        batch_size: images that go through the model together.
        workers: processes that read images ahead.
        progress: show a progress bar if there is a terminal.

    Raises:
        EvaluationError: the model is in training mode, or its categories are not the data set's.
    """
    if model.training:
        raise EvaluationError("calibrate_thresholds needs the model in eval mode (dropout off); call model.eval() before")
    table, settings = categories or dataset.categories, settings or InferenceSettings()
    check_same_categories(table, dataset.categories)
    device, start = next(model.parameters()).device, 0
    sweep = _Sweep(dataset.categories, table, settings, list(product(candidates, candidates)))
    with progress_bar(shown=progress) as bar:
        task = bar.add_task("calibrating", total=len(dataset))
        for batch in make_loader(dataset, batch_size=batch_size, workers=workers):
            truths = [dataset.truth(index) for index in range(start, start + len(batch))]
            sweep.add(model, batch.to(device), truths)
            start += len(batch)
            bar.advance(task, len(batch))
    return sweep.result(len(dataset))


class _Sweep:
    """Panoptic quality for many pairs of thresholds at once.

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
        self.categories, self.settings = categories, settings
        self.qualities = {pair: PanopticQuality(truth_categories) for pair in pairs}
        self.before = PanopticQuality(truth_categories)
        self.tried = {pair: replace(settings, threshold=pair[0], stuff_threshold=pair[1]) for pair in pairs}

    def add(self, model: nn.Module, batch: Batch, truths: Sequence[PanopticSegmentation]) -> None:
        """Score a batch: masks are computed once, for every query that any pair keeps."""
        output = model(batch.images, batch.padding_mask)
        logits = output.logits[-1].float().cpu()  # (B, Q, C)
        every = [*self.tried.values(), self.settings]
        kept = [[chosen_queries(rows, self.categories, one, output.no_object) for one in every] for rows in logits]
        wanted = [sorted({query for queries in image for query in queries}) for image in kept]
        masks = output.segment([torch.tensor(queries, dtype=torch.long, device=batch.images.device) for queries in wanted])
        for i, truth in enumerate(truths):
            seen: dict[tuple[int, ...], State] = {}  # many pairs keep the same queries, and so give the same map
            for queries, one, quality in zip(kept[i], every, [*self.qualities.values(), self.before], strict=True):
                key = tuple(queries)
                if key not in seen:
                    rows: Tensor = masks[i][[wanted[i].index(query) for query in queries]]
                    found = merge_image(logits[i], rows, queries, batch, i, self.categories, one, output.no_object)
                    alone = PanopticQuality(quality.categories)
                    alone.update(found, truth)
                    seen[key] = alone.state()
                quality.add_state(seen[key])

    def result(self, images: int) -> Calibration:
        """The best pair; among equals, the one nearest to the middle of the equals."""
        grid = {pair: quality.compute().all.pq for pair, quality in self.qualities.items()}
        highest = max(grid.values())
        equal = [pair for pair, value in grid.items() if value == highest]
        things, stuff = sorted(equal)[len(equal) // 2]
        best = replace(self.settings, threshold=things, stuff_threshold=stuff)
        return Calibration(best, (things, stuff), highest, self.before.compute().all.pq, grid, images)
