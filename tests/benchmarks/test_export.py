"""The comparison of a model with its files, on one that is small."""

import io
from functools import partial

import pytest
from rich.console import Console

from panoptic_detr.errors import InputError
from panoptic_detr.images import decode_image
from tools.benchmarks import export

TINY = {"backbone": "small", "hidden_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "ffn_dim": 16, "num_queries": 9}


def test_the_model_and_its_file_keep_the_same_number_of_queries(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "build_model", partial(export.build_model, **TINY))
    export.write_model(tmp_path, "detr_r50_panoptic", ((60, 80), (1100, 1200)), short_side=64, kept=4)
    assert decode_image((tmp_path / "large.png").read_bytes(), "large").shape == (1100, 1200, 3)
    rows = []
    for name in ("model, fp32", ".onnx, int8 calibrated"):
        row = {"what": name, **export.write_file(tmp_path, name, threads=1)}
        rows.append(row | export.predict(tmp_path, name, "picture.png", threads=1, repeats=1))
        rows[-1]["large_mib"] = 0.0
    assert [row["masks"] for row in rows] == [4, 4]
    assert rows[0]["export_seconds"] is None
    assert rows[1]["export_seconds"] > 0
    assert export.write_file(tmp_path, ".onnx, int8 calibrated", threads=1)["export_seconds"] is None  # it is there
    assert all(row["start"] > 0 and row["seconds"] > 0 and row["megabytes"] > 0 for row in rows)
    rows[0]["seconds"], rows[1]["seconds"] = 6.0, 0.5
    console = Console(file=io.StringIO(), width=160)
    for table in export.tables({"model": "tiny", "picture": [60, 80], "threads": 1, "rows": rows}):
        console.print(table)
    assert "12.00" in console.file.getvalue()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    place, asked = tmp_path / "new", {"model": "detr_r50_panoptic", "picture": (480, 640)}
    assert not export.is_of(place, asked)
    assert not export.is_of(place, asked)  # begun, and no model in it yet
    (place / "model.pt").touch()
    assert export.is_of(place, asked)
    with pytest.raises(InputError, match=r"made with .*'kept': 3"):
        export.is_of(place, {**asked, "kept": 3})
    (place / "arguments.json").write_text("{")
    with pytest.raises(InputError, match="made with something else, not with"):
        export.is_of(place, asked)
    (place / "arguments.json").unlink()
    with pytest.raises(InputError, match="there are files in it that are not of this measurement"):
        export.is_of(place, asked)
    assert [path.name for path in place.iterdir()] == ["model.pt"]
