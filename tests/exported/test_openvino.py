"""Files for OpenVINO give the same, keep what they compile, and leave signals alone."""

import json
import subprocess
import sys
from dataclasses import replace
from textwrap import dedent

import numpy as np
import pytest
import torch
from exported.tiny_models import SETTINGS, assert_same, pictures, remerged

import panoptic_detr as pd
from panoptic_detr.errors import InputError
from panoptic_detr.exported.parity import default_pictures, network_input


def test_openvino_gives_the_same(exported):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    _, file = exported("deformable_detr_r50_panoptic", ".xml")
    reasons, none = set(), {"threshold": 1.0}
    file.batch_size = 2
    for count, side, changed in (
        *((1, 96, {}), (2, 180, {"min_area": 1500}), (1, 180, {"min_visible": 0.6, "max_segments": 9}), (1, 130, none)),
        *((1, 180, {"duplicate_stuff": "keep_first", "short_side": 90}), (1, 180, {"threshold": 0.0})),
    ):
        images = pictures(count, side, side, seed=3)
        file.settings = replace(SETTINGS, **changed)
        for own, exact in zip(file(images), remerged(file, images), strict=True):
            assert_same(own, exact, exact=False)
            assert (len(own.segments) > 0) == (changed != none)
            reasons |= {dropped.reason for dropped in own.dropped}
    file.settings = SETTINGS
    assert {"small", "suppressed", "merged", "low score"} <= reasons


@pytest.mark.parametrize("name", ["detr_r50_panoptic", "deformable_detr_r50_panoptic"])
def test_pictures_that_get_smaller_are_antialiased(exported, name):
    """OpenVINO leaves that out of ONNX's Resize, which moves logits by 0.09 and 0.14 here."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    predictor, file = exported(name, ".xml")
    noise = np.random.default_rng(0).integers(0, 255, (400, 300, 3), np.uint8)
    file.settings = replace(SETTINGS, short_side=96)
    for picture in (default_pictures(96)[-1], noise):
        logits, boxes = file.run(picture[None], ("logits", "query_boxes"))
        image = network_input(picture, file.settings, None)[None]
        with torch.no_grad():
            output = predictor.model(image, torch.zeros_like(image[:, 0], dtype=torch.bool))
        assert picture.shape[0] > image.shape[2]
        for own, theirs in ((output.logits[-1], logits), (output.boxes[-1], boxes)):
            assert np.abs(own.numpy() - theirs).mean() < 0.06
    file.settings = SETTINGS


def test_what_openvino_compiled_is_kept_where_somebody_says(exported, tmp_path, monkeypatch):
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    _, file = exported("deformable_detr_r50_panoptic", ".xml")
    monkeypatch.setenv("PANOPTIC_DETR_OPENVINO_CACHE", str(tmp_path / "kept"))
    first = pd.load_model(file.path, device="cpu")
    (blob,) = (tmp_path / "kept").glob("*.blob")
    written = blob.stat().st_mtime_ns
    second = pd.load_model(file.path, device="cpu")
    assert [blob.stat().st_mtime_ns for blob in (tmp_path / "kept").glob("*.blob")] == [written]
    images = pictures(1, 96, 96, seed=3)
    for one, other in zip(first(images), second(images), strict=True):
        assert_same(one, other, exact=True)


def test_signals_arrive_after_models_of_openvino_are_gone(exported, tmp_path):
    """Each of its own had left the stack of signals that an earlier one had freed: a segmentation fault."""
    pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    _, file = exported("detr_r50_panoptic", ".xml")
    code = f"""
        import signal, panoptic_detr as pd
        signal.signal(signal.SIGTERM, lambda *_: print("arrived"))
        first, second = (pd.load_model({str(file.path)!r}, device="cpu") for _ in range(2))
        del first, second
        signal.raise_signal(signal.SIGTERM)
    """
    done = subprocess.run([sys.executable, "-c", dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr


def test_files_of_openvino_that_are_none_of_ours(exported, tmp_path):
    openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    _, file = exported("deformable_detr_r50_panoptic", ".xml")
    assert json.loads(file.engine.notes)["versions"]["openvino"]
    with pytest.raises(InputError, match="no device 'cuda' for OpenVINO"):
        pd.load_model(file.path, device="cuda")
    with pytest.raises(InputError, match="fp32 or bf16, not in 'fp16'"):
        pd.load_model(file.path, device="cpu", precision="fp16")
    alone, cut, foreign = (tmp_path / f"{name}.xml" for name in ("alone", "cut", "foreign"))
    alone.write_bytes(file.path.read_bytes())
    cut.write_bytes(file.path.read_bytes()[:5000])
    cut.with_suffix(".bin").write_bytes(b"")
    zero = openvino.opset13.parameter([1], np.float32, name="image")
    openvino.save_model(openvino.Model([openvino.opset13.relu(zero)], [zero]), foreign)
    for path, says in ((alone, "alone.bin must lie beside it"), (cut, "damaged"), (foreign, "not one that")):
        with pytest.raises(InputError, match=says):
            pd.load_model(path, device="cpu")
