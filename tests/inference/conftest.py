"""A panoptic model small enough for tests, and its classes."""

import pytest
import torch

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.inference.predictor import Predictor
from panoptic_detr.zoo import build_model

TINY = {
    "backbone": "small",
    "hidden_dim": 32,
    "num_heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "ffn_dim": 32,
    "num_queries": 12,
}


@pytest.fixture
def table():
    return CategoryTable.from_coco(
        [
            {"id": 3, "name": "cat", "isthing": 1},
            {"id": 5, "name": "dog", "isthing": 1},
            {"id": 10, "name": "sky", "isthing": 0},
        ]
    )


@pytest.fixture
def model():
    torch.manual_seed(1)
    built = build_model("detr_r50_panoptic", num_labels=3, **TINY).eval()
    for module in built.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    make_queries_differ(built)
    return built


@torch.no_grad()
def make_queries_differ(model):
    """Queries of random weights all say nearly the same; enlarge what sets them apart, so that they say different classes."""
    detector = model.detector
    torch.nn.init.normal_(detector.query_embed.weight, std=2.0)
    states = model(torch.randn(1, 3, 64, 64), torch.zeros(1, 64, 64, dtype=torch.bool)).decoder_states[0]  # (Q, D)
    torch.nn.init.normal_(detector.class_embed.weight)
    detector.class_embed.weight.mul_(0.3 / states.std(0).mean())
    detector.class_embed.bias.copy_(-detector.class_embed.weight @ states.mean(0))


@pytest.fixture
def predictor(model, table):
    return Predictor(model, table, settings=InferenceSettings(threshold=0.3, min_area=1, short_side=64, long_side=128))
