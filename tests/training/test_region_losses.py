"""Losses over regions: masks at every pixel and at points, dense classes of cells."""

import math

import pytest
import torch
from training.criterion_helpers import LABELS, output, target

from panoptic_detr import build_criterion, build_model
from panoptic_detr.structures import FeatureLevel, Target, pad_images
from panoptic_detr.training.losses.criterion import dense_term
from panoptic_detr.training.losses.terms import hard_points


def test_mask_losses_touch_matched_queries_only():
    model = build_model(
        "detr_r50_panoptic",
        num_labels=LABELS,
        backbone="small",
        hidden_dim=32,
        num_heads=4,
        ffn_dim=16,
        encoder_layers=1,
        decoder_layers=1,
        num_queries=7,
    )
    images, padding = pad_images([torch.randn(3, 64, 64), torch.randn(3, 48, 64)])
    result = model(images, padding)
    asked = []
    inner = result.segmenter
    result.segmenter = lambda out, queries: asked.append([q.tolist() for q in queries]) or inner(out, queries)
    targets = [target(3, 0, (64, 64)), target(2, 1, (48, 64))]
    criterion = build_criterion("detr_r50_panoptic", num_labels=LABELS)
    losses = criterion(result, targets)
    assert asked == [[queries.tolist() for queries, _ in losses.matching]]
    assert {"mask_focal", "mask_dice"} <= losses.terms.keys()


def test_mask_losses_by_hand():
    # Logits 0 everywhere on a 2 x 2 canvas; the object covers two of four pixels.
    result = output()
    result.segmenter = lambda _, queries: [torch.zeros(len(q), 2, 2) for q in queries]
    wanted = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.tensor([[1, 1], [0, 0]]))
    losses = build_criterion("detr_r50_panoptic", num_labels=LABELS)(result, [wanted, target(0, 1, (2, 2))])
    focal = math.log(2) * 0.25 * (0.25 * 2 + 0.75 * 2) / 4
    assert losses.terms["mask_focal"].item() == pytest.approx(focal, rel=1e-6)
    assert losses.terms["mask_dice"].item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1), rel=1e-6)


def test_padding_of_the_canvas_counts_as_background():
    result = output()
    result.segmenter = lambda _, queries: [torch.full((len(q), 4, 4), -30.0) for q in queries]
    small = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.ones(2, 4, dtype=torch.int64))
    large = Target(torch.tensor([1]), torch.tensor([[0.5, 0.5, 0.5, 0.5]]), torch.zeros(4, 4, dtype=torch.int64))
    terms = build_criterion("detr_r50_panoptic", num_labels=LABELS)(result, [small, large]).terms
    # The small image's object: 8 missed pixels of 16, DICE 1 - 1 / 9; the large one's has no pixel, DICE 0.
    assert terms["mask_dice"].item() == pytest.approx((8 / 9) / 2, rel=1e-4)
    assert terms["mask_focal"].item() == pytest.approx(0.25 * 30 * 8 / 16 / 2, rel=1e-4)


def blob_case(logits):
    """Terms of the full and of the sampled mask loss for one mask of 8 x 8 of 16 x 16 pixels, left of the middle."""
    result, blob = output(), torch.zeros(16, 16, dtype=torch.long)
    blob[4:12, 2:10] = 1
    result.segmenter = lambda _, queries: [logits(blob.float()).expand(len(q), -1, -1) for q in queries]
    targets = [Target(torch.tensor([1]), torch.tensor([[0.4, 0.5, 0.5, 0.5]]), blob) for _ in range(2)]
    kinds = [{}, {"mask_loss": "points", "mask_points": 4000}]
    return [build_criterion("detr_r50_panoptic", num_labels=LABELS, **kind)(result, targets).terms for kind in kinds]


CASES = {
    "right": lambda blob: 4 * blob - 2,
    "turned": lambda blob: (4 * blob - 2).T,
    "wrong": lambda blob: 2 - 4 * blob,
    "slope": lambda blob: torch.linspace(-3, 3, 16).expand(16, 16),
}


@pytest.mark.parametrize("name", CASES)
def test_points_at_every_pixel_give_the_full_loss(name, monkeypatch):
    centres = (torch.arange(16) + 0.5) / 16
    every = torch.stack(torch.meshgrid(centres, centres, indexing="xy"), dim=-1).flatten(0, 1)  # (256, 2)
    monkeypatch.setattr(
        "panoptic_detr.training.losses.criterion.hard_points", lambda logits, *_: every.expand(len(logits), -1, -1)
    )
    full, points = blob_case(CASES[name])
    for term in ("mask_dice", "mask_focal"):
        torch.testing.assert_close(points[term], full[term], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_uniform_points_estimate_the_full_loss(name, monkeypatch):
    uniform = torch.rand(1, 4000, 2)
    monkeypatch.setattr(
        "panoptic_detr.training.losses.criterion.hard_points", lambda logits, *_: uniform.expand(len(logits), -1, -1)
    )
    full, points = blob_case(CASES[name])
    # Between cells the sampled logits are interpolated while the truth is not, which costs a sharp mask a little.
    assert points["mask_dice"].item() == pytest.approx(full["mask_dice"].item(), abs=0.05)
    assert points["mask_focal"].item() == pytest.approx(full["mask_focal"].item(), rel=0.15, abs=0.02)


def test_the_border_of_a_certain_mask_is_certain():
    torch.manual_seed(0)
    logits = torch.full((1, 8, 8), 9.0)
    logits[:, 2:6, 2:6] = 6.0
    points = hard_points(logits, 400)[0, :300]  # those chosen for their uncertainty
    assert ((points > 1 / 16) & (points < 15 / 16)).all(1).float().mean() > 0.98


def test_hard_points_lie_where_a_mask_is_least_certain():
    full, points = blob_case(CASES["right"])
    assert points["mask_focal"].item() > 3 * full["mask_focal"].item()  # a right mask is uncertain at its border only
    dice = [blob_case(CASES[name])[1]["mask_dice"].item() for name in ("right", "turned", "wrong")]
    assert dice[0] + 0.1 < dice[1] < dice[2] - 0.1


def test_a_sample_of_masks_estimates_the_loss_of_all():
    result, asked = output(), []
    targets = [target(6, 0, (8, 8)), target(0, 1, (8, 8))]

    def segment(_, queries):
        asked.append(len(queries[0]))
        return [torch.arange(7.0)[q, None, None].expand(-1, 8, 8) for q in queries]

    result.segmenter = segment
    every = build_criterion("detr_r50_panoptic", num_labels=LABELS)(result, targets).terms
    sampled = build_criterion("detr_r50_panoptic", num_labels=LABELS, masks_per_image=2)
    draws = [sampled(result, targets).terms for _ in range(200)]
    assert asked == [6] + [2] * 200
    for name in ("mask_focal", "mask_dice"):
        mean = sum(draw[name].item() for draw in draws) / len(draws)
        assert mean == pytest.approx(every[name].item(), rel=0.1)
        assert len({draw[name].item() for draw in draws}) > 5


def test_dense_loss_knows_inside_from_outside():
    wanted = Target(torch.tensor([2]), torch.tensor([[0.25, 0.25, 0.5, 0.5]]))
    logits = torch.full((1, LABELS, 4, 4), -20.0)
    logits[0, 2, :2, :2] = 20.0
    level = FeatureLevel(logits, torch.zeros(1, 4, 4, dtype=torch.bool), 8)
    assert dense_term([level], [wanted], LABELS).item() < 1e-6
    assert dense_term([FeatureLevel(-logits, level.padding_mask, 8)], [wanted], LABELS).item() == pytest.approx(20, rel=1e-3)


def test_dense_loss_of_an_image_does_not_depend_on_the_images_beside_it():
    padding = torch.zeros(2, 4, 4, dtype=torch.bool)
    padding[1, :, 1:] = True
    level = FeatureLevel(torch.randn(2, LABELS, 4, 4), padding, 8)
    targets = [target(2), target(1, 1)]
    single = [
        dense_term([FeatureLevel(level.features[i : i + 1], padding[i : i + 1], 8)], targets[i : i + 1], LABELS) for i in (0, 1)
    ]
    assert dense_term([level], targets, LABELS).item() == pytest.approx(sum(single).item() / 2)


def test_dense_loss_measures_in_the_unpadded_image():
    padding = torch.zeros(1, 4, 4, dtype=torch.bool)
    padding[:, :, 2:] = True
    wanted = Target(torch.tensor([0]), torch.tensor([[0.5, 0.5, 1.2, 1.2]]))  # the whole image
    logits = torch.full((1, LABELS, 4, 4), -20.0)
    logits[0, 0, :, :2] = 20.0
    logits[0, :, :, 2:] = torch.randn(LABELS, 4, 2) * 100
    assert dense_term([FeatureLevel(logits, padding, 8)], [wanted], LABELS).item() < 1e-6


def test_masks_without_segment_maps_are_refused():
    result = output()
    result.segmenter = lambda _, queries: [torch.zeros(len(q), 2, 2) for q in queries]
    with pytest.raises(ValueError, match="need a segment map"):
        build_criterion("detr_r50_panoptic", num_labels=LABELS)(result, [target(1), target(2, 1)])
