"""Dropping things that hide behind others."""

import torch

from panoptic_detr.inference.contest import hidden_things


def row(*values):
    return torch.tensor([values], dtype=torch.float32)[None]


def test_of_two_copies_the_better_half_stays():
    cells = torch.cat([row(5, 5, 5, 4, 4, -1), row(4, 4, 4, 5, 5, -1), row(-9, -9, -9, -9, -9, 1)])
    assert hidden_things(cells, [True, True, False], 0.7) == [(1, 2)]


def test_visible_share_counts_the_own_mask_only():
    # The first thing wins everything, but only half of what it wins is its own mask; all of that mask is visible.
    cells = torch.cat([row(2, 2, -1, -1), row(-5, -5, -5, -5)])
    assert hidden_things(cells, [True, False], 1.0) == []


def test_a_thing_without_a_mask_of_its_own_is_invisible():
    cells = torch.cat([row(-1, -1, -1, -1), row(-2, -2, -2, -2)])
    assert hidden_things(cells, [True, False], 0.1) == [(0, 4)]


def test_dropping_one_thing_uncovers_the_next():
    # The third hides behind the second, the second behind the first: without the second the third is seen again.
    cells = torch.cat([row(9, 9, 9, 9, 9, -9), row(8, 8, 8, 8, 8, 3), row(-9, -9, -9, -9, 2, 2)])
    assert [mask for mask, _ in hidden_things(cells, [True, True, True], 0.4)] == [2, 1]
    assert [mask for mask, _ in hidden_things(cells[[0, 2]], [True, True], 0.4)] == []


def test_nothing_to_judge():
    assert hidden_things(torch.zeros(0, 2, 2), [], 0.5) == []
