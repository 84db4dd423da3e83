"""The merger on hand-made masks, its properties, and what it says of unusable arguments."""

import resource

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import MergeError, ShapeError
from panoptic_detr.inference.merge import merge_panoptic

CAT, DOG, SKY, SEA = 3, 5, 10, 20
TABLE = CategoryTable.from_coco(
    [
        {"id": CAT, "name": "cat", "isthing": 1},
        {"id": DOG, "name": "dog", "isthing": 1},
        {"id": SKY, "name": "sky", "isthing": 0},
        {"id": SEA, "name": "sea", "isthing": 0},
    ]
)
NOTHING = None


def class_logits(*wanted, no_object=True):
    """Logits that give each query the wanted category, as (category id, probability of it) or an id for 0.99."""
    slots = TABLE.num_labels + no_object
    logits = torch.zeros(len(wanted), slots)
    for query, entry in enumerate(wanted):
        category, score = entry if isinstance(entry, tuple) else (entry, 0.99)
        slot = slots - 1 if category is NOTHING else TABLE.label_of[category]
        probabilities = torch.full((slots,), (1 - score) / (slots - 1))
        probabilities[slot] = score
        logits[query] = probabilities.log() if no_object else torch.logit(probabilities)
    return logits


def regions(*rows):
    """Mask logits of letters in a picture: a query's mask is +9 on its letter, -9 elsewhere."""
    letters = np.array([list(row) for row in rows])
    names = sorted(set(letters.ravel()) - {"."})
    return torch.tensor(np.stack([np.where(letters == name, 9.0, -9.0) for name in names]), dtype=torch.float32)


def merge(logits, masks, **options):
    options.setdefault("size", masks.shape[1:])
    return merge_panoptic(logits, masks, categories=TABLE, **options)


def reasons(result):
    return {d.query: d.reason for d in result.dropped}


def smooth(count, height, width):
    return F.interpolate(torch.randn(1, count, 5, 5) * 4, size=(height, width), mode="bicubic")[0]


def test_things_and_stuff():
    masks = regions("aabb", "aabb", "cccc", "cccc")
    result = merge(class_logits(CAT, CAT, (SKY, 0.9)), masks, min_area=1)
    assert result.segment_map.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 3, 3], [3, 3, 3, 3]]
    assert result.segment_map.dtype == np.int32
    assert [(s.id, s.category_id, s.isthing, s.area, s.box, s.query) for s in result.segments] == [
        (1, CAT, True, 4, (0, 0, 2, 2), 0),
        (2, CAT, True, 4, (2, 0, 2, 2), 1),
        (3, SKY, False, 8, (0, 2, 4, 2), 2),
    ]
    assert [s.score for s in result.segments] == pytest.approx([0.99, 0.99, 0.9], abs=1e-5)
    assert result.dropped == []
    assert result.categories is TABLE


def test_stuff_of_one_category_is_united():
    masks = regions("aabb", "aabb", "cccc", "cccc")
    result = merge(class_logits(SKY, CAT, SKY), masks, min_area=1)
    assert result.segment_map.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert [(s.category_id, s.area, s.box, s.query) for s in result.segments] == [
        (SKY, 12, (0, 0, 4, 4), 0),
        (CAT, 4, (2, 0, 2, 2), 1),
    ]
    assert [(d.query, d.reason, d.into, d.area) for d in result.dropped] == [(2, "merged", 1, 8)]


def test_united_stuff_is_judged_by_its_whole_area():
    masks = regions("aabb", "cccc")
    result = merge(class_logits(SKY, SKY, CAT), masks, min_area=4)
    assert [(s.category_id, s.area) for s in result.segments] == [(SKY, 4), (CAT, 4)]


def test_keep_first_gives_the_pixels_of_later_stuff_away():
    masks = regions("aabb", "aabb", "cccc", "cccc")
    masks[1] += 1  # the cat is next best where the second sky was
    result = merge(class_logits(SKY, CAT, SKY), masks, min_area=1, duplicate_stuff="keep_first")
    assert result.segment_map.tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [2, 2, 2, 2], [2, 2, 2, 2]]
    assert reasons(result) == {2: "suppressed"}


def test_keep_first_drops_a_first_that_was_large_only_with_its_duplicates():
    masks = regions("abbb", "bbbb", "cccc", "cccc")
    masks[2] += 1
    result = merge(class_logits(SKY, SKY, CAT), masks, min_area=2, duplicate_stuff="keep_first")
    assert [(s.category_id, s.area) for s in result.segments] == [(CAT, 16)]
    assert [(d.query, d.reason, d.area) for d in result.dropped] == [(0, "small", 1), (1, "suppressed", 7)]


def test_pixels_of_a_small_segment_go_to_the_next_best():
    masks = regions("abbb", "bbbb", "cccc", "cccc")
    masks[2, 0, 0] = 0.0
    result = merge(class_logits(CAT, DOG, SKY), masks)
    assert result.segment_map[0].tolist() == [2, 1, 1, 1]
    assert [(s.category_id, s.area) for s in result.segments] == [(DOG, 7), (SKY, 9)]
    assert [(d.query, d.reason, d.area, d.category_id) for d in result.dropped] == [(0, "small", 1, CAT)]


def test_small_segments_of_a_round_go_together():
    masks = regions("aabb", "cccc", "cccc", "cccc")
    masks[1, 0, :2] = 5.0  # b would take the pixels of a and be large enough; the published code does not wait for that
    result = merge(class_logits(CAT, DOG, SKY), masks, min_area=3)
    assert [(s.category_id, s.area) for s in result.segments] == [(SKY, 16)]
    assert reasons(result) == {0: "small", 1: "small"}


def test_a_mask_that_wins_no_pixel_is_covered():
    masks = regions("aaaa", "aaaa", "bbbb", "bbbb")
    masks = torch.cat([masks, masks[:1] - 1])
    result = merge(class_logits(CAT, SKY, DOG), masks)
    assert [(d.query, d.reason, d.area) for d in result.dropped] == [(2, "covered", 0)]


def test_every_query_is_a_segment_or_dropped_with_a_reason():
    table = CategoryTable.from_coco([{"id": 2, "name": "cat", "isthing": 1}], labels="id", num_labels=4)
    logits = torch.full((5, 5), -9.0)
    logits[0, 2] = logits[1, 4] = logits[2, 3] = logits[3, 0] = 9.0
    logits[4, 2] = -8.0
    result = merge_panoptic(logits, torch.randn(5, 8, 8), categories=table, size=(8, 8))
    assert [s.query for s in result.segments] == [0]
    assert reasons(result) == {1: "no object", 2: "no category", 3: "no category", 4: "low score"}
    assert [d.category_id for d in result.dropped] == [None, None, None, 2]


def test_stuff_threshold():
    masks = regions("aabb", "aabb")
    logits = class_logits((CAT, 0.5), (SKY, 0.5))
    assert len(merge(logits, masks, min_area=1, threshold=0.4).segments) == 2
    assert [s.category_id for s in merge(logits, masks, min_area=1, threshold=0.6, stuff_threshold=0.3).segments] == [SKY]
    assert [s.category_id for s in merge(logits, masks, min_area=1, threshold=0.3, stuff_threshold=0.6).segments] == [CAT]


def test_threshold_is_exclusive():
    masks = regions("aaaa", "aaaa")
    logits = torch.tensor([[0.0, -200.0, -200.0, -200.0, 0.0]])
    assert merge(logits, masks, threshold=0.5).segments == []
    assert len(merge(logits, masks, threshold=0.499).segments) == 1


def test_sigmoid_classes():
    masks = regions("aabb", "aabb")
    result = merge(class_logits(CAT, (SKY, 0.7), no_object=False), masks, min_area=1, no_object=False)
    assert [s.category_id for s in result.segments] == [CAT]
    assert reasons(result) == {1: "low score"}


def test_masks_of_chosen_queries_only():
    masks = regions("aabb", "aabb", "cccc", "cccc")
    logits = class_logits(CAT, NOTHING, DOG, NOTHING, SKY)
    whole = merge(logits, masks[[0, 0, 1, 1, 2]], min_area=1)
    assert np.array_equal(merge(logits, masks, min_area=1).segment_map, whole.segment_map)
    named = merge(logits, masks[[2, 1, 0]], min_area=1, queries=torch.tensor([4, 2, 0]))
    assert np.array_equal(named.segment_map, whole.segment_map)
    assert [s.query for s in named.segments] == [0, 2, 4]


def test_a_passing_query_without_mask_is_reported():
    result = merge(class_logits(CAT, DOG), regions("aaaa", "aaaa"), queries=[1])
    assert [s.query for s in result.segments] == [1]
    assert reasons(result) == {0: "low score"}


def test_nothing_kept():
    result = merge(class_logits(NOTHING, (CAT, 0.5)), torch.zeros(0, 4, 4), size=(8, 8), target_size=(5, 7))
    assert result.segment_map.tolist() == np.zeros((5, 7)).tolist()
    assert result.segments == []
    assert reasons(result) == {0: "no object", 1: "low score"}


def test_all_small_leaves_an_all_void_map():
    result = merge(class_logits(CAT, DOG), regions("ab"), min_area=5)
    assert not result.segment_map.any()
    assert reasons(result) == {0: "small", 1: "small"}


def test_result_has_the_target_size_with_areas_and_boxes_of_its_pixels():
    masks, logits = smooth(4, 12, 16), class_logits(CAT, DOG, SKY, SEA)
    for target in ((48, 64), (31, 37), (100, 201), (5, 5)):
        result = merge(logits, masks, size=(48, 64), target_size=target, min_area=1)
        assert result.segment_map.shape == target
        for segment in result.segments:
            rows, columns = np.nonzero(result.segment_map == segment.id)
            assert segment.area == len(rows)
            left, top = columns.min(), rows.min()
            assert segment.box == (left, top, columns.max() - left + 1, rows.max() - top + 1)
        assert sum(segment.area for segment in result.segments) == target[0] * target[1]


def test_permuted_queries_give_the_same_map():
    masks, logits = smooth(6, 20, 24), class_logits(CAT, SKY, DOG, SKY, CAT, SEA)
    order = torch.tensor([3, 5, 1, 0, 4, 2])
    first = merge(logits, masks, size=(80, 96), min_visible=0.3)
    second = merge(logits[order], masks[order], size=(80, 96), min_visible=0.3)
    assert len(first.segments) == len(second.segments)
    for segment in second.segments:
        other = first.segments[first.segment_map[second.segment_map == segment.id][0] - 1]
        assert np.array_equal(first.segment_map == other.id, second.segment_map == segment.id)
        assert (segment.category_id, segment.area, segment.box) == (other.category_id, other.area, other.box)


def test_padding_is_cropped_before_resizing():
    masks, logits = smooth(4, 16, 20), class_logits(CAT, DOG, SKY, SEA)
    canvas = F.interpolate(masks[None], size=(64, 80), mode="bilinear")[0]
    result = merge(logits, masks, size=(50, 61), padded_size=(64, 80), min_area=1)
    labels = np.array([0, *(s.query for s in result.segments)])
    assert np.array_equal(labels[result.segment_map], canvas[:, :50, :61].argmax(0).numpy())
    masks[:, 14:] = masks[:, :, 17:] = 1e3 * torch.randn(())  # cells that no pixel of the image touches
    assert np.array_equal(merge(logits, masks, size=(50, 61), padded_size=(64, 80), min_area=1).segment_map, result.segment_map)


def test_a_padded_image_gives_the_map_of_the_image_alone():
    masks, logits = smooth(5, 16, 20), class_logits(CAT, SKY, DOG, SKY, CAT)
    alone = merge(logits, masks, size=(64, 80), target_size=(100, 90), min_visible=0.4)
    padded = F.pad(masks, (0, 3, 0, 9), mode="replicate")
    canvas = merge(logits, padded, size=(64, 80), padded_size=(100, 92), target_size=(100, 90), min_visible=0.4)
    assert np.array_equal(alone.segment_map, canvas.segment_map)
    assert alone.segments == canvas.segments
    assert alone.dropped == canvas.dropped


def test_min_visible_drops_the_hidden_copy_and_uncovers_what_is_below():
    masks = regions("aaaa", "aaaa", "bbbb", "bbbb")
    copy = masks[:1].clone()
    copy[0, 0, :3] = 12.0  # ahead of the first in 3 of its 8 pixels
    logits = class_logits(CAT, SKY, CAT)
    both = merge(logits, torch.cat([masks, copy]), min_area=1)
    assert [s.area for s in both.segments] == [5, 8, 3]
    one = merge(logits, torch.cat([masks, copy]), min_area=1, min_visible=0.5)
    assert [(s.query, s.area) for s in one.segments] == [(0, 8), (1, 8)]
    assert [(d.query, d.reason, d.area) for d in one.dropped] == [(2, "suppressed", 3)]


def test_min_visible_spares_stuff():
    masks = regions("aaaa", "aaaa", "bbbb", "bbbb")
    masks[1, :1] = 8.0
    assert len(merge(class_logits(SEA, SKY), masks, min_area=1, min_visible=1.0).segments) == 2


def test_large_results_take_little_memory():
    masks = smooth(100, 50, 75)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = merge(class_logits(*[CAT] * 100), masks, size=(200, 300), target_size=(4000, 6000))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert result.segment_map.shape == (4000, 6000)
    assert (after - before) / 1024 < 400  # MB; one (K, H, W) tensor of the target would be 9600


def test_low_precision_and_infinite_logits():
    masks = regions("aabb", "aabb")
    masks[0, :, :2], masks[1, :, :2] = torch.inf, -torch.inf
    result = merge(class_logits(CAT, SKY).bfloat16(), masks.bfloat16(), size=(8, 16))
    assert [s.category_id for s in result.segments] == [CAT, SKY]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 1.5}, r"threshold must lie in \[0, 1\], but got 1.5"),
        ({"stuff_threshold": -0.1}, r"stuff_threshold must lie in \[0, 1\], but got -0.1"),
        ({"min_visible": 2}, r"min_visible must lie in \[0, 1\], but got 2"),
        ({"duplicate_stuff": "first"}, r"duplicate_stuff must be one of union, keep_first, but got 'first'"),
        ({"size": (0, 4)}, r"size must be \(height, width\) in pixels, at least 1 each, but got \(0, 4\)"),
        ({"target_size": (4,)}, r"target_size must be \(height, width\)"),
        ({"padded_size": (1, 4)}, r"padded_size \(1, 4\) is smaller than size \(2, 4\)"),
        ({"queries": [0]}, r"queries must name 2 different queries of 2"),
        ({"queries": [0, 0]}, r"queries must name 2 different queries of 2"),
        ({"queries": [0, 2]}, r"but got \[0, 2\]"),
        ({"no_object": False}, r"logits have 5 slots, but the category table means 4 label slots"),
    ],
)
def test_unusable_arguments(options, message):
    with pytest.raises(MergeError, match=message):
        merge(class_logits(CAT, SKY), regions("aabb", "aabb"), **options)


def test_unusable_masks():
    logits = class_logits(CAT, SKY, NOTHING, NOTHING)
    with pytest.raises(MergeError, match=r"3 masks, but there are 4 queries, of which 2 pass .* pass `queries`"):
        merge(logits, torch.zeros(3, 4, 4))
    with pytest.raises(ShapeError, match="mask_logits"):
        merge(logits, torch.zeros(1, 4, 4, 4), size=(4, 4))
    with pytest.raises(MergeError, match="mask logits contain NaN"):
        merge(logits, torch.full((4, 4, 4), torch.nan))
    with pytest.raises(MergeError, match="class logits are not finite"):
        merge(torch.full((4, 5), torch.nan), torch.zeros(4, 4, 4))


def test_categories_may_be_a_coco_list():
    masks = regions("aaaa", "aaaa")
    logits = torch.full((1, 21), -9.0)
    logits[0, SKY] = 9.0
    result = merge_panoptic(logits, masks, categories=TABLE.to_coco()[:3], size=(2, 4), threshold=0.5)
    assert [s.category_id for s in result.segments] == [SKY]  # label index = category id: there are more slots than classes
