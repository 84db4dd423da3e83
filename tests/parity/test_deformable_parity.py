"""Deformable DETR and H-DETR compute what the published code computes.

In double precision, in which the numbers are the same on every machine. In single precision the six random layers amplify
the rounding, which differs from processor to processor, up to the tolerance itself; one test allows for that.
"""

import json

import pytest
import torch
from parity import reference_inputs as reference

from panoptic_detr import build_criterion, build_model, load_official
from panoptic_detr.weights.names.official import translate

CASES = {
    "deformable_detr_r50": ("deformable_detr_r50", {}, {}),
    "deformable_detr_r50_refine": ("deformable_detr_r50_refine", {}, {}),
    "deformable_detr_r50_two_stage": ("deformable_detr_r50_two_stage", {}, {}),
    "h_deformable_detr_r50_hybrid_branch": (
        "h_deformable_detr_r50",
        {"num_queries": 100, "num_one_to_many": 200},
        {"one_to_many_repeats": 4},
    ),
}
TERMS = {"loss_ce": "class", "loss_bbox": "box_l1", "loss_giou": "box_giou"}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def single(case):
    """The model in single precision, and its output."""
    name, overrides, _ = CASES[case]
    model = build_model(name, **({"dropout": 0.0} | overrides))
    load_official(model, reference.state_dict(case))
    model.train(case.endswith("_hybrid_branch"))  # the one-to-many queries exist in training only; nothing here is random
    with torch.no_grad():
        return model, model(*reference.batch(case))


@pytest.fixture(scope="module")
def run(case, single):
    name, _, options = CASES[case]
    model = single[0].double()
    images, padding_mask = reference.batch(case)
    output = model(images.double(), padding_mask)
    losses = build_criterion(name, **options)(output, reference.targets(case, 91))
    losses.total.backward()
    return case, model, output, losses


def test_outputs_of_all_layers(run):
    case, _, output, _ = run
    wanted = reference.expected(case)
    rows = wanted["rows"]
    assert output.logits.shape[0] == 6
    reference.assert_close(output.logits[-1][:, rows], wanted["pred_logits"])
    reference.assert_close(output.logits[-1][..., :8], wanted["pred_logits_first8"])
    reference.assert_close(output.boxes[-1], wanted["pred_boxes"])
    for layer in range(5):
        reference.assert_close(output.logits[layer][:, rows], wanted[f"aux{layer}_logits"])
        reference.assert_close(output.boxes[layer][:, rows], wanted[f"aux{layer}_boxes"])


def test_single_precision_agrees_within_its_rounding(case, single):
    wanted, output = reference.expected(case), single[1]
    reference.assert_close(output.logits[-1][:, wanted["rows"]], wanted["pred_logits"], atol=5e-5)
    reference.assert_close(output.logits[-1][..., :8], wanted["pred_logits_first8"], atol=5e-5)
    reference.assert_close(output.boxes[-1], wanted["pred_boxes"])


def test_proposals(run):
    case, _, output, _ = run
    wanted = reference.expected(case)
    assert (output.proposals is None) == ("enc_boxes" not in wanted)
    if output.proposals is not None:
        reference.assert_close(output.proposals.logits[0, :, :, 0], wanted["enc_logits_first"])
        reference.assert_close(output.proposals.boxes[0, :, ::16], wanted["enc_boxes"])


def test_one_to_many_queries(run):
    case, _, output, _ = run
    wanted = reference.expected(case)
    assert (output.one_to_many is None) == ("one2many_boxes" not in wanted)
    if output.one_to_many is not None:
        assert output.one_to_many.logits.shape[:3] == (6, 2, 200)
        reference.assert_close(output.one_to_many.logits[-1][:, wanted["rows"]], wanted["one2many_logits"])
        reference.assert_close(output.one_to_many.boxes[-1][:, wanted["rows"]], wanted["one2many_boxes"])


def test_losses_and_matching(run):
    case, _, _, losses = run
    wanted = reference.expected_losses(case)
    assert [[queries.tolist(), objects.tolist()] for queries, objects in losses.matching] == wanted["matching"]
    assert losses.total.item() == pytest.approx(wanted["total"], rel=1e-4)
    recorded = {_our_term(name): name for name in wanted["losses"] if name.startswith(tuple(TERMS))}
    assert recorded.keys() == losses.terms.keys()
    for ours, name in recorded.items():
        assert losses.terms[ours].item() == pytest.approx(wanted["losses"][name], rel=1e-4), name
        assert losses.weights[ours] == wanted["weights"][name]


def test_gradient_norms(run):
    case, model, _, _ = run
    ours = _our_names(case)
    wanted = {ours[name]: norm for name, norm in reference.expected_losses(case)["grad_norms"].items()}
    found = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        if value > 1e-6:
            assert found[name] == pytest.approx(value, rel=1e-3), name


def _our_term(name: str) -> str:
    """`loss_bbox_3_one2many` is `box_l1_layer3_one_to_many`."""
    one_to_many = "_one_to_many" if name.endswith("_one2many") else ""
    stem = name.removesuffix("_one2many")
    for theirs, ours in TERMS.items():
        if stem.startswith(theirs):
            place = stem.removeprefix(theirs).removeprefix("_")
            layer = {"": "", "enc": "_proposals"}.get(place, f"_layer{place}")
            return ours + layer + one_to_many
    raise AssertionError(name)


def _our_names(case: str) -> dict[str, str]:
    """Published name to ours, for every entry: each is renamed with a number of its own, shared ones with the same."""
    names = list(json.loads((reference.DATA / f"{case}.keys.json").read_text()))
    aliases = json.loads((reference.DATA / f"{case}.aliases.json").read_text())
    numbers = {name: names.index(aliases.get(name, name)) for name in names}
    ours = {number.item(): name for name, number in translate({n: torch.tensor(i) for n, i in numbers.items()}).items()}
    return {name: ours[number] for name, number in numbers.items()}
