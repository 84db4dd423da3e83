"""Files of weights that are damaged or made to harm: each is one error that names the file, or computes what it did before."""

import zipfile

import numpy as np
import pytest
import torch

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import CheckpointError, InputError
from panoptic_detr.weights.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from panoptic_detr.weights.open import open_model
from panoptic_detr.weights.transfer import transfer_weights
from panoptic_detr.zoo import build_model

TINY = {
    **{"backbone": "small", "backbone_norm": "batch", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16},
    **{"encoder_layers": 1, "decoder_layers": 1, "num_queries": 3},
}
TABLE = CategoryTable.from_coco([{"id": 1, "name": "cat", "isthing": 1}, {"id": 2, "name": "sky", "isthing": 0}])


@pytest.fixture(scope="module", params=["pt", "safetensors"])
def saved(request, tmp_path_factory):
    torch.manual_seed(0)
    model = build_model("detr_r50", num_labels=2, **TINY)
    path = tmp_path_factory.mktemp("saved") / f"model.{request.param}"
    return save_checkpoint(path, Checkpoint(model.spec, model.state_dict(), TABLE, {"threshold": 0.3}))


def contents(checkpoint):
    plain = (checkpoint.model, checkpoint.categories, dict(checkpoint.inference), dict(checkpoint.versions))
    return plain, {name: value.clone() for name, value in checkpoint.state_dict.items()}


def same(one, other):
    weights = one[1].keys() == other[1].keys() and all(torch.equal(value, other[1][name]) for name, value in one[1].items())
    return weights and one[0] == other[0]


def test_flipped_bytes_are_noticed_or_change_nothing(saved, tmp_path):
    data, whole = saved.read_bytes(), contents(load_checkpoint(saved))
    generator, refused = np.random.default_rng(0), 0
    ends = [*range(0, 400, 7), *range(len(data) - 3000, len(data), 41)]
    for place in [*ends, *generator.integers(0, len(data), 150).tolist()]:
        broken = bytearray(data)
        broken[place] ^= int(generator.integers(1, 256))
        path = tmp_path / saved.name
        path.write_bytes(broken)
        try:
            found = contents(load_checkpoint(path))
        except CheckpointError as error:
            refused += str(path) in str(error)
        else:
            assert same(found, whole), f"byte {place} changed the result"
    assert refused > 150


def test_files_that_end_early_are_refused(saved, tmp_path):
    data, path = saved.read_bytes(), tmp_path / saved.name
    for length in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:length])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def fields(folder, changes):
    """A checkpoint's content with some fields changed; two underscores lead into a section, `...` drops a field."""
    model = build_model("detr_r50", num_labels=2, **TINY)
    path = save_checkpoint(folder / "whole.pt", Checkpoint(model.spec, model.state_dict(), TABLE, {"threshold": 0.3}))
    whole = torch.load(path, weights_only=True)
    for key, value in changes.items():
        *outer, name = key.split("__")
        section = whole
        for part in outer:
            section = section[part]
        if value is ...:
            del section[name]
        else:
            section[name] = value
    return whole


NAME = "query_embed.weight"
HUGE = torch.zeros(1).expand(10**6, 10**6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": ...}, "field 'version' is missing"),
        ({"version": "1"}, "field 'version' must be int, but is '1'"),
        ({"version": None}, "field 'version' must be int, but is None"),
        ({"model": ...}, "field 'model' is missing"),
        ({"model": "detr_r50"}, "field 'model' must be names with values, but is 'detr_r50'"),
        ({"model__name": ...}, r"field 'model\.name' is missing"),
        ({"model__name": 7}, r"field 'model\.name' must be str, but is 7"),
        ({"model__name": "detr_r51"}, "cannot be built: there is no model 'detr_r51'"),
        ({"model__num_labels": "2"}, r"field 'model\.num_labels' must be int, but is '2'"),
        ({"model__num_labels": True}, r"field 'model\.num_labels' must be int, but is True"),
        ({"model__num_labels": 3}, "class table has 2 label slots, its model 3"),
        ({"model__overrides": [1]}, r"field 'model\.overrides' must be names with values, but is a list"),
        ({"model__overrides__num_queries": "many"}, "override 'num_queries' must be int, but got 'many'"),
        ({"model__overrides__num_queries": 10**12}, "num_queries must be at most 100000, but got 1000000000000"),
        ({"model__overrides__encoder_layers": 10**6}, "encoder_layers must be at most 1000, but got 1000000"),
        ({"model__overrides__new": 1}, "has no override 'new'"),
        ({"model__extra": 1}, None),
        ({"categories": 5}, "field 'categories' must be names with values or null, but is 5"),
        ({"categories__labels": "names"}, r"field 'categories\.labels' must be one of contiguous, id, but is 'names'"),
        ({"categories__num_labels": 2.5}, r"field 'categories\.num_labels' must be int, but is 2\.5"),
        ({"categories__categories": ...}, r"field 'categories\.categories' is missing"),
        ({"categories__categories": [{"id": "a", "name": "cat", "isthing": 1}]}, "category id 'a' is not an integer"),
        ({"categories__categories": [{"name": "cat", "isthing": 1}]}, "has no id"),
        ({"categories__categories": [1, 2]}, "must be a list of names with values, but is a list"),
        ({"inference": None}, "field 'inference' must be names with values, but is None"),
        ({"inference__thresold": 0.1}, "did you mean '(inference.)?threshold'"),
        ({"inference__threshold": 7.0}, r"'inference\.threshold' must be in \[0, 1\], but got 7\.0"),
        ({"inference__threshold": "high"}, r"'inference\.threshold' must be float or null, but got 'high'"),
        ({"inference__short_side": 10**9}, r"'inference\.short_side' must be at most 32768, but got 1000000000"),
        ({"versions": ...}, "field 'versions' is missing"),
        ({"training": 3}, "field 'training' must be names with values or null, but is 3"),
        ({"state_dict": ...}, "field 'state_dict' is missing"),
        ({"state_dict": [1]}, "field 'state_dict' must be names with values that are each a Tensor, but is a list"),
        ({f"state_dict__{NAME}": 1.0}, "field 'state_dict' must be names with values that are each a Tensor, but is a dict"),
        ({f"state_dict__{NAME}": torch.full((3, 16), torch.nan)}, f"{NAME} has 48 of 48 values that are NaN or infinite"),
        ({f"state_dict__{NAME}": torch.zeros(3, 16).index_fill(1, torch.tensor([2]), torch.inf)}, f"{NAME} has 3 of 48 values"),
        ({f"state_dict__{NAME}": torch.zeros(3, 16, device="meta")}, f"{NAME} is a meta tensor"),
        ({f"state_dict__{NAME}": torch.eye(3).to_sparse()}, f"{NAME} is sparse"),
        ({f"state_dict__{NAME}": torch.zeros(3, 16, dtype=torch.int64)}, f"{NAME} is of type torch.int64 in the checkpoint"),
        ({f"state_dict__{NAME}": torch.zeros(3, 16, dtype=torch.complex64)}, f"{NAME} is of type torch.complex64"),
        ({f"state_dict__{NAME}": HUGE}, f"{NAME} has 1000000000000 entries, more than the values that are stored"),
        ({f"state_dict__{NAME}": torch.zeros(3, 15)}, r"is \(3, 15\) in the checkpoint, \(3, 16\) in the model"),
        ({f"state_dict__{NAME}": ...}, "is only in the model"),
    ],
    ids=lambda value: str(value)[:40].replace("\n", " "),
)
def test_every_field_is_checked(changes, message, tmp_path):
    path = tmp_path / "x.pt"
    torch.save(fields(tmp_path, changes), path)
    if message is None:
        assert open_model(path).settings.threshold == 0.3
        return
    with pytest.raises(CheckpointError, match=message) as caught:
        open_model(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_class_head_of_another_size_than_its_table_is_no_source(tmp_path):
    path = tmp_path / "x.pt"
    torch.save(fields(tmp_path, {"state_dict__class_embed.weight": torch.zeros(1, 16)}), path)
    model = build_model("detr_r50", num_labels=2, **TINY)
    result = transfer_weights(load_checkpoint(path), model, TABLE)
    assert any(line.startswith("class_embed.weight: ") for line in result.fresh)


def test_an_archive_that_unpacks_to_more_than_it_holds_is_not_opened(saved, tmp_path):
    if saved.suffix != ".pt":
        return
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.infolist():
            size = 10**8 if "/data/" in member.filename else 0
            target.writestr(member.filename, source.read(member) + bytes(size))
            if size:
                break
    with pytest.raises(CheckpointError, match=r"would unpack to \d+ MiB, but the file has 0\.\d"):
        load_checkpoint(path)


def test_notes_of_safetensors_are_checked_too(saved, tmp_path):
    if saved.suffix != ".safetensors":
        return
    data = saved.read_bytes()
    assert data.count(b'\\"threshold\\": 0.3') == 1
    path = tmp_path / saved.name
    path.write_bytes(data.replace(b'\\"threshold\\": 0.3', b'\\"threshold\\": 0.4'))
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"num_queries": 10**12}, "num_queries must be at most 100000"),
        ({"encoder_layers": 10**6}, "encoder_layers must be at most 1000"),
        ({"decoder_layers": 10**6}, "decoder_layers must be at most 1000"),
        ({"hidden_dim": 2**20}, "hidden_dim must be at most 16384"),
        ({"ffn_dim": 10**9}, "ffn_dim must be at most 262144"),
        ({"position_encoding": "learned", "position_table_size": 10**10}, "position_table_size must be at most 100000"),
        ({"hidden_dim": 2**14, "encoder_layers": 1000, "ffn_dim": 2**16}, "does not fit"),
    ],
)
def test_models_that_no_machine_holds_are_refused_by_name(overrides, named):
    for name in ("detr_r50", "deformable_detr_r50"):
        if name.startswith("deformable") and "position_encoding" in overrides:
            continue
        with pytest.raises(InputError, match=named):
            build_model(name, **overrides)
    with pytest.raises(InputError, match="num_labels must be at most"):
        build_model("detr_r50", num_labels=10**12)
