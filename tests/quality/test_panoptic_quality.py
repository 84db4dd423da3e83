"""PQ of 5x5 maps, worked out by hand in the comments; streaming, merging, and what is refused."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from plain_maps import areas, boxes_of

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import overlaps, panoptic_quality
from panoptic_detr.quality.overlaps import Regions, measure_overlaps
from panoptic_detr.quality.panoptic_quality import PanopticQuality

COCO = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 2, "name": "dog", "isthing": 1},
    {"id": 5, "name": "sky", "isthing": 0},
]
TABLE = CategoryTable.from_coco(COCO)


def segmentation(rows, categories, crowds=(), image_id=7, table=TABLE):
    """A map from five strings of digits; `categories` is {segment id: category id}."""
    segment_map = np.array([[int(c) for c in row] for row in rows], dtype=np.int32)
    pixels, boxes = areas(segment_map), boxes_of(segment_map)
    segments = [
        Segment(
            i,
            c,
            table.by_id[c].isthing if c in table.by_id else True,
            1.0,
            pixels.get(i, 0),
            boxes.get(i, (0, 0, 0, 0)),
            iscrowd=i in crowds,
        )
        for i, c in categories.items()
    ]
    return PanopticSegmentation(segment_map, segments, table, image_id=image_id)


def score(prediction, truth):
    quality = PanopticQuality(TABLE)
    quality.update(prediction, truth)
    return quality.compute()


TRUTH = segmentation(["11155", "11155", "22255", "22255", "00055"], {1: 1, 2: 2, 5: 5})


def test_equal_maps_score_one():
    result = score(TRUTH, TRUTH)
    assert result.all == (1.0, 1.0, 1.0, 3)
    assert result.things == (1.0, 1.0, 1.0, 2)
    assert result.stuff == (1.0, 1.0, 1.0, 1)
    assert result.per_class[1] == (1.0, 1.0, 1.0, 1, 0, 0)
    assert result.images == 1
    assert result.notes == ()


def test_ids_do_not_matter():
    prediction = segmentation(["44466", "44466", "99966", "99966", "00066"], {6: 5, 9: 2, 4: 1})
    assert score(prediction, TRUTH).all == (1.0, 1.0, 1.0, 3)


def test_pq_worked_out():
    prediction = segmentation(["11155", "11555", "33355", "33355", "00055"], {1: 1, 3: 1, 5: 5})
    # cat: true 6 pixels, predicted 5, shared 5: IoU 5/6, matched. The prediction on the dog is a false positive of cat:
    #      PQ = (5/6) / (1 + 1/2) = 5/9, SQ = 5/6, RQ = 2/3.
    # dog: 1 false negative: 0, 0, 0.        sky: true 10, predicted 11, shared 10: IoU 10/11, PQ = SQ = 10/11, RQ = 1.
    result = score(prediction, TRUTH)
    assert result.per_class[1] == pytest.approx((5 / 9, 5 / 6, 2 / 3, 1, 1, 0))
    assert result.per_class[2] == (0.0, 0.0, 0.0, 0, 0, 1)
    assert result.per_class[5] == pytest.approx((10 / 11, 10 / 11, 1.0, 1, 0, 0))
    assert result.things == pytest.approx((5 / 18, 5 / 12, 1 / 3, 2))
    assert result.all == pytest.approx(((5 / 9 + 10 / 11) / 3, (5 / 6 + 10 / 11) / 3, 5 / 9, 3))


def test_iou_of_exactly_one_half_is_no_match():
    # 4 true pixels, 8 predicted, 4 shared: IoU 4/8. With one pixel more it is 5/8.
    prediction = segmentation(["11110", "11110", "00000", "00000", "00000"], {1: 1})
    half = segmentation(["11550", "11550", "55550", "55550", "55550"], {1: 1, 5: 5})
    more = segmentation(["11150", "11550", "55550", "55550", "55550"], {1: 1, 5: 5})
    assert score(prediction, half).per_class[1][3:] == (0, 1, 1)
    assert score(prediction, more).per_class[1] == pytest.approx((5 / 8, 5 / 8, 1.0, 1, 0, 0))


def test_predicted_pixels_on_void_leave_the_union():
    # The cat's 6 pixels are all found, with 4 more on void: IoU = 6 / (10 + 6 - 6 - 4) = 1.
    truth = segmentation(["11100", "11100", "00000", "00000", "55555"], {1: 1, 5: 5})
    prediction = segmentation(["11111", "11111", "00000", "00000", "55555"], {1: 1, 5: 5})
    assert score(prediction, truth).per_class[1] == (1.0, 1.0, 1.0, 1, 0, 0)


@pytest.mark.parametrize(("on_void", "false_positives"), [(3, 1), (4, 0)])
def test_predictions_mostly_on_void_are_ignored(on_void, false_positives):
    # 6 predicted pixels: 3 on void is half (counts), 4 is more (ignored).
    truth = segmentation(["0" * on_void + "5" * (5 - on_void), "55555", "55555", "55555", "55555"], {5: 5})
    prediction = segmentation(["0" * 5, *(["55555"] * 4)], {5: 5})
    prediction.segment_map[0] = 3
    prediction.segment_map[1, 0] = 3
    prediction.segments.append(Segment(3, 1, True, 1.0, 6, (0, 0, 5, 2)))
    assert score(prediction, truth).per_class[1].fp == false_positives


@pytest.mark.parametrize(("category", "false_positives"), [(1, 0), (2, 1)])
def test_predictions_on_the_crowd_of_their_class_are_ignored(category, false_positives):
    # Ten pixels of a cat crowd: a cat there is neither right nor wrong, a dog there is wrong; the crowd itself is not missed.
    truth = segmentation(["11111", "11111", "55555", "55555", "55555"], {1: 1, 5: 5}, crowds={1})
    prediction = segmentation(["33300", "33300", "55555", "55555", "55555"], {3: category, 5: 5})
    result = score(prediction, truth)
    assert result.per_class[category][3:] == (0, false_positives, 0)
    assert result.things.n == false_positives


def test_void_and_crowd_add_up():
    # 5 predicted pixels: 2 on the cat crowd, 1 on void, 2 on sky: 3 of 5 are ignored ground, so the prediction is.
    truth = segmentation(["11055", "55555", "55555", "55555", "55555"], {1: 1, 5: 5}, crowds={1})
    prediction = segmentation(["33333", "55555", "55555", "55555", "55555"], {3: 1, 5: 5})
    assert score(prediction, truth).per_class[1][3:] == (0, 0, 0)


def test_a_crowd_is_never_matched():
    truth = segmentation(["11111", "11111", "55555", "55555", "55555"], {1: 1, 5: 5}, crowds={1})
    assert score(truth, truth).per_class[1] == (0.0, 0.0, 0.0, 0, 0, 0)


def test_empty_prediction_misses_everything():
    nothing = segmentation(["00000"] * 5, {})
    result = score(nothing, TRUTH)
    assert result.all == (0.0, 0.0, 0.0, 3)
    assert [result.per_class[i].fn for i in (1, 2, 5)] == [1, 1, 1]


def test_a_group_without_segments_has_n_zero():
    nothing = segmentation(["00000"] * 5, {})
    result = score(nothing, nothing)
    assert result.all == result.things == result.stuff == (0.0, 0.0, 0.0, 0)
    only_stuff = PanopticQuality([COCO[2]])
    only_stuff.update(segmentation(["55555"] * 5, {5: 5}), segmentation(["55555"] * 5, {5: 5}))
    assert only_stuff.compute().things == (0.0, 0.0, 0.0, 0)
    assert only_stuff.compute().stuff == (1.0, 1.0, 1.0, 1)


def test_no_images_at_all():
    result = PanopticQuality(TABLE).compute()
    assert result.all == (0.0, 0.0, 0.0, 0)
    assert result.images == 0


def test_a_listed_segment_zero_is_a_segment_and_not_void():
    truth = segmentation(["00055", "00055", "55555", "55555", "55555"], {0: 1, 5: 5})
    assert score(truth, truth).per_class[1] == (1.0, 1.0, 1.0, 1, 0, 0)
    # Nothing is void then: 6 pixels of cat on it are a false positive of dog.
    wrong = segmentation(["33355", "33355", "55555", "55555", "55555"], {3: 2, 5: 5})
    assert score(wrong, truth).per_class[2][3:] == (0, 1, 0)


def test_a_map_without_pixels():
    nothing = PanopticSegmentation(np.zeros((0, 4), np.int32), [], TABLE)
    assert score(nothing, nothing).all.n == 0
    quality = PanopticQuality(TABLE, boundary=True)
    quality.update(nothing, nothing)
    assert quality.compute().all.n == 0


def test_an_image_of_many_segments_needs_no_table_of_all_pairs():
    ids = np.arange(1, 40_001, dtype=np.int32).reshape(200, 200)  # 1.6 thousand million pairs, of which 40,000 meet
    regions = Regions.from_rows(ids, [(i, 1, False) for i in range(1, 40_001)], "image 7")
    quality = PanopticQuality(TABLE)
    quality.update_regions(regions, regions)
    assert quality.compute().per_class[1] == (1.0, 1.0, 1.0, 40_000, 0, 0)


def test_pairs_are_counted_alike_in_a_table_and_sorted(monkeypatch):
    generator = np.random.default_rng(3)
    pairs = [random_regions(generator) for _ in range(5)]
    tabled = [measure_overlaps(*pair) for pair in pairs]
    monkeypatch.setattr(overlaps, "LARGEST_TABLE", 0)
    monkeypatch.setattr(overlaps, "TABLE_PER_RUN", 0)
    for pair, found in zip(pairs, tabled, strict=True):
        again = measure_overlaps(*pair)
        assert len(found.truth) > 1
        for name in ("truth", "prediction", "intersections", "truth_areas", "prediction_areas", "on_void"):
            assert (getattr(found, name) == getattr(again, name)).all(), name


def test_images_count_alike_one_by_one_and_together(monkeypatch):
    def total(at_once):
        monkeypatch.setattr(panoptic_quality, "_TOGETHER", at_once)
        generator, quality = np.random.default_rng(5), PanopticQuality(TABLE, per_image=True, boundary=True)
        for number in range(12):
            quality.update_regions(*random_regions(generator), f"image {number}")
        return quality.compute()

    assert total(1) == total(5) == total(100)
    assert len(total(5).by_image) == 12


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.uint32, np.int64])
def test_any_integer_type_of_map(dtype):
    truth = PanopticSegmentation(TRUTH.segment_map.astype(dtype), TRUTH.segments, TABLE)
    turned = PanopticSegmentation(np.asfortranarray(TRUTH.segment_map), TRUTH.segments, TABLE)
    assert score(turned, truth).all.pq == 1.0


@pytest.mark.parametrize(
    ("listed", "painted", "found"), [([-2, -1], [-2, -1], [0, 1]), ([2**32 - 1, 1], [-1, 1], None), ([5 - 2**32], [5, 5], None)]
)
def test_ids_beyond_those_of_files_are_what_they_are(listed, painted, found):
    rows = [(i, 1, False) for i in listed]
    regions = Regions.from_rows(np.array([painted], np.int32), rows, "map")
    if found is None:
        with pytest.raises(EvaluationError, match="no such segment is listed"):
            overlaps.joint_runs(regions, regions)
    else:
        assert overlaps.joint_runs(regions, regions).truth.tolist() == found


def random_regions(generator, side=24):
    segment_map = generator.integers(0, 5, (side // 4, side // 4)).repeat(4, 0).repeat(4, 1).astype(np.int32)
    noise = generator.random((side, side)) < 0.2
    other = np.where(noise, generator.integers(1, 5, (side, side)), segment_map).astype(np.int32)
    pair = []
    for ids in (segment_map, other):
        rows = [(i, int(generator.choice([1, 2, 5], p=[0.8, 0.1, 0.1])), False) for i in np.unique(ids).tolist() if i]
        pair.append(Regions.from_rows(ids, rows, "map"))
    return pair


def test_merging_is_bit_identical_in_any_order_and_equals_one_pass():
    generator = np.random.default_rng(3)
    pairs = [random_regions(generator) for _ in range(40)]
    parts = []
    for start in range(0, 40, 10):
        parts.append(PanopticQuality(TABLE))
        parts[-1].note("odd", [f"image {start}"])
        for prediction, truth in pairs[start : start + 10]:
            parts[-1].update_regions(prediction, truth)
    results = set()
    for order in itertools.permutations(range(4)):
        whole = PanopticQuality(TABLE)
        for index in order:
            whole.merge(parts[index])
        results.add((whole.state(), repr(whole.compute())))
    assert len(results) == 1
    single = PanopticQuality(TABLE)
    for prediction, truth in reversed(pairs):
        single.update_regions(prediction, truth)
    assert single.compute().per_class == whole.compute().per_class
    assert 0.05 < single.compute().all.pq < 0.95
    assert whole.compute().notes == ("odd: 4 (image 0, image 10, image 20, ...)",)


def test_the_sum_of_ious_is_exact():
    # 1/3 cannot be written in binary; adding 2/3 a thousand times in floating point drifts, counts do not.
    truth = segmentation(["11100", "00000", "00000", "00000", "55555"], {1: 1, 5: 5})
    prediction = segmentation(["11000", "00000", "00000", "00000", "55555"], {1: 1, 5: 5})
    quality = PanopticQuality(TABLE)
    for _ in range(1000):
        quality.update(prediction, truth)
    assert quality.compute().per_class[1].sq == 2 / 3
    assert sum([2 / 3] * 1000) / 1000 != 2 / 3


def test_state_is_plain_small_and_travels():
    quality = PanopticQuality(TABLE)
    sizes = []
    for _ in range(3):
        for _ in range(20):
            quality.update(TRUTH, TRUTH)
        sizes.append(len(pickle.dumps(quality.state())))
    assert max(sizes) - min(sizes) <= 40  # only the integers themselves get longer
    other = PanopticQuality(TABLE)
    other.add_state(pickle.loads(pickle.dumps(quality.state())))
    assert other.compute() == quality.compute()
    assert not any(isinstance(value, torch.Tensor | np.generic) for value in flatten(quality.state()))


def flatten(value):
    return [leaf for item in value for leaf in flatten(item)] if isinstance(value, tuple) else [value]


def test_other_categories_are_not_merged():
    other = PanopticQuality([{"id": 1, "name": "cow", "isthing": 1}])
    with pytest.raises(EvaluationError, match=r"over different categories cannot be added: \(1, 'cat', True\) is in one"):
        PanopticQuality(TABLE).merge(other)


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (
            segmentation(["1155", "1155"], {1: 1, 5: 5}),
            r"image 7, prediction is 4 x 2, but image 7, ground truth is 5 x 5; predict at",
        ),
        (
            segmentation(["11333"] * 5, {1: 1}),
            r"image 7, prediction: the map has pixels of id 3, but no such segment is listed",
        ),
        (segmentation(["11111"] * 5, {1: 1, 4: 2}), r"image 7, prediction: segment 4 is listed but has no pixel in the map"),
        (
            segmentation(["11111"] * 5, {1: 3}),
            r"image 7, prediction: segment 1 has category 3, which .* \(3 categories with ids 1\.\.5\)",
        ),
    ],
)
def test_what_does_not_fit_is_refused_and_changes_nothing(prediction, message):
    quality = PanopticQuality(TABLE)
    with pytest.raises(EvaluationError, match=message):
        quality.update(prediction, TRUTH)
    assert quality.compute().images == 0
    assert quality.compute().all.n == 0


def test_images_without_an_id_are_named_by_their_order():
    quality = PanopticQuality(TABLE)
    nameless = segmentation(["11111"] * 5, {1: 1}, image_id=None)
    quality.update(nameless, nameless)
    with pytest.raises(EvaluationError, match=r"image 2 \(in order\), prediction: the map has pixels of id 1"):
        quality.update(segmentation(["11111"] * 5, {}, image_id=None), nameless)


def test_a_segment_listed_twice_is_refused():
    with pytest.raises(EvaluationError, match="there: segment id 4 is listed twice"):
        Regions.from_rows(np.full((2, 2), 4), [(4, 1, False), (4, 2, False)], "there")


def test_as_dict_has_panopticapis_layout():
    layout = score(TRUTH, TRUTH).as_dict()
    assert list(layout) == ["All", "Things", "Stuff", "per_class"]
    assert layout["All"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0, "n": 3}
    assert layout["per_class"][5] == layout["per_class"]["5"] == {"pq": 1.0, "sq": 1.0, "rq": 1.0}
    for unknown in (9, "9", "sky"):
        with pytest.raises(KeyError):
            layout["per_class"][unknown]
