"""What happens to a sample between disk and batch: the papers' augmentation, the one for small scenes, and evaluation's resize.

The image and its id map are moved together by `torchvision.transforms.v2.functional`. The ready-made v2 classes draw from
PyTorch's global generator; here every number is drawn from the generator of the sample instead, so that a sample depends on
(seed, epoch, index) only, whatever the number of workers and whatever else draws random numbers in between.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from panoptic_detr.data.coco import retarget
from panoptic_detr.errors import InputError
from panoptic_detr.structures import Sample, Target

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PAPER_SHORT_SIDES = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)
PAPER_LONG_SIDE = 1333


@dataclass(frozen=True)
class Crop:
    """A random crop before the resize, as in DETR (section A.4 of the paper)."""

    probability: float = 0.5  # of cropping at all
    short_sides: tuple[int, ...] = (400, 500, 600)  # the picture is first taken at one of these short sides,
    min_side: int = 384  # then a window of between this and
    max_side: int = 600  # this many pixels a side is cut out


@dataclass(frozen=True)
class Transform:
    """A pipeline as plain settings; calling it transforms a sample. `train_transform` and its neighbours build it."""

    measures_boxes: ClassVar[bool] = True  # so that the data set need not do it before

    short_sides: tuple[int, ...] = ()  # one of these becomes the short side; empty: no resize
    long_side: int = 1333  # limit of the long side
    crop: Crop | None = None  # random crop before the resize, or None
    horizontal_flip: float = 0.0  # probability of mirroring left and right
    vertical_flip: float = 0.0  # probability of mirroring top and bottom
    permute_channels: bool = False  # shuffle red, green and blue
    invert: float = 0.0  # probability of the negative
    brightness: float = 0.0  # largest change of brightness, as a fraction
    mean: tuple[float, ...] = IMAGENET_MEAN  # of red, green and blue, 0..1; subtracted at the end
    std: tuple[float, ...] = IMAGENET_STD  # of the same; divides what is left

    def __call__(self, sample: Sample, generator: torch.Generator | None = None) -> Sample:
        """Transform a sample read from disk; evaluation's pipeline draws nothing and needs no generator.

        Args:
            sample: its image is uint8.
            generator: source of every random number.

        Returns:
            A sample with a normalised float32 image; segments that left the picture are gone from its target.

        Raises:
            InputError: flips or crops of a target with boxes but no segment map.
        """
        draw, target = generator or torch.Generator(), sample.target
        image, moved = self.move(tv_tensors.Image(sample.image), segments_of(sample), draw)
        if target.segment_map is None:
            self._check_still(target)
        else:
            target = retarget(moved.as_subclass(Tensor)[0], target.labels, target.image_id)
        return replace(sample, image=normalize(self.recolor(image, draw), self.mean, self.std), target=target)

    def _check_still(self, target: Target) -> None:
        """Boxes are read off the id map after augmentation; without a map, only a resize leaves them right."""
        if len(target) and (self.horizontal_flip or self.vertical_flip or self.crop is not None):
            raise InputError(
                f"image {target.image_id}: its target has no segment map, so flips and crops would misplace its boxes"
            )

    def move(self, image: Tensor, segment_map: Tensor, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        """Flip, crop and resize image (3, H, W) uint8 and id map (1, H, W) together."""
        for flip, probability in ((F.horizontal_flip, self.horizontal_flip), (F.vertical_flip, self.vertical_flip)):
            if chance(probability, draw):
                image, segment_map = flip(image), flip(segment_map)
        if self.crop is not None and chance(self.crop.probability, draw):
            window = crop_window(_size(image), self.crop, draw)
            image, segment_map = F.crop(image, *window), F.crop(segment_map, *window)
        if not self.short_sides:
            return image, segment_map
        size = target_size(_size(image), _choice(self.short_sides, draw), self.long_side)
        return resize(image, size), resize_map(segment_map, size)

    def recolor(self, image: Tensor, draw: torch.Generator) -> Tensor:
        """Change the colours of a uint8 image."""
        if self.permute_channels:
            image = image[torch.randperm(3, generator=draw)]
        if chance(self.invert, draw):
            image = 255 - image
        if self.brightness:
            image = F.adjust_brightness(image, 1 + self.brightness * (2 * uniform(draw) - 1))
        return image


def train_transform(
    *,
    short_sides: Sequence[int] = PAPER_SHORT_SIDES,
    long_side: int = PAPER_LONG_SIDE,
    crop_probability: float = 0.5,
    crop_short_sides: Sequence[int] = (400, 500, 600),
    crop_sides: tuple[int, int] = (384, 600),
    horizontal_flip: float = 0.5,
) -> Transform:
    """The papers' training augmentation: flip, sometimes a crop, one of several scales.

    Args:
        short_sides: one of these becomes the short side.
        long_side: limit of the long side.
        crop_probability: of the crop.
        crop_short_sides: short sides at which the crop window is measured.
        crop_sides: smallest and largest side of the window.
        horizontal_flip: probability.
    """
    crop = Crop(crop_probability, tuple(crop_short_sides), *crop_sides) if crop_probability else None
    return Transform(short_sides=tuple(short_sides), long_side=long_side, crop=crop, horizontal_flip=horizontal_flip)


# Augmentation for procedural scenes, whose colours mean nothing: flips and recolouring at the original size.
scenes_transform = partial(Transform, horizontal_flip=0.5, vertical_flip=0.5, permute_channels=True, invert=0.5, brightness=0.2)


def crops_transform(
    *,
    crop_size: int = 256,
    short_sides: Sequence[int] = (256, 288, 320, 384),
    horizontal_flip: float = 0.5,
    vertical_flip: float = 0.5,
    brightness: float = 0.2,
) -> Transform:
    """Augmentation for many small things in images without an upright direction: a square window of one size, and flips.

    Args:
        crop_size: side of the window, and of the result.
        short_sides: short side at which the window is measured, so that objects vary in size; not below `crop_size`.
        horizontal_flip: probability.
        vertical_flip: probability.
        brightness: largest change of brightness, as a fraction.

    Raises:
        InputError: the window is larger than an image at the smallest of the short sides.
    """
    if min(short_sides) < crop_size:
        raise InputError(f"a crop of {crop_size} pixels needs short sides of at least that, but got {min(short_sides)}")
    return Transform(
        short_sides=(crop_size,),
        crop=Crop(1.0, tuple(short_sides), crop_size, crop_size),
        horizontal_flip=horizontal_flip,
        vertical_flip=vertical_flip,
        brightness=brightness,
    )


def eval_transform(
    short_side: int | None = 800,
    long_side: int = 1333,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Transform:
    """Evaluation's resize, `short_side=None` keeps the original size; and its normalisation, by default ImageNet's."""
    return Transform(
        short_sides=() if short_side is None else (short_side,),
        long_side=long_side,
        mean=tuple(mean or IMAGENET_MEAN),
        std=tuple(std or IMAGENET_STD),
    )


def target_size(size: tuple[int, int], short_side: int, long_side: int) -> tuple[int, int]:
    """(height, width) with the given short side, or with the long side at its limit if it would pass it."""
    height, width = size
    short, long = min(height, width), max(height, width)
    if short_side * long > long_side * short:
        short_side = max(1, round(long_side * short / long))
    other = max(1, int(short_side * long / short))
    return (short_side, other) if height <= width else (other, short_side)


def crop_window(size: tuple[int, int], crop: Crop, draw: torch.Generator) -> tuple[int, int, int, int]:
    """Draw a crop window: (top, left, height, width) in pixels of an image of `size`.

    DETR resizes to one of `short_sides`, then cuts. The same window is found here in the pixels of the original, so that the
    picture is resampled once instead of twice.
    """
    short = min(size)
    scale = _choice(crop.short_sides, draw) / short
    height, width = (_window_side(side * scale, crop, draw) / scale for side in size)
    height, width = min(size[0], max(1, round(height))), min(size[1], max(1, round(width)))
    top, left = _integer(0, size[0] - height, draw), _integer(0, size[1] - width, draw)
    return top, left, height, width


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a (3, H, W) uint8 image to (height, width), bilinear with antialiasing (as PIL does)."""
    return image if size == _size(image) else F.resize(image, list(size), antialias=True)


def resize_map(segment_map: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a (1, H, W) id map to (height, width).

    `F.resize` takes a Mask to the nearest *corner*, which shifts it by up to half a pixel against the image; this takes the
    nearest pixel centre.
    """
    plain = segment_map.as_subclass(Tensor)
    return tv_tensors.Mask(F.resize(plain, list(size), interpolation=InterpolationMode.NEAREST_EXACT))


def normalize(image: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """(3, H, W) uint8 to contiguous float32 with a mean and a deviation of 0..1, by default ImageNet's."""
    # One multiply-add on contiguous memory: eight times faster than scaling and normalising a channels-last image.
    centre, spread = (255 * torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    return image.as_subclass(Tensor).contiguous().float().sub_(centre).mul_(1 / spread)


def image_tensor(image: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 RGB to a (3, H, W) view."""
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)


def segments_of(sample: Sample) -> Tensor:
    """The id map (1, H, W) of a sample, all void where its target has none."""
    segment_map = sample.target.segment_map
    places = torch.zeros(sample.image.shape[1:], dtype=torch.uint8) if segment_map is None else segment_map
    return tv_tensors.Mask(places)[None]


def uniform(draw: torch.Generator) -> float:
    """A random number in [0, 1)."""
    return float(torch.rand((), generator=draw))


def chance(probability: float, draw: torch.Generator) -> bool:
    """Whether something of this probability happens; where it never does, nothing is drawn."""
    return probability > 0 and uniform(draw) < probability


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[-2], image.shape[-1]


def _window_side(side: float, crop: Crop, draw: torch.Generator) -> int:
    """A window's side for a picture that is `side` pixels long at the crop's scale."""
    longest = min(round(side), crop.max_side)
    return _integer(min(crop.min_side, longest), longest, draw)


def _integer(low: int, high: int, draw: torch.Generator) -> int:
    """A random integer, both ends included."""
    return int(torch.randint(low, high + 1, (), generator=draw))


def _choice(values: Sequence[int], draw: torch.Generator) -> int:
    return values[_integer(0, len(values) - 1, draw)]
