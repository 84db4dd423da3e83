"""What other libraries say of an image, as an id map and its segments: transformers, its pipelines, detectron2.

`PanopticSegmentation.from_transformers` and `from_detectron2` are made of this. All of them give an integer map and a list that
says what the integers mean; they differ in which integers are void (-1, 0), whether ids begin at 0 or 1, how a class is named,
and whether stuff comes in one piece.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from panoptic_detr.categories import Category, CategoryTable
from panoptic_detr.errors import InputError

Row = Mapping[str, Any]  # what a library says of a segment
VOID = (-1, 0)  # unless a segment with that id is listed


class Piece(NamedTuple):
    """A listed segment: its id in the map, what it is, the probability of that."""

    id: int
    category: Category
    score: float


def read_transformers(
    result: Row | Sequence[Row], categories: CategoryTable, id2label: Mapping[int, str] | None
) -> tuple[np.ndarray, list[Piece]]:
    """Read what `post_process_panoptic_segmentation` gives for an image, or an image-segmentation pipeline.

    Args:
        result: `segmentation` (H, W) and `segments_info` (id, label_id, score); or a pipeline's list of label, score and mask.
        categories: the classes to translate into.
        id2label: the model's names of its labels (`model.config.id2label`); classes are then found by name. None: a label is
            the table's own label index.

    Returns:
        The map, (H, W) int64, and its segments.

    Raises:
        InputError: something else; a label that the table does not have.
    """
    if isinstance(result, Mapping) and "segmentation" in result and "segments_info" in result:
        if result["segmentation"] is None:
            raise InputError("the result has no segmentation (None); ask post_process_panoptic_segmentation for target_sizes")
        names = None if id2label is None else {int(label): name for label, name in id2label.items()}
        pieces = [
            Piece(_whole(row, "id"), _by_label(_whole(row, "label_id"), categories, names), _score(row))
            for row in result["segments_info"]
        ]
        return as_map(result["segmentation"]), pieces
    if isinstance(result, Sequence) and all(isinstance(row, Mapping) and {"label", "mask"} <= set(row) for row in result):
        return _read_pipeline(result, categories)
    raise InputError(
        "a result of transformers is what post_process_panoptic_segmentation gives for one image (a dict with 'segmentation' "
        f"and 'segments_info'), or what an image-segmentation pipeline gives, but this is {_describe(result)}"
    )


def read_detectron2(
    result: Sequence[Any] | Row, categories: CategoryTable, metadata: object | None
) -> tuple[np.ndarray, list[Piece]]:
    """Read detectron2's `panoptic_seg` of an image.

    Args:
        result: the pair (map, segments_info), or the model's output that holds it as `panoptic_seg`. segments_info is None for
            models whose map has label * label_divisor + instance (Panoptic-DeepLab).
        categories: the classes to translate into.
        metadata: of the model's data set (`MetadataCatalog.get(name)`), which translates detectron2's ids into the data set's;
            None: category_id is the table's label index.

    Returns:
        The map, (H, W) int64, and its segments.

    Raises:
        InputError: something else; a category that the table does not have, or that is a thing on one side only.
    """
    pair = result.get("panoptic_seg") if isinstance(result, Mapping) else result
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise InputError(
            "a panoptic result of detectron2 is the pair (map, segments_info), or an output with 'panoptic_seg', but this is "
            f"{_describe(result)}"
        )
    segment_map, rows = as_map(pair[0]), pair[1]
    if rows is None:
        rows = _rows_of_divided_map(segment_map, metadata)
    pieces = []
    for row in rows:
        category = _of_detectron2(_whole(row, "category_id"), row.get("isthing"), categories, metadata)
        pieces.append(Piece(_whole(row, "id"), category, _score(row)))
    return segment_map, pieces


def joined(
    segment_map: np.ndarray, pieces: Iterable[Piece], *, fuse_stuff: bool
) -> tuple[np.ndarray, list[tuple[Category, float]]]:
    """Number the segments 1, 2, ... in the order listed; pieces of one id, and of one stuff class if wanted, become one.

    Args:
        segment_map: (H, W) ids.
        pieces: what the ids mean; an id may be listed again for the same class, as transformers does with fused stuff.
        fuse_stuff: one segment for each class of stuff, as COCO's format wants it.

    Returns:
        The new map, (H, W) int32 with 0 for void, and class and score (the highest of its pieces) of each segment; one without
        a pixel is left out.

    Raises:
        InputError: an id that is listed for two classes, or that stands in the map and is not listed.
    """
    groups: dict[tuple[str, int], list[Piece]] = {}
    by_id: dict[int, Piece] = {}
    values, places = np.unique(segment_map, return_inverse=True)
    present = set(values.tolist())
    for piece in pieces:
        first = by_id.setdefault(piece.id, piece)
        if first.category != piece.category:
            raise InputError(
                f"segment id {piece.id} is listed for {first.category.name!r} and for {piece.category.name!r}; the map cannot "
                "tell them apart (transformers' label_ids_to_fuse can give one id twice: leave it out, stuff is joined here)"
            )
        if piece.id in present:
            key = ("class", piece.category.id) if fuse_stuff and not piece.category.isthing else ("id", piece.id)
            groups.setdefault(key, []).append(piece)
    unlisted = present - set(by_id) - set(VOID)
    if unlisted:
        raise InputError(f"the map has segment id {min(unlisted)}, which is not listed; list every segment; void is 0 or -1")
    numbers = {piece.id: number for number, group in enumerate(groups.values(), start=1) for piece in group}
    table = np.array([numbers.get(value, 0) for value in values.tolist()], np.int32)
    rows = [(group[0].category, max(piece.score for piece in group)) for group in groups.values()]
    return table[places].reshape(segment_map.shape), rows


def as_map(values: object) -> np.ndarray:
    """A tensor on any device or an array as an (H, W) int64 map."""
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if array.ndim != 2 or array.size == 0 or array.dtype.kind not in "iuf":
        raise InputError(f"a segment map must be (H, W) of integers, but got {array.shape} of {array.dtype}")
    whole = array.astype(np.int64)
    if (whole != array).any():
        raise InputError("a segment map must hold integers, but this one has fractions")
    return whole


def _read_pipeline(rows: Sequence[Row], categories: CategoryTable) -> tuple[np.ndarray, list[Piece]]:
    """A map from masks; where they overlap, as those of semantic or instance pipelines may, the later one wins."""
    if not rows:
        raise InputError("the pipeline found nothing, so the image's size is unknown; make an empty PanopticSegmentation of it")
    masks = [np.asarray(row.get("mask")) for row in rows]
    if unread := [mask for mask in masks if mask.dtype.kind not in "buif"]:
        raise InputError(f"the mask of a segment must be an array or a picture, but got {unread[0]!r:.60}")
    masks = [mask > 0 for mask in masks]
    shapes = sorted({mask.shape for mask in masks})
    if len(shapes) > 1 or len(shapes[0]) != 2:
        raise InputError(f"the masks of one image must be (H, W) of one size, but theirs are {', '.join(map(str, shapes[:4]))}")
    segment_map = np.zeros(shapes[0], np.int64)
    for number, mask in enumerate(masks, start=1):
        segment_map[mask] = number
    named = {category.name: category for category in categories.categories}
    pieces = [Piece(number, _by_name(str(row["label"]), named), _score(row)) for number, row in enumerate(rows, start=1)]
    return segment_map, pieces


def _whole(row: Row, key: str) -> int:
    if row.get(key) is None:
        raise InputError(f"segments_info has a segment without {key!r}: {dict(row)}")
    return int(_number(row, key))


def _score(row: Row) -> float:
    """The score, 1 where a library gives none: detectron2 for stuff."""
    return 1.0 if row.get("score") is None else _number(row, "score")


def _number(row: Row, key: str) -> float:
    try:
        value = float(row[key])
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{key!r} of a segment must be a number, but is {row[key]!r:.60}")
    return value


def _by_label(label: int, categories: CategoryTable, names: Mapping[int, str] | None) -> Category:
    if names is not None:
        if label not in names:
            raise InputError(f"label {label} is not in id2label, which has {len(names)} labels; give that of the model")
        return _by_name(names[label], {category.name: category for category in categories.categories})
    if label not in categories.by_label:
        raise InputError(
            f"label {label} is none of the table's labels ({categories.num_labels} slots, labels={categories.labels!r}); "
            "give the table that the model was trained with, or id2label=model.config.id2label to go by names"
        )
    return categories.by_label[label]


def _by_name(name: str, named: Mapping[str, Category]) -> Category:
    if name not in named:
        raise InputError(f"there is no category named {name!r}; the table has {', '.join(map(repr, list(named)[:8]))}, ...")
    return named[name]


def _of_detectron2(number: int, isthing: object, categories: CategoryTable, metadata: object | None) -> Category:
    """The category of a contiguous id of detectron2; things and stuff may each count from 0."""
    if metadata is None:
        category = _by_label(number, categories, None)
    else:
        kind = "thing" if isthing else "stuff"
        theirs: Mapping[int, int] = getattr(metadata, f"{kind}_dataset_id_to_contiguous_id", {})
        found = [dataset_id for dataset_id, contiguous in theirs.items() if contiguous == number]
        if not found or found[0] not in categories.by_id:
            raise InputError(f"{kind} {number} of detectron2 is no category of the table by the metadata's dataset ids")
        category = categories.by_id[found[0]]
    if isthing is not None and bool(isthing) != category.isthing:
        sides = ("a thing", "stuff") if isthing else ("stuff", "a thing")
        raise InputError(
            f"category {number} is {sides[0]} in the result but {category.name!r} is {sides[1]} in the table; "
            "give the model's metadata (MetadataCatalog.get(...)), or the table that it was trained with"
        )
    return category


def _rows_of_divided_map(segment_map: np.ndarray, metadata: object | None) -> list[dict[str, object]]:
    """The segments of a map of label * label_divisor + instance, where -1 is void."""
    divisor = getattr(metadata, "label_divisor", None)
    if metadata is None or not divisor:
        raise InputError("segments_info is None, so the map is label * divisor + instance: give metadata with label_divisor")
    things = set(getattr(metadata, "thing_dataset_id_to_contiguous_id", {}).values())
    ids = [number for number in np.unique(segment_map).tolist() if number >= 0]
    return [{"id": i, "category_id": i // divisor, "isthing": i // divisor in things} for i in ids]


def _describe(value: object) -> str:
    if isinstance(value, Mapping):
        return f"a dict with {', '.join(map(repr, list(value)[:6])) or 'nothing'}"
    return f"a {type(value).__name__}"
