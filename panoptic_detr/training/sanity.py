"""A look at the training data as the model will see it, before the first step: a picture with boxes, and counts."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco_panoptic import CocoPanoptic
from panoptic_detr.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from panoptic_detr.structures import Sample
from panoptic_detr.visualization.boxes import draw_boxes
from panoptic_detr.visualization.layout import side_by_side
from panoptic_detr.visualization.pictures import fit, save_picture

LOOKED_AT = 32
SHOWN = 8
SHOWN_SIDE = 400


@dataclass(frozen=True)
class DataFacts:
    """What some augmented training samples look like.

    Attributes:
        images: how many were looked at.
        segments: of each image.
        classes: how many segments of each category name, the most frequent first; absent ones with 0.
        sizes: (height, width) of each image.
        left_out: segments without a pixel after augmentation: outside the crop, or too small for the new size.
    """

    images: int
    segments: list[int]
    classes: dict[str, int]
    sizes: list[tuple[int, int]]
    left_out: int = 0

    def lines(self, num_queries: int) -> list[str]:
        """The facts as sentences, with a warning where something cannot work."""
        heights, widths = zip(*self.sizes, strict=True)
        found = [
            f"looked at {self.images} augmented samples: {min(heights)}-{max(heights)} x {min(widths)}-{max(widths)} pixels, "
            f"{np.mean(self.segments):.1f} segments per image (most {max(self.segments)})",
            "segments by class: " + ", ".join(f"{name} {count}" for name, count in list(self.classes.items())[:20]),
        ]
        if self.left_out:
            whole = self.left_out + sum(self.segments)
            found.append(
                f"{self.left_out} of their {whole} segments lie outside the crop or shrink to nothing, and are left out"
            )
        if max(self.segments) > num_queries:
            found.append(
                f"warning: an image has {max(self.segments)} segments but the model only {num_queries} queries, so some can "
                "never be found; raise model.overrides.num_queries"
            )
        if self.images and not sum(self.segments):
            found.append("warning: no sample has any segment; check the annotations with `panoptic-detr data check`")
        return found


def inspect_samples(dataset: CocoPanoptic, picture: Path | None = None) -> DataFacts:
    """Look at evenly spread samples of the data set, and draw the first ones with their boxes.

    Args:
        dataset: with its augmentation.
        picture: where to write the drawing; None for none.
    """
    count = min(LOOKED_AT, len(dataset))
    chosen = dataset.subset(np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist())
    samples = [chosen[index] for index in range(count)]
    if picture is not None:
        drawn = [draw_sample(sample, dataset.categories) for sample in samples[:SHOWN]]
        titles = [f"image {sample.target.image_id}" for sample in samples[:SHOWN]]
        save_picture(picture, side_by_side(drawn, titles, columns=4))
    by_label = dataset.categories.by_label
    counted = Counter(by_label[label].name for sample in samples for label in sample.target.labels.tolist())
    absent = {category.name: 0 for category in dataset.categories.categories if category.name not in counted}
    return DataFacts(
        images=count,
        segments=[len(sample.target) for sample in samples],
        classes={**dict(counted.most_common()), **absent},
        sizes=[(sample.image.shape[1], sample.image.shape[2]) for sample in samples],
        left_out=max(0, chosen.segment_count - sum(len(sample.target) for sample in samples)),
    )


def draw_sample(sample: Sample, categories: CategoryTable) -> np.ndarray:
    """A normalised sample as a picture (H, W, 3) uint8 with the box and name of every segment."""
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    image = ((sample.image * std + mean) * 255).round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    scale = max(1, SHOWN_SIDE // max(image.shape[:2]))
    picture = np.ascontiguousarray(fit(np.repeat(np.repeat(image, scale, 0), scale, 1), SHOWN_SIDE))
    drawn = [categories.by_label[label] for label in sample.target.labels.tolist()]
    boxes, colors = sample.target.boxes.numpy(), [category.color for category in drawn]
    draw_boxes(picture, boxes, colors, [category.name for category in drawn])
    return picture
