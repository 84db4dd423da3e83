"""Augmentation for photographs: scale, rotation, colours, blur, pasted things, mosaics; image and id map together.

As in `transforms`, `torchvision.transforms.v2.functional` moves image and map, and every number is drawn from the sample's
generator. The picture is resampled once: the window is found in the pixels of the original.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from panoptic_detr.data.coco import Others, retarget
from panoptic_detr.data.transforms import chance, normalize, resize, resize_map, segments_of, uniform
from panoptic_detr.errors import InputError
from panoptic_detr.structures import Sample


@dataclass(frozen=True)
class PhotoTransform:
    """A pipeline as plain settings; calling it transforms a sample."""

    measures_boxes: ClassVar[bool] = True  # so that the data set need not do it before

    # (height, width) of the result, which every sample has unless its picture is smaller at the drawn scale
    window: tuple[int, int]
    # the picture is taken at a size between these multiples of its own (large-scale jitter; Ghiasi et al., 2021)
    scales: tuple[float, float] = (0.8, 1.6)
    horizontal_flip: float = 0.5  # probability of mirroring left and right
    rotation: float = 0.0  # largest angle in degrees; what comes in from outside is black and void
    brightness: float = 0.3  # largest change as a fraction; and the next two
    contrast: float = 0.3  # of the difference to the mean
    saturation: float = 0.3  # of the difference to grey
    hue: float = 0.03  # largest change as a share of the colour circle, at most 0.5
    blur: float = 0.0  # probability of a Gaussian blur
    # probability that things of another image are pasted in (Ghiasi et al., 2021), each of them by half a chance
    copy_paste: float = 0.0
    # probability that four images share the window, each with a corner of it (Bochkovskiy et al., 2020, YOLOv4)
    mosaic: float = 0.0

    @property
    def mixes(self) -> bool:
        """Whether other images are needed."""
        return bool(self.copy_paste or self.mosaic)

    def __call__(self, sample: Sample, generator: torch.Generator | None = None, others: Others | None = None) -> Sample:
        """Transform a sample read from disk.

        Args:
            sample: its image is uint8, its target has a segment map.
            generator: source of every random number.
            others: where other images come from, for `copy_paste` and `mosaic`; without it nothing is mixed in.

        Returns:
            A sample with a normalised float32 image; segments that left the picture are gone from its target.

        Raises:
            InputError: a target without segment map.
        """
        draw, target = generator or torch.Generator(), sample.target
        if target.segment_map is None and len(target):
            raise InputError(f"image {target.image_id}: crops and rotations need a segment map, but its target has boxes only")
        image, segment_map = self.move(tv_tensors.Image(sample.image), segments_of(sample), draw)
        labels = target.labels
        if others is not None and chance(self.mosaic, draw):
            image, segment_map, labels = self._share(image, segment_map, labels, others, draw)
        if others is not None and chance(self.copy_paste, draw):
            image, segment_map, labels = self._paste(image, segment_map, labels, others, draw)
        target = retarget(segment_map.as_subclass(Tensor)[0].contiguous(), labels, target.image_id)
        return replace(sample, image=normalize(self.recolor(image, draw)), target=target)

    def _paste(
        self, image: Tensor, segment_map: Tensor, labels: Tensor, others: Others, draw: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put some things of another image, moved in its own way, in front."""
        other = others.samples(int(uniform(draw) * others.count))
        given, given_map = self.move(tv_tensors.Image(other.image), segments_of(other), draw)
        number = torch.arange(len(other.target.labels))
        is_thing = torch.isin(other.target.labels, torch.tensor(others.thing_labels))
        chosen = number[is_thing & (torch.rand(len(number), generator=draw) < 0.5)]
        return paste(image, segment_map, labels, given, given_map, other.target.labels, chosen)

    def _share(
        self, image: Tensor, segment_map: Tensor, labels: Tensor, others: Others, draw: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Give three corners of the window to other images, each moved in its own way."""
        height, width = self.window
        row, column = (round(side * (0.3 + 0.4 * uniform(draw))) for side in (height, width))
        canvas, places = image.new_zeros(3, height, width), segment_map.new_zeros(1, height, width)
        corners = [(down, across) for down in ((0, row), (row, height)) for across in ((0, column), (column, width))]
        every = labels[:0]
        for index, corner in enumerate(corners):
            if index:
                other = others.samples(int(uniform(draw) * others.count))
                labels = other.target.labels
                image, segment_map = self.move(tv_tensors.Image(other.image), segments_of(other), draw)
            every = lay(canvas, places, every, image, segment_map, labels, corner)
        return canvas, places, every

    def move(self, image: Tensor, segment_map: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rotate, cut, resize and flip image (3, H, W) uint8 and map (1, H, W) together."""
        if self.rotation:
            angle = self.rotation * (2 * uniform(draw) - 1)
            image = F.rotate(image, angle, interpolation=InterpolationMode.BILINEAR)
            segment_map = F.rotate(segment_map, angle, interpolation=InterpolationMode.NEAREST)
        low, high = (math.log(scale) for scale in self.scales)
        scale = math.exp(low + (high - low) * uniform(draw))
        full = image.shape[-2:]
        size = [min(side, max(1, round(length * scale))) for side, length in zip(self.window, full, strict=True)]
        extent = [min(length, max(1, round(side / scale))) for side, length in zip(size, full, strict=True)]
        corner = [int(uniform(draw) * (length - part + 1)) for length, part in zip(full, extent, strict=True)]
        image, segment_map = (F.crop(part, *corner, *extent) for part in (image, segment_map))
        image, segment_map = resize(image, (size[0], size[1])), resize_map(segment_map, (size[0], size[1]))
        if chance(self.horizontal_flip, draw):
            image, segment_map = F.horizontal_flip(image), F.horizontal_flip(segment_map)
        return image, segment_map

    def recolor(self, image: Tensor, draw: torch.Generator) -> Tensor:
        """Change the colours of a uint8 image, and blur it."""
        for change, most in (
            (F.adjust_brightness, self.brightness),
            (F.adjust_contrast, self.contrast),
            (F.adjust_saturation, self.saturation),
        ):
            if most:
                image = change(image, 1 + most * (2 * uniform(draw) - 1))
        if self.hue:
            image = F.adjust_hue(image, self.hue * (2 * uniform(draw) - 1))
        if chance(self.blur, draw):
            image = F.gaussian_blur(image, [5, 5], [0.1 + 1.4 * uniform(draw)] * 2)
        return image


def paste(
    image: Tensor,
    segment_map: Tensor,
    labels: Tensor,
    given: Tensor,
    given_map: Tensor,
    given_labels: Tensor,
    chosen: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Copy segments of one picture over another, at the places that they have.

    Args:
        image: (3, H, W) uint8.
        segment_map: (1, H, W), i + 1 where the segment of labels[i] is.
        labels: (S,).
        given: (3, h, w) uint8, where the segments come from; the part that both pictures cover is used.
        given_map: (1, h, w).
        given_labels: (T,).
        chosen: (K,) which of these segments.

    Returns:
        Image, map and labels; nothing is pasted where the numbers would exceed those that the map's type holds.
    """
    if not len(chosen) or len(labels) + len(chosen) > torch.iinfo(segment_map.dtype).max:
        return image, segment_map, labels
    height, width = (min(a, b) for a, b in zip(image.shape[1:], given.shape[1:], strict=True))
    numbers = torch.zeros(len(given_labels) + 1, dtype=segment_map.dtype)
    numbers[chosen + 1] = torch.arange(len(labels) + 1, len(labels) + len(chosen) + 1, dtype=segment_map.dtype)
    new = numbers[given_map.as_subclass(Tensor)[:, :height, :width].long()]  # (1, h, w)
    image, segment_map = image.as_subclass(Tensor).clone(), segment_map.as_subclass(Tensor).clone()
    window = (slice(None), slice(height), slice(width))
    image[window] = torch.where(new > 0, given.as_subclass(Tensor)[window], image[window])
    segment_map[window] = torch.where(new > 0, new, segment_map[window])
    return image, segment_map, torch.cat([labels, given_labels[chosen]])


def lay(
    canvas: Tensor,
    places: Tensor,
    labels: Tensor,
    given: Tensor,
    given_map: Tensor,
    given_labels: Tensor,
    corner: tuple[tuple[int, int], tuple[int, int]],
) -> Tensor:
    """Fill a corner of a canvas with the same corner of a picture, in place; where the picture is too small all stays void.

    Args:
        canvas: (3, H, W) uint8.
        places: (1, H, W), i + 1 where the segment of labels[i] is.
        labels: (S,) of what is there already.
        given: (3, h, w) uint8.
        given_map: (1, h, w).
        given_labels: (T,).
        corner: first row and the one after the last, and the same of columns.

    Returns:
        (S + T,) labels; (S,) where the numbers would exceed those that the map's type holds, and the corner stays empty.
    """
    if len(labels) + len(given_labels) > torch.iinfo(places.dtype).max:
        return labels
    down, across = (_same_end(side, *ends) for side, ends in zip(given.shape[1:], corner, strict=True))
    part, part_map = (plain.as_subclass(Tensor)[:, down, across] for plain in (given, given_map))
    (top, _), (left, _), (height, width) = *corner, part.shape[1:]
    numbers = torch.where(part_map > 0, part_map.long() + len(labels), 0)
    canvas[:, top : top + height, left : left + width] = part
    places[:, top : top + height, left : left + width] = numbers.to(places.dtype)
    return torch.cat([labels, given_labels])


def _same_end(side: int, start: int, stop: int) -> slice:
    """The first `stop - start` of so many pixels, or the last ones for a corner that does not start at 0."""
    first = max(0, side - (stop - start)) if start else 0
    return slice(first, first + stop - start)
