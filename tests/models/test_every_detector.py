"""What holds for every detector and its mask head, whatever they are built from."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

from panoptic_detr import build_model, list_models
from panoptic_detr.shapes import map_tensors
from panoptic_detr.structures import pad_images

TINY = {
    "backbone": "small",
    "backbone_norm": "batch",
    "hidden_dim": 32,
    "num_heads": 4,
    "ffn_dim": 32,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 6,
}
PANOPTIC_MODELS = [name for name in list_models() if name.endswith("_panoptic")]  # each holds the detector of its name


def tiny(name, **overrides):
    dilated = {"backbone": "resnet50"} if "dc5" in name else {}  # the small backbone has no dilated form
    dense = {} if name.startswith(("detr_", "mask_detr_")) else {"dense_aux": True}
    return build_model(name, num_labels=5, **(TINY | dilated | dense | overrides))


def tensors(output):
    found = []
    map_tensors(output, lambda tensor: found.append(tensor) or tensor)
    return found


@contextmanager
def writes_to_modules():
    """List the attributes that modules set or delete, those that they put back included."""
    seen = []

    def watch(method):
        original = getattr(nn.Module, method)

        def watched(module, name, *value):
            seen.append(f"{type(module).__name__}.{name}")
            original(module, name, *value)

        return watched

    with pytest.MonkeyPatch.context() as patch:
        for method in ("__setattr__", "__delattr__"):
            patch.setattr(nn.Module, method, watch(method))
        yield seen


class Forgetful(nn.Module):
    """Overwrites an attribute in its forward pass and puts it back."""

    num_queries = 0

    def forward(self, x):
        before, self.num_queries = self.num_queries, 3
        self.num_queries = before
        return x


def test_a_write_that_is_taken_back_is_seen():
    module = Forgetful()
    with writes_to_modules() as writes:
        module(torch.zeros(1))
    assert writes == ["Forgetful.num_queries"] * 2


@pytest.mark.parametrize("name", PANOPTIC_MODELS)
def test_inference_changes_no_state(name):
    model = tiny(name).eval()
    batch = pad_images([torch.randn(3, 64, 64), torch.randn(3, 48, 64)])
    state = {key: value.clone() for key, value in model.state_dict().items()}
    settings = {key: dict(vars(module)) for key, module in model.named_modules()}
    with torch.no_grad(), writes_to_modules() as writes:
        outputs = [model(*batch) for _ in range(2)]
        masks = [model.segment(output, [torch.tensor([1, 4])] * 2) for output in outputs]
    first, second = ([*tensors(output), *found] for output, found in zip(outputs, masks, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert len(first) >= 10
    assert writes == []
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert {key: dict(vars(module)) for key, module in model.named_modules()} == settings


@pytest.mark.parametrize("name", PANOPTIC_MODELS)
def test_a_forward_pass_in_training_writes_no_attribute(name):
    model = tiny(name).train()
    with writes_to_modules() as writes:
        output = model(*pad_images([torch.randn(3, 64, 64)] * 2))
        model.segment(output, [torch.tensor([1, 4])] * 2)
    assert (output.one_to_many is not None) == name.startswith("h_")
    assert writes == []


@pytest.mark.parametrize("name", ["detr_r50_panoptic", "h_deformable_detr_r50_panoptic"])
@pytest.mark.parametrize("backbone", ["swin_t", "resnext50_32x4d"])
def test_backbones_of_timm_give_boxes_and_masks(name, backbone):
    pytest.importorskip("timm")
    model = tiny(name, backbone=backbone).eval()
    with torch.no_grad():
        output = model(*pad_images([torch.randn(3, 70, 51), torch.randn(3, 64, 64)]))
        masks = model.segment(output, [torch.tensor([0, 5]), torch.tensor([2])])
    assert output.boxes.shape == (2, 2, 6, 4)
    assert output.memory.features.shape == (2, 32, 3, 2)
    assert [level.stride for level in output.features] == [4, 8, 16]
    assert [tuple(mask.shape) for mask in masks] == [(2, 18, 16), (1, 18, 16)]
    assert all(tensor.isfinite().all() for tensor in (output.logits, output.boxes, *masks))
