"""Matching and losses: hand-computed cases, invariances, counts, switches."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from panoptic_detr import build_criterion, build_model
from panoptic_detr.structures import DetectorOutput, FeatureLevel, Predictions, Target, pad_images
from panoptic_detr.training.criterion import GlobalCounts
from panoptic_detr.training.hybrid_matching import HybridMatching
from panoptic_detr.training.losses import hard_points
from panoptic_detr.training.matcher import HungarianMatcher

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
        ({"hybrid": "both"}, "hybrid must be 'none', 'branch', 'epoch' or 'layer', but got 'both'"),
        ({"one_to_many_repeats": 0}, "one_to_many_repeats must be at least 1, but got 0"),
        ({"one_to_many_weight": -1.0}, "one_to_many_weight must be at least 0, but got -1.0"),
        ({"one_to_many_share": 8.0}, "one_to_many_share is a share of the training, 0 to 1, but got 8.0"),
        ({"one_to_many_layers": -1}, "one_to_many_layers must be at least 0, but got -1"),
        ({"masks_per_image": 0}, "masks_per_image .null for all. must be at least 1; got 12544 and 0"),
        ({"mask_points": 0}, "must be at least 1; got 0 and None"),
        ({"giou_weight": -1.0}, "weights of losses must be at least 0"),
        ({"mask_loss": "pts"}, "mask_loss must be 'full' or 'points', but got 'pts'"),
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
        "panoptic_detr.training.region_losses.hard_points", lambda logits, *_: every.expand(len(logits), -1, -1)
    )
    full, points = blob_case(CASES[name])
    for term in ("mask_dice", "mask_focal"):
        torch.testing.assert_close(points[term], full[term], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_uniform_points_estimate_the_full_loss(name, monkeypatch):
    uniform = torch.rand(1, 4000, 2)
    monkeypatch.setattr(
        "panoptic_detr.training.region_losses.hard_points", lambda logits, *_: uniform.expand(len(logits), -1, -1)
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
    from panoptic_detr.training.region_losses import dense_term

    assert dense_term([level], [wanted], LABELS).item() < 1e-6
    assert dense_term([FeatureLevel(-logits, level.padding_mask, 8)], [wanted], LABELS).item() == pytest.approx(20, rel=1e-3)


def test_dense_loss_of_an_image_does_not_depend_on_the_images_beside_it():
    padding = torch.zeros(2, 4, 4, dtype=torch.bool)
    padding[1, :, 1:] = True
    level = FeatureLevel(torch.randn(2, LABELS, 4, 4), padding, 8)
    targets = [target(2), target(1, 1)]
    from panoptic_detr.training.region_losses import dense_term

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
    from panoptic_detr.training.region_losses import dense_term

    assert dense_term([FeatureLevel(logits, padding, 8)], [wanted], LABELS).item() < 1e-6


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


def test_masks_without_segment_maps_are_refused():
    result = output()
    result.segmenter = lambda _, queries: [torch.zeros(len(q), 2, 2) for q in queries]
    with pytest.raises(ValueError, match="need a segment map"):
        build_criterion("detr_r50_panoptic", num_labels=LABELS)(result, [target(1), target(2, 1)])


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
