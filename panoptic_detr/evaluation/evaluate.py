"""Score a model on a data set in one pass: PQ, box AP, mask AP. Maps go from the model straight to the counts, not to disk."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import distributed, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.loading import make_loader
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.coco_ap import AveragePrecision, ThingPrecision
from panoptic_detr.evaluation.thing_predictions import as_arrays, encode_thing_masks, find_things
from panoptic_detr.inference import Precision, Share, in_precision, segment_batch, unpadded_parts
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import progress_bar
from panoptic_detr.quality import PanopticQuality, PanopticQualityResult
from panoptic_detr.structures import Batch, DetectorOutput

ApKind = Literal["none", "boxes", "masks"]


@dataclass(frozen=True)
class ModelScores:
    """Scores of a model on a data set."""

    panoptic: PanopticQualityResult | None  # PQ and what belongs to it; None for a detector without masks
    things: ThingPrecision | None  # box AP and mask AP over things; None if not asked for
    images: int  # number of images
    seconds: float  # wall-clock time of the pass

    def summary(self) -> dict[str, float]:
        """The main scores by name, as fractions, the most important one first, NaN where one is undefined; for logs."""
        scores: dict[str, float] = {}
        if self.panoptic is not None:
            every, things, stuff = self.panoptic.all, self.panoptic.things, self.panoptic.stuff
            scores = {"PQ": every.pq, "SQ": every.sq, "RQ": every.rq, "PQ things": things.pq, "PQ stuff": stuff.pq}
            counted = dict(zip(scores, (every.n, every.n, every.n, things.n, stuff.n), strict=True))
            scores = {name: value if counted[name] else math.nan for name, value in scores.items()}
        if self.things is not None:
            scores["box AP"] = _or_nan(self.things.boxes.ap)
            if self.things.masks is not None:
                scores["mask AP"] = _or_nan(self.things.masks.ap)
        return scores


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


class ModelScorer:
    """Adds up the scores of batches.

    Args:
        truth_categories: of the data set.
        categories: what the model's labels mean.
        settings: thresholds and merging rules of the panoptic maps.
        panoptic: score PQ; the model must have a mask head.
        ap: "boxes" for box AP, "masks" for box and mask AP (needs a mask head too), "none" for neither.
        per_image: keep the counts of every image, for intervals.
        boundary: score boundary PQ too.

    Raises:
        EvaluationError: the model's categories are not the data set's.
    """

    def __init__(
        self,
        truth_categories: CategoryTable,
        categories: CategoryTable,
        settings: InferenceSettings,
        *,
        panoptic: bool,
        ap: ApKind,
        per_image: bool = False,
        boundary: bool = False,
    ) -> None:
        check_same_categories(categories, truth_categories)
        self.categories, self.settings = categories, settings
        self.quality = PanopticQuality(truth_categories, per_image=per_image, boundary=boundary) if panoptic else None
        self.precision = AveragePrecision(truth_categories) if ap != "none" else None
        self.with_masks = ap == "masks"

    def update(self, output: DetectorOutput, batch: Batch, truths: list[PanopticSegmentation]) -> None:
        """Score the model's output for a batch against the truth of its images at their original sizes."""
        if self.quality is not None:
            for prediction, truth in zip(segment_batch(output, batch, self.categories, self.settings), truths, strict=True):
                self.quality.update(prediction, truth)
        if self.precision is not None:
            things = find_things(output, batch, self.categories)
            masks = encode_thing_masks(output, batch, things) if self.with_masks else [None] * len(batch)
            for image_id, image, encoded, truth in zip(batch.image_ids, things, masks, truths, strict=True):
                self.precision.update(image_id, *as_arrays(image), encoded, truth)

    def add_other_processes(self) -> None:
        """Exchange what the processes of `torch.distributed` have; afterwards each has the scores of all images."""
        for part in (self.quality, self.precision):
            if part is not None:
                _add_other_processes(part)

    def compute(self) -> tuple[PanopticQualityResult | None, ThingPrecision | None]:
        """PQ, and box and mask AP, of the images so far; None for what is not scored."""
        quality = self.quality.compute() if self.quality is not None else None
        return quality, self.precision.compute() if self.precision is not None else None


def _add_other_processes(part: PanopticQuality | AveragePrecision) -> None:
    share = _share()
    for rank, state in enumerate(share.gather(part.state())):
        if rank != share.rank:
            part.add_state(state)


def _share() -> Share:
    return Share(distributed.get_rank(), distributed.get_world_size())


def evaluate_model(
    model: nn.Module,
    dataset: CocoPanoptic,
    *,
    categories: CategoryTable | None = None,
    settings: InferenceSettings | None = None,
    panoptic: bool = True,
    ap: ApKind = "none",
    batch_size: int = 1,
    workers: int = 0,
    precision: Precision = "fp32",
    share: bool = False,
    per_image: bool = False,
    boundary: bool = False,
    progress: bool = True,
) -> ModelScores:
    """Score a model.

    Args:
        model: in eval mode.
        dataset: with evaluation's transform; its truth is read at the original sizes.
        categories: what the model's labels mean; the data set's own by default.
        settings: thresholds and merging rules; the paper's by default.
        panoptic: score PQ; needs a model with a mask head.
        ap: over things: "boxes", or "masks" for boxes and masks. Mask AP looks at the masks of the 100 best things before
            merging, which takes the mask head far longer than the few that make the panoptic map.
        batch_size: images that go through the model together.
        workers: processes that read images ahead.
        precision: "bf16" runs the model under bfloat16 autocast.
        share: under `torch.distributed`, every process scores its share of the images and returns the scores of all.
        per_image: keep the counts of every image in the result, for intervals.
        boundary: score boundary PQ too.
        progress: show a progress bar if there is a terminal.

    Raises:
        EvaluationError: no image, the model is in training mode, or its categories are not the data set's.
        DataError: a defect of the data set.
    """
    if not len(dataset):
        raise EvaluationError("the data set has no image, so there is nothing to score; choose another split")
    started = time.perf_counter()
    table, settings = categories or dataset.categories, settings or InferenceSettings()
    options = {"per_image": per_image, "boundary": boundary}
    scorer = ModelScorer(dataset.categories, table, settings, panoptic=panoptic, ap=ap, **options)
    part = dataset.subset(_share().of(range(len(dataset)))) if share else dataset
    shown = progress and (not share or _share().first)
    pass_over(
        model, part, scorer.update, batch_size=batch_size, workers=workers, precision=precision, title="evaluating", shown=shown
    )
    if share:
        scorer.add_other_processes()
    return ModelScores(*scorer.compute(), len(dataset), time.perf_counter() - started)


def evaluate_predictor(
    predict: Callable[[np.ndarray], PanopticSegmentation],
    dataset: CocoPanoptic,
    *,
    categories: CategoryTable,
    share: bool = False,
    progress: bool = True,
    per_image: bool = False,
    boundary: bool = False,
) -> ModelScores:
    """PQ of whatever turns pictures into maps, an exported file for example.

    Args:
        predict: (H, W, 3) uint8 RGB to the map.
        dataset: pictures and truth.
        categories: what the maps' category ids mean.
        share: as of `evaluate_model`.
        progress: show a progress bar if there is a terminal.
        per_image: keep the counts of every image, for intervals.
        boundary: boundary PQ too.

    Raises:
        EvaluationError: no image, or the categories are not the data set's.
        DataError: a defect of the data set.
    """
    if not len(dataset):
        raise EvaluationError("the data set has no image, so there is nothing to score; choose another split")
    check_same_categories(categories, dataset.categories)
    started = time.perf_counter()
    quality = PanopticQuality(dataset.categories, per_image=per_image, boundary=boundary)
    mine = _share() if share else Share()
    with progress_bar(shown=progress and mine.first) as bar:
        for index in bar.track(mine.of(range(len(dataset))), description="evaluating"):
            quality.update(predict(dataset.image(index)), dataset.truth(index))
    if share:
        _add_other_processes(quality)
    return ModelScores(quality.compute(), None, len(dataset), time.perf_counter() - started)


def check_same_categories(model: CategoryTable, truth: CategoryTable) -> None:
    """Raise `EvaluationError` if a category of the model is unknown to the data set or means something else there."""
    for category in model.categories:
        there = truth.by_id.get(category.id)
        if there is None or (there.name, there.isthing) != (category.name, category.isthing):
            raise EvaluationError(
                f"category {category.id} is {category} for the model, but {there or 'none'} in the data set; "
                "score the model on a data set with the categories that it was trained on"
            )


@torch.no_grad()
def pass_over(
    model: nn.Module,
    dataset: CocoPanoptic,
    score: Callable[[DetectorOutput, Batch, list[PanopticSegmentation]], None],
    *,
    batch_size: int,
    workers: int,
    precision: Precision,
    title: str,
    shown: bool,
) -> None:
    """Run a model over a data set, as every score and every calibration does.

    Args:
        model: in eval mode.
        dataset: with evaluation's transform.
        score: called with the output for some images of one size, their batch (no padding, on the model's device), and their
            truth at the original sizes; in the same precision.
        batch_size: images that are read together; those of one size go through the model together.
        workers: processes that read images ahead.
        precision: "bf16" for bfloat16 autocast.
        title: of the progress bar.
        shown: show it if there is a terminal.

    Raises:
        EvaluationError: the model is in training mode.
    """
    if model.training:
        raise EvaluationError("scoring needs the model in eval mode (dropout off); call model.eval() before")
    device, start = next(model.parameters()).device, 0
    with progress_bar(shown=shown) as bar:
        task = bar.add_task(title, total=len(dataset))
        for batch in make_loader(dataset, batch_size=batch_size, workers=workers) if len(dataset) else ():
            for indices, part in unpadded_parts(batch):
                truths, part = [dataset.truth(start + index) for index in indices], part.to(device)
                with in_precision(precision, device):
                    score(model(part.images, part.padding_mask), part, truths)
            start += len(batch)
            bar.advance(task, len(batch))
