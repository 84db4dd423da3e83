"""From pictures to panoptic maps: the predictor that users call, and the batch step that evaluation shares with it."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.loading import collate
from panoptic_detr.data.transforms import eval_transform, image_tensor
from panoptic_detr.errors import InputError
from panoptic_detr.images import Picture, upright_rgb
from panoptic_detr.inference.choose import choose_queries
from panoptic_detr.inference.merge import merge_panoptic
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.structures import Batch, DetectorOutput, Sample, Target
from panoptic_detr.weights import Checkpoint, choose_device, open_model, save_checkpoint
from panoptic_detr.zoo import ModelSpec, spec_of

Pictures: TypeAlias = list[Any] | tuple[Any, ...]
Precision = Literal["fp32", "bf16"]
# Pictures prepared at a time, in batches: among so many, those of one size share a batch.
_WINDOW_BATCHES = 4


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
    chosen = [chosen_queries(rows, categories, settings, output.no_object) for rows in logits]
    masks = output.segment([torch.tensor(queries, dtype=torch.long, device=batch.images.device) for queries in chosen])
    return [
        merge_image(logits[i], masks[i], chosen[i], batch, i, categories, settings, output.no_object) for i in range(len(batch))
    ]


def merge_image(
    logits: Tensor,
    masks: Tensor,
    queries: list[int],
    batch: Batch,
    index: int,
    categories: CategoryTable,
    settings: InferenceSettings,
    no_object: bool,
) -> PanopticSegmentation:
    """Merge the masks of one image of a batch as the settings say.

    Args:
        logits: (Q, C) of the image.
        masks: (K, h, w) logits that cover the padded image.
        queries: K queries that the masks belong to.
        batch: of the image.
        index: place of the image in the batch.
        categories: what the labels mean.
        settings: thresholds and merging rules.
        no_object: whether the last class slot means "no object".
    """
    threshold, stuff_threshold = settings.thresholds(no_object)
    return merge_panoptic(
        logits,
        masks,
        categories=categories,
        size=batch.sizes[index],
        target_size=batch.original_sizes[index],
        padded_size=batch.images.shape[-2:],
        threshold=threshold,
        stuff_threshold=stuff_threshold,
        min_area=settings.min_area,
        min_visible=settings.min_visible,
        duplicate_stuff=settings.duplicate_stuff,
        no_object=no_object,
        queries=queries,
        image_id=batch.image_ids[index] if batch.image_ids else None,
    )


def chosen_queries(logits: Tensor, categories: CategoryTable, settings: InferenceSettings, no_object: bool) -> list[int]:
    """The queries of one image that get a mask, from (Q, C) logits."""
    things, stuff = settings.thresholds(no_object)
    choice = choose_queries(logits, categories, threshold=things, stuff_threshold=stuff, no_object=no_object)
    return choice.best(settings.max_segments)


class Predictor:
    """Pictures in, panoptic maps out.

    Args:
        model: a panoptic model (a detector with a mask head).
        categories: what its labels mean.
        settings: thresholds, merging rules and the size at which the model sees images.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for the best one there is.
        precision: "fp32", or "bf16" for bfloat16 autocast: about twice as fast where the hardware has it, scores and masks
            differ in the third digit.
        batch_size: pictures of a list that go through the model together; 1 on a CPU and 8 elsewhere by default.

    Attributes:
        model: the model as given, on the device, in eval mode.
        categories: the category table.
        settings: the settings.
        device: where the model runs.
    """

    def __init__(
        self,
        model: nn.Module,
        categories: CategoryTable,
        *,
        settings: InferenceSettings | None = None,
        device: str | torch.device = "cpu",
        precision: Precision = "fp32",
        batch_size: int | None = None,
    ) -> None:
        if not callable(getattr(model, "segment", None)):
            raise InputError(
                f"{_name_of(model)} is a detector without a mask head; a panoptic map needs a '..._panoptic' model "
                "(train the head with `panoptic-detr train_masks --detector CHECKPOINT`)"
            )
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision must be 'fp32' or 'bf16', but got {precision!r}")
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.categories = categories
        self.settings = settings or InferenceSettings()
        self.precision = precision
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self._fast = optimize_for_inference(self.model, bf16=precision == "bf16")

    @overload
    def __call__(self, images: Picture, threshold: float | None = None) -> PanopticSegmentation: ...

    @overload
    def __call__(self, images: Pictures, threshold: float | None = None) -> list[PanopticSegmentation]: ...

    def __call__(
        self, images: Picture | Pictures, threshold: float | None = None
    ) -> PanopticSegmentation | list[PanopticSegmentation]:
        """Predict.

        Args:
            images: a path; an array (H, W, 3) RGB, (H, W) grey or (H, W, 4) RGBA of uint8, uint16 or float in 0..1; a PIL
                image; or a list of these. Photographs are turned upright by their EXIF orientation, and the map is that of
                the upright picture.
            threshold: least probability for this call, for things and stuff alike, instead of the settings'.

        Returns:
            The map, as large as the picture; a list of maps for a list.

        Raises:
            PictureError: a missing or unreadable picture; the message names it.
        """
        settings = self.settings.with_thresholds(threshold)
        if not isinstance(images, list | tuple):
            return self._predict([self._sample(images)], settings)[0]
        results: list[PanopticSegmentation] = []
        window = self.batch_size * (1 if self.batch_size == 1 else _WINDOW_BATCHES)
        for start in range(0, len(images), window):
            results += self._predict([self._sample(image) for image in images[start : start + window]], settings)
        return results

    def save(self, path: str | Path) -> Path:
        """Write model, class table and settings as a checkpoint that `load_model` reads."""
        state, settings = self.model.state_dict(), self.settings.to_dict()
        return save_checkpoint(path, Checkpoint(spec_of(self.model), state, self.categories, settings))

    def _sample(self, picture: Picture) -> Sample:
        rgb = upright_rgb(picture)
        file = Path(picture) if isinstance(picture, str | Path) else None
        nothing = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), image_id=file.stem if file else 0)
        sample = Sample(image_tensor(rgb), nothing, (rgb.shape[0], rgb.shape[1]), str(file or ""))
        return eval_transform(self.settings.short_side, self.settings.long_side)(sample)

    def _predict(self, samples: list[Sample], settings: InferenceSettings) -> list[PanopticSegmentation]:
        """The maps of samples, which go through the model in groups of one size."""
        maps: dict[int, PanopticSegmentation] = {}
        for group in same_size_groups([_size(sample) for sample in samples], self.batch_size):
            batch = collate([samples[index] for index in group])
            with self._autocast():
                maps.update(zip(group, predict_batch(self._fast, batch, self.categories, settings), strict=True))
        return [maps[index] for index in range(len(samples))]

    def _autocast(self) -> AbstractContextManager[None]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)


def load_model(name_or_path: str | Path, *, device: str | torch.device = "cpu", precision: Precision = "fp32") -> Predictor:
    """Load a model for prediction.

    Args:
        name_or_path: a checkpoint of this project, or a model name whose authors publish weights (`zoo.PUBLISHED`).
        device: see `Predictor`.
        precision: see `Predictor`.

    Raises:
        CheckpointError: the file is no checkpoint, is damaged, or does not say what its classes mean.
        InputError: neither a file nor a model name, or a model without published weights or mask head.
        WeightsUnavailableError: published weights that cannot be fetched; the message says which file to put where.
    """
    read = open_model(name_or_path)
    return Predictor(read.model, read.categories, settings=read.settings, device=device, precision=precision)


def _name_of(model: nn.Module) -> str:
    spec = getattr(model, "spec", None)
    return repr(spec.name) if isinstance(spec, ModelSpec) else type(model).__name__


def _size(sample: Sample) -> tuple[int, int]:
    return sample.image.shape[1], sample.image.shape[2]


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
