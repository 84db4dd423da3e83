"""Regions drawn into a map: polygons and run lengths as masks, overlaps resolved. What is broken is refused, never drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import TypeGuard

import numpy as np
from pycocotools import mask as coco_mask

from panoptic_detr.data.coco.entries import Entry, is_integer
from panoptic_detr.data.convert.sources import VOID, whole
from panoptic_detr.data.doctor import show
from panoptic_detr.errors import DataError

LARGEST_COORDINATE = 100_000  # pixels; no picture is that wide


@dataclass(frozen=True)
class Region:
    """One annotated thing or piece of stuff, before it is painted."""

    category_id: int | None  # of its class; None for pixels that are void whatever lies below them
    patch: np.ndarray  # (h, w) bool mask; cut out of the image's, so that hundreds of regions take little memory
    top: int  # row of the patch in the image
    left: int  # column of the patch in the image
    iscrowd: bool = False  # a group that is not told apart
    layer: int = 0  # regions of lower layers lie below those of higher ones, whatever their sizes

    def joined(self, other: "Region") -> "Region":
        """This region with the pixels of another one."""
        top, left = min(self.top, other.top), min(self.left, other.left)
        bottom = max(part.top + part.patch.shape[0] for part in (self, other))
        right = max(part.left + part.patch.shape[1] for part in (self, other))
        patch = np.zeros((bottom - top, right - left), bool)
        for part in (self, other):
            height, width = part.patch.shape
            patch[part.top - top :, part.left - left :][:height, :width] |= part.patch
        return replace(self, patch=patch, top=top, left=left)


def region_of(mask: np.ndarray, category_id: int | None, *, iscrowd: bool = False, layer: int = 0) -> Region | None:
    """Cut a region out of an (H, W) mask; None if the mask is empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    top, left = int(rows[0]), int(columns[0])
    patch = mask[top : rows[-1] + 1, left : columns[-1] + 1].astype(bool)
    return Region(category_id, patch, top, left, iscrowd, layer)


def paint(shape: tuple[int, int], regions: Sequence[Region]) -> tuple[np.ndarray, list[tuple[int, bool]]]:
    """Resolve overlaps: in each layer larger regions lie below smaller ones; of equal areas the later one is on top.

    Args:
        shape: (H, W) of the image.
        regions: in the order of the annotation.

    Returns:
        (H, W) int32, 0 where no region is, i + 1 for the i-th that has a category, VOID for those that have none; and the
        category_id and iscrowd of those that have one.
    """
    places = np.zeros(shape, np.int32)
    numbers = np.cumsum([region.category_id is not None for region in regions]).tolist()
    for region, number in sorted(zip(regions, numbers, strict=True), key=lambda row: (row[0].layer, -int(row[0].patch.sum()))):
        height, width = region.patch.shape
        window = places[region.top : region.top + height, region.left : region.left + width]
        window[region.patch] = VOID if region.category_id is None else number
    return places, [(region.category_id, region.iscrowd) for region in regions if region.category_id is not None]


def segmentation_mask(segmentation: object, size: tuple[int, int], where: str) -> np.ndarray:
    """Draw COCO's `segmentation`.

    Args:
        segmentation: polygons, or run lengths, plain or packed.
        size: (height, width) of the image.
        where: for messages.

    Returns:
        (H, W) bool; polygons with less than three corners draw nothing.

    Raises:
        DataError: neither polygons nor run lengths of this size.
    """
    if isinstance(segmentation, dict):
        return _runs_mask(segmentation, size, where)
    if not isinstance(segmentation, list):
        raise DataError(f"{where}: its segmentation is {show(segmentation)}, but must be polygons or run lengths")
    drawable = [row for row in (_polygon(row, where) for row in segmentation) if len(row) >= 6]
    if not drawable:
        return np.zeros(size, bool)
    packed = coco_mask.merge(coco_mask.frPyObjects(drawable, *size))  # whose own `decode` warns with NumPy 2
    return _unroll(packed_runs(packed["counts"].decode("ascii"), where), size)


def packed_runs(text: str, where: str) -> list[int]:
    """Run lengths of COCO's packed text: 5 bits a letter, differences to the run before the last.

    Raises:
        DataError: letters that do not occur, or an end amid a number.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise DataError(f"{where}: its packed run lengths {show(text)} are damaged")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        value -= (1 << shift) if bits & 16 else 0
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    if shift:
        raise DataError(f"{where}: its packed run lengths {show(text)} are cut off")
    return runs


def are_coordinates(values: Sequence[object]) -> TypeGuard[Sequence[float]]:
    """Whether all values are numbers that a picture's coordinates can be."""
    return all(
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_COORDINATE and isfinite(value)
        for value in values
    )


def _runs_mask(segmentation: Entry, size: tuple[int, int], where: str) -> np.ndarray:
    """(H, W) bool of run lengths, which go down the columns, outside first."""
    if segmentation.get("size") != list(size):
        raise DataError(
            f"{where}: its run lengths are for size {show(segmentation.get('size'))}, but the image is {list(size)}"
        )
    counts = segmentation.get("counts")
    if not isinstance(counts, str | list):
        counts = None
    runs = packed_runs(counts, where) if isinstance(counts, str) else [whole(run) for run in counts or ()]
    if not _are_lengths(runs) or sum(runs) != size[0] * size[1]:
        raise DataError(f"{where}: its run lengths {show(counts)} do not add up to {size[0] * size[1]} pixels")
    return _unroll(runs, size)


def _unroll(runs: list[int], size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool: runs go down the columns, outside and inside by turns."""
    inside = np.arange(len(runs)) % 2 == 1
    return np.repeat(inside, np.array(runs, np.int64)).reshape(size[1], size[0]).T


def _are_lengths(runs: Sequence[object]) -> TypeGuard[list[int]]:
    return all(is_integer(run) and run >= 0 for run in runs)


def _polygon(row: object, where: str) -> list[float]:
    """Corner coordinates x, y, x, y, ..."""
    if not isinstance(row, list) or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in row):
        raise DataError(f"{where}: its polygon is {show(row)}, but must be a list of numbers x, y, x, y, ...")
    if len(row) % 2 or not are_coordinates(row):
        raise DataError(
            f"{where}: its polygon {show(row)} has an odd number of values, or one that is not between "
            f"-{LARGEST_COORDINATE} and {LARGEST_COORDINATE}; correct or remove it"
        )
    return [float(value) for value in row]
