"""Semantic PNG + instance PNG pairs (Cityscapes among them), and single instance masks (Penn-Fudan style), to COCO-panoptic."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from panoptic_detr.data.coco import IMAGE_ENDINGS
from panoptic_detr.data.convert.output import Conversion, Labelled, write_dataset
from panoptic_detr.data.convert.sources import (
    VOID,
    Classes,
    check_size,
    find_by_key,
    number_classes,
    read_categories,
    stored_size,
)
from panoptic_detr.data.doctor import read_values
from panoptic_detr.errors import DataError

MASK_ENDINGS = (*IMAGE_ENDINGS, ".tif", ".tiff", ".bmp", ".gif")

# The 19 classes of the benchmark by their ids in gtFine's labelIds; all other labels are void.
_STUFF = (
    "7 road, 8 sidewalk, 11 building, 12 wall, 13 fence, 17 pole, 19 traffic light, 20 traffic sign, 21 vegetation, "
    "22 terrain, 23 sky"
)
_THINGS = "24 person, 25 rider, 26 car, 27 truck, 28 bus, 31 train, 32 motorcycle, 33 bicycle"


@dataclass(frozen=True)
class _Files:
    """One image and its masks, in the order in which their folders were named."""

    image_id: int
    image: Path
    file_name: str
    masks: tuple[Path, ...]


def semantic_instance(
    images: Path,
    semantic: Path,
    instance: Path,
    categories: Path,
    out: Path,
    split: str = "train",
    image_suffix: str = "",
    semantic_suffix: str = "",
    instance_suffix: str = "",
    void: list[int] | None = None,
    first_instance: int = 1,
    copy_images: bool = False,
    workers: int | None = None,
) -> Conversion:
    """Convert pairs of semantic and instance PNGs.

    A segment is all pixels of one class and, for things, one instance number. Thing pixels whose instance value is below
    `first_instance` become a crowd segment of their class.

    Args:
        images: folder of the images; folders below it are searched too.
        semantic: folder of PNGs whose values are category ids.
        instance: folder of PNGs whose values are instance numbers.
        categories: JSON with a list `categories` (id, name, isthing).
        out: root of the new data set.
        split: name of the new split.
        image_suffix: end of the images' names before the ending that masks do not share, such as _leftImg8bit.
        semantic_suffix: the same for the semantic PNGs.
        instance_suffix: the same for the instance PNGs.
        void: semantic values that mean nothing; 0 and 255 by default. Any other value must be a category.
        first_instance: smallest instance number.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.
    """
    classes = number_classes(read_categories(categories), str(categories))
    files = _matched((images, image_suffix), (semantic, semantic_suffix), (instance, instance_suffix))
    nothing = frozenset([0, 255] if void is None else void)
    read = partial(_read_pair, classes=classes, void=nothing, first_instance=first_instance)
    hint = f"; their instance values are below --first_instance {first_instance}: lower it if they are single objects"
    return write_dataset(read, files, classes, out=out, split=split, copy_images=copy_images, workers=workers, crowds=hint)


def cityscapes(
    images: Path, gt: Path, out: Path, split: str = "train", copy_images: bool = False, workers: int | None = None
) -> Conversion:
    """Convert Cityscapes: leftImg8bit images with gtFine labelIds and instanceIds.

    The 19 classes of the benchmark keep their label ids; all other labels are void. Groups (instance values below 1000)
    become crowd segments.

    Args:
        images: for example leftImg8bit/train.
        gt: for example gtFine/train.
        out: root of the new data set.
        split: name of the new split.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.
    """
    rows = [(isthing, row.split(" ", 1)) for isthing, names in enumerate((_STUFF, _THINGS)) for row in names.split(", ")]
    classes = number_classes([{"id": int(i), "name": name, "isthing": thing} for thing, (i, name) in rows], "Cityscapes")
    files = _matched((images, "_leftImg8bit"), (gt, "_gtFine_labelIds"), (gt, "_gtFine_instanceIds"))
    read = partial(_read_pair, classes=classes, void=None, first_instance=1000)
    return write_dataset(read, files, classes, out=out, split=split, copy_images=copy_images, workers=workers)


def instance_masks(
    images: Path,
    masks: Path,
    out: Path,
    category: str,
    split: str = "train",
    rest: str | None = None,
    image_suffix: str = "",
    mask_suffix: str = "",
    void: list[int] | None = None,
    copy_images: bool = False,
    workers: int | None = None,
) -> Conversion:
    """Convert one mask for each image whose values are instance numbers (Penn-Fudan style), all of one thing category.

    Args:
        images: folder of the images; folders below it are searched too.
        masks: folder of the masks; 0 is background.
        out: root of the new data set.
        category: name of the things, for example pedestrian.
        split: name of the new split.
        rest: name of a stuff class for the background; void by default.
        image_suffix: end of the images' names before the ending that masks do not share.
        mask_suffix: the same for the masks, such as _mask.
        void: mask values that mean nothing; none by default.
        copy_images: copy the images instead of linking to them.
        workers: processes; by default one per core.
    """
    classes = number_classes([{"id": 1, "name": category, "isthing": 1}], "the category", rest)
    files = _matched((images, image_suffix), (masks, mask_suffix))
    read = partial(_read_mask, void=frozenset(void or ()))
    return write_dataset(read, files, classes, out=out, split=split, copy_images=copy_images, workers=workers)


def _matched(images: tuple[Path, str], *masks: tuple[Path, str]) -> list[_Files]:
    """Every image with a mask of each folder, found by equal names apart from suffix and ending."""
    pictures, found = find_by_key(*images, IMAGE_ENDINGS), [find_by_key(*place, MASK_ENDINGS) for place in masks]
    for (folder, suffix), there in zip(masks, found, strict=True):
        bare = [key for key in pictures if key not in there]
        if bare:
            raise DataError(
                f"{len(bare)} of {len(pictures)} images have no mask in {folder} (first: {bare[0]}{suffix}.png); "
                "correct the folder or the suffixes, or remove these images"
            )
    return [
        _Files(number, path, path.relative_to(images[0]).as_posix(), tuple(there[key] for there in found))
        for number, (key, path) in enumerate(pictures.items(), start=1)
    ]


def _read_pair(files: _Files, *, classes: Classes, void: frozenset[int] | None, first_instance: int) -> Labelled:
    """Segments of a semantic and an instance mask; of things, those with values below `first_instance` are a crowd.

    The semantic values in `void` mean nothing; where it is None, all values of no category.
    """
    (semantic, instance), isthing = map(read_values, files.masks), classes.isthing
    check_size(instance.shape, semantic.shape, " against ".join(map(str, reversed(files.masks))))
    unknown = sorted(set(np.unique(semantic).tolist()) - isthing.keys() - (void or set()))
    if unknown and void is not None:
        raise DataError(
            f"{files.masks[0]}: value {unknown[0]} is no category id; add the category, or name the value in --void"
        )
    is_thing = np.isin(semantic, [category_id for category_id, thing in isthing.items() if thing])
    number = np.where(is_thing & (instance >= first_instance), instance.astype(np.int64) - first_instance + 1, 0)
    most = int(number.max(initial=0)) + 1

    def meaning(code: int) -> tuple[int, bool] | None:
        category_id, instance_number = divmod(code, most)
        return (category_id, isthing[category_id] and not instance_number) if category_id in isthing else None

    return _labelled(files, semantic.astype(np.int64) * most + number, meaning)


def _read_mask(files: _Files, *, void: frozenset[int]) -> Labelled:
    values = read_values(files.masks[0])
    labelled = _labelled(files, values, lambda value: (1, False) if value and value not in void else None)
    labelled.places[np.isin(values, sorted(void))] = VOID
    return labelled


def _labelled(files: _Files, codes: np.ndarray, meaning: Callable[[int], tuple[int, bool] | None]) -> Labelled:
    """The image with a segment for each code of an (H, W) map whose meaning is a category_id and iscrowd."""
    check_size(codes.shape, stored_size(files.image), f"image {files.image_id} ({files.image})")
    values, ranks = np.unique(codes, return_inverse=True)
    meanings = [meaning(value) for value in values.tolist()]
    known = np.array([found is not None for found in meanings])
    places = np.where(known, np.cumsum(known), 0).astype(np.int32)[ranks].reshape(codes.shape)
    segments = [found for found in meanings if found is not None]
    return Labelled(files.image, files.file_name, files.image_id, places, segments)
