"""From pictures to panoptic maps: the predictor that users call."""

from pathlib import Path

import torch
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.data.loading import collate
from panoptic_detr.data.transforms import eval_transform, image_tensor
from panoptic_detr.errors import InputError
from panoptic_detr.images import Picture, check_is_picture, upright_rgb
from panoptic_detr.inference.batch import Precision, in_precision, predict_batch, same_size_groups
from panoptic_detr.models.cpu.optimize import optimize_for_inference
from panoptic_detr.panoptic import PanopticSegmentation, PicturePredictor
from panoptic_detr.structures import DetectorOutput, Sample, Target
from panoptic_detr.weights import Checkpoint, choose_device, open_model, save_checkpoint
from panoptic_detr.zoo import ModelSpec, spec_of, with_own_masks

_NAMES_SHOWN = 12


class Predictor(PicturePredictor[Sample]):
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
        model = with_own_masks(model)
        if not callable(getattr(model, "segment", None)):
            raise InputError(
                f"{_name_of(model)} is a detector without a mask head; a panoptic map needs a '..._panoptic' model "
                "(train the head with `panoptic-detr train_masks --detector CHECKPOINT`)"
            )
        if precision not in ("fp32", "bf16"):
            raise InputError(f"precision must be 'fp32' or 'bf16', but got {precision!r}")
        if not isinstance(categories, CategoryTable):
            raise InputError(
                f"categories must be a CategoryTable, but got {categories!r:.100}; CategoryTable.from_coco makes one"
            )
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be at least 1, but got {batch_size}; leave it out for what suits the device")
        self.device = choose_device(device)
        self.model = model.to(self.device).eval()
        self.categories = categories
        self.settings = settings or InferenceSettings()
        self.precision = precision
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self._fast = optimize_for_inference(self.model, precision=precision)

    def __repr__(self) -> str:
        """Three lines: model and where it runs, classes, settings of prediction."""
        names = [category.name for category in self.categories.categories]
        more = f", ... ({len(names)})" if len(names) > _NAMES_SHOWN else ""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        settings = ", ".join(f"{name} {value}" for name, value in self.settings.to_dict().items())
        return (
            f"Predictor of {_name_of(self.model)}, {parameters / 1e6:.1f} million parameters, {self.device}, {self.precision}\n"
            f"{len(self.categories.things)} things and {len(self.categories.stuff)} stuff classes: "
            f"{', '.join(names[:_NAMES_SHOWN])}{more}\n"
            f"{settings}"
        )

    def prepare(self, picture: Picture) -> Tensor:
        """A picture as the model sees it: (1, 3, H, W), resized and normalised, on the model's device."""
        return self._read(picture).image[None].to(self.device)

    @torch.no_grad()
    def detect(self, picture: Picture) -> DetectorOutput:
        """What the model says of one picture before masks are made: classes and boxes of all queries, by decoder layer."""
        images = self.prepare(picture)
        output: DetectorOutput = self.model(images, torch.zeros_like(images[:, 0], dtype=torch.bool))
        return output

    def save(self, path: str | Path) -> Path:
        """Write model, class table and settings as a checkpoint that `load_model` reads."""
        state, settings = self.model.state_dict(), self.settings.to_dict()
        return save_checkpoint(path, Checkpoint(spec_of(self.model), state, self.categories, settings))

    def _read(self, picture: Picture) -> Sample:
        check_is_picture(picture)
        rgb = upright_rgb(picture)
        file = Path(picture) if isinstance(picture, str | Path) else None
        nothing = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), image_id=file.stem if file else 0)
        sample = Sample(image_tensor(rgb), nothing, (rgb.shape[0], rgb.shape[1]), str(file or ""))
        seen = self.settings
        return eval_transform(seen.short_side, seen.long_side, seen.image_mean, seen.image_std)(sample)

    def _predict(self, prepared: list[Sample], settings: InferenceSettings) -> list[PanopticSegmentation]:
        maps: dict[int, PanopticSegmentation] = {}
        for group in same_size_groups([(sample.image.shape[1], sample.image.shape[2]) for sample in prepared], self.batch_size):
            batch = collate([prepared[index] for index in group])
            with in_precision(self.precision, self.device):
                maps.update(zip(group, predict_batch(self._fast, batch, self.categories, settings), strict=True))
        return [maps[index] for index in range(len(prepared))]


def load_model(name_or_path: str | Path, *, device: str | torch.device = "auto", precision: Precision = "fp32") -> Predictor:
    """Load a model for prediction.

    Args:
        name_or_path: a checkpoint of this project; a model name whose authors publish weights (`weights.PUBLISHED`); a folder
            in the hub's form (`config.json`, `model.safetensors`); a repository of the hub, `name/of` or `name/of@revision`.
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
