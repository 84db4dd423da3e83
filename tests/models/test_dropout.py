"""Dropout: the share that is left out, its scale, its gradient, and attention with it."""

import pytest
import torch
from torch.nn import functional as F

from panoptic_detr.models.cpu.dropout import Dropout, drop
from panoptic_detr.models.layers import MultiHeadAttention


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_share_is_left_out_and_the_rest_scaled(share, dtype):
    x = torch.full((1000, 777), 2.0, dtype=dtype)
    y = drop(x, share)
    assert y.dtype == dtype
    assert y.shape == x.shape
    assert (y == 0).float().mean().item() == pytest.approx(share, abs=4 * (share * (1 - share) / x.numel()) ** 0.5 + 1e-5)
    torch.testing.assert_close(
        y[y != 0], torch.full_like(y[y != 0], 2 / (1 - share)), rtol=1e-2 if dtype != x.dtype else 1e-4, atol=0
    )


def test_neighbours_are_left_out_independently():
    """Four values share one random number; none may tell of another, nor of those of the next number."""
    left_out = (drop(torch.ones(400_000), 0.3) == 0).double()
    for distance in range(1, 9):
        both = (left_out[:-distance] * left_out[distance:]).mean().item()
        assert both == pytest.approx(0.09, abs=0.003)
    for place in range(4):
        assert left_out[place::4].mean().item() == pytest.approx(0.3, abs=0.006)


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_any_number_of_values(count):
    assert drop(torch.ones(count), 0.5).shape == (count,)


def test_the_gradient_passes_where_values_do():
    x = torch.randn(5, 7, requires_grad=True)
    y = drop(x, 0.4)
    y.sum().backward()
    torch.testing.assert_close(x.grad, y.detach() / x.detach(), rtol=1e-5, atol=1e-6)
    assert x.grad.unique().numel() == 2


def test_the_seed_decides_and_evaluation_leaves_nothing_out():
    layer, x = Dropout(0.5), torch.ones(100)
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer(x), first)
    assert layer.eval()(x) is x


def allowed():
    mask = torch.rand(2, 1, 1, 9) > 0.3
    mask[..., 0] = True
    return mask


@pytest.mark.parametrize("mask", ["none", "allowed", "added"])
def test_attention_leaves_weights_out_and_is_right_on_average(mask):
    attention = MultiHeadAttention(8, 2, dropout=0.2).train()
    query, key = torch.randn(2, 5, 8), torch.randn(2, 9, 8)
    given = {"none": None, "allowed": allowed(), "added": torch.randn(2, 2, 5, 9)}[mask]
    mean = torch.stack([attention(query, key, key, given) for _ in range(4000)]).mean(0)
    expected = attention.eval()(query, key, key, given)
    torch.testing.assert_close(mean, expected, rtol=0, atol=0.03)
    assert (mean - attention.train()(query, key, key, given)).abs().max() > 0.03
    attention.dropout = 1e-9  # rounds to nothing left out: then it is PyTorch's own attention
    torch.testing.assert_close(attention(query, key, key, given), expected, rtol=1e-5, atol=1e-6)


def test_other_devices_use_their_own():
    assert F.dropout(torch.ones(4, device="meta"), 0.5).shape == drop(torch.ones(4, device="meta"), 0.5).shape


def test_nearly_everything_left_out():
    assert drop(torch.ones(1000), 0.9999999).isfinite().all()
