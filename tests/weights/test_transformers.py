"""Folders of transformers: the same numbers here, back there, and here again. Its own network, so that models stay small."""

import json

import pytest
import torch
import transformers

import panoptic_detr as pd
from panoptic_detr.errors import CheckpointError, InputError, OfficialWeightsError
from panoptic_detr.weights.archives import read_weights
from panoptic_detr.weights.checkpoints import load_checkpoint

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [1, 2, 1, 1], "layer_type": "basic"}
SIZES = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2, "encoder_ffn_dim": 24, "decoder_ffn_dim": 16}
DETR = {"encoder_attention_heads": 8, "decoder_attention_heads": 4, "num_queries": 5}
DEFORMABLE = {"encoder_attention_heads": 4, "decoder_attention_heads": 8, "num_queries": 5, "encoder_n_points": 2}
CASES = {
    "detr": ("DetrForObjectDetection", "stage4", {**DETR, "auxiliary_loss": True, "position_embedding_type": "learned"}),
    "panoptic": ("DetrForSegmentation", "stage1 stage2 stage3 stage4", DETR),
    "deformable": ("DeformableDetrForObjectDetection", "stage2 stage3 stage4", {**DEFORMABLE, "num_labels": 91}),
    "refine": ("DeformableDetrForObjectDetection", "stage2 stage4", {**DEFORMABLE, "with_box_refine": True}),
    "two_stage": (
        "DeformableDetrForObjectDetection",
        "stage3 stage4",
        {**DEFORMABLE, "with_box_refine": True, "two_stage": True, "two_stage_num_proposals": 6, "num_feature_levels": 3},
    ),
    "single": ("DeformableDetrForObjectDetection", "stage4", {**DEFORMABLE, "num_feature_levels": 1}),
}


def make(case: str) -> torch.nn.Module:
    """A model of transformers with random weights and statistics."""
    name, features, settings = CASES[case]
    torch.manual_seed(0)
    backbone = transformers.ResNetConfig(**RESNET, out_features=features.split())
    kind = transformers.DetrConfig if name.startswith("Detr") else transformers.DeformableDetrConfig
    model = getattr(transformers, name)(kind(**{**SIZES, "num_labels": 4, **settings}, backbone_config=backbone)).eval()
    generator = torch.Generator().manual_seed(0)
    for name, values in [*model.named_parameters(), *model.named_buffers()]:
        if values.is_floating_point():
            drawn = torch.rand(values.shape, generator=generator)
            values.data = values + 0.1 * (drawn - (0.0 if name.endswith("running_var") else 0.5))
    return model


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    model = make(request.param)
    model.save_pretrained(folder)
    return model, folder


def run(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a model of either library says of a padded batch."""
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, 40:], padding[1, :, 70:] = True, True
    images.masked_fill_(padding[:, None], 0)
    with torch.no_grad():
        if hasattr(model, "spec"):
            output = model(images, padding)
            found = {"logits": output.logits[-1], "boxes": output.boxes[-1]}
            if hasattr(model, "segment"):
                every = torch.arange(found["logits"].shape[1])
                found["masks"] = torch.stack(model.segment(output, [every, every]))
            return found
        output = model(pixel_values=images, pixel_mask=(~padding).long())
    found = {"logits": output.logits, "boxes": output.pred_boxes}
    return found | ({"masks": output.pred_masks} if "pred_masks" in output else {})


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, values in one.items():
        assert values.shape == other[name].shape
        assert (values - other[name]).abs().max() <= 1e-4 * values.abs().max(), name


def test_a_folder_gives_the_same_numbers_here_and_on_its_way_back(saved, tmp_path):
    theirs, folder = saved
    ours = pd.load_pretrained(folder)
    expected = run(theirs)
    assert_close(expected, run(ours))
    pd.save_pretrained(ours, tmp_path / "back", format="transformers")
    back = type(theirs).from_pretrained(tmp_path / "back").eval()
    state = back.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in theirs.state_dict().items())
    assert all(torch.equal(value, expected[name]) for name, value in run(back).items())
    again = pd.load_pretrained(tmp_path / "back")
    assert again.spec == ours.spec
    assert again.categories == ours.categories


def test_our_own_form_loses_nothing(saved, tmp_path):
    model = pd.load_pretrained(saved[1])
    folder = pd.save_pretrained(model, tmp_path / "ours")
    again = pd.load_pretrained(folder)
    assert (again.spec, again.categories) == (model.spec, model.categories)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert load_checkpoint(folder / "model.safetensors").model == model.spec  # the file alone is a checkpoint


@pytest.fixture(scope="module")
def panoptic(tmp_path_factory):
    folder = tmp_path_factory.mktemp("panoptic")
    make("panoptic").save_pretrained(folder)
    return folder


def test_both_spellings_and_parts_are_read(panoptic, tmp_path):
    expected = pd.load_pretrained(panoptic).state_dict()
    for spelling in ("five", "parts", "bin"):
        folder = tmp_path / spelling
        folder.mkdir()
        (folder / "config.json").write_bytes((panoptic / "config.json").read_bytes())
        if spelling == "five":
            torch.save(make("panoptic").state_dict(), folder / "pytorch_model.bin")
        elif spelling == "bin":
            torch.save(dict(read_weights(panoptic / "model.safetensors")), folder / "pytorch_model.bin")
        else:
            make("panoptic").save_pretrained(folder, max_shard_size="100KB")
            assert len(list(folder.glob("model-*.safetensors"))) > 1
        state = pd.load_pretrained(folder).state_dict()
        assert all(torch.equal(value, state[name]) for name, value in expected.items()), spelling


def change(folder, target, **fields):
    """A copy of a folder with other fields in its config."""
    target.mkdir()
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    config = {**json.loads((folder / "config.json").read_text()), **fields}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("fields", "error", "words"),
    [
        ({"model_type": "yolos", "architectures": ["YolosForObjectDetection"]}, CheckpointError, "DetrForSegmentation"),
        ({"activation_function": "gelu"}, CheckpointError, "activation_function is 'gelu'"),
        ({"d_model": "wide"}, CheckpointError, "d_model must be a int, but is 'wide'"),
        ({"num_queries": 9}, OfficialWeightsError, r"query_position_embeddings.weight: \(5, 32\) in the file, \(9, 32\)"),
        ({"encoder_layers": 2}, OfficialWeightsError, r"missing: detr.model.encoder.layers.1.fc1.bias"),
        ({"decoder_layers": 1}, OfficialWeightsError, r"unexpected: detr.model.decoder.layers.1"),
        ({"encoder_attention_heads": 5}, InputError, "multiple of num_heads"),
        ({"backbone_config": {"model_type": "swin"}}, CheckpointError, "'swin' is none of ours"),
        ({"id2label": {"0": "cat", "7": "dog", "1": "a", "2": "b"}}, CheckpointError, "id2label has 'dog' for '7'"),
    ],
)
def test_what_does_not_fit_is_said_by_name(panoptic, tmp_path, fields, error, words):
    with pytest.raises(error, match=words):
        pd.load_pretrained(change(panoptic, tmp_path / "changed", **fields))


def test_the_pipeline_opens_what_we_wrote(panoptic, tmp_path):
    model = pd.load_pretrained(panoptic)
    folder = pd.save_pretrained(model, tmp_path / "out", format="transformers")
    picture = (torch.rand(40, 60, 3, generator=torch.Generator().manual_seed(0)) * 255).byte().numpy()
    from PIL import Image

    found = transformers.pipeline("image-segmentation", model=str(folder))(Image.fromarray(picture), threshold=0.0)
    assert {row["label"] for row in found} <= {"LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"}
    assert pd.load_model(folder)(picture).segment_map.shape == (40, 60)
