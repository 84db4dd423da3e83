"""A file from pixels to the map, and the model that it was made of, say the same; damaged and foreign files are refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import pytest
from exported.tiny_models import FAMILIES, SETTINGS, TABLE, assert_same, pictures, remerged

import panoptic_detr as pd
from panoptic_detr.errors import InputError, PictureError
from panoptic_detr.exported import engines
from panoptic_detr.exported.engines import NOTES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", FAMILIES)
def test_one_file_gives_the_predictors_result_for_every_size_and_batch(exported, name):
    predictor, file = exported(name)
    file.batch_size = 3
    found = 0
    for count, height, width in ((1, 96, 96), (3, 130, 101), (1, 250, 333)):
        images = pictures(count, height, width, seed=height)
        for own, exact, theirs in zip(file(images), remerged(file, images), predictor(images), strict=True):
            clear = name.startswith("mask_detr")  # its random masks differ enough to compare those of two runtimes
            assert_same(own, exact, exact=clear)
            if clear:
                assert_same(own, theirs, exact=True)
            found += len(own.segments)
    assert found >= 7


@pytest.mark.parametrize(
    "changed",
    [
        {"min_area": 1500},  # in cascades
        {"min_visible": 0.6},
        {"max_segments": 3},
        {"duplicate_stuff": "keep_first"},
        {"threshold": 0.0},
        {"threshold": 1.0},  # nothing
        {"threshold": 0.5, "stuff_threshold": 0.1},
        {"short_side": 128},
    ],
    ids=str,
)
def test_settings_are_inputs_of_the_file(exported, changed):
    _, file = exported("detr_r50_panoptic")
    picture = pictures(1, 180, 181, seed=3)[0]
    file.settings = replace(SETTINGS, **changed)
    own, (exact,) = file(picture), remerged(file, [picture])
    file.settings = SETTINGS
    assert_same(own, exact, exact=False)


def test_cascades_unions_and_hidden_things_were_among_it(exported):
    predictor, file = exported("detr_r50_panoptic")
    picture = pictures(1, 180, 180, seed=3)[0]
    reasons = set()
    for changed in ({"min_area": 1500}, {"min_visible": 0.6}, {}):
        file.settings = replace(SETTINGS, **changed)
        reasons |= {dropped.reason for dropped in file(picture).dropped}
    file.settings = predictor.settings
    assert {"small", "suppressed", "merged"} <= reasons


def test_the_file_says_what_it_is(exported):
    _, file = exported("detr_r50_panoptic")
    assert file.categories == TABLE
    assert file.settings == SETTINGS
    assert file.notes["model"]["name"] == "detr_r50_panoptic"
    assert json.loads(file.engine.notes)["versions"]["torch"]
    assert {node.domain for node in __import__("onnx").load(file.path).graph.node} == {""}  # plain ONNX


def test_prediction_needs_no_torch(exported, tmp_path):
    """In a process where torch cannot be imported, and by the program of the documentation."""
    _, file = exported("detr_r50_panoptic")
    picture = tmp_path / "picture.png"
    cv2.imwrite(str(picture), pictures(1, 180, 180, seed=3)[0][..., ::-1])
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import panoptic_detr as pd\n"
        f"result = pd.load_model({str(file.path)!r}, device='cpu')({str(picture)!r})\n"
        "print(len(result.segments), int(result.segment_map.sum()))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own = file(picture)
    assert done.stdout.split() == [str(len(own.segments)), str(own.segment_map.sum())]
    documented = (ROOT / "docs" / "deploy.md").read_text().split("```python\n")[1].split("```")[0]
    script, output = tmp_path / "program.py", tmp_path / "map.png"
    script.write_text(f"import sys; sys.modules['torch'] = sys.modules['panoptic_detr'] = None\n{documented}")
    arguments = [sys.executable, script, file.path, picture, output]
    told_lines = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split()[0] for line in told_lines] == [str(segment.id) for segment in own.segments]
    assert cv2.imread(str(output)).shape == (180, 180, 3)


def test_files_that_are_none_of_ours(tmp_path, exported):
    _, file = exported("detr_r50_panoptic")
    onnx = pytest.importorskip("onnx")
    cut, foreign = tmp_path / "cut.onnx", tmp_path / "foreign.onnx"
    cut.write_bytes(file.path.read_bytes()[:20000])
    model = onnx.load(file.path)
    del model.metadata_props[:]
    onnx.save(model, foreign)
    for path, says in ((cut, "damaged"), (foreign, "not one that"), (tmp_path / "none.onnx", "there is no exported file")):
        with pytest.raises(InputError, match=says):
            pd.load_model(path)
    with pytest.raises(InputError, match="no device 'quantum'"):
        pd.load_model(file.path, device="quantum")
    for thing in (None, b"bytes", tmp_path / "no.jpg"):
        with pytest.raises(PictureError):
            file(thing)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("{", "is no JSON"),
        ("[]", "but is a list"),
        ("{}", "'format' must be int, but is missing"),
        ({"format": 99}, "newer panoptic_detr"),
        ({"categories": None}, "'categories' must be names with values, but is missing"),
        ({"categories": {"labels": "id", "num_labels": 1, "categories": []}}, "no categories"),
        ({"settings": None}, "'settings' must be names with values"),
        ({"settings": {"threshold": 7}}, "inference.threshold"),
        ({"size": [1]}, "'size' must be height and width"),
        ("boxes", "it has no output boxes"),
    ],
)
def test_a_file_that_was_changed_is_refused_in_a_sentence(tmp_path, exported, change, says):
    onnx = pytest.importorskip("onnx")
    model, path = onnx.load(exported("detr_r50_panoptic")[1].path), tmp_path / "changed.onnx"
    (notes,) = [entry for entry in model.metadata_props if entry.key == NOTES]
    if change == "boxes":
        model.graph.output.remove(next(port for port in model.graph.output if port.name == "boxes"))
    else:
        notes.value = change if isinstance(change, str) else json.dumps({**json.loads(notes.value), **change})
    onnx.save(model, path)
    with pytest.raises(InputError, match=says) as told:
        pd.load_model(path)
    assert str(told.value).startswith(str(path))
    assert "export the model again" in str(told.value) or "update this one" in str(told.value)


def test_memory_that_a_runtime_cannot_have_is_pythons_error():
    """So that a picture which is too large is told by name, whatever runs the model."""
    for words in (
        "Exception from cpu_memory.cpp:257:\nFailed to allocate 121 bytes of memory",
        "FAIL : Failed to allocate memory",
    ):
        with pytest.raises(MemoryError, match=words.splitlines()[-1]), engines.memory_errors():
            raise RuntimeError(words)
    with pytest.raises(RuntimeError, match="shapes differ"), engines.memory_errors():
        raise RuntimeError("shapes differ")
