"""A run that an earlier version began goes on with this one, with the losses that the earlier one had gone on with."""

import csv
import json
import lzma
from pathlib import Path

import pytest

from panoptic_detr.commands import train_detector
from panoptic_detr.data.scenes.dataset import write_scenes

BEFORE = Path(__file__).parents[1] / "weights" / "data" / "before"


def test_a_run_of_an_earlier_version_goes_on(tmp_path, capsys):
    write_scenes(tmp_path / "scenes", 6, size=48, workers=1)
    write_scenes(tmp_path / "scenes", 3, size=48, split="val", workers=1)
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").write_bytes(lzma.decompress((BEFORE / "resume.pt.xz").read_bytes()))
    settings = ["--config", BEFORE / "run_config.yaml", "--data.root", tmp_path / "scenes", "--train.output", run]
    more = ["--train.resume", "true", "--train.steps", "5", "--train.log_every", "1"]
    assert train_detector.main([str(argument) for argument in [*settings, *more]]) == 0
    expected = json.loads((BEFORE / "expected.json").read_text())["resumed_losses"]
    with open(run / "log.csv", newline="") as stream:
        losses = {int(row["step"]): float(row["loss"]) for row in csv.DictReader(stream)}
    assert losses == pytest.approx(dict(zip((4, 5), expected, strict=True)), abs=1e-3)
    told = capsys.readouterr().err
    assert "going on after step 3 of 5" in told
    changed = {line.split(": ")[1] for line in told.splitlines() if line.startswith("changed setting")}
    assert changed == {"data.root", "train.steps", "train.log_every"}
