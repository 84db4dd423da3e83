"""Deformable attention against its definition, written as loops."""

import itertools
import math

import pytest
import torch

from panoptic_detr.models.deformable.attention import DeformableAttention, sample_with_grid
from panoptic_detr.models.deformable.table import sample_with_table

SHAPES = [(3, 4), (2, 2)]
WAYS = pytest.mark.parametrize("sample", [sample_with_grid, sample_with_table])


def make_case(dtype=torch.float64, spread=1.4):
    tokens = sum(h * w for h, w in SHAPES)
    value = torch.randn(2, tokens, 2, 3, dtype=dtype)
    locations = (torch.rand(2, 5, 2, 2, 3, 2, dtype=dtype) - 0.5) * spread + 0.5  # some points lie outside
    weights = torch.randn(2, 5, 2, 6, dtype=dtype).softmax(-1).view(2, 5, 2, 2, 3)
    return value, locations, weights


def cell(level, x, y):
    """Features of one cell, zero outside of the level (h, w, d)."""
    inside = 0 <= x < level.shape[1] and 0 <= y < level.shape[0]
    return level[y, x] if inside else torch.zeros_like(level[0, 0])


def by_definition(value, shapes, locations, weights):
    batch, queries, heads, _, points, _ = locations.shape
    out = torch.zeros(batch, queries, heads, value.shape[-1], dtype=value.dtype)
    levels = value.split([h * w for h, w in shapes], dim=1)
    everything = itertools.product(range(batch), range(queries), range(heads), range(len(shapes)), range(points))
    for b, q, m, index, p in everything:
        height, width = shapes[index]
        level = levels[index][b, :, m].unflatten(0, (height, width))
        x, y = locations[b, q, m, index, p] * torch.tensor([width, height], dtype=value.dtype) - 0.5
        left, top = math.floor(x), math.floor(y)
        for cx, cy in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
            share = (1 - (x - cx).abs()) * (1 - (y - cy).abs())
            out[b, q, m] += weights[b, q, m, index, p] * share * cell(level, cx, cy)
    return out.flatten(2)


@WAYS
def test_equals_the_definition(sample):
    value, locations, weights = make_case()
    expected = by_definition(value, SHAPES, locations, weights)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(sample(value, SHAPES, locations, weights), expected)


@WAYS
def test_gradients(sample):
    inputs = [x.requires_grad_() for x in make_case()]
    assert torch.autograd.gradcheck(lambda value, *rest: sample(value, SHAPES, *rest), inputs)


@WAYS
def test_far_outside_is_zero(sample):
    value, locations, weights = make_case(torch.float32)
    assert not sample(value, SHAPES, locations + 1e4, weights).any()


def test_starts_with_one_direction_per_head():
    attention = DeformableAttention(16, num_levels=2, num_heads=4, num_points=3)
    shapes, references = [(8, 10), (4, 5)], torch.full((1, 1, 2, 2), 0.5)
    locations, weights = attention.where_to_look(torch.randn(1, 1, 16), references, shapes)
    pixels = (locations - 0.5) * torch.tensor([[10.0, 8.0], [5.0, 4.0]])[:, None]
    for head, direction in enumerate([(1, 0), (0, 1), (-1, 0), (0, -1)]):
        for level in range(2):
            expected = torch.tensor([direction], dtype=torch.float32) * torch.arange(1.0, 4)[:, None]
            torch.testing.assert_close(pixels[0, 0, head, level], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(weights, torch.full_like(weights, 1 / 6))


def test_offsets_from_a_box_count_in_its_half_size():
    attention = DeformableAttention(16, num_levels=1, num_heads=4, num_points=2)
    box = torch.tensor([0.5, 0.4, 0.2, 0.6]).view(1, 1, 1, 4)
    locations, _ = attention.where_to_look(torch.randn(1, 1, 16), box, [(8, 8)])
    torch.testing.assert_close(locations[0, 0, 0, 0], torch.tensor([[0.55, 0.4], [0.6, 0.4]]))
    torch.testing.assert_close(locations[0, 0, 1, 0], torch.tensor([[0.5, 0.55], [0.5, 0.7]]))


def test_padding_reads_as_zero():
    attention = DeformableAttention(16, num_levels=1, num_heads=2, num_points=2)
    queries, tokens = torch.randn(1, 3, 16), torch.randn(1, 12, 16)
    references, mask = torch.rand(1, 3, 1, 2), torch.zeros(1, 12, dtype=torch.bool)
    mask[:, 5:] = True
    first = attention(queries, references, tokens, [(3, 4)], mask)
    tokens[:, 5:] = 100
    torch.testing.assert_close(attention(queries, references, tokens, [(3, 4)], mask), first, rtol=0, atol=0)


def test_locations_keep_float32_under_autocast():
    attention = DeformableAttention(16, num_levels=1, num_heads=2, num_points=2)
    queries, references, tokens = torch.randn(1, 3, 16), torch.rand(1, 3, 1, 2), torch.randn(1, 12, 16)
    exact = attention(queries, references, tokens, [(3, 4)])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = attention(queries.bfloat16(), references, tokens, [(3, 4)])
        locations, weights = attention.where_to_look(queries, references, [(3, 4)])
    assert locations.dtype == torch.float32
    assert weights.dtype == torch.float32
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, atol=0.05, rtol=0.05)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="multiple of num_heads, but got 10 and 4"):
        DeformableAttention(10, num_heads=4)
