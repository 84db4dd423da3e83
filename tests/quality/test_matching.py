"""Each cause of an error on maps small enough to see it."""

import numpy as np
import pytest

from panoptic_detr.quality.counts import ErrorCounts, count_segments
from panoptic_detr.quality.overlaps import Regions, measure_overlaps


def errors(prediction_rows, predicted, truth_rows, true):
    """`predicted` and `true` are {segment id: category id}; a negative category is a crowd."""
    pair = [
        Regions.from_rows(
            np.array([[int(c) for c in row] for row in rows]), [(i, abs(c), c < 0) for i, c in segments.items()], "map"
        )
        for rows, segments in ((prediction_rows, predicted), (truth_rows, true))
    ]
    overlaps = measure_overlaps(*pair)
    found = count_segments(overlaps)
    for category_id, count in found.classes.items():
        assert found.lost.get(category_id, ErrorCounts()).total == count.fn
        assert found.extra.get(category_id, ErrorCounts()).total == count.fp
    return found


def test_no_errors():
    found = errors(["1122"], {1: 1, 2: 2}, ["1122"], {1: 1, 2: 2})
    assert (found.lost, found.extra) == ({}, {})


def test_wrong_class():
    # The cat (1) is called a dog (2): IoU 1 with a segment of another class, on both sides.
    found = errors(["1122"], {1: 2, 2: 5}, ["1122"], {1: 1, 2: 5})
    assert found.lost == {1: ErrorCounts(wrong_class=1)}
    assert found.extra == {2: ErrorCounts(wrong_class=1)}


@pytest.mark.parametrize(("predicted", "cause"), [("10000000", "missed"), ("11000000", "bad_mask"), ("11110000", "bad_mask")])
def test_bad_mask_from_a_quarter_to_a_half(predicted, cause):
    # The true cat has 8 pixels; 1, 2 or 4 of them found: IoU 1/8, 1/4 or 1/2.
    found = errors([predicted], {1: 1}, ["11111111"], {1: 1})
    assert found.lost == {1: ErrorCounts(**{cause: 1})}
    assert found.extra == {1: ErrorCounts(**{cause: 1})}


def test_missed_and_out_of_nowhere():
    found = errors(["555554"], {5: 5, 4: 2}, ["515555"], {1: 1, 5: 5})
    assert found.lost == {1: ErrorCounts(missed=1)}
    assert found.extra == {2: ErrorCounts(missed=1)}


def test_merged():
    # Three cats of 2 pixels under one prediction of 6: IoU 1/3 with each, all of each covered.
    found = errors(["111111"], {1: 1}, ["112233"], {1: 1, 2: 1, 3: 1})
    assert found.lost == {1: ErrorCounts(merged=3)}
    assert found.extra == {1: ErrorCounts(merged=1)}


def test_merged_into_a_match():
    # Cats of 4 and 2 pixels under one prediction: IoU 4/6 with the larger, which is matched; the smaller was swallowed.
    found = errors(["111111"], {1: 1}, ["111122"], {1: 1, 2: 1})
    assert found.lost == {1: ErrorCounts(merged=1)}
    assert found.extra == {}


def test_duplicated():
    # A cat of 6 pixels told as three pieces of 2: IoU 1/3 each.
    found = errors(["112233"], {1: 1, 2: 1, 3: 1}, ["111111"], {1: 1})
    assert found.lost == {1: ErrorCounts(duplicated=1)}
    assert found.extra == {1: ErrorCounts(duplicated=3)}


def test_a_second_piece_of_a_match_is_a_duplicate():
    found = errors(["111122"], {1: 1, 2: 1}, ["111111"], {1: 1})
    assert found.lost == {}
    assert found.extra == {1: ErrorCounts(duplicated=1)}


def test_the_same_class_is_needed():
    # Two cats under one dog, a dog cut into two cats: neither is merged nor duplicated.
    found = errors(["111122"], {1: 2, 2: 5}, ["113322"], {1: 1, 3: 1, 2: 5})
    assert found.lost == {1: ErrorCounts(missed=2)}
    assert found.extra == {2: ErrorCounts(missed=1)}


def test_crowds_and_void_are_no_errors():
    # A cat on a cat crowd and one on void are ignored; the crowd is not lost.
    found = errors(["112255"], {1: 1, 2: 1, 5: 5}, ["440055"], {4: -1, 5: 5})
    assert (found.lost, found.extra) == ({}, {})


def test_counts_add_up():
    found = errors(["1122"], {1: 2, 2: 5}, ["1122"], {1: 1, 2: 5})
    found.merge(errors(["555554"], {5: 5, 4: 2}, ["515555"], {1: 1, 5: 5}))
    assert found.lost == {1: ErrorCounts(wrong_class=1, missed=1)}
    assert found.lost[1].total == 2
