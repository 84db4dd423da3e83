"""The images of a report: small pictures, id maps that the page can look up, what is known of every segment, confusions."""

import base64
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.images import encode_picture, fit
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import resize_ids
from panoptic_detr.visualization.draw import Palette, index_of, segment_colors
from panoptic_detr.visualization.errors import Comparison, Entry, compare

Values: TypeAlias = dict[str, Any]  # what the page shows or looks up, as JSON knows it

_SIDES = ((640, 82), (560, 78), (480, 74), (400, 68), (320, 60), (240, 55))  # long side in pixels, JPEG quality


@dataclass
class Confusion:
    """How often a true class was taken for another.

    Attributes:
        counts: (true class, predicted class) to number of segments; "" as true class counts extra segments, as predicted class
            missed ones.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def add(self, truth: str, predicted: str) -> None:
        """Count one segment."""
        self.counts[truth, predicted] += 1

    def names(self, limit: int) -> list[str]:
        """Classes with the most mistakes, then the most segments, at most `limit`, in alphabetical order."""
        mistakes: Counter[str] = Counter()
        segments: Counter[str] = Counter()
        for (truth, predicted), count in self.counts.items():
            for name in {truth, predicted} - {""}:
                mistakes[name] += count * (truth != predicted)
                segments[name] += count
        return sorted(sorted(segments, key=lambda name: (mistakes[name], segments[name]), reverse=True)[:limit])

    def worst(self, limit: int = 12) -> list[tuple[str, str, int]]:
        """The most frequent mistakes of one class for another: (true, predicted, count)."""
        mistakes = [(t, p, n) for (t, p), n in self.counts.items() if t and p and t != p]
        return sorted(mistakes, key=lambda row: (-row[2], row[:2]))[:limit]

    def matrix(self, limit: int = 30) -> Values:
        """Rows of cells (count, share of the row's total) for the template; a last row for extra segments."""
        names = self.names(limit)
        rows = []
        for truth in [*names, ""]:
            total = sum(count for (there, _), count in self.counts.items() if there == truth)
            counts = {predicted: self.counts[truth, predicted] for predicted in [*names, ""]}
            cells = [{"count": n, "share": n / max(1, total), "hit": bool(truth) and p == truth} for p, n in counts.items()]
            rows.append({"name": truth, "cells": cells})
        return {"names": names, "rows": rows}


def image_data(entry: Entry, index: int, *, budget: int, palette: Palette, confusion: Confusion) -> Values:
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
        "lost": comparison.lost,
        "width": width,
        "height": height,
        "jpeg": base64.b64encode(jpeg).decode(),
        "map": base64.b64encode(png).decode(),
        "truth": _rows(truth, palette, partial(_truth_facts, comparison)),
        "prediction": _rows(prediction, palette, partial(_prediction_facts, comparison)),
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
    """The index map in one byte, by the order of `_shown`; segments that are not shown become void (in the gallery only)."""
    table = np.zeros(len(segmentation.segments) + 1, np.uint8)
    for place, index in enumerate(_shown(segmentation), start=1):
        table[index + 1] = place
    return table[index_of(segmentation)]


def _shown(segmentation: PanopticSegmentation) -> list[int]:
    """Indices of the segments that the gallery shows: all, or the 255 largest."""
    segments = segmentation.segments
    return sorted(sorted(range(len(segments)), key=lambda i: -segments[i].area)[:255])


def _rows(segmentation: PanopticSegmentation, palette: Palette, more: Callable[[int, Segment], Values]) -> list[Values]:
    """What the page says of each segment that it shows."""
    colors, rows = segment_colors(segmentation, palette).tolist(), []
    for index in _shown(segmentation):
        segment = segmentation.segments[index]
        common = {"name": _name(segmentation, segment.category_id), "pixels": segment.area, "color": colors[index]}
        rows.append(common | more(index, segment))
    return rows


def _truth_facts(comparison: Comparison, index: int, segment: Segment) -> Values:
    status, iou = comparison.of_truth(index, segment)
    return {"status": status, "iou": None if iou is None else round(iou, 3)}


def _prediction_facts(comparison: Comparison, index: int, segment: Segment) -> Values:
    status, iou = comparison.of_prediction(index)
    return {"status": status, "iou": round(iou, 3), "score": round(segment.score, 3), "query": segment.query}


def _name(segmentation: PanopticSegmentation, category_id: int) -> str:
    category = segmentation.categories.by_id.get(category_id)
    return f"class {category_id}" if category is None else category.name
