"""AP over things: worked out by hand, against pycocotools fed directly, and the same from both counting libraries."""

import numpy as np
import pytest
from plain_maps import areas, boxes_of
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError, ShapeError
from panoptic_detr.evaluation import coco_ap
from panoptic_detr.evaluation.coco_ap import AveragePrecision, encode_masks
from panoptic_detr.panoptic import PanopticSegmentation, Segment

TABLE = CategoryTable.from_coco(
    [
        {"id": 1, "name": "cat", "isthing": 1},
        {"id": 4, "name": "dog", "isthing": 1},
        {"id": 9, "name": "sky", "isthing": 0},
    ]
)


def make_truth(segment_map, categories, crowds=()):
    pixels, boxes = areas(segment_map), boxes_of(segment_map)
    segments = [
        Segment(i, c, TABLE.by_id[c].isthing, 1.0, pixels[i], boxes[i], iscrowd=i in crowds) for i, c in categories.items()
    ]
    return PanopticSegmentation(segment_map, segments, TABLE)


def two_cats():
    """A cat of 10 x 10 pixels, one of 40 x 40, on sky: small and medium."""
    segment_map = np.full((100, 100), 9, np.int32)
    segment_map[:10, :10] = 1
    segment_map[50:90, 50:90] = 2
    return make_truth(segment_map, {1: 1, 2: 1, 9: 9})


def perfect(truth):
    """Every thing of the truth as a prediction: boxes, scores, categories, masks."""
    things = [s for s in truth.segments if s.isthing]
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (s.box for s in things)], float).reshape(-1, 4)
    masks = np.array([truth.segment_map == s.id for s in things]).reshape(-1, *truth.segment_map.shape)
    return boxes, np.linspace(0.9, 0.5, len(things)), np.array([s.category_id for s in things], int), masks


def test_perfect_predictions():
    truth = two_cats()
    precision = AveragePrecision(TABLE)
    precision.update(1, *perfect(truth), truth)
    result = precision.compute()
    for scores in (result.boxes, result.masks):
        assert scores[:4] == (1.0, 1.0, 1.0, 1.0)
        assert (scores.medium, scores.large) == (1.0, None)
        assert scores.recall == 1.0
        assert scores.per_class == {1: 1.0, 4: None}


def test_one_of_two_found():
    # The better-scored prediction is right, the other is on sky: precision 1 up to recall 0.5, then nothing. COCO reads
    # precision at recalls 0, 0.01, ..., 1: 51 of 101 levels have 1, so AP = 51/101 at every IoU.
    truth = two_cats()
    boxes = np.array([[50, 50, 90, 90], [20, 20, 30, 30]], float)
    precision = AveragePrecision(TABLE)
    precision.update("a", boxes, np.array([0.9, 0.8]), np.array([1, 1]), None, truth)
    result = precision.compute()
    assert result.boxes.ap == pytest.approx(51 / 101)
    assert (result.boxes.small, result.boxes.medium) == (0.0, pytest.approx(1.0))
    assert result.masks is None


def test_masks_and_boxes_are_scored_apart():
    # The box is exact; of the mask only 60% are covered: above IoU 0.5 and 0.55 and 0.6, below the other seven thresholds.
    truth = two_cats()
    mask = np.zeros((2, 100, 100), bool)
    mask[0, :10, :6] = True
    mask[1, 50:90, 50:74] = True
    precision = AveragePrecision(TABLE)
    boxes, scores, category_ids, _ = perfect(truth)
    precision.update(1, boxes, scores, category_ids, mask, truth)
    result = precision.compute()
    assert result.boxes.ap == 1.0
    assert (result.masks.ap, result.masks.ap50, result.masks.ap75) == (pytest.approx(0.3), 1.0, 0.0)


def test_only_things_count_and_crowds_are_ignored():
    truth = two_cats()
    crowd = make_truth(truth.segment_map, {1: 1, 2: 1, 9: 9}, crowds={2})
    boxes = np.array([[0, 0, 10, 10], [50, 50, 70, 70], [0, 0, 100, 100]], float)  # the cat, part of the crowd, sky
    precision = AveragePrecision(TABLE)
    precision.update(1, boxes, np.array([0.5, 0.9, 0.99]), np.array([1, 1, 9]), None, crowd)
    assert precision.compute().boxes.ap == 1.0
    without = AveragePrecision(TABLE)
    without.update(1, boxes, np.array([0.5, 0.9, 0.99]), np.array([1, 1, 9]), None, truth)
    assert without.compute().boxes.ap < 0.5


def random_images(count):
    generator = np.random.default_rng(5)
    for image_id in range(count):
        cells = generator.integers(0, 6, (6, 6))
        segment_map = cells.repeat(20, 0).repeat(20, 1).astype(np.int32)
        present = [i for i in np.unique(segment_map).tolist() if i]
        categories = {i: int(generator.choice([1, 4, 9])) for i in present}
        truth = make_truth(segment_map, categories, crowds={i for i in present if generator.random() < 0.1})
        boxes, _, category_ids, masks = perfect(truth)
        boxes = boxes + generator.normal(0, 6, boxes.shape)
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        masks = masks ^ (generator.random(masks.shape) < 0.15)
        swap = generator.random(len(boxes)) < 0.2
        yield image_id, boxes, generator.random(len(boxes)), np.where(swap, 4, category_ids), masks, truth


def collect(images):
    precision = AveragePrecision(TABLE)
    for image in images:
        precision.update(*image)
    return precision


def test_equal_to_pycocotools_fed_by_hand(capsys):
    images = list(random_images(12))
    result = collect(images).compute(backend="pycocotools")
    assert capsys.readouterr().out == ""
    for kind, scores in (("bbox", result.boxes), ("segm", result.masks)):
        truth_rows, found = [], []
        for image_id, boxes, confidence, category_ids, masks, truth in images:
            for s in truth.segments:
                mask = encode_masks((truth.segment_map == s.id)[None])[0]
                row = {"bbox": list(s.box), "area": s.area, "iscrowd": int(s.iscrowd), "segmentation": mask}
                truth_rows.append({"id": len(truth_rows) + 1, "image_id": image_id, "category_id": s.category_id, **row})
            for box, score, category_id, mask in zip(boxes, confidence, category_ids, encode_masks(masks), strict=True):
                row = {"image_id": image_id, "category_id": int(category_id), "score": float(score)}
                width, height = box[2:] - box[:2]
                found.append({**row, **({"bbox": [*box[:2], width, height]} if kind == "bbox" else {"segmentation": mask})})
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "height": 120, "width": 120} for i in range(12)],
            "categories": [{"id": 1}, {"id": 4}],
            "annotations": truth_rows,
        }
        coco.createIndex()
        expected = COCOeval(coco, coco.loadRes(found), kind)
        expected.evaluate()
        expected.accumulate()
        expected.summarize()
        stats = [None if value == -1 else pytest.approx(value, abs=1e-12) for value in expected.stats]
        assert list(scores[:6]) == stats[:6]
        assert scores.recall == stats[8]
        assert 0.02 < scores.ap < 0.98


def test_both_libraries_agree():
    pytest.importorskip("faster_coco_eval")
    precision = collect(random_images(12))
    slow, fast = precision.compute("pycocotools"), precision.compute("faster-coco-eval")
    for mine, theirs in ((slow.boxes, fast.boxes), (slow.masks, fast.masks)):
        assert list(mine[:7]) == [None if value is None else pytest.approx(value, abs=1e-9) for value in theirs[:7]]
        assert mine.per_class == pytest.approx(theirs.per_class)


def test_a_missing_library_is_said(monkeypatch):
    def nowhere(name):
        raise ImportError(name)

    monkeypatch.setattr(coco_ap.importlib, "import_module", nowhere)
    precision = collect(random_images(1))
    with pytest.raises(EvaluationError, match="faster-coco-eval is not installed; use backend='auto' or 'pycocotools'"):
        precision.compute("faster-coco-eval")


def test_parts_add_up_in_any_order():
    images = list(random_images(6))
    whole = collect(images).compute()
    for order in ([0, 1, 2], [2, 0, 1]):
        parts = [collect(images[i : i + 2]).state() for i in (0, 2, 4)]
        merged = AveragePrecision(TABLE)
        for index in order:
            merged.add_state(parts[index])
        assert merged.compute() == whole
    with pytest.raises(EvaluationError, match="image 0 was scored already"):
        merged.add_state(parts[0])


@pytest.mark.parametrize("masks", [None, np.zeros((0, 100, 100), bool)])
def test_no_predictions_at_all(masks):
    truth = two_cats()
    precision = AveragePrecision(TABLE)
    precision.update(1, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), masks, truth)
    result = precision.compute()
    assert result.boxes.ap == 0.0
    assert result.boxes.per_class == {1: 0.0, 4: None}
    assert (result.masks is None) == (masks is None)


def test_no_images_and_no_truth():
    assert AveragePrecision(TABLE).compute().boxes.ap is None
    only_sky = make_truth(np.full((5, 5), 9, np.int32), {9: 9})
    precision = AveragePrecision(TABLE)
    precision.update(1, np.array([[0.0, 0, 2, 2]]), np.array([0.5]), np.array([1]), None, only_sky)
    assert precision.compute().boxes.ap is None
    stuff = AveragePrecision(CategoryTable.from_coco([{"id": 9, "name": "sky", "isthing": 0}]))
    stuff.update(1, np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), None, only_sky)
    assert stuff.compute().boxes.ap is None


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"boxes": np.zeros((2, 3))}, ShapeError, r"boxes must be \(N, 4\), but got \(2, 3\)"),
        ({"scores": np.zeros(3)}, ShapeError, r"scores must be \(2\), but got \(3,\)"),
        ({"scores": np.array([0.5, np.nan])}, EvaluationError, r"image 7: boxes and scores must be finite numbers"),
        ({"category_ids": np.array([1, 2])}, EvaluationError, r"image 7: category 2 is not in the table of categories"),
        ({"masks": np.zeros((2, 5, 5), bool)}, ShapeError, r"masks must be \(2, 100, 100\), but got \(2, 5, 5\)"),
        ({"masks": []}, EvaluationError, r"image 7: 0 masks for 2 boxes; give one per box"),
        ({"masks": None}, EvaluationError, r"image 7: masks must be given for all images or for none"),
        ({"image_id": 6}, EvaluationError, r"image 6 was scored already; add every image once"),
    ],
)
def test_what_does_not_fit_is_named(change, error, message):
    truth = two_cats()
    precision = AveragePrecision(TABLE)
    precision.update(6, *perfect(truth), truth)
    names = ("boxes", "scores", "category_ids", "masks")
    arguments = {"image_id": 7, **dict(zip(names, perfect(truth), strict=True)), "truth": truth, **change}
    with pytest.raises(error, match=message):
        precision.update(**arguments)
