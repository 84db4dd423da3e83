"""Matching and the criterion: hand-computed cases, invariances, counts, switches."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from training.criterion_helpers import LABELS, output, predictions, target

from panoptic_detr import build_criterion
from panoptic_detr.structures import DetectorOutput, Predictions, Target
from panoptic_detr.training.losses.criterion import GlobalCounts
from panoptic_detr.training.losses.matcher import HungarianMatcher, HybridMatching


def brute_force(cost):
    queries, objects = cost.shape
    return min(sum(cost[q, o] for o, q in enumerate(chosen)) for chosen in itertools.permutations(range(queries), objects))


@pytest.mark.parametrize("class_cost", ["softmax", "sigmoid"])
def test_matching_has_the_lowest_cost_of_all(class_cost):
    matcher = HungarianMatcher(class_cost)
    found, targets = predictions(), [target(3), target(2, 1)]
    costs = matcher._costs(found, targets).numpy()
    matches = matcher(found, targets, [1, 1])
    for layer in range(2):
        for image, (queries, objects) in enumerate(matches.of_layer(layer)):
            cost = costs[layer, image, :, : len(targets[image])]
            assert sorted(objects.tolist()) == list(range(len(targets[image])))
            assert queries.tolist() == sorted(queries.tolist())
            assert cost[queries, objects].sum() == pytest.approx(brute_force(cost), rel=1e-6)


def test_cost_of_one_pair_by_hand():
    # One query at the object's box but shifted by 0.1 in x; logits (0, ln 3): p(class 1) = 3/4.
    found = Predictions(torch.tensor([[[[0.0, math.log(3.0)]]]]), torch.tensor([[[[0.5, 0.5, 0.2, 0.2]]]]))
    wanted = [Target(torch.tensor([1]), torch.tensor([[0.6, 0.5, 0.2, 0.2]]))]
    # Overlap 0.1 x 0.2 = 0.02, union 0.06, hull 0.3 x 0.2 = 0.06: GIoU = 1/3 - 0.
    cost = HungarianMatcher("softmax", 1, 5, 2)._costs(found, wanted).item()
    assert cost == pytest.approx(-0.75 + 5 * 0.1 - 2 / 3, abs=1e-6)


def test_objects_repeated_k_times_are_matched_k_times():
    matcher = HungarianMatcher("sigmoid")
    found, targets = predictions(queries=20, slots=LABELS), [target(3), target(2, 1)]
    matches = matcher(found, targets, [4, 1])
    for (queries, objects), wanted in zip(matches.of_layer(0), targets, strict=True):
        assert torch.bincount(objects).tolist() == [4] * len(wanted)
        assert len(set(queries.tolist())) == 4 * len(wanted)
    assert [len(queries) for queries, _ in matches.of_layer(1)] == [3, 2]


def test_more_objects_than_queries_match_every_query():
    matches = HungarianMatcher()(predictions(queries=3), [target(5), target(0, 1)], [1, 1])
    assert [len(q) for q, _ in matches.of_layer(-1)] == [3, 0]


def test_a_diverged_model_is_matched_without_a_crash():
    found = predictions()
    found.logits[:] = torch.nan
    matches = HungarianMatcher()(found, [target(3), target(2, 1)], [1, 1])
    assert matches.counts.tolist() == [[3, 2], [3, 2]]


def test_softmax_loss_is_the_weighted_mean():
    criterion = build_criterion("detr_r50", num_labels=LABELS, aux_loss=False, l1_weight=0, giou_weight=0)
    result, targets = output(), [target(3), target(1, 1)]
    losses = criterion(result, targets)
    classes = torch.full((2, 7), LABELS)
    for image, (queries, objects) in enumerate(losses.matching):
        classes[image, queries] = targets[image].labels[objects]
    weight = torch.tensor([1.0] * LABELS + [0.1])
    wanted = torch.nn.functional.cross_entropy(result.logits[-1].flatten(0, 1), classes.flatten(), weight)
    assert losses.terms.keys() == {"class"}
    torch.testing.assert_close(losses.total, wanted)


def test_sigmoid_loss_by_hand():
    criterion = build_criterion("deformable_detr_r50", num_labels=LABELS, l1_weight=0, giou_weight=0, aux_loss=False)
    result = output(no_object=False)
    with torch.no_grad():
        result.logits.zero_()  # every p = 1/2: cross-entropy ln 2, focal factor 1/4
    losses = criterion(result, [target(2), target(0, 1)])
    negatives, positives = 2 * 7 * LABELS - 2, 2
    wanted = math.log(2) * 0.25 * (0.75 * negatives + 0.25 * positives) / 2
    assert losses.terms["class"].item() == pytest.approx(wanted, rel=1e-6)
    assert losses.total.item() == pytest.approx(2 * wanted, rel=1e-6)


def test_perfect_boxes_cost_nothing():
    result = output()
    targets = [target(3), target(2, 1)]
    for image, wanted in enumerate(targets):
        result.boxes[:, image, : len(wanted)] = wanted.boxes
    losses = build_criterion("detr_r50", num_labels=LABELS, class_weight=0, cost_class=0)(result, targets)
    assert all(abs(value.item()) < 1e-5 for value in losses.terms.values())
    assert set(losses.terms) == {"box_l1", "box_giou", "box_l1_layer0", "box_giou_layer0"}


def test_empty_targets_train_the_classes_only():
    result = output()
    losses = build_criterion("detr_r50", num_labels=LABELS)(result, [target(0), target(0, 1)])
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert losses.terms["box_l1"] == 0
    assert result.logits.grad.abs().sum() > 0


def test_permuted_queries_change_no_loss():
    result, targets = output(), [target(3), target(2, 1)]
    criterion = build_criterion("detr_r50", num_labels=LABELS)
    before = criterion(result, targets).total
    order = torch.randperm(7)
    shuffled = output()
    shuffled.logits, shuffled.boxes = result.logits[:, :, order], result.boxes[:, :, order]
    torch.testing.assert_close(criterion(shuffled, targets).total, before)


@pytest.mark.parametrize("name", ["detr_r50", "deformable_detr_r50"])
def test_losses_of_parts_add_up_to_the_whole_batch(name):
    criterion = build_criterion(name, num_labels=LABELS)
    result, targets = output(no_object=name.startswith("detr")), [target(3), target(1, 1)]
    whole = criterion(result, targets).total
    parts = 0.0
    for image in range(2):
        part = output(no_object=result.no_object)
        part.logits, part.boxes = result.logits[:, image, None], result.boxes[:, image, None]
        parts = parts + criterion(part, [targets[image]], criterion.counts(targets)).total
    torch.testing.assert_close(parts, whole)


def test_counts_are_shares_of_the_global_batch():
    counts = GlobalCounts((3, 0, 12, 1), processes=2)
    assert counts.boxes() == 8
    assert counts.boxes(repeats=6) == 48
    # Ten queries: 3 + 0 + 10 + 1 matched, 26 not.
    assert counts.class_weight(10, 1, 0.1) == pytest.approx((14 + 2.6) / 2)
    assert GlobalCounts((0, 0)).boxes() == 1
    assert counts.share_of(2) == 1  # two of four images, averaged over two processes
    assert GlobalCounts((3, 0, 12, 1)).share_of(1) == 0.25  # one of four accumulated images


def test_proposals_count_every_object_as_class_zero():
    found = predictions(layers=1, queries=9, slots=LABELS)
    result = output(no_object=False, proposals=found)
    targets = [target(3), target(2, 1)]
    criterion = build_criterion("deformable_detr_r50_two_stage", num_labels=LABELS)
    before = criterion(result, targets).terms["class_proposals"]
    relabelled = [Target((t.labels + 1) % LABELS, t.boxes, None, t.image_id) for t in targets]
    torch.testing.assert_close(criterion(result, relabelled).terms["class_proposals"], before)


def test_hybrid_branch_adds_its_group_with_lambda():
    found = predictions(queries=18, slots=LABELS)
    targets = [target(3), target(2, 1)]
    criterion = build_criterion("h_deformable_detr_r50", num_labels=LABELS, one_to_many_repeats=4, one_to_many_weight=0.5)
    alone = criterion(output(no_object=False), targets)
    both = criterion(output(no_object=False, one_to_many=found), targets)
    extra = {name for name in both.terms if name.endswith("_one_to_many")}
    assert set(both.terms) - extra == set(alone.terms)
    added = sum(both.weights[name] * both.terms[name] for name in extra)
    assert both.weights["box_l1_one_to_many"] == 2.5
    torch.testing.assert_close(both.total, alone.total + added)


@pytest.mark.parametrize(
    ("scheme", "progress", "repeats"),
    [
        ("none", 0.0, [1, 1, 1, 1]),
        ("branch", 0.0, [1, 1, 1, 1]),
        ("epoch", 0.0, [6, 6, 6, 6]),
        ("epoch", 0.49, [6, 6, 6, 6]),
        ("epoch", 0.5, [1, 1, 1, 1]),
        ("layer", 0.0, [6, 6, 1, 1]),
        ("layer", 0.9, [6, 6, 1, 1]),
    ],
)
def test_hybrid_schemes_switch_where_they_should(scheme, progress, repeats):
    hybrid = HybridMatching(scheme, 6, epoch_share=0.5, one_to_many_layers=2)
    assert hybrid.main_repeats(4, progress) == repeats


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hybrid": "both"}, "'loss.hybrid' must be one of none, branch, epoch, layer, auto, but got 'both'"),
        ({"one_to_many_repeats": 0}, "'loss.one_to_many_repeats' must be at least 1, but got 0"),
        ({"one_to_many_weight": -1.0}, "'loss.one_to_many_weight' must be at least 0, but got -1.0"),
        ({"one_to_many_share": 8.0}, r"'loss.one_to_many_share' must be in \[0, 1\], but got 8.0"),
        ({"one_to_many_layers": -1}, "'loss.one_to_many_layers' must be at least 0, but got -1"),
        ({"masks_per_image": 0}, "'loss.masks_per_image' must be at least 1, but got 0"),
        ({"mask_points": 0}, "'loss.mask_points' must be at least 1, but got 0"),
        ({"giou_weight": -1.0}, "'loss.giou_weight' must be at least 0, but got -1.0"),
        ({"mask_loss": "pts"}, "'loss.mask_loss' must be one of full, points, but got 'pts'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        build_criterion("h_deformable_detr_r50", **settings)


def test_the_last_layer_is_never_matched_one_to_many_by_the_layer_scheme():
    assert HybridMatching("layer", 6, one_to_many_layers=9).main_repeats(3, 0.0) == [6, 6, 1]


def test_without_auxiliary_losses_both_groups_train_their_last_layer_only():
    found = output(no_object=False, one_to_many=predictions(queries=18, slots=LABELS), proposals=predictions(1, slots=LABELS))
    criterion = build_criterion("h_deformable_detr_r50", num_labels=LABELS, aux_loss=False)
    names = {"class", "box_l1", "box_giou"}
    assert criterion(found, [target(3), target(2, 1)]).terms.keys() == names | {f"{name}_one_to_many" for name in names}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t[:1], "2 images, but 1 targets"),
        (
            lambda t: [Target(torch.tensor([LABELS]), torch.rand(1, 4), None, "cat.jpg"), t[1]],
            r"image cat.jpg: label 4 is outside",
        ),
    ],
)
def test_bad_targets_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        build_criterion("detr_r50", num_labels=LABELS)(output(), change([target(1), target(2, 1)]))


@pytest.mark.parametrize(("image", "label"), [(0, LABELS), (2, -1), (3, LABELS + 5)])
def test_the_image_of_a_bad_label_is_found_among_many(image, label):
    targets = [target(2, 0), target(0, 1), target(3, 2), target(1, 3)]
    targets[image].labels[-1] = label
    found = DetectorOutput(**{**vars(output()), **vars(predictions(batch=4)), "decoder_states": torch.zeros(4, 7, 8)})
    with pytest.raises(ValueError, match=f"image {image}: label {label} is outside"):
        build_criterion("detr_r50", num_labels=LABELS)(found, targets)


class Waits(TorchDispatchMode):
    """Counts the operations that wait for a device: reading a value, and sizes that depend on values."""

    count = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        masked = operation is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in arguments[1])
        self.count += masked or operation in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return operation(*arguments, **(options or {}))


@pytest.mark.parametrize("images", [1, 6])
def test_labels_are_checked_with_one_wait_for_the_device(images):
    found = predictions(batch=images)
    whole = DetectorOutput(**{**vars(output()), **vars(found), "decoder_states": torch.zeros(images, 7, 8)})
    with Waits() as waits:
        build_criterion("detr_r50", num_labels=LABELS)._check(whole, [target(2, i) for i in range(images)])
    assert waits.count == 1


def test_a_criterion_for_another_head_is_refused():
    with pytest.raises(ValueError, match="the model has 4 label slots, but the criterion was built with num_labels=9"):
        build_criterion("detr_r50", num_labels=9)(output(), [target(1), target(2, 1)])


def test_matching_cost_takes_no_loop_over_queries():
    # One broadcast for all layers, images, queries and objects: its size is the product of the axes.
    costs = HungarianMatcher()._costs(predictions(3, 2, 50), [target(4), target(9, 1)])
    assert costs.shape == (3, 2, 50, 9)
    assert np.isfinite(costs.numpy()).all()


@pytest.mark.parametrize("scheme", ["none", "epoch", "layer"])
def test_the_second_group_counts_in_the_branch_scheme_only(scheme):
    criterion = build_criterion("h_deformable_detr_r50", num_labels=LABELS, hybrid=scheme)
    losses = criterion(output(no_object=False, one_to_many=predictions(queries=18, slots=LABELS)), [target(3), target(2, 1)])
    assert not any(name.endswith("_one_to_many") for name in losses.terms)


def test_a_criterion_for_the_other_kind_of_head_is_refused():
    with pytest.raises(ValueError, match="the model has a sigmoid class head, but the criterion was built for a softmax one"):
        build_criterion("detr_r50", num_labels=LABELS)(output(no_object=False), [target(1), target(2, 1)])
