"""A model and pictures for the tests of the predict job."""

import cv2
import numpy as np
import pytest
from commands.prediction_helpers import TABLE

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.inference.predictor import Predictor
from panoptic_detr.zoo import build_model


@pytest.fixture
def checkpoint(tmp_path):
    model = build_model(
        "detr_r50_panoptic", num_labels=2, backbone="small", hidden_dim=32, encoder_layers=0, decoder_layers=1, num_queries=6
    )
    model.detector.class_embed.bias.data[-1] = -9.0  # never "no object"
    settings = InferenceSettings(threshold=0.1, min_area=1, short_side=64)
    return Predictor(model, TABLE, settings=settings).save(tmp_path / "model.pt")


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (40, 60)), ("b.png", (60, 40))):
        picture = np.random.default_rng(size[0]).integers(0, 256, (*size, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / name), picture)
    return folder
