"""What a run is measured on while it trains: scores and loss on the validation set, and pictures of a few of its images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import nn

from panoptic_detr.categories import Category
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.stages import DetectorStage, MaskStage
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.loading import collate, make_loader
from panoptic_detr.evaluation import ModelScores, class_rows, evaluate_model
from panoptic_detr.images import fit
from panoptic_detr.inference import choose_for, predict_batch
from panoptic_detr.models import PanopticDETR
from panoptic_detr.training.losses import Criterion, GlobalCounts, MaskCriterion
from panoptic_detr.training.trainer import DrawSamples, Evaluate
from panoptic_detr.training.watch.diagnosis import VAL_LOSS
from panoptic_detr.training.watch.progress import Scores
from panoptic_detr.visualization.draw import draw_boxes, side_by_side
from panoptic_detr.visualization.errors import Entry, draw_entry
from panoptic_detr.zoo import with_own_masks

LOSS_IMAGES = 64  # so many say what a loss does, and cost little beside the scores of all
LEAST_SIDE, MOST_SIDE = 320, 1600  # pixels: smaller images are enlarged, larger pictures shrunk


def evaluator(
    stage: DetectorStage,
    dataset: CocoPanoptic | None,
    fabric: Fabric,
    criterion: Criterion | MaskCriterion | None = None,
) -> Evaluate | None:
    """What to call for scores during training: PQ of a model with masks, box AP, and the loss by this criterion.

    Returns:
        None without validation set.
    """
    if dataset is None:
        return None
    validation = dataset

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        """Scores of the model as it is now, by name."""
        whole = with_own_masks(model)
        found = evaluate_model(
            whole,
            validation,
            settings=stage.inference,
            panoptic=isinstance(whole, PanopticDETR),
            ap="boxes",
            batch_size=stage.train.batch_size,
            workers=stage.data.workers,
            share=fabric.world_size > 1,
        )
        scores = as_scores(found)
        if criterion is None:
            return scores
        frozen = isinstance(stage, MaskStage) and not stage.joint
        with extra_outputs(model, wanted=not frozen):
            loss = validation_loss(model, criterion, validation, stage.train.batch_size, fabric)
        scores[VAL_LOSS] = loss
        return scores

    return evaluate


def as_scores(found: ModelScores) -> Scores:
    """What a run logs of an evaluation."""
    result = found.panoptic
    if result is None:
        return Scores(found.summary())
    rows = [row for row in class_rows(result) if row["tp"] or row["fp"] or row["fn"]]
    lost = {cause: sum(sizes) for cause, sizes in result.loss(result.groups()["All"]).items()}
    return Scores(found.summary(), rows, lost)


@contextmanager
def extra_outputs(model: nn.Module, *, wanted: bool) -> Iterator[None]:
    """Let a detector in evaluation mode give the outputs that only losses read, without dropout or new statistics.

    Args:
        model: a detector or a panoptic model in eval mode.
        wanted: whether the detector is trained, so that its own losses count.
    """
    detector = getattr(model, "detector", model)
    detector.training = wanted  # of itself alone: layers, norms and dropout stay as they are
    try:
        yield
    finally:
        detector.training = False


@torch.no_grad()
def validation_loss(
    model: nn.Module, criterion: Criterion | MaskCriterion, dataset: CocoPanoptic, batch_size: int, fabric: Fabric
) -> float:
    """The training loss of evenly spread validation images, the same in every process; random numbers go on as before.

    Args:
        model: in eval mode (see `extra_outputs`).
        criterion: of the training.
        dataset: with evaluation's transform; `LOSS_IMAGES` of it are used.
        batch_size: images of one forward pass.
        fabric: devices and precision.
    """
    count = min(LOSS_IMAGES, len(dataset))
    chosen = np.linspace(0, len(dataset) - 1, count).round().astype(int)[fabric.global_rank :: fabric.world_size].tolist()
    loader = make_loader(dataset.subset(chosen), batch_size=batch_size) if chosen else ()
    total, devices = 0.0, [fabric.device] if fabric.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), fabric.autocast():
        torch.manual_seed(0)  # places that a criterion draws are the same every time
        for batch in loader:
            batch = batch.to(fabric.device)
            counts = GlobalCounts(tuple(len(target) for target in batch.targets))
            output = model(batch.images, batch.padding_mask)
            total += float(criterion(output, batch.targets, counts).total) * len(batch)
    if fabric.world_size > 1:
        total = float(torch.as_tensor(fabric.all_reduce(torch.tensor(total, device=fabric.device), reduce_op="sum")))
    return total / count


def sample_drawer(stage: DetectorStage, dataset: CocoPanoptic | None) -> DrawSamples | None:
    """What to call for pictures of the same few validation images (`train.sample_pictures`); None where none are wanted."""
    if dataset is None or not stage.train.sample_pictures:
        return None
    count = min(stage.train.sample_pictures, len(dataset))
    chosen = dataset.subset(np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist())

    def draw(model: nn.Module) -> dict[str, np.ndarray]:
        whole = with_own_masks(model)
        draw_kind = draw_panoptic if isinstance(whole, PanopticDETR) else draw_detections
        return draw_kind(whole, chosen, stage.inference)

    return draw


def draw_panoptic(model: nn.Module, dataset: CocoPanoptic, settings: InferenceSettings) -> dict[str, np.ndarray]:
    """Annotation, prediction and errors of every image, side by side.

    Args:
        model: a panoptic model in eval mode.
        dataset: the images, with evaluation's transform.
        settings: thresholds and merging rules.

    Returns:
        By image id, (h, w, 3) uint8 RGB.
    """
    pictures = {}
    for index, image_id in enumerate(dataset.image_ids):
        (prediction,) = predict_batch(model, collate([dataset[index]]), dataset.categories, settings)
        entry = Entry(str(image_id), dataset.image(index), dataset.truth(index), prediction)
        pictures[entry.name] = fit(draw_entry(entry, scale=_enlargement(entry.image)), MOST_SIDE)
    return pictures


@torch.no_grad()
def draw_detections(model: nn.Module, dataset: CocoPanoptic, settings: InferenceSettings) -> dict[str, np.ndarray]:
    """Annotated and predicted boxes of every image, side by side; for detectors without masks.

    Args:
        model: a detector in eval mode.
        dataset: the images, with evaluation's transform.
        settings: thresholds of the queries that are drawn.

    Returns:
        By image id, (h, w, 3) uint8 RGB.
    """
    pictures, table = {}, dataset.categories
    for index, image_id in enumerate(dataset.image_ids):
        batch = collate([dataset[index]]).to(next(model.parameters()).device)
        output = model(batch.images, batch.padding_mask)
        choice = choose_for(output.logits[-1, 0].cpu(), table, settings, output.no_object)
        found = [(query, category) for query in choice.queries if (category := choice.categories[query]) is not None]
        image, target = dataset.image(index), dataset.target(index)
        truth = [table.by_label[label] for label in target.labels.tolist()]
        drawn = [
            _with_boxes(image, target.boxes.numpy(), truth, [category.name for category in truth]),
            _with_boxes(
                image,
                output.boxes[-1, 0, [query for query, _ in found]].float().cpu().numpy(),
                [category for _, category in found],
                [f"{category.name} {choice.scores[query]:.2f}" for query, category in found],
            ),
        ]
        pictures[str(image_id)] = fit(side_by_side(drawn, ["ground truth", "prediction"]), MOST_SIDE)
    return pictures


def _with_boxes(image: np.ndarray, boxes: np.ndarray, categories: Sequence[Category], names: Sequence[str]) -> np.ndarray:
    scale = _enlargement(image)
    picture = np.repeat(np.repeat(image, scale, 0), scale, 1)
    draw_boxes(picture, boxes, [category.color for category in categories], names)
    return picture


def _enlargement(image: np.ndarray) -> int:
    return max(1, LEAST_SIDE // max(image.shape[:2]))
