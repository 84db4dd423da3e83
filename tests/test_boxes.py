import pytest
import torch
from torchvision.ops import generalized_box_iou

from panoptic_detr.boxes import cxcywh_to_xyxy, generalized_iou, xyxy_to_cxcywh


def random_boxes(count):
    return torch.cat([torch.rand(count, 2) * 0.6 + 0.2, torch.rand(count, 2) * 0.3 + 0.01], 1)


def test_formats_are_inverse():
    boxes = random_boxes(20)
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes)


def test_corners_by_hand():
    assert cxcywh_to_xyxy(torch.tensor([0.5, 0.4, 0.2, 0.6])).tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])


def test_giou_of_all_pairs_equals_torchvision():
    one, other = cxcywh_to_xyxy(random_boxes(7)), cxcywh_to_xyxy(random_boxes(5))
    torch.testing.assert_close(generalized_iou(one[:, None], other[None]), generalized_box_iou(one, other))


def test_giou_by_hand():
    # Unit squares at 0 and 2: no overlap, union 2, hull 3 -> 0 - 1/3.
    first, second = torch.tensor([0.0, 0, 1, 1]), torch.tensor([2.0, 0, 3, 1])
    assert generalized_iou(first, second).item() == pytest.approx(-1 / 3)
    assert generalized_iou(first, first).item() == pytest.approx(1)


def test_degenerate_boxes_give_numbers_and_gradients():
    point = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    value = generalized_iou(point, point.detach())
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(point.grad).all()
