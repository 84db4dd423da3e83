"""Points lost, boundary PQ, the semantic view and intervals, on maps small enough to work them out in the comments."""

import cv2
import numpy as np
import pytest

from panoptic_detr.errors import EvaluationError
from panoptic_detr.quality import difference_intervals, image_quality, intervals
from panoptic_detr.quality.boundaries import measure_boundaries
from panoptic_detr.quality.counts import ClassCounts
from panoptic_detr.quality.overlaps import Regions, joint_runs, measure_overlaps
from panoptic_detr.quality.panoptic_quality import PanopticQuality

COCO = [{"id": i, "name": name, "isthing": int(i < 5)} for i, name in ((1, "cat"), (2, "dog"), (5, "sky"), (6, "road"))]
RANDOM = np.random.default_rng(0)


def regions(rows, segments):
    """`segments` is {segment id: category id}; a negative category is a crowd."""
    ids = np.array([[int(c) for c in row] for row in rows]) if isinstance(rows[0], str) else rows
    return Regions.from_rows(ids, [(i, abs(c), c < 0) for i, c in segments.items()], "map")


def score(*images, **options):
    quality = PanopticQuality(COCO, **options)
    for index, (prediction, truth) in enumerate(images):
        quality.update_regions(regions(*prediction), regions(*truth), f"image {index}")
    return quality.compute()


def lost(result, category_id):
    """Cause -> points of the class, of all sizes, where there are any."""
    return {cause: sum(sizes) for cause, sizes in result.losses[category_id].items() if sum(sizes)}


CASES = {
    # Nothing of the cat is found: D = 1/2, the whole of PQ is lost.
    "missed": ((["555555"], {5: 5}), (["115555"], {1: 1, 5: 5}), 1, {"missed": 1.0}),
    "extra": ((["115555"], {1: 1, 5: 5}), (["555555"], {5: 5}), 1, {"extra": 1.0}),
    # One of the two predicted pixels lies on void, which is not more than half.
    "void": ((["115555"], {1: 1, 5: 5}), (["055555"], {5: 5}), 1, {"void": 1.0}),
    "wrong class": ((["1155"], {1: 2, 5: 5}), (["1155"], {1: 1, 5: 5}), 1, {"wrong_class": 1.0}),
    # IoU 4/6 with the larger cat, which is matched: 1/3 short of it. D = 1 + 1/2; the smaller one costs 1/2.
    "merged": ((["111111"], {1: 1}), (["111122"], {1: 1, 2: 1}), 1, {"boundary": 1 / 3 / 1.5, "merged": 0.5 / 1.5}),
    # Three pieces and no match: D = 4/2, all of it split.
    "split": ((["112233"], {1: 1, 2: 1, 3: 1}), (["111111"], {1: 1}), 1, {"split": 1.0}),
    # IoU 2/8.
    "bad mask": ((["11000000"], {1: 1}), (["11111111"], {1: 1}), 1, {"bad_mask": 1.0}),
    # IoU 9/10.
    "outline": ((["1111111110"], {1: 1}), (["1111111111"], {1: 1}), 1, {"outline": 0.1}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_points_were_lost_to(case):
    prediction, truth, category_id, expected = CASES[case]
    result = score((prediction, truth))
    assert lost(result, category_id) == pytest.approx(expected, abs=1e-15)
    assert sum(lost(result, category_id).values()) == pytest.approx(1 - result.per_class[category_id].pq, abs=1e-15)


def test_points_stand_at_the_size_of_the_segment():
    large = np.zeros((100, 200), int)
    large[:], large[:, :100], large[:40, 100:140], large[0, 199] = 5, 1, 2, 3
    result = score(((np.full((100, 200), 5), {5: 5}), (large, {1: 1, 2: 1, 3: 1, 5: 5})))
    assert result.losses[1]["missed"] == pytest.approx((1 / 3, 1 / 3, 1 / 3))


def noisy(seed, side=24, share=0.2):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 7, (side // 4, side // 4)).repeat(4, 0).repeat(4, 1)
    guess = np.where(generator.random((side, side)) < share, generator.integers(1, 7, (side, side)), truth)
    kinds = {i: int(c) for i, c in zip(range(1, 7), generator.permutation([1, 1, 2, 2, 5, 6]), strict=True)}
    present = [{i: kinds[i] for i in np.unique(ids).tolist() if i} for ids in (guess, truth)]
    return (guess, present[0]), (truth, present[1])


def test_points_add_up_in_every_group_and_merge_exactly():
    pairs = [noisy(seed, share=share) for seed, share in enumerate(np.linspace(0.05, 0.7, 12))]
    whole = score(*pairs, boundary=True, per_image=True)
    for ids, group in zip(whole.groups().values(), (whole.all, whole.things, whole.stuff), strict=True):
        assert sum(map(sum, whole.loss(ids).values())) == pytest.approx(1 - group.pq, abs=1e-12)
    parts = [PanopticQuality(COCO, boundary=True, per_image=True) for _ in range(3)]
    for index, (prediction, truth) in enumerate(pairs):
        parts[index % 3].update_regions(regions(*prediction), regions(*truth), f"image {index}")
    for part in parts[:2]:
        parts[2].merge(part)
    assert parts[2].compute() == whole
    assert 0.2 < whole.all.pq < 0.9


def plain_boundary(mask, reach):
    """The definition's own words: what an erosion by `reach` pixels takes away, the outside of the image being outside."""
    inner = cv2.erode(np.pad(mask.astype(np.uint8), 1), np.ones((3, 3), np.uint8), iterations=reach)
    return mask & ~inner[1:-1, 1:-1].astype(bool)


@pytest.mark.parametrize("seed", range(4))
def test_boundaries_agree_with_the_plain_definition(seed):
    generator = np.random.default_rng(seed)
    truth, guess = (generator.integers(0, 4, (8, 10)).repeat(9, 0).repeat(9, 1) for _ in range(2))
    pair = [(ids, {i: 1 for i in np.unique(ids).tolist() if i}) for ids in (guess, truth)]
    sides = regions(*pair[0]), regions(*pair[1])
    overlaps = measure_overlaps(*sides)
    found, reach = measure_boundaries(overlaps, joint_runs(*sides)), round(0.02 * float(np.hypot(72, 90)))
    assert reach == 2
    places = list(zip(overlaps.truth.tolist(), overlaps.prediction.tolist(), strict=True))
    assert len(places) > 4
    for row, i in enumerate(pair[1][1]):
        for column, j in enumerate(pair[0][1]):
            if (row, column) not in places:
                assert not ((truth == i) & (guess == j)).any()
                continue
            mine, theirs = plain_boundary(guess == j, reach) & (truth != 0), plain_boundary(truth == i, reach)
            assert found.intersections[places.index((row, column))] == (mine & theirs).sum()
            assert found.unions[places.index((row, column))] == (mine | theirs).sum()


def test_boundary_pq_takes_the_smaller_iou():
    # A square of 40 x 40 in 100 x 100 (reach 3), predicted 1 pixel to the right: masks share 39 * 40 of 41 * 40. The rings have
    # 444 pixels each and share the bars above and below (2 * 3 * 39) and 2 columns on each side between them (2 * 2 * 34).
    truth, guess = np.zeros((100, 100), int), np.zeros((100, 100), int)
    truth[30:70, 30:70], guess[30:70, 31:71] = 1, 1
    result = score(((guess, {1: 1}), (np.where(truth, 1, 5), {1: 1, 5: 5})), boundary=True)
    assert result.per_class[1].pq == 1560 / 1640
    assert result.boundary[1].pq == pytest.approx(370 / (444 + 444 - 370))
    assert result.boundary_quality("Things").pq == result.boundary[1].pq


def test_mean_iou_and_pq_dagger():
    # Two images. Cat: 2 of 2 + 2 - 1 pixels -> over both 3 / 5. Sky: 2 shared, true 4, predicted 4, less 1 on void.
    first = (["1155"], {1: 1, 5: 5}), (["1555"], {1: 1, 5: 5})  # cat 1 / 2, sky 2 / 3
    second = (["1155"], {1: 1, 5: 5}), (["1160"], {1: 1, 6: 6})  # cat 2 / 2, sky 0 of 1, road 0 of 1
    result = score(first, second)
    assert {i: counts.iou for i, counts in result.pixels.items()} == {1: 3 / 4, 5: 2 / 4, 6: 0.0}
    assert result.mean_iou == pytest.approx((3 / 4 + 2 / 4 + 0) / 3)
    # PQ of cats: one match of IoU 1; the other has IoU 1/2, no match: 1 / (1 + 1/2 + 1/2). Sky by image: only the first has it.
    assert result.per_class[1].pq == 0.5
    assert result.pq_dagger == pytest.approx((0.5 + 2 / 3 + 0) / 3)
    assert score().mean_iou is None
    assert score().pq_dagger is None


def test_intervals_hold_the_score_and_need_counts_by_image():
    result = score(*[noisy(seed, share=seed / 50) for seed in range(40)], per_image=True)
    found = intervals(result, resamples=300)
    assert found["All PQ"].value == pytest.approx(result.all.pq, abs=1e-12)
    assert found["Stuff RQ"].value == pytest.approx(result.stuff.rq, abs=1e-12)
    assert found["cat"].value == pytest.approx(result.per_class[1].pq, abs=1e-12)
    assert all(row.low <= row.value <= row.high for row in found.values())
    assert 0.005 < found["All PQ"].high - found["All PQ"].low < 0.3
    assert intervals(result, resamples=300) == found
    with pytest.raises(EvaluationError, match="intervals need the counts of every image; score with per_image"):
        intervals(score(noisy(0)))


def test_the_interval_is_that_of_the_textbook():
    # One class, one segment an image, found in 30 of 100 with IoU 1: PQ is the share p = tp / (tp + fn / 2).
    hit, miss = (["11"], {1: 1}), (["00"], {})
    result = score(*[(hit if i < 30 else miss, (["11"], {1: 1})) for i in range(100)], per_image=True)
    low, high = (k / (k + (100 - k) / 2) for k in (30 - 1.96 * 21**0.5, 30 + 1.96 * 21**0.5))
    found = intervals(result)["cat"]
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02)


def test_a_paired_difference_is_narrower_than_both():
    worse, better = ([noisy(seed, share=share) for seed in range(40)] for share in (0.24, 0.2))
    first, second = score(*worse, per_image=True), score(*better, per_image=True)
    difference = difference_intervals(first, second, resamples=500)["All PQ"]
    assert difference.value == pytest.approx(second.all.pq - first.all.pq, abs=1e-12)
    assert difference.is_real
    assert not difference_intervals(first, first, resamples=100)["All PQ"].is_real
    with pytest.raises(EvaluationError, match="these are of other images"):
        difference_intervals(first, score(*better[:3], per_image=True))


def test_quality_of_one_image():
    assert image_quality({1: ClassCounts(tp=1, iou_units=2**52), 2: ClassCounts(fn=1)}) == 0.5 / 1.5
    assert image_quality({}) == 1.0
