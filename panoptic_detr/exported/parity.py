"""A file and its model side by side, on pictures and on a data set."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.types import fits_type
from panoptic_detr.data.coco import CocoPanoptic, resolve_paths
from panoptic_detr.data.transforms import IMAGENET_MEAN, IMAGENET_STD, image_tensor, normalize, resize, target_size
from panoptic_detr.errors import InputError
from panoptic_detr.evaluation import ModelScores, evaluate_predictor
from panoptic_detr.exported.engines import Content, open_engine
from panoptic_detr.exported.runtime import ExportedPredictor, input_values, read_notes
from panoptic_detr.images import Picture, upright_rgb
from panoptic_detr.inference import PictureFile, Predictor
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.structures import DetectorOutput
from panoptic_detr.weights import OpenedModel

RAW = ("logits", "query_boxes", "mask_logits", "mask_places")
SIZES = ((96, 96), (240, 320), (333, 250))  # of the drawn pictures, the last for networks that see pictures as they are
LARGER = 1.3  # sides of the last picture, in short sides of what the network sees
STRIPES = 40.0  # of 255, how much every second column is brighter: what is left of it shows how a picture was made smaller


@dataclass(frozen=True)
class Comparison:
    """One picture.

    Attributes:
        name: of the picture.
        logits: largest difference of class logits.
        boxes: the same of boxes, as fractions of the image.
        masks: the same of mask logits, of the queries that the file kept; 0 where there is none.
        equal_pixels: share of pixels with the same segment id.
        same_segments: ids, categories, areas and boxes agree.
        segments: how many the model found.
    """

    name: str
    logits: float
    boxes: float
    masks: float
    equal_pixels: float
    same_segments: bool
    segments: int


def default_pictures(short_side: int | None) -> list[np.ndarray]:
    """Three pictures of coloured ellipses on a striped gradient, of three sizes; always the same.

    Args:
        short_side: to which the network's pictures are resized, if so; the last picture gets smaller thereby.
    """
    draw, pictures = np.random.default_rng(0), []
    last = (round(LARGER * short_side), round(LARGER * short_side * 1.2)) if short_side else SIZES[-1]
    for height, width in (*SIZES[:-1], last):
        y, x = np.mgrid[:height, :width] / np.array([height, width]).reshape(2, 1, 1)
        picture = np.stack([255 * x, 255 * y, 255 * (1 - x)], axis=-1)
        for _ in range(6):
            centre_x, centre_y, wide, high = draw.uniform(0.1, 0.9, 2).tolist() + draw.uniform(0.05, 0.25, 2).tolist()
            picture[((x - centre_x) / wide) ** 2 + ((y - centre_y) / high) ** 2 < 1] = draw.uniform(0, 255, 3)
        picture[:, ::2] += STRIPES * (1 - picture[:, ::2] / 255)
        pictures.append(picture.astype(np.uint8))
    return pictures


@dataclass(frozen=True)
class Quality:
    """What a model and its file score on a data set.

    Attributes:
        model: scores of the model.
        file: scores of the file.
    """

    model: ModelScores
    file: ModelScores

    @property
    def points_lost(self) -> float:
        """PQ of the model less that of the file, in per cent."""
        assert self.model.panoptic is not None
        assert self.file.panoptic is not None
        return 100 * (self.model.panoptic.all.pq - self.file.panoptic.all.pq)


class Pair:
    """A model and the file that was made of it, ready to be compared.

    Args:
        opened: the model.
        path: the file's place, for messages.
        content: what will be written there.
        raw: it gives logits, boxes and masks only.
    """

    def __init__(self, opened: OpenedModel, path: Path, content: Content, *, raw: bool) -> None:
        self.opened, self.path = opened, path
        self.exported = None if raw else ExportedPredictor(path, device="cpu", content=content)
        self.engine = self.exported.engine if self.exported else open_engine(path, "cpu", content=content)
        self.notes = self.exported.notes if self.exported else read_notes(path, self.engine)
        self.size: tuple[int, int] | None = self.notes["size"]
        # A picture that has the fixed size already is taken as it is.
        settings = opened.settings if self.size is None else replace(opened.settings, short_side=None)
        self.predictor = None if raw else Predictor(opened.model, opened.categories, settings=settings)

    def compare(self, picture: Picture) -> Comparison:
        """Run both on a picture that `Predictor` takes; for a file of fixed size maps are compared on the resized one."""
        rgb = upright_rgb(picture)
        name = Path(picture).name if isinstance(picture, str | Path) else f"of {rgb.shape[1]} x {rgb.shape[0]} pixels"
        differences = self.largest_differences(rgb)
        if self.size is not None:
            rgb = np.ascontiguousarray(resize(image_tensor(rgb), self.size).permute(1, 2, 0).numpy())
        if self.exported is None or self.predictor is None:
            return Comparison(name, *differences, 1.0, True, 0)
        theirs, mine = self.predictor(rgb), self.exported(rgb)
        equal = float((theirs.segment_map == mine.segment_map).mean())
        return Comparison(name, *differences, equal, told(theirs) == told(mine), len(theirs.segments))

    @torch.no_grad()
    def largest_differences(self, rgb: np.ndarray) -> tuple[float, float, float]:
        """Of class logits, boxes, and mask logits."""
        image = network_input(rgb, self.opened.settings, self.size)[None]  # (1, 3, h, w)
        output: DetectorOutput = self.opened.model.eval()(image, torch.zeros_like(image[:, 0], dtype=torch.bool))
        names = [name for name in RAW if name in self.engine.outputs]
        given = {"image": rgb[None], **input_values(self.opened.settings, self.notes)}
        found = dict(zip(names, self.engine.run(names, given), strict=True))
        pairs = [(output.logits[-1], found["logits"]), (output.boxes[-1], found["query_boxes"])]
        if "mask_logits" in found and len(found["mask_places"]):
            (masks,) = output.segment([torch.from_numpy(found["mask_places"][:, 1])])
            pairs.append((masks, found["mask_logits"]))
        largest = [float(np.abs(own.float().numpy() - theirs).max()) for own, theirs in pairs]
        return largest[0], largest[1], largest[2] if len(largest) > 2 else 0.0


def network_input(rgb: np.ndarray, settings: InferenceSettings, size: tuple[int, int] | None) -> torch.Tensor:
    """What a network sees of a picture, by the settings or in a fixed size: (3, h, w) float32."""
    image = image_tensor(rgb)
    if size is not None:
        image = resize(image, size)
    elif settings.short_side is not None:
        image = resize(image, target_size((rgb.shape[0], rgb.shape[1]), settings.short_side, settings.long_side))
    return normalize(image, settings.image_mean or IMAGENET_MEAN, settings.image_std or IMAGENET_STD)


@dataclass(frozen=True)
class Shown:
    """Pictures as a network sees them, read anew whenever someone goes through them.

    Args:
        files: of the pictures.
        settings: of the model.
        size: (height, width) that all are resized to, or None.
    """

    files: Sequence[PictureFile]
    settings: InferenceSettings
    size: tuple[int, int] | None

    def __iter__(self) -> Iterator[np.ndarray]:
        """(3, h, w) float32 of each."""
        return (network_input(file.read(), self.settings, self.size).numpy() for file in self.files)


def told(segmentation: PanopticSegmentation) -> list[tuple[object, ...]]:
    """What is compared of the segments."""
    return [(s.id, s.category_id, s.area, s.box, s.query) for s in segmentation.segments]


def least_equal(comparisons: Sequence[Comparison]) -> float:
    """Share of equal pixels in the worst picture."""
    return min((one.equal_pixels for one in comparisons), default=1.0)


def open_split(data: tuple[str | Path, str] | None, most_lost: float | None, *, raw: bool) -> CocoPanoptic | None:
    """The data set that is scored on, if any.

    Raises:
        InputError: it is not named by root and split, or what is asked of it does not go together.
        DataError: it is not there, or its JSON has a defect.
    """
    if most_lost is not None and not (fits_type(most_lost, float) and most_lost >= 0):
        raise InputError(f"most_lost must be points of PQ, 0 or more, but got {most_lost!r}")
    if data is None:
        if most_lost is not None:
            raise InputError("most_lost limits the PQ lost on a data set: name one (--check ROOT SPLIT, check_data)")
        return None
    if raw:
        raise InputError("files with raw outputs give no maps, so they have no PQ; leave out the data set to check on")
    if isinstance(data, str) or not (isinstance(data, Sequence) and len(data) == 2):
        raise InputError(f"check_data must be the root and the split of a data set, but got {data!r:.100}")
    paths = resolve_paths(*data)
    return CocoPanoptic(paths.images, paths.panoptic, paths.annotations)


def scores_of(predictor: Predictor | ExportedPredictor | None, dataset: CocoPanoptic) -> ModelScores:
    """PQ of whatever predicts, picture by picture."""
    assert predictor is not None
    return evaluate_predictor(predictor, dataset, categories=predictor.categories)
