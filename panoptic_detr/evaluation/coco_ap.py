"""Average precision of boxes and masks over things, as COCO defines it, from predictions in memory.

The counting is pycocotools' (or faster-coco-eval's, which gives the same numbers sooner, where it is installed); crowds are
ignored regions as there. Masks are those before merging (DETR paper, Table 5), so they may overlap.
"""

import contextlib
import importlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from pycocotools import mask as rle

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.coco.defects import ImageId
from panoptic_detr.data.coco.entries import Entry
from panoptic_detr.errors import EvaluationError
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.shapes import check_shape

Rle = Entry
Row = Entry
State = tuple[bool | None, tuple[tuple[ImageId, tuple[int, int], list[Row], list[Row]], ...]]
Backend = Literal["auto", "pycocotools", "faster-coco-eval"]


class ApScores(NamedTuple):
    """COCO's scores of boxes or masks, as fractions; None where no true object of that size exists."""

    ap: float | None  # mean over IoU 0.50, 0.55, ..., 0.95
    ap50: float | None  # at IoU 0.50
    ap75: float | None  # at IoU 0.75
    small: float | None  # `ap` of objects below 32 x 32 pixels
    medium: float | None  # `ap` of objects from 32 x 32 to 96 x 96 pixels
    large: float | None  # `ap` of larger objects
    recall: float | None  # mean recall of 100 predictions per image
    per_class: dict[int, float | None]  # `ap` by category id of the things


class _Image(NamedTuple):
    """An image's size (height, width) and its things, true and found, as rows of COCO's JSON without ids."""

    size: tuple[int, int]
    truth: list[Row]
    found: list[Row]


@dataclass(frozen=True)
class ThingPrecision:
    """Box AP and mask AP over things; `masks` is None if no masks were given."""

    boxes: ApScores
    masks: ApScores | None


class AveragePrecision:
    """Collects predictions and truth of images and computes their box and mask AP over the things of a category table.

    Grows with the number of predictions, as AP needs all of them at once.
    """

    def __init__(self, categories: CategoryTable) -> None:
        self.categories = categories
        self._things = {category.id for category in categories.things}
        self._images: dict[ImageId, _Image] = {}
        self._has_masks: bool | None = None

    def update(
        self,
        image_id: ImageId,
        boxes: np.ndarray,
        scores: np.ndarray,
        category_ids: np.ndarray,
        masks: np.ndarray | Sequence[Rle] | None,
        truth: PanopticSegmentation,
    ) -> None:
        """Add one image.

        Args:
            image_id: of the image; each once.
            boxes: (N, 4) corners (left, top, right, bottom) in pixels of the truth.
            scores: (N,) in any order.
            category_ids: (N,); those of stuff are left out.
            masks: (N, H, W) bool of the truth's size, or N run-length encodings; None to score boxes only.
            truth: the ground truth; its crowds are ignored regions.

        Raises:
            EvaluationError: an image twice, masks for some images only, an unknown category, NaN.
            ShapeError: arrays that do not fit together.
        """
        encoded = self._check(image_id, boxes, scores, category_ids, masks, truth)
        found = []
        for i in range(len(boxes)):
            if int(category_ids[i]) in self._things:
                row = {"category_id": int(category_ids[i]), "score": float(scores[i]), "bbox": _xywh(boxes[i])}
                found.append(row if encoded is None else {**row, "segmentation": encoded[i]})
        height, width = truth.segment_map.shape
        self._images[image_id] = _Image((height, width), self._true_things(truth, encoded is not None), found)
        self._has_masks = encoded is not None

    def state(self) -> State:
        """Everything collected, as plain values: what processes send each other."""
        return self._has_masks, tuple((image_id, *image) for image_id, image in self._images.items())

    def add_state(self, state: State) -> None:
        """Add what `state` of another collection over the same categories returned.

        Raises:
            EvaluationError: an image that is here already.
        """
        has_masks, images = state
        for image_id, size, true, found in images:
            self._check_new(image_id, bool(has_masks))
            self._images[image_id] = _Image(size, true, found)
            self._has_masks = has_masks

    def compute(self, backend: Backend = "auto") -> ThingPrecision:
        """The scores of all images so far.

        Args:
            backend: who counts; "auto" takes faster-coco-eval if it is installed.
        """
        boxes = self._evaluate("bbox", backend)
        return ThingPrecision(boxes, self._evaluate("segm", backend) if self._has_masks else None)

    def _check(
        self,
        image_id: ImageId,
        boxes: np.ndarray,
        scores: np.ndarray,
        category_ids: np.ndarray,
        masks: np.ndarray | Sequence[Rle] | None,
        truth: PanopticSegmentation,
    ) -> Sequence[Rle] | None:
        """Check shapes and names; the masks as run-length encodings."""
        check_shape("boxes", boxes, ("N", 4))
        check_shape("scores", scores, (len(boxes),))
        check_shape("category_ids", category_ids, (len(boxes),))
        self._check_new(image_id, masks is not None)
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise EvaluationError(
                f"image {image_id}: boxes and scores must be finite numbers; the model's output has NaN or inf"
            )
        for category_id in {*category_ids.tolist(), *(segment.category_id for segment in truth.segments)}:
            if category_id not in self.categories.by_id:
                raise EvaluationError(f"image {image_id}: category {category_id} is not in the table of categories")
        if isinstance(masks, np.ndarray):
            check_shape("masks", masks, (len(boxes), *truth.segment_map.shape))
            return encode_masks(masks)
        if masks is not None and len(masks) != len(boxes):
            raise EvaluationError(f"image {image_id}: {len(masks)} masks for {len(boxes)} boxes; give one per box")
        return masks

    def _check_new(self, image_id: ImageId, has_masks: bool) -> None:
        if image_id in self._images:
            raise EvaluationError(f"image {image_id} was scored already; add every image once")
        if self._has_masks not in (None, has_masks):
            raise EvaluationError(f"image {image_id}: masks must be given for all images or for none")

    def _true_things(self, truth: PanopticSegmentation, with_masks: bool) -> list[Row]:
        rows = []
        for segment in truth.segments:
            if segment.category_id in self._things:
                row = {"category_id": segment.category_id, "bbox": [float(side) for side in segment.box]}
                row |= {"area": float(segment.area), "iscrowd": int(segment.iscrowd)}
                if with_masks:
                    row["segmentation"] = encode_masks((truth.segment_map == segment.id)[None])[0]
                rows.append(row)
        return rows

    def _evaluate(self, kind: Literal["bbox", "segm"], backend: Backend) -> ApScores:
        things = sorted(self._things)
        if not (things and self._images):
            nothing = np.full((10, 101, len(things), 4, 3), -1.0)
            return _read_scores(nothing, nothing[:, 0], things)
        images = [self._images[image_id] for image_id in sorted(self._images, key=_order)]
        sizes = [{"id": i, "height": image.size[0], "width": image.size[1]} for i, image in enumerate(images, start=1)]
        truth = _numbered((image.truth for image in images), kind)
        found = _numbered((image.found for image in images), kind)
        with contextlib.redirect_stdout(io.StringIO()):  # COCO's tools print progress; nobody asked
            evaluation = _count(truth, found, sizes, things, kind, backend)
        return _read_scores(evaluation.eval["precision"], evaluation.eval["recall"], things)


def encode_masks(masks: np.ndarray) -> list[Rle]:
    """COCO's run-length encoding of (N, H, W) masks."""
    return list(rle.encode(np.asfortranarray(masks.transpose(1, 2, 0), dtype=np.uint8)))


def _numbered(images: Iterable[list[Row]], kind: str) -> list[Row]:
    """Rows as COCO's tools want them, with ids from 1: an image by its number, a found object with the area for its size."""
    rows: list[Row] = []
    for image_number, image in enumerate(images, start=1):
        for row in image:
            numbered = {**row, "id": len(rows) + 1, "image_id": image_number}
            if "score" in row:
                area = row["bbox"][2] * row["bbox"][3] if kind == "bbox" else float(rle.area(row["segmentation"]))
                numbered |= {"area": area, "iscrowd": 0}
            rows.append(numbered)
    return rows


def _count(
    truth: list[Row], found: list[Row], images: list[Row], category_ids: Sequence[int], kind: str, backend: Backend
) -> Any:
    """Run COCO's evaluation; its `eval` then holds precision (T, R, K, A, M) and recall (T, K, A, M)."""
    coco, evaluation_class = _load_backend(backend)
    true_set, found_set = coco(), coco()
    for data, rows in ((true_set, truth), (found_set, found)):
        data.dataset = {"images": images, "categories": [{"id": i} for i in category_ids], "annotations": rows}
        data.createIndex()
    evaluation = evaluation_class(true_set, found_set, iouType=kind)
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def _load_backend(backend: Backend) -> tuple[Any, Any]:
    if backend in ("auto", "faster-coco-eval"):
        try:
            fast = importlib.import_module("faster_coco_eval")
            return fast.COCO, fast.COCOeval_faster
        except ImportError:
            if backend != "auto":
                raise EvaluationError("faster-coco-eval is not installed; use backend='auto' or 'pycocotools'") from None
    coco, evaluation = importlib.import_module("pycocotools.coco"), importlib.import_module("pycocotools.cocoeval")
    return coco.COCO, evaluation.COCOeval


def _read_scores(precision: np.ndarray, recall: np.ndarray, category_ids: Sequence[int]) -> ApScores:
    """Means of what exists; axes are IoU threshold, recall level, category, size (all, small, medium, large), predictions."""
    most = precision.shape[-1] - 1
    any_size, small, medium, large = (_mean(precision[..., size, most]) for size in range(4))
    per_class = {category_id: _mean(precision[:, :, k, 0, most]) for k, category_id in enumerate(category_ids)}
    ap50, ap75 = (_mean(precision[threshold, ..., 0, most]) for threshold in (0, 5))
    return ApScores(any_size, ap50, ap75, small, medium, large, _mean(recall[..., 0, most]), per_class)


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]  # COCO's tools write -1 where there is no true object
    return float(known.mean()) if known.size else None


def _xywh(box: np.ndarray) -> list[float]:
    left, top, right, bottom = (float(side) for side in box)
    return [left, top, right - left, bottom - top]


def _order(image_id: ImageId) -> tuple[str, ImageId]:
    """A fixed order of ids, numbers before names, so that ties of scores do not depend on who came first."""
    return type(image_id).__name__, image_id
