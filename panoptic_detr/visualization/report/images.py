"""The images of a report: small pictures, id maps that the page can look up, and what is known of every segment."""

import base64
from typing import Any

import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.images import encode_picture, fit
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.segment_maps import resize_ids
from panoptic_detr.visualization.draw import Palette, index_of, segment_colors
from panoptic_detr.visualization.entry import Entry
from panoptic_detr.visualization.errors import Comparison, compare
from panoptic_detr.visualization.report.tables import Confusion

_SIDES = ((640, 82), (560, 78), (480, 74), (400, 68), (320, 60), (240, 55))  # long side in pixels, JPEG quality


def image_data(entry: Entry, index: int, *, budget: int, palette: Palette, confusion: Confusion) -> dict[str, Any]:
    """Everything the page knows of one image, as plain values.

    Args:
        entry: with truth and prediction.
        index: its number on the page.
        budget: bytes that its pictures should take at most; they are made smaller until they fit.
        palette: see `overlay`.
        confusion: its segments are counted here.

    Raises:
        PictureError: truth or prediction is missing, or sizes differ.
    """
    if entry.truth is None or entry.prediction is None:
        raise PictureError(f"{entry.name}: a report needs ground truth and a prediction of every image")
    if entry.image.shape[:2] != entry.truth.segment_map.shape:
        raise PictureError(f"{entry.name}: the image is {entry.image.shape[:2]}, its truth {entry.truth.segment_map.shape}")
    prediction, truth = entry.prediction, entry.truth
    comparison = compare(prediction, truth)
    count_confusions(confusion, comparison, prediction, truth)
    maps = np.stack([_byte_index(prediction), _byte_index(truth), comparison.kinds], axis=-1)
    jpeg, png, (height, width) = _encode(entry.image, maps, budget)
    return {
        "id": index,
        "name": entry.name,
        "pq": comparison.matching.quality,
        "width": width,
        "height": height,
        "jpeg": base64.b64encode(jpeg).decode(),
        "map": base64.b64encode(png).decode(),
        "truth": _truth_rows(comparison, truth, palette),
        "prediction": _prediction_rows(comparison, prediction, palette),
    }


def count_confusions(
    confusion: Confusion, comparison: Comparison, prediction: PanopticSegmentation, truth: PanopticSegmentation
) -> None:
    """Add an image's segments: pairs that overlap by more than half whatever their class, missed and extra ones."""
    taken = {comparison.nearest[row]: row for row in np.flatnonzero(comparison.ious > 0.5)}
    for column, segment in enumerate(truth.segments):
        if not segment.iscrowd:
            predicted = _name(prediction, prediction.segments[taken[column]].category_id) if column in taken else ""
            confusion.add(_name(truth, segment.category_id), predicted)
    for row in np.flatnonzero(comparison.matching.extra & (comparison.ious <= 0.5)):
        confusion.add("", _name(prediction, prediction.segments[row].category_id))


def _encode(image: np.ndarray, maps: np.ndarray, budget: int) -> tuple[bytes, bytes, tuple[int, int]]:
    """JPEG of the image, PNG of its maps (red: prediction, green: truth, blue: error kind), and their (height, width)."""
    for side, quality in _SIDES:
        picture = fit(image, side)
        height, width = picture.shape[:2]
        jpeg = encode_picture(picture, ".jpg", quality=quality)
        png = encode_picture(np.stack([resize_ids(maps[..., i], (height, width)) for i in range(3)], axis=-1), ".png")
        if (len(jpeg) + len(png)) * 4 // 3 <= budget:
            break
    return jpeg, png, (height, width)


def _byte_index(segmentation: PanopticSegmentation) -> np.ndarray:
    """The index map in one byte; of more than 255 segments those of the least area become void (in the gallery only)."""
    index_map = index_of(segmentation)
    if len(segmentation.segments) <= 255:
        return index_map.astype(np.uint8)
    table = np.zeros(len(segmentation.segments) + 1, np.uint8)
    for index in _shown(segmentation):
        table[index + 1] = _shown(segmentation).index(index) + 1
    return table[index_map]


def _shown(segmentation: PanopticSegmentation) -> list[int]:
    """Indices of the segments that the gallery shows: all, or the 255 largest."""
    segments = segmentation.segments
    return sorted(sorted(range(len(segments)), key=lambda i: -segments[i].area)[:255])


def _truth_rows(comparison: Comparison, truth: PanopticSegmentation, palette: Palette) -> list[dict[str, Any]]:
    colors = segment_colors(truth, palette).tolist()
    ious = dict(zip(comparison.matching.truth.tolist(), comparison.matching.ious.tolist(), strict=True))
    rows = []
    for index in _shown(truth):
        segment = truth.segments[index]
        rows.append(
            {
                "name": _name(truth, segment.category_id),
                "status": "group, not rated" if segment.iscrowd else "found" if index in ious else "missed",
                "iou": round(ious[index], 3) if index in ious else None,
                "pixels": segment.area,
                "color": colors[index],
            }
        )
    return rows


def _prediction_rows(comparison: Comparison, prediction: PanopticSegmentation, palette: Palette) -> list[dict[str, Any]]:
    colors = segment_colors(prediction, palette).tolist()
    rows = []
    for index in _shown(prediction):
        segment = prediction.segments[index]
        rows.append(
            {
                "name": _name(prediction, segment.category_id),
                "status": _status(comparison, index),
                "score": round(segment.score, 3),
                "iou": round(float(comparison.ious[index]), 3),
                "query": segment.query,
                "pixels": segment.area,
                "color": colors[index],
            }
        )
    return rows


def _status(comparison: Comparison, index: int) -> str:
    if comparison.matching.ignored[index]:
        return "not rated"
    if not comparison.matching.extra[index]:
        return "correct"
    return "wrong class" if comparison.ious[index] > 0.5 else "extra"


def _name(segmentation: PanopticSegmentation, category_id: int) -> str:
    category = segmentation.categories.by_id.get(category_id)
    return f"class {category_id}" if category is None else category.name
