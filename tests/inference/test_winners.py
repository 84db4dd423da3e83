"""The argmax without enlarging equals the argmax of enlarged masks."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from panoptic_detr.inference import winners
from panoptic_detr.inference.winners import make_axis, winning_masks
from panoptic_detr.segment_maps import nearest_pixels


def smooth_masks(count, height, width, noise):
    coarse = torch.randn(1, count, 4, 5) * 5
    return F.interpolate(coarse, size=(height, width), mode="bicubic")[0] + noise * torch.randn(count, height, width)


def winners_of(cells, padded, size):
    rows, columns = (make_axis(cells.shape[axis + 1], padded[axis], size[axis], size[axis]) for axis in (0, 1))
    return winning_masks(cells, rows, columns).long()


@pytest.mark.parametrize("noise", [0.0, 0.3, 5.0])
@pytest.mark.parametrize(
    ("grid", "padded", "size"),
    [
        ((25, 34), (100, 133), (100, 133)),
        ((24, 32), (96, 128), (83, 101)),
        ((16, 16), (16, 16), (16, 16)),
        ((9, 7), (5, 3), (5, 3)),
    ],
)
def test_equal_to_enlarging_everything(grid, padded, size, noise):
    cells = smooth_masks(7, *grid, noise)
    large = F.interpolate(cells[None], size=padded, mode="bilinear")[0, :, : size[0], : size[1]]
    found = winners_of(cells, padded, size)
    differs = found != large.argmax(0)
    # Only where two masks are equal up to the last bit of their sum may the order of additions decide.
    best = large.max(0).values[differs]
    assert torch.allclose(large.gather(0, found[None])[0][differs], best, rtol=1e-6, atol=1e-6)
    assert differs.float().mean() < 1e-3


def test_of_equal_masks_the_first_wins():
    cells = smooth_masks(1, 8, 8, 1.0).expand(4, -1, -1).contiguous()
    assert not winners_of(cells, (32, 32), (32, 32)).any()


def test_bands_and_blocks_do_not_show(monkeypatch):
    cells = smooth_masks(6, 20, 30, 1.0)
    whole = winners_of(cells, (80, 120), (80, 120))
    monkeypatch.setattr(winners, "_BAND_PIXELS", 500)
    monkeypatch.setattr(winners, "_BLOCK_ELEMENTS", 60)
    assert torch.equal(winners_of(cells, (80, 120), (80, 120)), whole)


@pytest.mark.parametrize("ragged", [-1.0, 2.0])
def test_rows_and_single_pixels_give_the_same(monkeypatch, ragged):
    cells = smooth_masks(6, 20, 30, 1.0)
    expected = winners_of(cells, (80, 120), (71, 112))
    monkeypatch.setattr(winners, "_RAGGED", ragged)
    monkeypatch.setattr(winners, "_BLOCK_ELEMENTS", 3000)
    assert torch.equal(winners_of(cells, (80, 120), (71, 112)), expected)


def test_axis_samples_only_pixels_that_the_result_shows():
    axis = make_axis(cells=4, padded=16, pixels=16, target=4)
    assert len(axis) == 4
    assert axis.spread.tolist() == [0, 1, 2, 3]
    assert axis.low.tolist() == [0, 1, 2, 3]  # pixels 2, 6, 10, 14 lie an eighth behind the centres 2, 6, 10, 14 of the cells
    assert torch.allclose(axis.weight, torch.full((4,), 0.125))


def test_axis_repeats_pixels_for_a_larger_result():
    axis = make_axis(cells=2, padded=3, pixels=3, target=8)
    assert axis.spread.tolist() == [0, 0, 0, 1, 1, 2, 2, 2]
    assert axis.repeats().tolist() == [3, 2, 3]


@pytest.mark.parametrize(("pixels", "size"), [(192, 150), (256, 200), (800, 1000), (3, 8), (640, 427), (5, 5), (7, 1)])
def test_pixels_are_sampled_as_pillow_does(pixels, size):
    ramp = Image.fromarray(np.arange(pixels, dtype=np.int32)[None])
    assert nearest_pixels(pixels, size).tolist() == np.asarray(ramp.resize((size, 1), Image.Resampling.NEAREST))[0].tolist()
