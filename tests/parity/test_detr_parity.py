"""DETR and its panoptic extension compute what the published code computes."""

import pytest
import torch
from parity import reference_inputs as reference

from panoptic_detr import build_criterion, build_model, load_official
from panoptic_detr.weights.names.official import translate

CASES = {
    "detr_r50": ("detr_r50", 91, {}),
    "detr_r50_panoptic": ("detr_r50_panoptic", 250, {}),
    "detr_r50_panoptic_frozen": ("detr_r50_panoptic", 250, {"aux_loss": False}),
}
TERMS = {
    "loss_ce": "class",
    "loss_bbox": "box_l1",
    "loss_giou": "box_giou",
    "loss_mask": "mask_focal",
    "loss_dice": "mask_dice",
}


def loaded(case):
    """The model of a case with its weights, the detector frozen where the case says so."""
    model = build_model(CASES[case][0]).eval()
    load_official(model, reference.state_dict(case))
    if case.endswith("_frozen"):
        model.detector.requires_grad_(False)
    return model


@pytest.fixture(scope="module", params=CASES)
def run(request):
    case = request.param
    name, num_labels, options = CASES[case]
    model = loaded(case)
    output = model(*reference.batch(case))
    losses = build_criterion(name, **options)(output, reference.targets(case, num_labels))
    return case, model, output, losses


def test_outputs_of_all_layers(run):
    case, _, output, _ = run
    wanted = reference.expected(case)
    reference.assert_close(output.logits[-1], wanted["pred_logits"])
    reference.assert_close(output.boxes[-1], wanted["pred_boxes"])
    reference.assert_close(output.memory.features, wanted["memory"])
    reference.assert_close(output.decoder_states[:, [0, 7, 33, 99]], wanted["decoder_states_last"])
    layers = [layer for layer in range(5) if f"aux{layer}_logits" in wanted]
    assert len(layers) == (0 if case.endswith("_frozen") else 5)
    for layer in layers:
        reference.assert_close(output.logits[layer][:, :10], wanted[f"aux{layer}_logits"])
        reference.assert_close(output.boxes[layer][:, :10], wanted[f"aux{layer}_boxes"])


def test_masks_and_attention_maps(run):
    case, model, output, _ = run
    if case == "detr_r50":
        assert output.segmenter is None
        return
    wanted = reference.expected(case)
    rows = torch.from_numpy(wanted["pred_masks_rows"])
    reference.assert_close(torch.stack(model.segment(output, [rows, rows])), wanted["pred_masks"])
    attention = model.mask_head.attention
    keys = attention.keys(output.memory.features)
    maps = [attention(output.decoder_states[i, rows], keys[i, None], output.memory.padding_mask[i, None]) for i in range(2)]
    reference.assert_close(torch.stack(maps), wanted["attention_maps"])


def test_losses_and_matching(run):
    case, _, _, losses = run
    wanted = reference.expected_losses(case)
    assert [[queries.tolist(), objects.tolist()] for queries, objects in losses.matching] == wanted["matching"]
    assert losses.total.item() == pytest.approx(wanted["total"], rel=1e-4)
    compared = 0
    for name, value in wanted["losses"].items():
        stem, _, layer = name.rpartition("_") if name[-1].isdigit() else (name, "", "")
        if stem in TERMS:
            ours = TERMS[stem] + (f"_layer{layer}" if layer else "")
            assert losses.terms[ours].item() == pytest.approx(value, rel=1e-4), name
            assert losses.weights[ours] == wanted["weights"][name]
            compared += 1
    assert compared == len(losses.terms)


@pytest.mark.parametrize("case", CASES)
def test_gradient_norms(case):
    # In float64: the mask head's gradient jumps where one of its ReLUs passes zero, which rounding of float32 decides.
    name, num_labels, options = CASES[case]
    model = loaded(case)
    images, padding_mask = reference.batch(case)
    output = model.double()(images.double(), padding_mask)
    build_criterion(name, **options)(output, reference.targets(case, num_labels)).total.backward()
    wanted = reference.expected_losses(case)["grad_norms"]
    ours = {next(iter(translate({name: torch.zeros(1)}))): value for name, value in wanted.items()}
    found = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == ours.keys()
    for name, value in ours.items():
        if value > 1e-6:
            assert found[name] == pytest.approx(value, rel=1e-3), name
