import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from panoptic_detr import build_model
from panoptic_detr.models.position_encoding import LearnedPositionEncoding, SinePositionEncoding, sine_of_boxes


def test_sine_by_hand() -> None:
    encoding = SinePositionEncoding(4)(torch.zeros(1, 2, 3, dtype=torch.bool))
    assert encoding.shape == (1, 8, 2, 3)
    y, x = 2 / 2 * 2 * math.pi, 3 / 3 * 2 * math.pi
    expected = [math.sin(y), math.cos(y), math.sin(y / 100), math.cos(y / 100)]
    expected += [math.sin(x), math.cos(x), math.sin(x / 100), math.cos(x / 100)]
    torch.testing.assert_close(encoding[0, :, 1, 2], torch.tensor(expected), atol=1e-5, rtol=0)


def test_offset_puts_positions_on_cell_centres() -> None:
    encoding = SinePositionEncoding(2, offset=-0.5)(torch.zeros(1, 1, 4, dtype=torch.bool))
    angles = (torch.arange(4) + 0.5) / 4 * 2 * math.pi
    torch.testing.assert_close(encoding[0, 2, 0], angles.sin(), atol=1e-5, rtol=0)


def test_unnormalised_counts_cells() -> None:
    encoding = SinePositionEncoding(2, normalize=False)(torch.zeros(1, 1, 4, dtype=torch.bool))
    torch.testing.assert_close(encoding[0, 2, 0], torch.arange(1.0, 5).sin())


@pytest.mark.parametrize("offset", [0.0, -0.5])
def test_padding_changes_nothing(offset: float) -> None:
    encoding = SinePositionEncoding(8, offset=offset)
    padded = torch.ones(1, 7, 9, dtype=torch.bool)
    padded[:, :4, :5] = False
    torch.testing.assert_close(encoding(padded)[:, :, :4, :5], encoding(padded[:, :4, :5]), atol=0, rtol=0)


class FloatSums(TorchDispatchMode):
    """Counts running sums of floats, which PyTorch refuses on CUDA where deterministic algorithms are asked for."""

    found = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        self.found += operation is torch.ops.aten.cumsum.default and result.is_floating_point()
        return result


def test_cells_are_counted_in_integers() -> None:
    with FloatSums() as sums:
        torch.ones(3).cumsum(0)
        assert sums.found == 1  # so it sees them
        SinePositionEncoding(4)(torch.zeros(1, 2, 3, dtype=torch.bool))
    assert sums.found == 1


def test_odd_width_is_refused() -> None:
    with pytest.raises(ValueError, match="must be even"):
        SinePositionEncoding(5)


def test_learned_is_column_then_row() -> None:
    learned = LearnedPositionEncoding(3, size=6)
    encoding = learned(torch.zeros(2, 4, 5, dtype=torch.bool))
    assert encoding.shape == (2, 6, 4, 5)
    assert torch.equal(encoding[1, :3, 2, 4], learned.col_embed.weight[4])
    assert torch.equal(encoding[1, 3:, 2, 4], learned.row_embed.weight[2])


def test_learned_table_too_small() -> None:
    message = "4x7 cells exceeds the learned position table of 6x6; use smaller images, position_table_size=7 or more"
    with pytest.raises(ValueError, match=message):
        LearnedPositionEncoding(3, size=6)(torch.zeros(1, 4, 7, dtype=torch.bool))


def test_the_learned_table_of_a_detector_can_be_larger() -> None:
    tiny = {"backbone": "small", "hidden_dim": 8, "num_heads": 2, "encoder_layers": 0, "decoder_layers": 1, "num_queries": 2}
    images, padding = torch.zeros(1, 3, 32, 52 * 32), torch.zeros(1, 32, 52 * 32, dtype=torch.bool)
    published = build_model("detr_r50", position_encoding="learned", **tiny).eval()
    assert published.position_encoding.row_embed.weight.shape == (50, 4)
    with torch.no_grad(), pytest.raises(ValueError, match="position_table_size=52"):
        published(images, padding)
    larger = build_model("detr_r50", position_encoding="learned", position_table_size=52, **tiny).eval()
    with torch.no_grad():
        assert larger(images, padding).boxes.isfinite().all()


def test_boxes_are_encoded_in_their_own_order() -> None:
    boxes = torch.tensor([[0.1, 0.2, 0.3, 0.4]])
    encoding = sine_of_boxes(boxes, 4)
    assert encoding.shape == (1, 16)
    angle = 0.3 * 2 * math.pi
    expected = torch.tensor([math.sin(angle), math.cos(angle), math.sin(angle / 100), math.cos(angle / 100)])
    torch.testing.assert_close(encoding[0, 8:12], expected)
