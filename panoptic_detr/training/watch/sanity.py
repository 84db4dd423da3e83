"""A look at the training data as the model will see it, before the first step: a picture with boxes, and counts."""

from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Transform
from panoptic_detr.images import fit, save_picture
from panoptic_detr.structures import Sample
from panoptic_detr.training.optimizer import ParameterGroup
from panoptic_detr.visualization.draw import draw_boxes, side_by_side

LOOKED_AT = 32
SHOWN = 8
SHOWN_SIDE = 400
SIZE_MARGIN = 1.2  # evaluation's images may be so much larger or smaller than any of training
SCALE_MARGIN = 1.6  # and its things than those of training
ENOUGH = 16  # draws of sizes, or things: fewer say little about what training will show


@dataclass(frozen=True)
class DataFacts:
    """What some augmented training samples look like."""

    images: int  # how many were looked at
    segments: list[int]  # of each image
    classes: dict[str, int]  # how many segments of each category name, the most frequent first; absent ones with 0
    sizes: list[tuple[int, int]]  # (height, width) of each image
    left_out: int = 0  # segments without a pixel after augmentation: outside the crop, or too small for the new size
    # (height, width) that the same images have in evaluation, whole
    eval_sizes: list[tuple[int, int]] = field(default_factory=list)
    # square roots of the box areas of things in the samples, in pixels; only of boxes inside of the picture, because those at
    # its border may be cut
    sides: list[float] = field(default_factory=list)
    eval_sides: list[float] = field(default_factory=list)  # the same in evaluation
    fractions: bool = True  # the detector measures boxes as fractions of the image, so the size of the image matters

    def lines(self, num_queries: int) -> list[str]:
        """The facts as sentences, with a warning where something cannot work."""
        found = [
            f"looked at {self.images} augmented samples: {_extent(self.sizes)} pixels, "
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
        return found + self._scale_warnings()

    def _scale_warnings(self) -> list[str]:
        """Where evaluation shows images or things of other sizes than training does, as far as a few draws can tell."""
        found = []
        trained, tested = (np.sqrt([h * w for h, w in sizes]) for sizes in (self.sizes, self.eval_sizes))
        if self.fractions and self.eval_sizes and (self.images >= ENOUGH or len(set(self.sizes)) == 1 < self.images):
            middle = float(np.median(tested))
            if not min(trained) / SIZE_MARGIN <= middle <= max(trained) * SIZE_MARGIN:
                found.append(
                    f"warning: training shows {_extent(self.sizes)} pixels, evaluation {_extent(self.eval_sizes)}; boxes are "
                    "fractions of the image, so in sizes that were never seen they are found too large or too small: change "
                    "inference.short_side or the augmentation"
                )
        if min(self.images, len(self.sides), len(self.eval_sides)) >= ENOUGH:
            here, there = np.median(self.sides), np.median(self.eval_sides)
            if not 1 / SCALE_MARGIN <= here / there <= SCALE_MARGIN:
                found.append(
                    f"warning: the median thing measures {here:.0f} pixels in training, {there:.0f} in evaluation (square "
                    "roots of whole boxes); bring them together with inference.short_side or the augmentation"
                )
        return found


def inspect_samples(dataset: CocoPanoptic, picture: Path | None = None, evaluation: Transform | None = None) -> DataFacts:
    """Look at evenly spread samples of the data set, and draw the first ones with their boxes.

    Args:
        dataset: with its augmentation.
        picture: where to write the drawing; None for none.
        evaluation: the resize of evaluation, to compare with; None for none.
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
    whole = copy(chosen)
    whole.transforms = evaluation
    again = map(whole.__getitem__, range(count if evaluation is not None else 0))
    evaluated = [(_size(sample), _sides(sample, dataset.categories)) for sample in again]
    absent = {category.name: 0 for category in dataset.categories.categories if category.name not in counted}
    return DataFacts(
        images=count,
        segments=[len(sample.target) for sample in samples],
        classes={**dict(counted.most_common()), **absent},
        sizes=[_size(sample) for sample in samples],
        left_out=max(0, chosen.segment_count - sum(len(sample.target) for sample in samples)),
        eval_sizes=[size for size, _ in evaluated],
        sides=[side for sample in samples for side in _sides(sample, dataset.categories)],
        eval_sides=[side for _, sides in evaluated for side in sides],
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


def _size(sample: Sample) -> tuple[int, int]:
    return sample.image.shape[1], sample.image.shape[2]


def _sides(sample: Sample, categories: CategoryTable) -> list[float]:
    """Square roots of the areas of the boxes of things, in pixels, without those that reach the border."""
    height, width = _size(sample)
    size = torch.tensor([width, height])
    centres, sides = sample.target.boxes[:, :2] * size, sample.target.boxes[:, 2:] * size
    things = torch.tensor([categories.by_label[label].isthing for label in sample.target.labels.tolist()], dtype=torch.bool)
    inside = ((centres - sides / 2 > 0.5) & (centres + sides / 2 < size - 0.5)).all(1)
    return sides[things & inside].prod(1).sqrt().tolist()


def _extent(sizes: Sequence[tuple[int, int]]) -> str:
    heights, widths = zip(*sizes, strict=True)
    return f"{min(heights)}-{max(heights)} x {min(widths)}-{max(widths)}"


def print_groups(console: Console, model: nn.Module, groups: Sequence[ParameterGroup], lines: Sequence[str]) -> None:
    """Show which parameters train at which rate and which are frozen.

    Args:
        console: where to.
        model: the whole model.
        groups: what the optimizer trains.
        lines: facts about the run, one per line below the table.
    """
    table = Table(title="parameters", title_justify="left")
    for column, justify in (("group", "left"), ("values", "right"), ("learning rate", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for group in groups:
        table.add_row(group.name, f"{group.size:,}", f"{group.lr:.1e}")
    frozen = sum(parameter.numel() for parameter in model.parameters()) - sum(group.size for group in groups)
    if frozen:
        table.add_row("frozen", f"{frozen:,}", "-")
    console.print(table)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
