"""What a prediction got right and wrong, pixel by pixel and segment by segment; its picture, and the sheet beside the truth."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import cv2
import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.images import Picture, as_rgb
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import (
    JointRuns,
    Matching,
    Overlaps,
    Regions,
    joint_runs,
    match_segments,
    measure_overlaps,
    price_by_cause,
)
from panoptic_detr.visualization.draw import (
    Palette,
    enlarged,
    index_of,
    legend_strip,
    line_width,
    outlines,
    overlay,
    side_by_side,
)

Show = Literal["all", "truth", "prediction", "errors"]


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
class Comparison:
    """A prediction held against the truth."""

    kinds: np.ndarray  # (H, W) uint8 values of `ErrorKind`
    matching: Matching  # what counts and what does not, as in every score
    nearest: np.ndarray  # (P,) the true segment, no group, that each predicted one overlaps most; -1 where it meets none
    ious: np.ndarray  # (P,) intersection over union with it, void left out as in panoptic quality; 0 where there is none
    lost: dict[str, float]  # what the segments cost, by cause (`quality.CAUSES`)

    def shares(self) -> dict[ErrorKind, float]:
        """Fraction of the rated pixels of each kind; of all pixels for `IGNORED`."""
        counts = np.bincount(self.kinds.ravel(), minlength=len(ErrorKind))
        rated = max(1, int(counts[1:].sum()))
        return {kind: float(counts[kind]) / (self.kinds.size if kind == ErrorKind.IGNORED else rated) for kind in ErrorKind}

    def of_truth(self, index: int, segment: Segment) -> tuple[str, float | None]:
        """What became of a true segment, and its IoU with the prediction that found it."""
        ious = self.matching.ious[self.matching.truth == index].tolist()
        return "group, not rated" if segment.iscrowd else "found" if ious else "missed", ious[0] if ious else None

    def of_prediction(self, index: int) -> tuple[str, float]:
        """Whether a predicted segment is right, and its IoU with the true one that it overlaps most."""
        iou = float(self.ious[index])
        if self.matching.ignored[index]:
            return "not rated", iou
        if self.matching.extra[index]:
            return "wrong class" if iou > 0.5 else "extra", iou
        return "correct", iou


def compare(prediction: PanopticSegmentation, truth: PanopticSegmentation) -> Comparison:
    """Find out what a prediction got right, with the matcher of every score.

    A pixel is CORRECT where a predicted and a true segment that match (same class, IoU above 0.5) meet; BOUNDARY where both
    segments are matched, but not with each other; MISSED where the true segment has no match; EXTRA where only the predicted
    one has none; WRONG_CLASS where neither has one and the classes differ. Void and groups are IGNORED.

    Raises:
        PictureError: the two maps differ in size.
        EvaluationError: a map and its list of segments do not agree.
    """
    if prediction.segment_map.shape != truth.segment_map.shape:
        raise PictureError(
            f"image {truth.image_id}: the predicted map is {prediction.segment_map.shape}, "
            f"the true one {truth.segment_map.shape}; predict at the size of the annotation"
        )
    where = f"image {truth.image_id}"
    regions = Regions.of(prediction, f"{where}, prediction"), Regions.of(truth, f"{where}, ground truth")
    runs = joint_runs(*regions)
    overlaps = measure_overlaps(*regions, runs)
    matching = match_segments(overlaps)
    nearest, best = _nearest(overlaps)
    kinds = runs.paint(_kinds(overlaps, matching, runs))
    return Comparison(kinds, matching, nearest, best, price_by_cause(overlaps))


def error_view(
    image: Picture, prediction: PanopticSegmentation, truth: PanopticSegmentation, *, legend: bool = True, scale: int = 1
) -> np.ndarray:
    """Draw the errors of a prediction over the greyed image: (H * scale [+ legend], W * scale, 3) uint8 RGB.

    Args:
        image: path or array (see `as_rgb`).
        prediction: what the model says.
        truth: what the annotation says.
        legend: add a strip with the meaning of the colours and each one's share of the rated pixels.
        scale: enlarge this many times before drawing.
    """
    picture, comparison = as_rgb(image), compare(prediction, truth)
    if picture.shape[:2] != comparison.kinds.shape:
        raise PictureError(
            f"image {truth.image_id}: the image is {picture.shape[:2]}, its segment maps {comparison.kinds.shape}"
        )
    grey = cv2.cvtColor(cv2.cvtColor(enlarged(picture, scale), cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    kinds, true_index = (m.repeat(scale, axis=0).repeat(scale, axis=1) for m in (comparison.kinds, index_of(truth)))
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


@dataclass(frozen=True)
class Entry:
    """An image, its annotation and a prediction; one of the latter two may be missing."""

    name: str  # what to call it: the file name, say
    image: np.ndarray  # (H, W, 3) uint8 RGB
    truth: PanopticSegmentation | None = None  # the annotation
    prediction: PanopticSegmentation | None = None  # what a model says

    def shown(self, *, truth: bool = False) -> PanopticSegmentation:
        """The one map that the image is drawn with: the prediction, if there is one and the truth is not wanted."""
        drawn = self.truth if truth or self.prediction is None else self.prediction
        if drawn is None:
            raise PictureError(f"{self.name}: there is neither truth nor prediction to draw")
        return drawn


def draw_entry(
    entry: Entry, *, show: Show = "all", palette: Palette = "distinct", alpha: float = 0.5, scale: int = 1
) -> np.ndarray:
    """Draw what is there: the annotation, the prediction, and with both also the errors: (h, w, 3) uint8 RGB.

    Args:
        entry: the image.
        show: "all" sets everything there is side by side; the others draw one picture.
        palette: see `overlay`.
        alpha: see `overlay`.
        scale: see `overlay`.

    Raises:
        PictureError: the entry lacks what `show` asks for.
    """
    pictures = {}
    if entry.truth is not None and show in ("all", "truth"):
        pictures["ground truth"] = overlay(entry.image, entry.truth, palette=palette, alpha=alpha, scale=scale)
    if entry.prediction is not None and show in ("all", "prediction"):
        pictures["prediction"] = overlay(entry.image, entry.prediction, palette=palette, alpha=alpha, scale=scale)
    if entry.truth is not None and entry.prediction is not None and show in ("all", "errors"):
        pictures["errors"] = error_view(entry.image, entry.prediction, entry.truth, scale=scale)
    if not pictures:
        needed = {"errors": "both ground truth and a prediction", "all": "ground truth or a prediction"}.get(show, f"a {show}")
        raise PictureError(f"{entry.name}: drawing {show!r} needs {needed}")
    return side_by_side(list(pictures.values()), list(pictures)) if len(pictures) > 1 else next(iter(pictures.values()))


def _nearest(overlaps: Overlaps) -> tuple[np.ndarray, np.ndarray]:
    """The true segment, no crowd, that each predicted one overlaps most, -1 for none, and the IoU with it: (P,) each."""
    places = np.flatnonzero(overlaps.rated)
    ious = overlaps.intersections[places] / overlaps.unions[places]
    last = np.lexsort((-overlaps.truth[places], ious))  # the best last; of equal ones the first true segment
    count = len(overlaps.prediction_areas)
    nearest, best = np.full(count, -1), np.zeros(count)
    owners = overlaps.prediction[places[last]]
    nearest[owners], best[owners] = overlaps.truth[places[last]], ious[last]
    return nearest, best


def _kinds(overlaps: Overlaps, matching: Matching, runs: JointRuns) -> np.ndarray:
    """The kind of the pixels of every run: (R,) uint8."""
    found = np.append(~overlaps.iscrowd & ~matching.missed, False)[runs.truth]  # the last place of each is void
    extra = np.append(matching.extra, False)[runs.prediction]
    true, predicted = (np.append(ids, 0) for ids in (overlaps.truth_categories, overlaps.prediction_categories))
    partner = np.full(len(true), -1)
    partner[matching.truth] = matching.prediction
    nothing = runs.prediction == len(overlaps.prediction_categories)
    differs = (true[runs.truth] != predicted[runs.prediction]) & ~nothing
    cases = (
        (np.append(overlaps.iscrowd, True)[runs.truth], ErrorKind.IGNORED),
        (partner[runs.truth] == runs.prediction, ErrorKind.CORRECT),
        (found & extra, ErrorKind.EXTRA),
        (found, ErrorKind.BOUNDARY),
        (differs & extra, ErrorKind.WRONG_CLASS),
    )
    conditions, kinds = zip(*cases, strict=True)
    return np.select(conditions, kinds, ErrorKind.MISSED).astype(np.uint8)
