import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import ShapeError
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import read_id_png
from panoptic_detr.structures import Batch, DetectorOutput, FeatureLevel, Predictions, Sample, Target, pad_images

ROOT = Path(__file__).parents[1]
TABLE = CategoryTable.from_coco([{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}])


def output(**parts):
    level = FeatureLevel(torch.zeros(2, 8, 2, 3), torch.zeros(2, 2, 3, dtype=torch.bool), 32)
    values = {
        "logits": torch.randn(3, 2, 5, 4),
        "boxes": torch.rand(3, 2, 5, 4),
        "decoder_states": torch.zeros(2, 5, 8),
        "memory": level,
        "projected": level.features,
        "features": (),
    }
    return DetectorOutput(**(values | parts))


def test_padding_is_right_and_below():
    images, mask = pad_images([torch.ones(3, 2, 5), torch.ones(3, 4, 3)])
    assert images.shape == (2, 3, 4, 5)
    assert (images[:, 0] == (~mask).float()).all()
    assert (~mask).flatten(1).sum(1).tolist() == [10, 12]
    assert not mask[0, :2, :5].any()


def test_regions_come_from_the_map_or_from_masks():
    segment_map = torch.tensor([[0, 1], [2, 2]])
    target = Target(torch.tensor([4, 5]), torch.rand(2, 4), segment_map)
    wanted = torch.tensor([[[False, False], [True, True]], [[False, True], [False, False]]])
    assert torch.equal(target.region_masks(torch.tensor([1, 0])), wanted)
    stacked = Target(target.labels, target.boxes, None, 3, wanted)
    assert torch.equal(stacked.region_masks(torch.tensor([1])), wanted[1:])
    with pytest.raises(ValueError, match="image 9: the target has boxes only"):
        Target(target.labels, target.boxes, None, 9).region_masks(torch.tensor([0]))


def test_probabilities_of_softmax_and_sigmoid_heads():
    logits = torch.randn(3, 2, 5, 4)
    softmax, sigmoid = output(logits=logits).probabilities(), output(logits=logits, no_object=False).probabilities()
    torch.testing.assert_close(softmax, logits[-1].softmax(-1)[..., :3])
    torch.testing.assert_close(sigmoid, logits[-1].sigmoid())


def test_a_detector_without_mask_head_says_so():
    with pytest.raises(ValueError, match="without a mask head"):
        output().segment([torch.tensor([0])] * 2)


def test_copies_reach_every_tensor():
    meta = output(one_to_many=Predictions(torch.zeros(3, 2, 7, 4), torch.zeros(3, 2, 7, 4)))
    from panoptic_detr.shapes import move

    moved = move(meta, "meta")
    assert {moved.logits.device.type, moved.memory.features.device.type, moved.one_to_many.boxes.device.type} == {"meta"}
    batch = Batch(*pad_images([torch.ones(3, 2, 5)]), targets=[Target(torch.tensor([1]), torch.rand(1, 4))], sizes=[(2, 5)])
    assert batch.to("meta").targets[0].boxes.device.type == "meta"
    assert batch.to("meta").sizes == [(2, 5)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Target(torch.zeros(2), torch.zeros(3, 4)), r"Target.boxes must be \(2, 4\), but got \(3, 4\)"),
        (lambda: Target(torch.zeros(2), torch.zeros(2, 4), torch.zeros(1, 2, 3)), r"segment_map must be \(H, W\)"),
        (
            lambda: Batch(torch.zeros(2, 3, 4, 5), torch.zeros(2, 4, 4)),
            r"padding_mask must be \(2, 4, 5\), but got \(2, 4, 4\)",
        ),
        (
            lambda: Batch(*pad_images([torch.ones(3, 2, 5)] * 2), targets=[Target(torch.zeros(0), torch.zeros(0, 4))]),
            "2 targets",
        ),
        (lambda: output(boxes=torch.zeros(3, 2, 6, 4)), r"boxes must be \(3, 2, 5, 4\)"),
        (lambda: FeatureLevel(torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 3), 4), r"padding_mask must be \(1, 3, 4\)"),
        (lambda: Sample(torch.zeros(1, 4, 4), Target(torch.zeros(0), torch.zeros(0, 4)), (4, 4)), r"image must be \(3, H, W\)"),
        (lambda: PanopticSegmentation(np.zeros(4), [], TABLE), r"segment_map must be \(H, W\), but got \(4,\)"),
    ],
)
def test_wrong_shapes_are_named(build, message):
    with pytest.raises(ShapeError, match=message):
        build()


def test_results_in_coco_form(tmp_path):
    segment_map = np.zeros((4, 6), np.int32)
    segment_map[1:3, 2:5] = 70000
    segment = Segment(70000, 1, True, 0.9, 6, (2, 1, 3, 2), query=4)
    result = PanopticSegmentation(segment_map, [segment], TABLE, image_id=12)
    entry = result.to_coco()
    assert entry["image_id"] == 12
    assert entry["file_name"] == "12.png"
    info = {
        "id": 70000,
        "category_id": 1,
        "isthing": 1,
        "area": 6,
        "bbox": [2, 1, 3, 2],
        "iscrowd": 0,
        "score": 0.9,
        "query": 4,
    }
    assert entry["segments_info"] == [info]
    result.save(tmp_path / "12.png")
    assert (read_id_png(tmp_path / "12.png") == segment_map).all()
    with pytest.raises(dataclasses.FrozenInstanceError):
        segment.score = 1.0
