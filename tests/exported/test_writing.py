"""Writing a file: sizes, precisions, raw outputs; what is compared first, and what is not written."""

import json
import re
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from exported.tiny_models import SETTINGS, TABLE, lively, pictures

import panoptic_detr as pd
from panoptic_detr.commands import cli
from panoptic_detr.commands.export import differs
from panoptic_detr.errors import InputError
from panoptic_detr.exported import engines, write
from panoptic_detr.exported.parity import Comparison, network_input
from panoptic_detr.weights import Checkpoint, save_checkpoint


def test_a_fixed_size_and_smaller_weights(tmp_path):
    predictor = pd.Predictor(lively("mask_detr_r50_panoptic"), TABLE, settings=SETTINGS)
    sizes = {}
    for precision in ("fp32", "fp16", "int8"):
        report = pd.export(predictor, tmp_path / f"{precision}.onnx", size=(96, 128), precision=precision)
        sizes[precision] = report.megabytes
        file = pd.load_model(report.path, device="cpu")
        assert file(pictures(1, 70, 50)[0]).segment_map.shape == (70, 50)
    assert sizes["int8"] < 0.4 * sizes["fp32"]
    assert sizes["fp16"] < 0.6 * sizes["fp32"]
    file.settings = replace(SETTINGS, short_side=64)
    with pytest.raises(InputError, match="exported for 128 x 96 pixels"):
        file(pictures(1, 70, 50)[0])


def products_in_bytes(path: Path) -> list[bool]:
    """Whether products read bytes outside and inside of the loop over queries."""
    if path.suffix == ".onnx":
        graph = import_module("onnx").load(path).graph
        loop = next(node for node in graph.node if node.op_type == "Loop").attribute[0].g
        return ["QuantizeLinear" in {node.op_type for node in part.node} for part in (graph, loop)]
    graph = engines.openvino_core().read_model(path)
    loops = [node.get_function().get_ops() for node in graph.get_ops() if node.get_type_name() == "Loop"]
    parts = (graph.get_ops(), [node for loop in loops for node in loop])
    return ["FakeQuantize" in {node.get_type_name() for node in part} for part in parts]


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_calibrated_bytes_compute_nearly_the_same(tmp_path, capsys, ending):
    """Of another size than those that it was calibrated on; its products read bytes, those within the loop over queries too."""
    pytest.importorskip({".onnx": "onnx", ".xml": "openvino"}[ending])
    predictor = pd.Predictor(lively("detr_r50_panoptic"), TABLE, settings=SETTINGS)
    source, folder, path = tmp_path / "model.pt", tmp_path / "pictures", tmp_path / f"file{ending}"
    save_checkpoint(source, Checkpoint(predictor.model.spec, predictor.model.state_dict(), TABLE, SETTINGS.to_dict()))
    folder.mkdir()
    for number, picture in enumerate(pictures(3, 130, 101)):
        cv2.imwrite(str(folder / f"{number}.png"), picture[..., ::-1])
    assert cli.main(["export", str(source), str(path), "--precision", "int8", "--calibrate", str(folder)]) == 0
    assert "NOT EQUAL: on 1 of 1 pictures" in capsys.readouterr().err
    assert products_in_bytes(path) == [True, True]
    file, picture = pd.load_model(path, device="cpu"), pictures(1, 96, 160, seed=5)[0]
    logits, masks, places = file.run(picture[None], ("logits", "mask_logits", "mask_places"))
    with torch.no_grad():
        image = network_input(picture, SETTINGS, None)[None]
        output = predictor.model(image, torch.zeros_like(image[:, 0], dtype=torch.bool))
        own_masks = output.segment([torch.from_numpy(places[:, 1])])[0].numpy()
    for own, theirs in ((output.logits[-1].numpy(), logits), (own_masks, masks)):
        difference = np.abs(own - theirs).mean() / np.abs(own - own.mean()).mean()
        assert 0.001 < difference < 0.3


def test_what_cannot_calibrate_is_refused(tmp_path, monkeypatch):
    empty, text = tmp_path / "empty", tmp_path / "text"
    for folder in (empty, text):
        folder.mkdir()
    (text / "note.jpg").write_text("no picture")
    for folder, precision, says in (
        (empty, "int8", "empty: no pictures lie in this folder itself"),
        (text, "int8", r"note\.jpg"),
        (tmp_path / "gone", "int8", "gone is no folder; --calibrate takes one of pictures"),
        (empty, "fp32", "--calibrate goes with --precision int8, not fp32"),
        (5, "int8", "no path"),
    ):
        with pytest.raises(InputError, match=says):
            pd.export("detr_r50_panoptic", tmp_path / "file.onnx", precision=precision, calibrate=folder)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"--calibrate needs onnxruntime: pip install 'panoptic-detr\[export\]'"):
        pd.export("detr_r50_panoptic", tmp_path / "file.xml", precision="int8", calibrate=text)
    assert not (tmp_path / "file.onnx").exists()


def test_raw_outputs_of_a_detector(tmp_path):
    model = lively("detr_r50")
    source = pd.Predictor(lively("detr_r50_panoptic"), TABLE, settings=SETTINGS)
    source.model = model
    with pytest.raises(InputError, match="--raw"):
        pd.export(source, tmp_path / "boxes.onnx")
    report = pd.export(source, tmp_path / "boxes.onnx", raw=True)
    assert max(one.logits for one in report.comparisons) < 1e-3
    assert max(one.boxes for one in report.comparisons) < 1e-4
    with pytest.raises(InputError, match="exported with --raw"):
        pd.load_model(report.path)


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("file.xyz", {}, "end in .onnx or .xml or .pt2"),
        ("file.onnx", {"size": (8, 100)}, "32 to"),
        ("file.xml", {"format": "onnx"}, "ends as a file of openvino"),
        ("file.onnx", {"size": 5}, "but got 5"),
        ("file.pt2", {"precision": "int8"}, "float32"),
        ("file.pt2", {"raw": True}, "--raw"),
        ("file.onnx", {"precision": "int3"}, "fp32, fp16, int8"),
        ("file.onnx", {"check": 5}, "check must be a list of pictures, but got 5"),
        ("file.onnx", {"check_data": "root"}, "root and the split of a data set, but got 'root'"),
        ("file.onnx", {"check_data": (".", "val"), "raw": True}, "no PQ"),
        ("file.onnx", {"check_data": (".", "val"), "most_lost": -1}, "points of PQ, 0 or more, but got -1"),
        ("file.onnx", {"most_lost": 0.5}, "name one"),
        ("file.onnx", {"check": ["gone.jpg"]}, "gone.jpg: there is no such image"),
    ],
)
def test_what_cannot_be_written_is_refused(tmp_path, name, options, says):
    with pytest.raises(InputError, match=says):
        pd.export("detr_r50_panoptic", tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_differs_from_its_model_is_not_written(tmp_path, monkeypatch):
    predictor = pd.Predictor(lively("mask_detr_r50_panoptic"), TABLE, settings=SETTINGS)
    other = pd.Predictor(lively("mask_detr_r50_panoptic"), TABLE, settings=replace(SETTINGS, min_area=3000))
    made = write.make_content(write.opened_source(other), other, ".onnx", size=None, precision="fp32", raw=False)
    monkeypatch.setattr(write, "make_content", lambda *_, **__: made)
    with pytest.raises(InputError, match="is not written: on the picture"):
        pd.export(predictor, tmp_path / "file.onnx")
    assert list(tmp_path.iterdir()) == []


def write_truth(root: Path, images: list[np.ndarray], maps: list[pd.PanopticSegmentation]) -> None:
    """A data set on which whoever predicts these maps has a PQ of 100."""
    for folder in ("val", "panoptic_val", "annotations"):
        (root / folder).mkdir(parents=True)
    content = {"categories": TABLE.to_dict()["categories"], "images": [], "annotations": []}
    for number, (image, result) in enumerate(zip(images, maps, strict=True)):
        cv2.imwrite(str(root / "val" / f"{number}.png"), image[..., ::-1])
        result.save(root / "panoptic_val" / f"{number}.png")
        size = {"height": image.shape[0], "width": image.shape[1]}
        content["images"].append({"id": number, "file_name": f"{number}.png", **size})
        content["annotations"].append(result.to_coco(number))
    (root / "annotations" / "panoptic_val.json").write_text(json.dumps(content))


def test_the_quality_lost_on_a_data_set_is_told_and_limited(exported, tmp_path, monkeypatch, capsys):
    predictor, file = exported("mask_detr_r50_panoptic")
    monkeypatch.setattr(write, "make_content", lambda *_, **__: {".onnx": file.path.read_bytes()})
    source, output = tmp_path / "model.pt", tmp_path / "out" / "file.onnx"
    save_checkpoint(source, Checkpoint(predictor.model.spec, predictor.model.state_dict(), TABLE, SETTINGS.to_dict()))
    images = pictures(2, 96, 101, seed=3)
    write_truth(tmp_path / "set", images, predictor(images))
    check = ["--check", str(tmp_path / "set"), "val", "--most-lost", "0.5"]
    assert cli.main(["export", str(source), str(output), *check, "--check", str(tmp_path / "set" / "val" / "0.png")]) == 0
    out = capsys.readouterr().out
    assert "│ 0.png " in out
    assert "2 images: 0.00 points of PQ lost" in out
    assert "│ file  │ 100.00 │" in out
    output.unlink()
    other = pd.Predictor(predictor.model, TABLE, settings=replace(SETTINGS, min_area=1500))  # so the file is of another model
    write_truth(tmp_path / "other", images, other(images))
    asked = {"precision": "int8", "check_data": (tmp_path / "other", "val")}
    with pytest.raises(InputError, match=r"is not written: it loses \d+\.\d\d points of PQ on 2 images, and at most 5"):
        pd.export(other, output, most_lost=5, **asked)
    assert list(output.parent.iterdir()) == []
    quality = pd.export(other, output, **asked).quality
    assert quality.model.panoptic.all.pq == 1
    assert quality.points_lost == pytest.approx(100 - 100 * quality.file.panoptic.all.pq)
    assert quality.points_lost > 5
    with pytest.raises(SystemExit):
        cli.main(["export", str(source), str(output), "--check", str(tmp_path / "set")])
    assert "by its root folder and split" in capsys.readouterr().err


def test_weights_of_others_are_not_overwritten(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"weights")
    with pytest.raises(InputError, match=r"pytorch_model\.bin is there already"):
        pd.export("detr_r50_panoptic", tmp_path / "pytorch_model.xml")
    assert (tmp_path / "pytorch_model.bin").read_bytes() == b"weights"


def test_weights_of_an_older_export_never_lie_beside_a_new_file(tmp_path, monkeypatch):
    path = tmp_path / "out.xml"
    path.write_bytes(b"old")
    monkeypatch.setattr(write, "write_whole", lambda path, _: (_ for _ in ()).throw(OSError(f"disk full: {path.name}")))
    with pytest.raises(OSError, match=r"out\.bin"):
        write.write_files(path, {".xml": b"new", ".bin": b"new"})
    assert list(tmp_path.iterdir()) == []


def test_what_unequal_segments_mean_is_said_in_every_precision():
    equal = Comparison("a.png", 0.0, 0.0, 0.0, 1.0, True, 3)
    unlike = Comparison("b.png", 0.1, 0.0, 0.2, 0.9995, False, 3)
    for precision, words in (
        ("fp32", "on 1 of 2 pictures rounding decides .* 99.950% and more"),
        ("fp16", "the price of fp16"),
    ):
        assert differs(write.ExportReport(Path("m.xml"), 1.0, precision, (equal,))) is None
        assert re.search(words, differs(write.ExportReport(Path("m.xml"), 1.0, precision, (equal, unlike))))
