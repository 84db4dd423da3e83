"""Semantic PNG + instance PNG pairs (Cityscapes among them), and single instance masks (Penn-Fudan style), to COCO-panoptic."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from panoptic_detr.data.coco import IMAGE_ENDINGS
from panoptic_detr.data.convert.output import (
    Conversion,
    Labelled,
    check_size,
    fill_rest,
    read_categories,
    with_rest,
    write_dataset,
)
from panoptic_detr.data.doctor import read_values
from panoptic_detr.errors import DataError

MASK_ENDINGS = (*IMAGE_ENDINGS, ".tif", ".tiff", ".bmp", ".gif")

# id of gtFine's labelIds, name, isthing: the 19 classes of the benchmark; all other labels are void.
CITYSCAPES = (
    (7, "road", 0),
    (8, "sidewalk", 0),
    (11, "building", 0),
    (12, "wall", 0),
    (13, "fence", 0),
    (17, "pole", 0),
    (19, "traffic light", 0),
    (20, "traffic sign", 0),
    (21, "vegetation", 0),
    (22, "terrain", 0),
    (23, "sky", 0),
    (24, "person", 1),
    (25, "rider", 1),
    (26, "car", 1),
    (27, "truck", 1),
    (28, "bus", 1),
    (31, "train", 1),
    (32, "motorcycle", 1),
    (33, "bicycle", 1),
)


@dataclass(frozen=True)
class _Rules:
    """How pairs of values become segments.

    Attributes:
        isthing: of each category id.
        void: semantic values that mean nothing; None: every value of no category.
        first_instance: instance values below it are no instances; things there are a crowd.
    """

    isthing: Mapping[int, bool]
    void: frozenset[int] | None
    first_instance: int


@dataclass(frozen=True)
class _Files:
    """The files of one image; `instance` is the only mask where there is no `semantic` one."""

    key: str
    image_id: int
    image: Path
    file_name: str
    instance: Path
    semantic: Path | None = None


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

    Returns:
        What was written.
    """
    rows = read_categories(categories)
    table, _ = with_rest(rows, None, str(categories))
    isthing = {category.id: category.isthing for category in table.categories}
    rules = _Rules(isthing, frozenset([0, 255] if void is None else void) - isthing.keys(), first_instance)
    files = _matched((images, image_suffix), (instance, instance_suffix), (semantic, semantic_suffix))
    read = partial(_read_pair, rules=rules)
    return write_dataset(read, files, out=out, split=split, categories=table, copy_images=copy_images, workers=workers)


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

    Returns:
        What was written.
    """
    table, _ = with_rest([{"id": i, "name": name, "isthing": thing} for i, name, thing in CITYSCAPES], None, "Cityscapes")
    rules = _Rules({category.id: category.isthing for category in table.categories}, None, 1000)
    files = _matched((images, "_leftImg8bit"), (gt, "_gtFine_instanceIds"), (gt, "_gtFine_labelIds"))
    read = partial(_read_pair, rules=rules)
    return write_dataset(read, files, out=out, split=split, categories=table, copy_images=copy_images, workers=workers)


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

    Returns:
        What was written.
    """
    table, rest_id = with_rest([{"id": 1, "name": category, "isthing": 1}], rest, "the category")
    files = _matched((images, image_suffix), (masks, mask_suffix))
    read = partial(_read_mask, void=frozenset(void or ()), rest_id=rest_id)
    return write_dataset(read, files, out=out, split=split, categories=table, copy_images=copy_images, workers=workers)


def find_by_key(folder: Path, suffix: str, endings: Sequence[str]) -> dict[str, Path]:
    """Files in a folder and below by their relative name without suffix and ending.

    Raises:
        DataError: no such folder, or two files with one key.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; check the path")
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in endings or not path.stem.endswith(suffix) or not path.is_file():
            continue
        key = (path.relative_to(folder).parent / path.stem.removesuffix(suffix)).as_posix()
        if key in found:
            raise DataError(f"{path} and {found[key]} are told apart by their ending only; rename or remove one of them")
        found[key] = path
    return found


def _matched(images: tuple[Path, str], instance: tuple[Path, str], semantic: tuple[Path, str] | None = None) -> list[_Files]:
    """Every image with its masks, found by equal keys."""
    pictures = find_by_key(*images, IMAGE_ENDINGS)
    places = [place for place in (instance, semantic) if place is not None]
    masks = [find_by_key(*place, MASK_ENDINGS) for place in places]
    for (folder, suffix), found in zip(places, masks, strict=True):
        bare = [key for key in pictures if key not in found]
        if bare:
            raise DataError(
                f"{len(bare)} of {len(pictures)} images have no mask in {folder} (first: {bare[0]}{suffix}.png); "
                "correct the folder or the suffixes, or remove these images"
            )
    files = []
    for number, (key, path) in enumerate(pictures.items(), start=1):
        name = path.relative_to(images[0]).as_posix()
        files.append(_Files(key, number, path, name, masks[0][key], masks[1][key] if semantic else None))
    return files


def _read_pair(files: _Files, *, rules: _Rules) -> Labelled:
    instance = read_values(files.instance)
    semantic = read_values(files.semantic) if files.semantic is not None else instance
    check_size(instance.shape, semantic.shape, f"{files.instance} against {files.semantic}")
    classes = np.unique(semantic)
    unknown = [value for value in classes.tolist() if value not in rules.isthing and value not in (rules.void or ())]
    if unknown and rules.void is not None:
        raise DataError(
            f"{files.semantic}: value {unknown[0]} is no category id; add the category, or name the value in --void"
        )
    things = np.array([rules.isthing.get(value, False) for value in classes.tolist()])
    is_thing = things[np.searchsorted(classes, semantic)]
    number = np.where(is_thing & (instance >= rules.first_instance), instance, 0)

    def meaning(code: int, most: int) -> tuple[int, bool] | None:
        category_id, instance_number = divmod(code, most)
        if category_id not in rules.isthing:
            return None
        return category_id, rules.isthing[category_id] and instance_number == 0

    most = int(number.max(initial=0)) + 1
    places, segments = _numbered(semantic.astype(np.int64) * most + number, partial(meaning, most=most))
    return Labelled(files.image, files.file_name, files.image_id, places, segments)


def _read_mask(files: _Files, *, void: frozenset[int], rest_id: int) -> Labelled:
    values = read_values(files.instance)
    places, segments = _numbered(values, lambda value: (1, False) if value and value not in void else None)
    if rest_id and void:
        hidden = np.isin(values, sorted(void))
        places[hidden] = -1
        fill_rest(places, segments, rest_id)
        places[hidden] = 0
    else:
        fill_rest(places, segments, rest_id)
    return Labelled(files.image, files.file_name, files.image_id, places, segments)


def _numbered(
    codes: np.ndarray, meaning: Callable[[int], tuple[int, bool] | None]
) -> tuple[np.ndarray, list[tuple[int, bool]]]:
    """Number the codes of an (H, W) map that mean a segment: places (H, W) int32, and the segments' category and iscrowd."""
    values, ranks = np.unique(codes, return_inverse=True)
    numbers, segments = np.zeros(len(values), np.int32), []
    for rank, value in enumerate(values.tolist()):
        segment = meaning(value)
        if segment is not None:
            segments.append(segment)
            numbers[rank] = len(segments)
    return numbers[ranks].reshape(codes.shape), segments
