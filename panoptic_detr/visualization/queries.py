"""What the object queries of a detector do: where each one predicts, what each decoder layer adds, how far they can count."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.shapes import check_shape
from panoptic_detr.visualization.draw import Curve, chart, side_by_side

SMALL_AREA = 0.04  # of the image: boxes below it are drawn green
SMALL, WIDE, TALL = (0, 158, 115), (213, 94, 0), (0, 114, 178)


@dataclass(frozen=True)
class LayerScore:
    """AP of one decoder layer's predictions, fractions."""

    layer: int  # from 1
    ap: float  # as predicted
    ap_nms: float  # after non-maximum suppression


def draw_query_boxes(
    boxes_cxcywh: np.ndarray | Sequence[np.ndarray],
    *,
    slots: Sequence[int] | None = None,
    columns: int = 5,
    side: int = 160,
) -> np.ndarray:
    """Box centres that each query slot predicted over a data set (DETR paper, Fig. 7): (H, W, 3) uint8 RGB.

    One square per slot, the unit square of image coordinates; green for small boxes, red for wide and blue for tall ones.

    Args:
        boxes_cxcywh: (Q_i, 4) of each image, fractions of the image. A two-stage detector fills fewer slots of an image with
            fewer tokens than queries; a slot's square shows the images that have the slot.
        slots: which to draw; by default the first twenty.
        columns: squares in a row.
        side: pixels of a square.

    Raises:
        ShapeError: other axes.
        PictureError: a slot that does not exist.
    """
    for index, boxes in enumerate(boxes_cxcywh):
        check_shape(f"boxes_cxcywh[{index}]", boxes, ("Q", 4))
    count = max((len(boxes) for boxes in boxes_cxcywh), default=0)
    chosen = list(range(min(20, count))) if slots is None else list(slots)
    if bad := [slot for slot in chosen if not 0 <= slot < count]:
        raise PictureError(f"there is no query slot {bad[0]}; this model has {count} (the first is 0)")
    squares = [_slot_square(np.stack([boxes[slot] for boxes in boxes_cxcywh if slot < len(boxes)]), side) for slot in chosen]
    return side_by_side(squares, [f"slot {slot}" for slot in chosen], columns=min(columns, len(chosen)))


def box_colors(boxes_cxcywh: np.ndarray) -> np.ndarray:
    """Green for small, red for wide and blue for tall boxes: (N, 4) to (N, 3) uint8."""
    width, height = boxes_cxcywh[:, 2], boxes_cxcywh[:, 3]
    colors = np.where((width >= height)[:, None], np.array(WIDE), np.array(TALL))
    return np.where((width * height < SMALL_AREA)[:, None], np.array(SMALL), colors).astype(np.uint8)


def draw_layer_scores(scores: Sequence[LayerScore], *, size: tuple[int, int] = (300, 420)) -> np.ndarray:
    """AP by decoder layer, with and without non-maximum suppression (DETR paper, Fig. 4): (height, width, 3) uint8 RGB."""
    layers = [score.layer for score in scores]
    curves = [
        Curve("with NMS", "#e69f00", "s--", layers, [100 * score.ap_nms for score in scores]),
        Curve("no NMS", "#0072b2", "o-", layers, [100 * score.ap for score in scores]),
    ]
    return chart(curves, ("decoder layer", "AP (%)"), size, ticks=layers)


def instance_grid(
    patch: np.ndarray, mask: np.ndarray, shown: np.ndarray, size: tuple[int, int], ground: int = 128
) -> np.ndarray:
    """Copies of one instance on a grid (DETR paper, Fig. 12): (height, width, 3) uint8 RGB.

    Args:
        patch: (h, w, 3) uint8 RGB, the instance in its box.
        mask: (h, w) bool, its pixels.
        shown: (G, G) bool, which places of the grid have a copy.
        size: (height, width) of the result.
        ground: grey level of everything else.
    """
    rows, columns = shown.shape
    cell = (size[0] // rows, size[1] // columns)
    factor = 0.86 * min(cell[0] / patch.shape[0], cell[1] / patch.shape[1])
    target = (max(1, round(patch.shape[1] * factor)), max(1, round(patch.shape[0] * factor)))
    small = cv2.resize(patch, target, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    weight = cv2.resize(mask.astype(np.float32), target, interpolation=cv2.INTER_LINEAR)[..., None]
    copy = np.round(small * weight + ground * (1 - weight)).astype(np.uint8)
    picture = np.full((*size, 3), ground, np.uint8)
    for row, column in np.argwhere(shown):
        top = row * cell[0] + (cell[0] - target[1]) // 2
        left = column * cell[1] + (cell[1] - target[0]) // 2
        picture[top : top + target[1], left : left + target[0]] = copy
    return picture


def best_instance(
    image: np.ndarray, truth: PanopticSegmentation, category_id: int | None = None
) -> tuple[np.ndarray, np.ndarray, int] | None:
    """The largest thing of an image (of one category, if that is given) as a patch; None if there is none.

    The patch is an (h, w, 3) picture, an (h, w) bool mask, and the category id.
    """
    things = [s for s in truth.segments if s.isthing and not s.iscrowd and category_id in (None, s.category_id)]
    if not things:
        return None
    best = max(things, key=lambda segment: segment.area)
    left, top, width, height = best.box
    window = (slice(top, top + height), slice(left, left + width))
    return image[window], truth.segment_map[window] == best.id, best.category_id


def count_instances(
    predict: Callable[[np.ndarray], PanopticSegmentation],
    scenes: Iterable[tuple[np.ndarray, PanopticSegmentation]],
    *,
    grid: int = 10,
    repeats: int = 5,
    seed: int = 0,
) -> tuple[list[int], np.ndarray]:
    """Count how many copies of a thing on a grid are found, with more and more of them at random places (DETR paper, Fig. 12).

    Args:
        predict: (H, W, 3) uint8 RGB to a prediction.
        scenes: images with their annotations; each repetition copies the largest thing of another one.
        grid: places per side.
        repeats: scenes to use at most.
        seed: of the places.

    Returns:
        The (K,) numbers of copies, and how many were found: (repeats, K).

    Raises:
        PictureError: no scene has a thing.
    """
    rng, places = np.random.default_rng(seed), grid * grid
    present = sorted({max(1, round(share * places / 10)) for share in range(11)})
    rows: list[list[int]] = []
    for image, truth in scenes:
        instance = best_instance(image, truth)
        if instance is None:
            continue
        patch, mask, category_id = instance
        order = rng.permutation(places)
        shown = [np.isin(np.arange(places), order[:count]).reshape(grid, grid) for count in present]
        results = [predict(instance_grid(patch, mask, one, (image.shape[0], image.shape[1]))) for one in shown]
        rows.append([sum(segment.category_id == category_id for segment in result.segments) for result in results])
        if len(rows) == repeats:
            break
    if not rows:
        raise PictureError("counting instances needs at least one thing in the chosen images, but there is none")
    return present, np.array(rows)


def draw_counts(present: Sequence[int], found: np.ndarray, *, size: tuple[int, int] = (320, 420)) -> np.ndarray:
    """Instances found against instances present: mean, deviation, and the line of a perfect count (DETR paper, Fig. 12).

    Args:
        present: (K,) numbers of copies.
        found: (R, K) numbers found in R repetitions.
        size: (height, width) in pixels.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    check_shape("found", found, ("R", len(present)))
    mean, deviation = found.mean(0).tolist(), found.std(0).tolist()
    curves = [Curve("all", "#999999", ":", present, present), Curve("found", "#0072b2", "o-", present, mean, deviation)]
    return chart(curves, ("instances present", "instances found"), size, bottom=0)


def _slot_square(boxes: np.ndarray, side: int) -> np.ndarray:
    """The centres of one slot's boxes, (N, 4), on a white square."""
    square = np.full((side, side, 3), 255, np.uint8)
    cv2.rectangle(square, (0, 0), (side - 1, side - 1), (170, 170, 170), 1)
    places = (boxes[:, :2].clip(0, 1) * (side - 1)).round().astype(int)
    radius = max(1, side // 90)
    for (x, y), color in zip(places.tolist(), box_colors(boxes).tolist(), strict=True):
        cv2.circle(square, (x, y), radius, color, -1, cv2.LINE_AA)
    return square
