import pytest
import torch

from panoptic_detr import build_criterion, build_model
from panoptic_detr.models.masks.detector import ABSENT
from panoptic_detr.models.masks.pixels import top_values
from panoptic_detr.structures import FeatureLevel, Target, pad_images

TINY = {
    "backbone": "small",
    "backbone_norm": "batch",
    "backbone_levels": [0, 1, 2, 3, 4],
    "hidden_dim": 32,
    "pixel_dim": 16,
    "embedding_dim": 8,
    "num_heads": 4,
    "ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
    "stuff_labels": [1, 3],
}


def make(**overrides):
    torch.manual_seed(0)
    return build_model("mask_detr_r50_panoptic", num_labels=5, **(TINY | overrides))


def images():
    torch.manual_seed(1)
    return pad_images([torch.randn(3, 96, 128), torch.randn(3, 64, 96)])


def targets():
    maps = [torch.zeros(96, 128, dtype=torch.uint8), torch.zeros(64, 96, dtype=torch.uint8)]
    maps[0][:, 64:] = 1
    maps[0][20:40, 20:50] = 2
    maps[1][:30] = 1
    boxes = [[[0.75, 0.5, 0.5, 1.0], [35 / 128, 30 / 96, 30 / 128, 20 / 96]], [[0.5, 15 / 64, 1.0, 30 / 64]]]
    labels = [[1, 2], [3]]
    return [
        Target(torch.tensor(label), torch.tensor(box), segment_map)
        for label, box, segment_map in zip(labels, boxes, maps, strict=True)
    ]


def test_things_come_first_and_each_stuff_class_has_its_own_query():
    output = make().eval()(*images())
    assert output.logits.shape == (3, 2, 8, 5)  # before the first and after each of two layers; 6 things and 2 stuff classes
    assert output.fixed_labels == (1, 3)
    assert (output.logits[:, :, :6, [1, 3]] == ABSENT).all()
    assert (output.logits[:, :, :6, [0, 2, 4]] > ABSENT).all()
    for query, label in ((6, 1), (7, 3)):
        others = [slot for slot in range(5) if slot != label]
        assert (output.logits[:, :, query, others] == ABSENT).all()
        assert (output.logits[:, :, query, label] > ABSENT).all()
    assert output.boxes.isfinite().all()
    assert (output.boxes[..., 2:] > 0).all()


@pytest.mark.parametrize(("levels", "stride"), [([1, 2, 3, 4], 4), ([0, 1, 2, 3, 4], 2), ([1, 2, 3], 4)])
def test_masks_have_the_stride_of_the_finest_level(levels, stride):
    model = make(backbone_levels=levels).eval()
    output = model(*images())
    masks = model.segment(output, [torch.tensor([0, 7]), torch.tensor([], dtype=torch.long)])
    assert [tuple(mask.shape) for mask in masks] == [(2, 96 // stride, 128 // stride), (0, 96 // stride, 128 // stride)]


def test_masks_of_chosen_queries_equal_those_of_all():
    model = make().eval()
    output = model(*images())
    every = model.segment(output, [torch.arange(8)] * 2)
    some = model.segment(output, [torch.tensor([5, 1]), torch.tensor([7])])
    torch.testing.assert_close(some[0], every[0][[5, 1]])
    torch.testing.assert_close(some[1], every[1][[7]])


def test_a_batch_of_two_equals_one_by_one():
    model = make().eval()
    batch, mask = pad_images(torch.randn(2, 3, 96, 128).unbind())
    together = model(batch, mask)
    for index in range(2):
        alone = model(batch[index : index + 1], mask[index : index + 1])
        torch.testing.assert_close(together.logits[:, index], alone.logits[:, 0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(together.boxes[:, index], alone.boxes[:, 0], atol=1e-5, rtol=1e-4)


class Levels(torch.nn.Module):
    """Stands for a backbone: the same features, whatever the images."""

    strides = (2, 4, 8, 16, 32)

    def __init__(self, levels):
        super().__init__()
        self.levels = levels

    def forward(self, images, padding_mask):
        return self.levels


def padded(level, rows, columns):
    features = torch.nn.functional.pad(level.features, (0, columns, 0, rows), value=50.0)
    mask = torch.nn.functional.pad(level.padding_mask, (0, columns, 0, rows), value=True)
    return FeatureLevel(features, mask, level.stride)


def test_padding_changes_nothing_behind_the_backbone():
    model = make().eval()
    channels = model.detector.backbone.num_channels
    levels = [
        FeatureLevel(
            torch.randn(1, width, 64 // stride, 96 // stride), torch.zeros(1, 64 // stride, 96 // stride).bool(), stride
        )
        for width, stride in zip(channels, (2, 4, 8, 16, 32), strict=True)
    ]
    wider = [padded(level, 32 // level.stride, 64 // level.stride) for level in levels]
    outputs = []
    for given in (levels, wider):
        model.detector.backbone = Levels(given)
        padding_mask = torch.zeros(1, 8, 8).bool()
        padding_mask[..., -1] = given is wider
        outputs.append(model(torch.zeros(1, 3, 8, 8), padding_mask))
    first, second = outputs
    torch.testing.assert_close(first.logits, second.logits, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(first.boxes, second.boxes, atol=1e-4, rtol=1e-3)
    small, large = (model.segment(output, [torch.arange(8)])[0] for output in outputs)
    torch.testing.assert_close(small, large[:, :32, :48], atol=1e-3, rtol=1e-3)


def test_a_loss_reaches_every_parameter():
    model = make().train()
    criterion = build_criterion("mask_detr_r50_panoptic", num_labels=5)
    criterion(model(*images()), targets()).total.backward()
    untouched = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert untouched == []


def test_masks_of_things_fall_outside_of_their_boxes_and_those_of_stuff_do_not():
    model = make(box_steepness=50.0).eval()
    with torch.no_grad():
        output = model(*images())
        output.masks.boxes[-1, 0, 0] = torch.tensor([0.25, 0.25, 0.2, 0.2])
        inside = model.segment(output, [torch.tensor([0]), torch.tensor([0])])[0][0]  # (48, 64)
    assert inside[8:16, 10:20].min() > inside[30:, 40:].max()
    assert output.masks.steepness.tolist() == [50.0] * 6 + [0.0] * 2


def test_peaks_are_local_maxima_first():
    scores = torch.zeros(1, 4, 5)
    scores[0, 1, 1], scores[0, 1, 2], scores[0, 3, 4] = 0.9, 0.8, 0.3
    assert top_values(scores, 2)[0].tolist() == [6, 19]
    assert len(top_values(scores, 99)[0]) == 20


def test_without_stuff_labels_every_query_may_have_every_class():
    output = make(stuff_labels=[]).eval()(*images())
    assert output.logits.shape == (3, 2, 6, 5)
    assert (output.logits > ABSENT).all()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone_levels": [3, 4]}, "backbone_levels must hold 2"),
        ({"decoder_layers": 0}, "decoder_layers must be at least 1"),
        ({"num_heads": 5}, "multiple of num_heads"),
        ({"stuff_labels": [1, 7]}, "stuff_labels must be different labels in 0..4"),
        ({"mask_scale_maps": True}, "leave out mask_scale_maps"),
    ],
)
def test_settings_that_make_no_sense_are_one_clear_error(overrides, message):
    with pytest.raises(ValueError, match=message):
        make(**overrides)
