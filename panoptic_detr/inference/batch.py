"""From a batch to panoptic maps: the step that the predictor, evaluation, calibration and training share."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.errors import InputError
from panoptic_detr.inference.choose import Choice, choose_queries
from panoptic_detr.inference.contest import Frame
from panoptic_detr.inference.merge import merge_choice
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.structures import Batch, DetectorOutput

Precision = Literal["fp32", "bf16"]


def in_precision(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The context that a model runs in: bfloat16 autocast, or whatever the caller has."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


@torch.no_grad()
def predict_batch(
    model: nn.Module, batch: Batch, categories: CategoryTable, settings: InferenceSettings | None = None
) -> list[PanopticSegmentation]:
    """Predict the panoptic maps of a batch.

    The detector runs once; masks are computed for the confident queries only, and merged for each image at its own size.

    Args:
        model: a panoptic model in eval mode.
        batch: on any device; it is moved to the model's.
        categories: what the model's labels mean.
        settings: thresholds and merging rules; the paper's by default.

    Returns:
        One map per image, of the image's original size.

    Raises:
        InputError: the model is in training mode, has no mask head, or does not fit the category table.
    """
    if model.training:
        raise InputError("predict_batch needs the model in eval mode (dropout off); call model.eval() before")
    batch = batch.to(next(model.parameters()).device)
    return segment_batch(model(batch.images, batch.padding_mask), batch, categories, settings)


@torch.no_grad()
def segment_batch(
    output: DetectorOutput, batch: Batch, categories: CategoryTable, settings: InferenceSettings | None = None
) -> list[PanopticSegmentation]:
    """Make the panoptic maps from a panoptic model's output: the second half of `predict_batch`.

    Args:
        output: what the model said about the batch.
        batch: the batch, on the output's device.
        categories: what the model's labels mean.
        settings: thresholds and merging rules; the paper's by default.

    Returns:
        One map per image, of the image's original size.
    """
    settings = settings or InferenceSettings()
    logits = output.logits[-1].float().cpu()  # (B, Q, C)
    choices = [choose_for(rows, categories, settings, output.no_object) for rows in logits]
    masks = output.segment([torch.tensor(c.queries, dtype=torch.long, device=batch.images.device) for c in choices])
    return [merge_image(choice, masks[i], batch, i, categories, settings) for i, choice in enumerate(choices)]


def choose_for(logits: Tensor, categories: CategoryTable, settings: InferenceSettings, no_object: bool) -> Choice:
    """The queries of one image that get a mask, from (Q, C) logits, as the settings say."""
    things, stuff = settings.thresholds(no_object)
    choice = choose_queries(logits, categories, threshold=things, stuff_threshold=stuff, no_object=no_object)
    return choice.best(settings.max_segments)


def merge_image(
    choice: Choice, masks: Tensor, batch: Batch, index: int, categories: CategoryTable, settings: InferenceSettings
) -> PanopticSegmentation:
    """Merge the masks of one image of a batch as the settings say.

    Args:
        choice: of the image's queries.
        masks: (K, h, w) logits of the chosen ones; they cover the padded image.
        batch: of the image.
        index: place of the image in the batch.
        categories: what the labels mean.
        settings: merging rules.
    """
    return merge_choice(
        choice,
        masks,
        Frame.of(batch.sizes[index], batch.original_sizes[index], batch.images.shape[-2:]),
        categories,
        min_area=settings.min_area,
        min_visible=settings.min_visible,
        union=settings.duplicate_stuff == "union",
        image_id=batch.image_ids[index] if batch.image_ids else None,
    )


def same_size_groups(sizes: Sequence[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Indices of images in groups of one (height, width), at most `limit` in each."""
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        by_size[size].append(index)
    for indices in by_size.values():
        for start in range(0, len(indices), limit):
            yield indices[start : start + limit]


def unpadded_parts(batch: Batch) -> Iterator[tuple[list[int], Batch]]:
    """Split a padded batch into batches without padding; each comes with the indices of its images in the whole."""
    for indices in same_size_groups(batch.sizes, len(batch)):
        height, width = batch.sizes[indices[0]]
        yield (
            indices,
            Batch(
                images=batch.images[indices, :, :height, :width],
                padding_mask=batch.padding_mask[indices, :height, :width],
                targets=[batch.targets[index] for index in indices] if batch.targets else [],
                sizes=[batch.sizes[index] for index in indices],
                original_sizes=[batch.original_sizes[index] for index in indices],
                image_ids=[batch.image_ids[index] for index in indices],
            ),
        )
