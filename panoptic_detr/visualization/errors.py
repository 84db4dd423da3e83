"""What a prediction got right and wrong, pixel by pixel and segment by segment, and the picture of it."""

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.images import Picture, as_rgb
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.visualization.draw import enlarged, index_of, legend_strip, line_width, outlines


class ErrorKind(IntEnum):
    """What a pixel is, from the point of view of panoptic quality."""

    IGNORED = 0
    CORRECT = 1
    WRONG_CLASS = 2
    MISSED = 3
    EXTRA = 4
    BOUNDARY = 5


ERROR_NAMES = {
    ErrorKind.CORRECT: "correct",
    ErrorKind.WRONG_CLASS: "wrong class",
    ErrorKind.MISSED: "missed",
    ErrorKind.EXTRA: "extra",
    ErrorKind.BOUNDARY: "boundary",
    ErrorKind.IGNORED: "not rated",
}
ERROR_COLORS = {
    ErrorKind.CORRECT: (86, 180, 233),
    ErrorKind.WRONG_CLASS: (204, 90, 180),
    ErrorKind.MISSED: (213, 94, 0),
    ErrorKind.EXTRA: (240, 228, 66),
    ErrorKind.BOUNDARY: (255, 255, 255),
    ErrorKind.IGNORED: (70, 70, 70),
}
_STRENGTH = {ErrorKind.CORRECT: 0.3, ErrorKind.IGNORED: 0.55}


@dataclass(frozen=True)
class Match:
    """The truth segment that a predicted one overlaps most.

    Attributes:
        prediction: index into the predicted segments.
        truth: index into the true segments.
        iou: intersection over union, void left out of the union as in panoptic quality.
        counts: same class and IoU above 0.5: a true positive.
    """

    prediction: int
    truth: int
    iou: float
    counts: bool


@dataclass(frozen=True)
class Comparison:
    """A prediction held against the truth.

    Attributes:
        kinds: (H, W) uint8 values of `ErrorKind`.
        best: predicted segment index to its best match; segments that meet no true segment are absent.
        found: true segment index to the predicted index that it is matched with.
        ignored: predicted segments that mostly lie on void or on a group of their class; they are not counted as extra.
    """

    kinds: np.ndarray
    best: dict[int, Match]
    found: dict[int, int]
    ignored: frozenset[int]

    def shares(self) -> dict[ErrorKind, float]:
        """Fraction of the rated pixels of each kind; of all pixels for `IGNORED`."""
        counts = np.bincount(self.kinds.ravel(), minlength=len(ErrorKind))
        rated = max(1, int(counts[1:].sum()))
        return {kind: float(counts[kind]) / (self.kinds.size if kind == ErrorKind.IGNORED else rated) for kind in ErrorKind}


def compare(prediction: PanopticSegmentation, truth: PanopticSegmentation) -> Comparison:
    """Find out what a prediction got right.

    A pixel is CORRECT where a predicted and a true segment that match (same class, IoU above 0.5) meet; BOUNDARY where both
    segments are matched, but not with each other; MISSED where the true segment has no match; EXTRA where only the predicted
    one has none; WRONG_CLASS where neither has one and the classes differ. Void and groups are IGNORED.

    Raises:
        PictureError: the two maps differ in size.
    """
    if prediction.segment_map.shape != truth.segment_map.shape:
        raise PictureError(
            f"image {truth.image_id}: the predicted map is {prediction.segment_map.shape}, "
            f"the true one {truth.segment_map.shape}; predict at the size of the annotation"
        )
    predicted_index, true_index = index_of(prediction), index_of(truth)
    rows, columns = len(prediction.segments) + 1, len(truth.segments) + 1
    pairs = true_index.astype(np.int32) + columns * predicted_index
    table = np.bincount(pairs.ravel(), minlength=rows * columns).reshape(rows, columns)
    best, found = _matches(table, prediction, truth)
    ignored = _ignored(table, prediction, truth)
    kinds = _kind_table(prediction, truth, {p: m.truth for p, m in best.items() if m.counts}, ignored)
    return Comparison(kinds.ravel().take(pairs), best, found, ignored)


def error_view(
    image: Picture, prediction: PanopticSegmentation, truth: PanopticSegmentation, *, legend: bool = True, scale: int = 1
) -> np.ndarray:
    """Draw the errors of a prediction over the greyed image.

    Args:
        image: path or array (see `as_rgb`).
        prediction: what the model says.
        truth: what the annotation says.
        legend: add a strip with the meaning of the colours and each one's share of the rated pixels.
        scale: enlarge this many times before drawing.

    Returns:
        (H * scale [+ legend], W * scale, 3) uint8 RGB.
    """
    picture, comparison = as_rgb(image), compare(prediction, truth)
    if picture.shape[:2] != comparison.kinds.shape:
        raise PictureError(
            f"image {truth.image_id}: the image is {picture.shape[:2]}, its segment maps {comparison.kinds.shape}"
        )
    kinds, true_index = (m.repeat(scale, axis=0).repeat(scale, axis=1) for m in (comparison.kinds, index_of(truth)))
    grey = cv2.cvtColor(cv2.cvtColor(enlarged(picture, scale), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    table = np.array([ERROR_COLORS[kind] for kind in ErrorKind], np.uint8)
    weight = np.array([_STRENGTH.get(kind, 0.8) for kind in ErrorKind], np.float32)[kinds][..., None]
    drawn = np.round(0.8 * grey * (1 - weight) + table[kinds] * weight).astype(np.uint8)
    edges = outlines(true_index).view(np.uint8)
    drawn[cv2.dilate(edges, np.ones((line_width(drawn.shape),) * 2, np.uint8)) > 0] = (20, 20, 24)
    if not legend:
        return drawn
    shares = comparison.shares()
    items = [(ERROR_COLORS[kind], f"{name} {100 * shares[kind]:.0f}%") for kind, name in ERROR_NAMES.items()]
    return np.concatenate([drawn, legend_strip(items, drawn.shape)])


def _matches(
    table: np.ndarray, prediction: PanopticSegmentation, truth: PanopticSegmentation
) -> tuple[dict[int, Match], dict[int, int]]:
    """The best true segment of every predicted one, and the matched pairs by true segment."""
    predicted_areas, true_areas = table.sum(1), table.sum(0)
    union = predicted_areas[1:, None] + true_areas[None, 1:] - table[1:, 1:] - table[1:, :1]  # void is no part of the union
    iou = table[1:, 1:] / np.maximum(union, 1)  # (P, T)
    group = np.array([segment.iscrowd for segment in truth.segments], bool)
    classes = np.array([segment.category_id for segment in truth.segments])
    best, found = {}, {}
    for row, segment in enumerate(prediction.segments):
        rated = np.where(group, 0.0, iou[row])
        if not rated.any():
            continue
        column = int((rated + (classes == segment.category_id) * (rated > 0.5)).argmax())
        counts = bool(rated[column] > 0.5 and classes[column] == segment.category_id)
        best[row] = Match(row, column, float(rated[column]), counts)
        if counts:
            found[column] = row
    return best, found


def _ignored(table: np.ndarray, prediction: PanopticSegmentation, truth: PanopticSegmentation) -> frozenset[int]:
    """Predicted segments of which more than half lies on void or on groups of their class."""
    rows = []
    for row, segment in enumerate(prediction.segments):
        groups = [c for c, t in enumerate(truth.segments, start=1) if t.iscrowd and t.category_id == segment.category_id]
        if table[row + 1, [0, *groups]].sum() > 0.5 * table[row + 1].sum():
            rows.append(row)
    return frozenset(rows)


def _kind_table(
    prediction: PanopticSegmentation, truth: PanopticSegmentation, matched: dict[int, int], ignored: frozenset[int]
) -> np.ndarray:
    """The kind of a pixel of every (predicted, true) pair of indices; (P + 1, T + 1) uint8, row and column 0 for void."""
    kinds = np.zeros((len(prediction.segments) + 1, len(truth.segments) + 1), np.uint8)
    found = set(matched.values())
    for column, true in enumerate(truth.segments):
        if true.iscrowd:
            continue
        kinds[0, column + 1] = ErrorKind.BOUNDARY if column in found else ErrorKind.MISSED
        for row, predicted in enumerate(prediction.segments):
            settled = row in matched or row in ignored
            if matched.get(row) == column:
                kind = ErrorKind.CORRECT
            elif column in found:
                kind = ErrorKind.BOUNDARY if settled else ErrorKind.EXTRA
            else:
                differs = predicted.category_id != true.category_id
                kind = ErrorKind.WRONG_CLASS if differs and not settled else ErrorKind.MISSED
            kinds[row + 1, column + 1] = kind
    return kinds
