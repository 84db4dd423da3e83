"""Made-up targets and outputs for the tests of losses."""

import torch

from panoptic_detr.structures import DetectorOutput, FeatureLevel, Predictions, Target

LABELS = 4


def target(count, seed=0, size=None):
    torch.manual_seed(seed)
    boxes = torch.cat([torch.rand(count, 2) * 0.5 + 0.25, torch.rand(count, 2) * 0.3 + 0.1], 1)
    segment_map = None if size is None else torch.randint(0, count + 1, size)
    return Target(torch.randint(0, LABELS, (count,)), boxes, segment_map, seed)


def predictions(layers=2, batch=2, queries=7, slots=LABELS + 1):
    torch.manual_seed(3)
    return Predictions(torch.randn(layers, batch, queries, slots), torch.rand(layers, batch, queries, 4) * 0.5 + 0.2)


def output(no_object=True, **parts):
    found = predictions(slots=LABELS + no_object)
    level = FeatureLevel(torch.zeros(2, 8, 2, 2), torch.zeros(2, 2, 2, dtype=torch.bool), 32)
    return DetectorOutput(
        found.logits.requires_grad_(),
        found.boxes,
        torch.zeros(2, 7, 8),
        level,
        level.features,
        (),
        no_object=no_object,
        **parts,
    )
