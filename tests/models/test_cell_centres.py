"""Cell centres by hand."""

import torch

from panoptic_detr.models.position_encoding import axis_centres, cell_centres
from panoptic_detr.query_masks import unpadded_extent


def padding():
    """Maps of 2 x 4 cells: a whole one, and one whose image fills 1 x 2 of them."""
    mask = torch.zeros(2, 2, 4, dtype=torch.bool)
    mask[1, 1:] = mask[1, :, 2:] = True
    return mask


def test_extents_count_what_is_no_padding():
    assert unpadded_extent(padding()).tolist() == [[4.0, 2.0], [2.0, 1.0]]


def test_centres_are_fractions_of_the_unpadded_extent():
    x, y = axis_centres(padding())
    assert x.tolist() == [[0.125, 0.375, 0.625, 0.875], [0.25, 0.75, 1.25, 1.75]]
    assert y.tolist() == [[0.25, 0.75], [0.5, 1.5]]


def test_cells_come_row_by_row_with_x_first():
    centres = cell_centres(padding())
    assert centres.shape == (2, 8, 2)
    assert centres[0, :2].tolist() == [[0.125, 0.25], [0.375, 0.25]]
    assert centres[0, 4].tolist() == [0.125, 0.75]
    assert centres[1, 5].tolist() == [0.75, 1.5]


def test_maps_of_padding_alone_have_finite_centres():
    assert cell_centres(torch.ones(1, 2, 2, dtype=torch.bool)).isfinite().all()
