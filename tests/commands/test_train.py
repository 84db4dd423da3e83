"""One command from annotations to a report: both stages, thresholds, scores, pictures; it goes on where it was stopped."""

import pytest

from panoptic_detr.commands import train
from panoptic_detr.config.stages import DetectorStage
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.errors import DataError, TrainingError
from panoptic_detr.weights import load_checkpoint


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val"):
        write_scenes(folder / "mine", 4, size=48, split=split, workers=1)
    return folder / "mine"


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A recipe of a tiny model."""
    (tmp_path / "tiny_boxes.yaml").write_text(
        "model: {name: deformable_detr_r50_two_stage, overrides: {backbone: small, backbone_norm: batch, hidden_dim: 32,\n"
        "  num_queries: 12, num_heads: 2, num_points: 2, encoder_layers: 1, decoder_layers: 1, ffn_dim: 32}}\n"
        "data: {workers: 0}\naugmentation: {preset: none}\ntrain: {steps: 3, batch_size: 2, tensorboard: false}\n"
        "inference: {short_side: null, threshold: 0.01}\n"
    )
    (tmp_path / "tiny_masks.yaml").write_text(
        "data: {workers: 0}\naugmentation: {preset: none}\ntrain: {steps: 3, batch_size: 2, tensorboard: false}\n"
        "inference: {short_side: null, threshold: 0.01}\n"
    )
    (tmp_path / "lonely_boxes.yaml").write_text("")
    monkeypatch.setattr(train, "RECIPES", tmp_path)
    return tmp_path


def arguments(data, out, *more):
    return ["--data.root", str(data), "--recipe", "tiny", "--output", str(out), *more]


def test_from_annotations_to_a_report_and_on_where_it_was_stopped(data, tiny, monkeypatch, capsys):
    out = tiny / "out"
    command = arguments(data, out, "--detector-steps", "1", "--mask-steps", "1")
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_masks", lambda stage: None)  # as if a signal had ended it
        with pytest.raises(TrainingError, match="the same command goes on where it was"):
            train.main(command)
    boxes = (out / "boxes" / "best.pt").read_bytes()
    assert train.main(command) == 0
    assert (out / "boxes" / "best.pt").read_bytes() == boxes
    assert load_checkpoint(out / "masks" / "last.pt").training["state"]["step"] == 1
    assert (out / "scores" / "scores.json").is_file()
    assert "<html" in (out / "report.html").read_text()
    assert len(list((out / "pictures").glob("*.png"))) == 4
    told = capsys.readouterr()
    assert "the run is complete" in told.err
    assert f"model    {out / 'masks' / 'best.pt'}" in told.out


def test_recipes_have_both_stages(tiny, monkeypatch):
    assert train.recipes() == ["tiny"]
    monkeypatch.undo()
    assert {"small", "nuclei", "detr_r50"} <= set(train.recipes())


def test_a_recipe_is_trained_with_its_own_settings(data, tmp_path):
    seen = []
    options = train.parse(["--data.root", str(data), "--recipe", "small", "--output", str(tmp_path)])
    train.train(DetectorStage, lambda stage: seen.append(stage) or tmp_path, "boxes", options, None)
    assert (seen[0].train.steps, seen[0].data.root, seen[0].train.output) == (3000, data, tmp_path / "boxes")


def test_what_is_missing_is_said_before_anything_is_trained(data, tiny, capsys):
    with pytest.raises(DataError, match=r"there is no split 'dev' .*`panoptic-detr data split .* --val 0\.2`"):
        train.main(arguments(data, tiny / "out", "--data.val_split", "dev"))
    with pytest.raises(SystemExit):
        train.main(["--data.root", str(data), "--recipe", "huge"])
    assert "argument --recipe: invalid choice: 'huge'" in capsys.readouterr().err
