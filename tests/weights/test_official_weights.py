import pytest
import torch
from parity import reference_inputs as reference

import panoptic_detr as pd
from panoptic_detr.errors import OfficialWeightsError
from panoptic_detr.weights.names.official import translate


def test_every_published_name_of_detr_is_known():
    for case, name in (("detr_r50", "detr_r50"), ("detr_r50_panoptic", "detr_r50_panoptic")):
        wanted = {k for k in pd.build_model(name).state_dict() if not k.endswith("num_batches_tracked")}
        assert translate(reference.state_dict(case)).keys() == wanted


@pytest.mark.parametrize(
    "overrides",
    [
        {"pre_norm": True},
        {"position_encoding": "learned"},
        {"encoder_layers": 3},
        {"dilation": True},
        {"backbone": "resnet101"},
    ],
)
def test_variants_round_trip(overrides):
    from panoptic_detr.weights.names.official import to_official

    source, copy = pd.build_model("detr_r50", **overrides), pd.build_model("detr_r50", **overrides)
    pd.load_official(copy, {"model": to_official(source.state_dict())})
    assert all(torch.equal(a, b) for a, b in zip(source.state_dict().values(), copy.state_dict().values(), strict=True))


def test_missing_unexpected_and_reshaped_names_are_all_listed_and_nothing_changes():
    model = pd.build_model("detr_r50")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    published = reference.state_dict("detr_r50")
    del published["query_embed.weight"]
    published["stranger.weight"] = torch.zeros(1)
    published["class_embed.bias"] = torch.zeros(5)
    with pytest.raises(OfficialWeightsError) as error:
        pd.load_official(model, published)
    for part in (
        "1 missing: query_embed.weight",
        "1 unexpected: stranger.weight",
        "class_embed.bias: (5,) in the checkpoint, (92,)",
    ):
        assert part in str(error.value)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"epoch": 3}, "a dict with int under 'epoch'"),
        ({"model": {"a": torch.zeros(1), "b": None}}, "a dict with NoneType under 'b'"),
        ([torch.zeros(1)], "list"),
        (3, "int"),
        ({"model": 3}, "int"),
        (torch.nn.Linear(1, 1), r"Linear; give its state_dict\(\)"),
        ({"model": torch.nn.Linear(1, 1)}, r"Linear; give its state_dict\(\)"),
    ],
)
def test_something_else_is_refused(given, found):
    with pytest.raises(OfficialWeightsError, match=f"expected a state dict .*, but got {found}$"):
        pd.load_official(torch.nn.Identity(), given)


def test_panoptic_weights_do_not_fit_a_detector():
    with pytest.raises(OfficialWeightsError, match="unexpected"):
        pd.load_official(pd.build_model("detr_r50"), reference.state_dict("detr_r50_panoptic"))
