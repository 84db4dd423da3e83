"""The comparison with transformers' pipeline, on a folder that is small."""

import io
from importlib import import_module

import cv2
import torch
from rich.console import Console

from tools.benchmarks import hub


def test_a_dozen_queries_are_kept_by_both(tmp_path, monkeypatch):
    transformers = import_module("transformers")  # the one that is there now, whatever other tests did to the first one
    original = transformers.DetrConfig
    resnet = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 12, 16, 24], depths=[1] * 4, layer_type="basic", out_features=hub_stages()
    )
    tiny = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    monkeypatch.setattr(
        transformers, "DetrConfig", lambda **given: original(**given, **tiny, num_queries=9, backbone_config=resnet)
    )
    picture, folder = tmp_path / "photo.jpg", tmp_path / "model"
    cv2.imwrite(str(picture), torch.randint(0, 256, (40, 60, 3), generator=torch.Generator().manual_seed(0)).byte().numpy())
    hub.write_folder(folder, picture, kept=3)
    common = {"folder": folder, "picture": picture, "threads": 1, "repeats": 1}
    ours = hub.here(**common)
    assert ours["segments"] == 3
    theirs = hub.with_transformers(**common)
    assert 0 <= theirs["segments"] <= 3
    assert all(row["seconds"] > 0 and row["mib"] >= row["libraries_mib"] for row in (ours, theirs))
    rows = [{"what": "theirs", **theirs, "seconds": 6.0, "mib": 900.0}, {"what": "ours", **ours, "seconds": 0.5, "mib": 100.0}]
    console = Console(file=io.StringIO(), width=120)
    for table in hub.tables({"kept": 3, "threads": 1, "rows": rows}):
        console.print(table)
    assert "12.0" in console.file.getvalue()
    assert "9.0" in console.file.getvalue()


def hub_stages():
    return [f"stage{number}" for number in range(1, 5)]
