import math

import pytest
import torch
from models.test_mask_detr import images, make, targets

from panoptic_detr import build_criterion
from panoptic_detr.config.losses import LossConfig
from panoptic_detr.errors import ConfigError
from panoptic_detr.structures import Target
from panoptic_detr.training.losses.build import mask_criterion
from panoptic_detr.training.losses.mask_detr import (
    all_mask_losses,
    around_things,
    everywhere,
    look_up,
    mask_losses,
    peak_loss,
    peaks,
    things_of,
)


def criterion(*, stuff_labels=(), **settings):
    return mask_criterion(LossConfig(**settings), 5, stuff_labels)


def test_things_are_matched_and_stuff_keeps_its_queries():
    losses = criterion()(make().train()(*images()), targets())
    (queries, segments), (stuff_queries, stuff_segments) = losses.matching
    assert segments.tolist() == [1, 0]  # the thing, then the stuff of the first image
    assert queries[0] < 6
    assert queries[1] == 6
    assert (stuff_queries.tolist(), stuff_segments.tolist()) == ([7], [0])


def test_the_total_is_the_weighted_sum_of_the_terms():
    losses = criterion()(make().train()(*images()), targets())
    total = sum(losses.weights[name] * value for name, value in losses.terms.items())
    torch.testing.assert_close(losses.total, total)
    assert {
        "class",
        "mask_dice",
        "mask_bce_layer0",
        "contest",
        "presence_layer1",
        "peaks",
        "box_l1_proposals",
    } <= losses.terms.keys()


def test_a_weight_of_zero_leaves_a_term_out():
    losses = criterion(peaks_weight=0.0, contest_weight=0.0, l1_weight=0.0)(make().train()(*images()), targets())
    assert not [name for name in losses.terms if name.startswith(("peaks", "contest", "box_l1"))]


@pytest.mark.parametrize("term", ["mask_bce", "mask_dice", "contest", "stuff_dice"])
def test_masks_teach_queries_and_pixels(term):
    output = make().train()(*images())
    losses = criterion()(output, targets())
    taught = torch.autograd.grad(losses.terms[term], [output.masks.pixels, output.masks.embeddings])
    assert all(bool(gradient.any()) for gradient in taught)


def test_images_without_things_or_without_anything_have_a_finite_loss():
    empty = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4), torch.zeros(96, 128, dtype=torch.uint8))
    output = make().train()(*images())
    for second in (targets()[1], Target(empty.labels, empty.boxes, torch.zeros(64, 96, dtype=torch.uint8))):
        losses = criterion()(output, [empty, second])
        assert losses.total.isfinite()


def test_more_things_than_queries_match_every_query():
    segment_map = torch.zeros(96, 128, dtype=torch.uint8)
    for number in range(9):
        segment_map[8 * number : 8 * number + 6, 10:30] = number + 1
    rows = [[20 / 128, (8 * number + 3) / 96, 20 / 128, 6 / 96] for number in range(9)]
    crowd = Target(torch.full((9,), 2), torch.tensor(rows), segment_map)
    losses = criterion()(make().train()(*images()), [crowd, targets()[1]])
    queries, segments = losses.matching[0]
    assert sorted(queries.tolist()) == list(range(6))
    assert len(set(segments.tolist())) == 6
    assert losses.total.isfinite()


def test_accumulated_batches_give_the_gradient_of_one():
    model, wanted = make().train(), targets()
    loss = criterion(stuff_labels=[1, 3])
    counts = loss.counts(wanted)
    assert counts.objects == (1, 0)
    batch, mask = images()
    torch.manual_seed(0)
    whole = loss(model(batch, mask), wanted, counts)
    parts = [loss(model(batch[i : i + 1], mask[i : i + 1]), wanted[i : i + 1], counts) for i in range(2)]
    # Places are drawn by chance; terms that do not look at them agree exactly, but for the statistics of the batch norms.
    assert set(whole.terms) == set(parts[0].terms) | set(parts[1].terms)
    assert parts[1].terms["box_l1"] == 0


def test_training_makes_the_winner_win():
    model, wanted = make().train(), targets()
    loss = criterion()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    values = []
    for _ in range(25):
        losses = loss(model(*images()), wanted)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        values.append(losses.terms["contest"].item())
    assert values[-1] < 0.5 * values[0]


def test_a_place_in_every_block_and_around_every_thing():
    torch.manual_seed(0)
    target = targets()[0]
    points = everywhere(target, 4)
    blocks = (points * torch.tensor([128.0, 96.0]) / 4).long()
    assert len({tuple(block) for block in blocks.tolist()}) == len(points) == 24 * 32
    near = around_things(target, torch.tensor([1]), 12)
    assert len(near) == 144
    inside = (look_up(target, near) == 2).float().mean()
    assert inside == pytest.approx(1 / 1.5**2, abs=0.08)
    assert things_of(target, [1]).tolist() == [1]
    assert things_of(target, []).tolist() == [0, 1]


@pytest.mark.parametrize("half", [False, True])
def test_masks_are_matched_by_what_they_are_trained_on(half):
    torch.manual_seed(0)
    logits, known = 8 * torch.randn(7, 5, 36), (torch.rand(5, 36) > 0.2).float()
    wanted = (torch.rand(5, 36) > 0.5).float() * known
    known[3] = wanted[3] = 0  # a thing of which nothing is known
    with torch.autocast("cpu", torch.bfloat16, enabled=half):  # precision of the networks, not of the losses
        fast = all_mask_losses(logits, wanted, known)
    for found, plain in zip(fast, mask_losses(logits, wanted, known), strict=True):
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)


def test_peaks_by_hand():
    maps = peaks((3, 4, 5), torch.tensor([[1, 2], [3, 2]]), torch.tensor([[1.0, 1.0], [1.0, 1.0]]), torch.tensor([2, 2]))
    assert maps[:2].sum() == 0
    assert maps[2, 2, 1] == maps[2, 2, 3] == 1
    assert maps[2, 2, 2].item() == pytest.approx(math.exp(-0.5))
    loss = peak_loss(torch.zeros(2), torch.tensor([1.0, 0.0]))
    assert loss.tolist() == pytest.approx([0.25 * math.log(2)] * 2)


def test_what_does_not_fit_is_refused():
    output = make().train()(*images())
    with pytest.raises(ValueError, match="2 images, but 1 targets"):
        criterion()(output, targets()[:1])
    with pytest.raises(ValueError, match="boxes only"):
        criterion()(output, [Target(t.labels, t.boxes) for t in targets()])
    with pytest.raises(ValueError, match=r"labels 1\.\.2 are outside the class head's 0\.\.1"):
        build_criterion("mask_detr_r50_panoptic", num_labels=2)(output, targets())
    with pytest.raises(ValueError, match="output of a Mask-DETR in training mode"):
        criterion()(make().eval()(*images()), targets())
    with pytest.raises(ValueError, match="must be at least 0"):
        criterion(peaks_weight=-1.0)
    with pytest.raises(ValueError, match="roi_side"):
        criterion(roi_side=0)


def test_a_scheme_that_changes_nothing_is_taken():
    assert build_criterion("mask_detr_r50", hybrid="none").hybrid.scheme == "none"
    with pytest.raises(ConfigError, match=r"setting 'loss\.hybrid' is for other detectors; leave it out"):
        build_criterion("mask_detr_r50", hybrid="branch")
