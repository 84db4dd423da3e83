"""A run that is stopped or killed and resumed equals one that was not."""

import io
import json
import multiprocessing
import os
import random
import select
import signal
import time

import pytest
import torch
from training.process_helpers import DEFORMABLE, LIMIT
from training.trainer_helpers import TINY, assert_equal, make_trainer, read_rows, stop_at, weights_of

from panoptic_detr.config.stages import DetectorStage, TrainConfig
from panoptic_detr.data.scenes.dataset import scene_categories
from panoptic_detr.errors import CheckpointError, TrainingError
from panoptic_detr.training.run.folder import check_run_folder, only_run_in, write_record
from panoptic_detr.weights.archives import write_atomically
from panoptic_detr.weights.checkpoints import load_checkpoint


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize(("number", "ema", "workers"), [(signal.SIGTERM, 0.0, 1), (signal.SIGINT, 0.9, 0)])
def test_stopped_and_resumed_equals_uninterrupted(scenes, tmp_path, capsys, number, ema, workers):
    make_trainer(scenes, tmp_path / "whole", ema_decay=ema).fit()
    stopped = make_trainer(scenes, tmp_path / "parts", ema_decay=ema, checkpoint_every=0, workers=workers)
    stop_at(stopped, 2, number)
    stopped.fit()
    assert stopped.state.step == 3
    assert f"stopped by {number.name} after step 3; go on with: panoptic-detr train_detector" in capsys.readouterr().err
    torch.manual_seed(99)
    resumed = make_trainer(scenes, tmp_path / "parts", ema_decay=ema, resume=True, workers=workers)
    resumed.fit()
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert_equal(whole.state_dict, parts.state_dict)
    assert whole.training["state"]["step"] == parts.training["state"]["step"] == 6
    if ema:
        assert_equal(whole.training["model"], parts.training["model"])
        assert not torch.equal(whole.training["model"]["class_embed.weight"], whole.state_dict["class_embed.weight"])
    steps = [row["step"] for row in read_rows(tmp_path / "parts" / "log.csv")]
    assert steps == ["1", "2", "3", "4", "5", "6"]


def score(model):
    """A score that follows from the weights alone, and falls now and then."""
    return {"PQ": float(sum(value.double().abs().sum() for value in model.state_dict().values()) % 1)}


MASKS = {"aux_loss": False, "class_weight": 0.0, "l1_weight": 0.0, "giou_weight": 0.0, "mask_loss": "points", "mask_points": 50}
RUNS = {
    "plain": {},
    "averaged, accumulated, read by workers, scored": {
        "ema_decay": 0.9,
        "batch_size": 1,
        "accumulate": 3,
        "workers": 1,
        "checkpoint_every": 2,
        "evaluate": score,
        "evaluate_every": 3,
        "keep_last": 2,
    },
    "masks at drawn points": {"name": "detr_r50_panoptic", "frozen": ["detector"], "loss": {**MASKS, "masks_per_image": 2}},
    "two stages with a dense loss": {"name": "deformable_detr_r50_two_stage", "overrides": {**DEFORMABLE, "encoder": "dense"}},
}


def announce_moments(moments):
    """Write a byte into the pipe at every moment that matters, and give the reader a little time to act on it."""

    def moment():
        os.write(moments, b".")
        time.sleep(0.004)

    save, fsync, replace = torch.save, os.fsync, os.replace

    def save_in_two_parts(content, stream):
        whole = io.BytesIO()
        save(content, whole)
        stream.write(whole.getvalue()[: whole.tell() // 2])
        stream.flush()
        moment()
        stream.write(whole.getvalue()[whole.tell() // 2 :])

    torch.save = save_in_two_parts
    os.fsync = lambda file: (moment(), fsync(file))
    os.replace = lambda old, new: (moment(), replace(old, new), moment())
    return moment


def train_in_child(scenes, output, settings, moments):
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    moment = announce_moments(moments)
    torch.manual_seed(random.SystemRandom().randrange(1000))
    trainer = make_trainer(scenes, output, resume=True, **settings)
    counts, evaluate = trainer.criterion.counts, trainer.evaluate
    trainer.criterion.counts = lambda targets: (moment(), counts(targets))[1]
    if evaluate is not None:
        trainer.evaluate = lambda model: (moment(), evaluate(model))[1]
    trainer.fit()


def run_and_kill(scenes, output, settings, kill_after):
    """Train in a process of its own, kill it after so many moments (None: never); its exit code."""
    fork = multiprocessing.get_context("fork")
    seen, moments = os.pipe()
    child = fork.Process(target=train_in_child, args=(scenes, output, settings, moments))
    child.start()
    os.close(moments)
    count = 0
    while count != kill_after:
        assert select.select([seen], [], [], LIMIT)[0], f"nothing has happened for {LIMIT} s after {count} moments"
        if not os.read(seen, 1):
            break
        count += 1
    if count == kill_after:
        os.kill(child.pid, signal.SIGKILL)
    child.join(LIMIT)
    os.close(seen)
    return child.exitcode


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("kind", RUNS)
def test_killed_ten_times_and_resumed_equals_uninterrupted(kind, scenes, tmp_path):
    settings = {"steps": 24, **RUNS[kind]}
    make_trainer(scenes, tmp_path / "whole", **settings).fit()
    chance = random.Random(kind)
    for _ in range(10):
        assert run_and_kill(scenes, tmp_path / "parts", settings, chance.randint(1, 16)) == -signal.SIGKILL
    assert run_and_kill(scenes, tmp_path / "parts", settings, None) == 0
    whole, parts = (load_checkpoint(tmp_path / name / "last.pt") for name in ("whole", "parts"))
    assert_equal(whole.state_dict, parts.state_dict)
    assert whole.training["state"] == parts.training["state"]
    if whole.training["model"] is not None:
        assert_equal(whole.training["model"], parts.training["model"])
    assert_equal(weights_of(tmp_path / "whole" / "best.pt"), weights_of(tmp_path / "parts" / "best.pt"))
    if "evaluate" in settings:
        assert read_rows(tmp_path / "whole" / "scores.csv") == read_rows(tmp_path / "parts" / "scores.csv")


def test_a_resume_that_trains_other_parameters_is_refused(scenes, tmp_path):
    stop_at(make_trainer(scenes, tmp_path), 2).fit()
    other = make_trainer(scenes, tmp_path, resume=True, frozen=["class_embed"])
    with pytest.raises(CheckpointError, match="a resume trains the same ones"):
        other.fit()


def test_an_extended_run_without_validation_renews_best(scenes, tmp_path):
    make_trainer(scenes, tmp_path / "run", steps=1).fit()
    make_trainer(scenes, tmp_path / "run", steps=2, resume=True).fit()
    assert_equal(weights_of(tmp_path / "run" / "best.pt"), weights_of(tmp_path / "run" / "last.pt"))


def test_an_average_switched_on_at_resume_starts_from_the_loaded_weights(scenes, tmp_path):
    make_trainer(scenes, tmp_path / "run", steps=2).fit()
    loaded = weights_of(tmp_path / "run" / "last.pt")
    trainer = make_trainer(scenes, tmp_path / "run", steps=2, resume=True, ema_decay=0.9)
    trainer.fit()
    assert_equal(trainer.model.state_dict(), loaded)
    assert_equal(weights_of(tmp_path / "run" / "last.pt"), loaded)
    with trainer.ema.applied(trainer.model):
        assert_equal(trainer.model.state_dict(), loaded)


def test_resume_refuses_another_model_and_an_exported_file(scenes, tmp_path):
    make_trainer(scenes, tmp_path / "run", steps=1).fit()
    with pytest.raises(CheckpointError, match="does not fit this model"):
        make_trainer(scenes, tmp_path / "run", overrides={**TINY, "num_queries": 3}, resume=True).fit()
    (tmp_path / "run" / "best.pt").rename(tmp_path / "run" / "last.pt")
    with pytest.raises(CheckpointError, match="no training part to go on from"):
        make_trainer(scenes, tmp_path / "run", resume=True).fit()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_run_begins_by_removing_what_a_killed_one_left_half_written(tmp_path):
    child = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(tmp_path / "last.pt",))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".last.pt.*.tmp"))) == 1
    write_record(DetectorStage(train=TrainConfig(output=tmp_path)), scene_categories(), None)
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "categories.json", "run.json"}


def die_while_writing(path):
    write_atomically(path, lambda stream: os.kill(os.getpid(), signal.SIGKILL))


def test_resume_without_a_run_starts_one(scenes, tmp_path):
    assert make_trainer(scenes, tmp_path / "run", resume=True, steps=1).fit().step == 1


def test_the_record_tells_the_parts_of_a_run_that_was_continued(tmp_path):
    stage = DetectorStage(train=TrainConfig(output=tmp_path))
    for first_step in (None, 0, 40):
        write_record(stage, scene_categories(), first_step)
    parts = json.loads((tmp_path / "run.json").read_text())["parts"]
    assert [part["first_step"] for part in parts] == [0, 0, 40]
    assert parts[1]["packages"]["torch"]
    write_record(stage, scene_categories(), None)  # a new run in a folder without checkpoint
    assert len(json.loads((tmp_path / "run.json").read_text())["parts"]) == 1


def test_a_resume_that_is_refused_leaves_the_record_alone(scenes, tmp_path):
    make_trainer(scenes, tmp_path, steps=1).fit()
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(CheckpointError):
        make_trainer(scenes, tmp_path, overrides={**TINY, "num_queries": 3}, resume=True).resume()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_that_cannot_be_is_refused_before_anything_is_made(tmp_path, monkeypatch):
    assert check_run_folder(TrainConfig(output=tmp_path / "a" / "b"), "train_masks") == (
        f"panoptic-detr train_masks --config {tmp_path}/a/b/config.yaml --train.resume true"
    )
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingError, match=r"file/run' cannot be written: '.*file' is not a folder; name another"):
        check_run_folder(TrainConfig(output=tmp_path / "file" / "run"), "train_masks")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(TrainingError, match=r"run' cannot be written: '.*' is not writable; name another"):
        check_run_folder(TrainConfig(output=tmp_path / "run"), "train_masks")


def test_a_run_that_was_stopped_before_its_first_step_is_resumed_once(scenes, tmp_path, capsys):
    stopped = make_trainer(scenes, tmp_path)
    stopped._finished = lambda stop: True
    stopped.fit()
    trainer = make_trainer(scenes, tmp_path, resume=True)
    trainer.resume()
    assert trainer.resumed
    assert trainer.fit().step == 6
    assert capsys.readouterr().err.count("going on after step 0 of 6") == 1


def test_a_folder_with_a_result_is_not_run_over(tmp_path):
    (tmp_path / "best.pt").write_text("a result whose last.pt was removed to save room")
    with pytest.raises(TrainingError, match="holds a run already"):
        check_run_folder(TrainConfig(output=tmp_path), "train_masks")
    with pytest.raises(
        TrainingError, match=r"has no last\.pt to go on from, but a best\.pt, .* \(--model\.weights .*best\.pt\)"
    ):
        check_run_folder(TrainConfig(output=tmp_path, resume=True), "train_masks")


def hold(folder, ready, over):
    with only_run_in(folder):
        ready.set()
        over.wait(LIMIT)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_two_runs_cannot_share_a_folder(tmp_path):
    fork = multiprocessing.get_context("fork")
    ready, over = fork.Event(), fork.Event()
    child = fork.Process(target=hold, args=(tmp_path / "run", ready, over))
    child.start()
    assert ready.wait(LIMIT)
    with (
        pytest.raises(TrainingError, match=r"another run is at work in '.*run'; wait for its end"),
        only_run_in(tmp_path / "run"),
    ):
        raise AssertionError("nobody may come here")
    over.set()
    child.join(LIMIT)
    with only_run_in(tmp_path / "run"):
        assert list((tmp_path / "run").iterdir()) == []


def test_a_resume_says_that_there_is_nothing_to_go_on_from_and_that_a_run_is_complete(scenes, tmp_path, capsys):
    make_trainer(scenes, tmp_path, resume=True, steps=2).fit()
    assert f"there is no '{tmp_path}/last.pt' to go on from" in capsys.readouterr().err
    make_trainer(scenes, tmp_path, resume=True, steps=2).fit()
    assert "the run is complete; it goes on with more steps only" in capsys.readouterr().err
