"""A small untrained model, altered truth and arguments for the tests of the visualize job."""

from dataclasses import replace

import numpy as np
import torch

from panoptic_detr.commands.cli import run
from panoptic_detr.commands.visualize import main
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.inference.predictor import Predictor
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.zoo import build_model

SIDE = 64


def altered(truth):
    thing = next(segment for segment in truth.segments if segment.isthing)
    segment_map = np.where(truth.segment_map == thing.id, 0, truth.segment_map)
    kept = [replace(segment, score=0.9, query=segment.id) for segment in truth.segments if segment is not thing]
    return PanopticSegmentation(segment_map, kept, truth.categories)


def save_model(categories, path, name="detr_r50_panoptic", **overrides):
    """A checkpoint of a small untrained model."""
    torch.manual_seed(0)
    sizes = {"hidden_dim": 64, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 64, "num_queries": 8}
    model = build_model(name, num_labels=categories.num_labels, backbone="resnet18", **(sizes | overrides))
    settings = InferenceSettings(threshold=0.0, short_side=SIDE, long_side=SIDE)
    return Predictor(model, categories, settings=settings).save(path)


def source(root, *more):
    return ["--root", str(root), "--split", "val", *map(str, more)]


def told(capsys, *arguments):
    assert run(main, [str(a) for a in arguments], "visualize") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1, "one line"
    return error
