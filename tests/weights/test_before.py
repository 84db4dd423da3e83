"""Checkpoints that the first release wrote load, are resumed from and scored, with the numbers of that time."""

import json
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import panoptic_detr as pd
from panoptic_detr.commands import evaluate
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.weights.checkpoints import load_checkpoint
from panoptic_detr.weights.open import open_model

DATA = Path(__file__).parent / "data" / "before"
EXPECTED = json.loads((DATA / "expected.json").read_text())
NAMES = ("detector.pt", "masks.pt", "masks.safetensors")


@pytest.fixture(scope="module")
def before(tmp_path_factory):
    """The folder of the unpacked files."""
    folder = tmp_path_factory.mktemp("before")
    for packed in DATA.glob("*.xz"):
        with lzma.open(packed) as source, open(folder / packed.stem, "wb") as target:
            shutil.copyfileobj(source, target)
    return folder


def assert_near(found, wanted):
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_old_checkpoints_compute_what_they_computed(before, name):
    images = torch.arange(3 * 48 * 48).float().sin().reshape(1, 3, 48, 48)
    model = open_model(before / name).model
    output = model(images, torch.zeros(1, 48, 48, dtype=torch.bool))
    assert_near(output.logits[-1, 0], EXPECTED[name]["logits"])
    assert_near(output.boxes[-1, 0], EXPECTED[name]["boxes"])
    assert ("masks" in EXPECTED[name]) == name.startswith("masks")
    if "masks" in EXPECTED[name]:
        assert_near(model.segment(output, [torch.arange(4)])[0].flatten(1).std(1), EXPECTED[name]["masks"])


def test_old_checkpoints_predict_what_they_predicted(before):
    image = (np.indices((48, 48)).sum(0)[..., None] * np.array([2, 3, 5]) % 256).astype(np.uint8)
    segments = pd.load_model(before / "masks.pt")(image, threshold=0.0).segments
    assert [[segment.category_id, segment.area] for segment in segments] == EXPECTED["segments"]


def test_old_checkpoints_bring_their_settings(before):
    checkpoint = load_checkpoint(before / "masks.pt")
    assert checkpoint.model.name == "deformable_detr_r50_two_stage_panoptic"
    assert checkpoint.inference["threshold"] == 0.05
    assert [category.name for category in checkpoint.categories.categories]
    assert load_checkpoint(before / "resume.pt").training["state"]["step"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_old_checkpoints_are_scored(before, name, tmp_path):
    write_scenes(tmp_path, 2, size=48, split="val", workers=1)
    data = ["--data.root", str(tmp_path), "--data.split", "val", "--device", "cpu", "--output", str(tmp_path)]
    assert evaluate.main([str(before / name), *data]) == 0
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["box_ap"]["ap"] is not None
    assert ("mask_ap" in scores) == ("All" in scores) == name.startswith("masks")
