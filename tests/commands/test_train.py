"""One command from annotations to a report: both stages, thresholds, scores, pictures; it goes on where it was stopped."""

import signal

import pytest

from panoptic_detr.commands import train
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.reading import read_config
from panoptic_detr.config.stages import DetectorStage, MaskStage
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.errors import ConfigError, DataError, EvaluationError, TrainingError
from panoptic_detr.training import stages
from panoptic_detr.training.trainer import Trainer
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
    assert "to go on from" not in told.err
    assert f"model    {out / 'masks' / 'best.pt'}" in told.out


def interrupt(*_: object, **__: object) -> None:
    signal.raise_signal(signal.SIGHUP)


def test_a_signal_between_the_last_step_and_the_result_ends_the_work(data, tiny, monkeypatch):
    monkeypatch.setattr(stages, "draw_curves", interrupt)
    with pytest.raises(TrainingError, match="stopped by SIGHUP; the same command goes on where it was"):
        train.main(arguments(data, tiny / "out", "--detector-steps", "1"))
    assert (tiny / "out" / "boxes" / "best.pt").is_file()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.parametrize("moment", ["evaluate", "visualize"])
def test_a_signal_between_the_stages_or_after_them_ends_the_work(data, tiny, monkeypatch, moment):
    monkeypatch.setattr(train, "train", lambda *_: tiny)
    monkeypatch.setattr(train.evaluate, "main", lambda _: 0)
    monkeypatch.setattr(getattr(train, moment), "main", interrupt)
    with pytest.raises(TrainingError, match="stopped by SIGHUP; the same command goes on where it was"):
        train.main(arguments(data, tiny / "out"))


def test_a_signal_in_the_last_step_of_a_stage_is_not_lost(data, tiny, monkeypatch):
    original = Trainer._step

    def stopped(*arguments):
        signal.raise_signal(signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(Trainer, "_step", stopped)
    with pytest.raises(TrainingError, match="stopped; the same command goes on where it was"):
        train.main(arguments(data, tiny / "out", "--detector-steps", "1", "--mask-steps", "1"))
    assert (tiny / "out" / "boxes" / "best.pt").is_file()
    assert not (tiny / "out" / "masks").exists()


def test_only_a_model_that_finds_nothing_keeps_its_thresholds(data, tiny, monkeypatch, capsys):
    def refused(error):
        def main(arguments):
            raise error

        return main

    monkeypatch.setattr(train, "train", lambda *_: tiny)
    monkeypatch.setattr(train.evaluate, "main", refused(EvaluationError("other classes")))
    with pytest.raises(EvaluationError, match="other classes"):
        train.main(arguments(data, tiny / "out"))
    monkeypatch.setattr(train.evaluate, "main", refused(train.evaluate.NothingFoundError("no PQ above 0")))
    with pytest.raises(EvaluationError, match="no PQ above 0"):  # of the scores, after the thresholds
        train.main(arguments(data, tiny / "out"))
    assert "thresholds stay as they are: no PQ above 0" in capsys.readouterr().out


def test_images_of_another_size_scale_the_recipe(tmp_path):
    small = train.resized(read_config(DetectorStage, ["--config", "finetune/small_boxes"]), 576)
    assert (small.inference.short_side, small.inference.long_side) == (576, 960)
    assert (small.augmentation.short_sides, small.augmentation.long_side) == ([448, 512, 576, 640], 960)
    paper = train.resized(read_config(MaskStage, ["--config", "finetune/detr_r50_masks"]), 400)
    assert (paper.augmentation.short_sides[0], paper.augmentation.short_sides[-1], paper.augmentation.long_side) == (
        240,
        400,
        666,
    )
    photos = train.resized(read_config(DetectorStage, ["--config", "finetune/photos_boxes"]), 720)
    assert (photos.augmentation.window, photos.augmentation.long_side) == ([512, 704], None)
    crops = train.resized(read_config(DetectorStage, ["--config", "finetune/nuclei_boxes"]), 160)
    assert (crops.augmentation.crop_size, crops.augmentation.short_sides) == (128, [128, 144, 160, 176, 192, 224, 256])
    with pytest.raises(ConfigError, match="this recipe takes images in their own size"):
        train.resized(DetectorStage(inference=InferenceSettings(short_side=None)), 100)


def test_recipes_have_both_stages(tiny, monkeypatch):
    assert train.recipes() == ["tiny"]
    monkeypatch.undo()
    assert {"small", "nuclei", "detr_r50"} <= set(train.recipes())


def test_a_recipe_is_trained_with_its_own_settings(data, tmp_path):
    seen = []
    options = train.parse(["--data.root", str(data), "--recipe", "small", "--output", str(tmp_path)])
    assert train.train(train.settings(DetectorStage, options), lambda stage: seen.append(stage) or tmp_path) == tmp_path
    assert (seen[0].train.steps, seen[0].data.root, seen[0].train.output) == (3000, data, tmp_path / "boxes")


def test_what_is_missing_is_said_before_anything_is_trained(data, tiny, capsys):
    with pytest.raises(DataError, match=r"there is no split 'dev' .*`panoptic-detr data split .* --val 0\.2`"):
        train.main(arguments(data, tiny / "out", "--data.val_split", "dev"))
    with pytest.raises(SystemExit):
        train.main(["--data.root", str(data), "--recipe", "huge"])
    assert "argument --recipe: invalid choice: 'huge'" in capsys.readouterr().err


def test_a_dry_run_says_what_both_stages_need_and_writes_nothing(data, tiny, capsys):
    out = tiny / "out"
    assert train.main(arguments(data, out, "--dry-run", "--runs", "3", "--mask-steps", "7")) == 0
    told = capsys.readouterr()
    assert [line.split(" of ")[0].split("for ")[1] for line in told.err.splitlines() if "forecast:" in line] == [
        "3 steps",
        "7 steps",
    ]
    assert "3 runs take 3 times as long" in told.out
    assert not out.exists()


def test_several_seeds_go_from_stage_to_stage_and_the_best_goes_on(data, tiny, monkeypatch):
    out, seen, called = tiny / "out", [], []

    def run(stage):
        seen.append(stage)
        return stage.train.output / "seed_6" / "best.pt"

    for name in ("train_detector", "train_masks"):
        monkeypatch.setattr(train, name, run)
    monkeypatch.setattr(train, "draw_overview", lambda *_: None)
    for job in (train.evaluate, train.visualize):
        monkeypatch.setattr(job, "main", called.append)
    assert train.main(arguments(data, out, "--runs", "2", "--seed", "5")) == 0
    boxes, masks = seen
    assert (boxes.train.runs, masks.train.runs, boxes.train.seed, masks.train.seed) == (2, 2, 5, 5)
    assert masks.detector == str(out / "boxes" / "seed_{seed}" / "best.pt")
    assert (called[0][0], called[-1][:2]) == (str(out / "masks/seed_6/best.pt"), ["report", str(out / "masks" / "seed_6")])
    (out / "boxes" / "seed_5").mkdir(parents=True)
    (out / "boxes" / "seed_5" / "last.pt").touch()
    assert train.settings(DetectorStage, train.parse(arguments(data, out, "--runs", "2"))).train.resume
