"""The trainer on a tiny detector and 8 tiny scenes: exact resume, freezing, failures, files."""

import csv
import io
import itertools
import math
import multiprocessing
import os
import random
import re
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from rich.console import Console

from panoptic_detr.checkpoints import Checkpoint, CheckpointError, load_checkpoint, write_atomically
from panoptic_detr.config import DetectorStage, OptimizerConfig, TrainConfig
from panoptic_detr.data.coco_panoptic import CocoPanoptic
from panoptic_detr.data.loading import EpochSampler, make_loader
from panoptic_detr.data.scenes import write_scenes
from panoptic_detr.data.transforms import eval_transform, scenes_transform
from panoptic_detr.training import build
from panoptic_detr.training import trainer as trainer_module
from panoptic_detr.training.criterion import build_criterion
from panoptic_detr.training.failures import TrainingError
from panoptic_detr.training.optimizer import freeze_groups_at_rest
from panoptic_detr.training.progress import TrainingProgress
from panoptic_detr.training.trainer import Trainer
from panoptic_detr.zoo import build_model

TINY = {
    "backbone": "small",
    "backbone_norm": "batch",
    "hidden_dim": 16,
    "num_heads": 2,
    "ffn_dim": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_queries": 12,
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 8, size=48, workers=1)
    return root


def make_trainer(
    scenes,
    output,
    *,
    workers=0,
    name="detr_r50",
    overrides=TINY,
    augment=True,
    fabric=None,
    frozen=None,
    optimizer=None,
    **train,
):
    config = TrainConfig(
        **{"output": output, "steps": 6, "batch_size": 2, "checkpoint_every": 1, "log_every": 1, "tensorboard": False, **train}
    )
    fabric = fabric or Fabric(accelerator="cpu", devices=1)
    torch.manual_seed(config.seed)
    model = build_model(name, num_labels=8, **overrides)
    transform = scenes_transform() if augment else eval_transform(None)
    dataset = CocoPanoptic.from_root(scenes, "train", transforms=transform)
    sampler = EpochSampler(len(dataset), rank=fabric.global_rank, world_size=fabric.world_size, seed=config.seed)
    loader = make_loader(dataset, batch_size=config.batch_size, sampler=sampler, workers=workers)
    return Trainer(
        fabric,
        model,
        build_criterion(name, num_labels=8),
        loader,
        optimizer=optimizer or OptimizerConfig(lr=1e-3, clip_norm=1.0, schedule="cosine", warmup=0.2),
        train=config,
        template=Checkpoint(model.spec, {}, dataset.categories),
        frozen=() if frozen is None else [getattr(model, part) for part in frozen],
        resume_command="panoptic-detr train_detector --config x",
    )


def weights_of(path):
    return load_checkpoint(path).state_dict


def read_rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def assert_equal(here, there):
    assert here.keys() == there.keys()
    assert [name for name in here if not torch.equal(here[name], there[name])] == []


def stop_at(trainer, step, number=signal.SIGTERM):
    """Send the signal to this process while the step is computed."""
    counts = trainer.criterion.counts

    def counts_and_signal(targets):
        if trainer.state.step == step:
            signal.raise_signal(number)
        return counts(targets)

    trainer.criterion.counts = counts_and_signal
    return trainer


def test_training_changes_weights_and_fills_the_folder(scenes, tmp_path, capsys):
    trainer = make_trainer(scenes, tmp_path / "run", log_every=2)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    state = trainer.fit()
    after = weights_of(tmp_path / "run" / "last.pt")
    assert state.step == 6
    assert state.epoch == 1
    assert all(not torch.equal(before[name], after[name]) for name in ("class_embed.weight", "query_embed.weight"))
    assert_equal(after, weights_of(tmp_path / "run" / "best.pt"))
    assert load_checkpoint(tmp_path / "run" / "best.pt").training is None
    rows = read_rows(tmp_path / "run" / "log.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6"]
    assert float(rows[0]["loss"]) > 0
    assert 0 < float(rows[0]["confidence"]) < 1
    assert {"class", "box_l1", "box_giou", "class_layer0", "gradient_norm", "lr", "wait"} <= rows[0].keys()
    assert float(rows[0]["wait_share"]) == pytest.approx(float(rows[0]["wait"]) / float(rows[0]["seconds"]), rel=1e-3)
    assert re.search(r"steps waited for data \d+% of the time", capsys.readouterr().err)


def test_the_criterion_knows_how_much_of_the_training_is_done(scenes, tmp_path):
    seen = []

    def record(trainer):
        inner = trainer.criterion.forward
        trainer.criterion.forward = lambda *given: seen.append(trainer.criterion.progress) or inner(*given)
        return trainer

    stop_at(record(make_trainer(scenes, tmp_path)), 3).fit()
    record(make_trainer(scenes, tmp_path, resume=True)).fit()
    assert seen == [step / 6 for step in range(6)]


def test_same_seed_same_weights(scenes, tmp_path):
    first, second, other = (make_trainer(scenes, tmp_path / name, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1)))
    for trainer in (first, second, other):
        torch.manual_seed(trainer.config.seed)
        trainer.fit()
    assert_equal(first.model.state_dict(), second.model.state_dict())
    assert not torch.equal(first.model.class_embed.weight, other.model.class_embed.weight)


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


def train_in_child(scenes, output):
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
        make_trainer(scenes, output, steps=20, resume=True, keep_last=2).fit()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_at_random_moments_and_resumed_equals_uninterrupted(scenes, tmp_path):
    make_trainer(scenes, tmp_path / "whole", steps=20).fit()
    fork = multiprocessing.get_context("fork")
    moments, kills = random.Random(0), 0
    for _ in range(40):
        child = fork.Process(target=train_in_child, args=(scenes, tmp_path / "parts"))
        child.start()
        child.join(moments.uniform(0.1, 0.5) if kills < 10 else 60)
        if child.exitcode is not None:
            break
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        kills += 1
    assert child.exitcode == 0
    assert kills > 0
    assert_equal(weights_of(tmp_path / "whole" / "last.pt"), weights_of(tmp_path / "parts" / "last.pt"))


def test_frozen_parts_stay_bit_identical(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path / "run", name="detr_r50_panoptic", frozen=["detector"], steps=3)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    modes = []
    trainer.model.detector.register_forward_hook(lambda module, *_: modes.append(any(m.training for m in module.modules())))
    trainer.fit()
    after = trainer.model.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"mask_head"}
    assert modes == [False] * 3
    trained = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in trainer.model.mask_head.parameters()}


def test_a_group_of_rate_zero_is_bit_identical_afterwards(scenes, tmp_path):
    rates = OptimizerConfig(lr=1e-3, backbone_lr_scale=0.0)
    trainer = make_trainer(scenes, tmp_path, optimizer=rates)
    trainer.frozen = tuple(freeze_groups_at_rest(trainer.model, rates))
    assert trainer.frozen == (trainer.model.backbone,)
    before = {name: value.clone() for name, value in trainer.model.backbone.state_dict().items()}
    trainer.fit()
    assert_equal(before, trainer.model.backbone.state_dict())


def poison(trainer, *steps):
    """Make the loss NaN in these steps."""
    forward = trainer.criterion.forward

    def poisoned(output, targets, counts=None):
        losses = forward(output, targets, counts)
        return replace(losses, total=losses.total * float("nan")) if trainer.state.step in steps else losses

    trainer.criterion.forward = poisoned
    return trainer


def test_nonfinite_loss_stops_and_names_the_images(scenes, tmp_path):
    trainer = poison(make_trainer(scenes, tmp_path / "run"), 2)
    with pytest.raises(TrainingError, match=r"step 2 is not finite \(loss is nan.*on images \d+, \d+; the batch is kept in "):
        trainer.fit()
    kept = torch.load(tmp_path / "run" / "nonfinite_step_00000002_rank_0.pt", weights_only=True)
    assert kept[0]["images"].shape == (2, 3, 48, 48)


def test_a_skipped_step_leaves_no_trace_in_batch_statistics(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path, on_nonfinite="skip", ema_decay=0.5)
    inner = trainer.loader.__class__.__iter__

    class Poisoned:
        def __init__(self, loader):
            self.loader = loader

        def __len__(self):
            return len(self.loader)

        def set_position(self, *place):
            self.loader.set_position(*place)

        def __iter__(self):
            for index, batch in enumerate(inner(self.loader)):
                if index == 1:
                    batch.images[0, 0, 0, 0] = math.nan
                yield batch

    trainer.loader = Poisoned(trainer.loader)
    assert trainer.fit().skipped >= 1
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert all(value.isfinite().all() for value in weights_of(tmp_path / "best.pt").values())


def test_an_undefined_score_is_never_the_best(scenes, tmp_path):
    scores = iter([math.nan, 0.3, 0.5])
    trainer = make_trainer(scenes, tmp_path, evaluate_every=2)
    trainer.evaluate = lambda model: {"PQ": next(scores)}
    assert trainer.fit().best == 0.5


def test_a_resume_that_trains_other_parameters_is_refused(scenes, tmp_path):
    stop_at(make_trainer(scenes, tmp_path), 2).fit()
    other = make_trainer(scenes, tmp_path, resume=True, frozen=["class_embed"])
    with pytest.raises(CheckpointError, match="a resume trains the same ones"):
        other.fit()


def test_nonfinite_steps_are_skipped_and_capped(scenes, tmp_path, capsys):
    trainer = poison(make_trainer(scenes, tmp_path / "run", on_nonfinite="skip", max_skipped=1), 2)
    assert trainer.fit().skipped == 1
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    assert len(list((tmp_path / "run").glob("nonfinite_*"))) == 1
    assert "skipped: step 2 is not finite" in capsys.readouterr().err
    trainer = poison(make_trainer(scenes, tmp_path / "again", on_nonfinite="skip", max_skipped=1), 2, 3)
    with pytest.raises(TrainingError, match="more than 1 steps were skipped"):
        trainer.fit()


class Suicidal(CocoPanoptic):
    """A data set whose third sample takes its loader process down, as the out-of-memory killer does."""

    def __getitem__(self, i):
        if i == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(i)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_loader_process_that_dies_is_named(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path / "run")
    dataset = Suicidal.from_root(scenes, "train", transforms=scenes_transform())
    trainer.loader = make_loader(dataset, batch_size=2, sampler=EpochSampler(8), workers=1)
    with pytest.raises(
        TrainingError, match=r"DataLoader worker .* (killed by signal|exited unexpectedly).*lower data\.workers"
    ):
        trainer.fit()


def test_best_checkpoint_early_stop_and_scores(scenes, tmp_path):
    scores = itertools.chain([0.1, 0.5, 0.3], itertools.repeat(0.2))
    trainer = make_trainer(scenes, tmp_path / "run", evaluate_every=1, early_stop=3, steps=20)
    at_best = {}

    def evaluate(model):
        assert not model.training
        value = next(scores)
        if value == 0.5:
            at_best.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"PQ": value, "SQ": 1.0}

    trainer.evaluate = evaluate
    state = trainer.fit()
    assert state.step == 5
    assert state.best == 0.5
    assert_equal(weights_of(tmp_path / "run" / "best.pt"), at_best)
    rows = read_rows(tmp_path / "run" / "scores.csv")
    assert [float(row["PQ"]) for row in rows] == [0.1, 0.5, 0.3, 0.2, 0.2]


def test_sample_pictures_go_to_tensorboard_at_every_evaluation(scenes, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(scenes, tmp_path / "run", steps=2, evaluate_every=1, tensorboard=True)
    trainer.progress = TrainingProgress(2, Console(file=io.StringIO(), force_terminal=True))
    drawn, bars = [], []
    trainer.evaluate = lambda model: bars.append(trainer.progress._live.is_started) or {"PQ": 0.5}
    trainer.draw_samples = lambda model: drawn.append(model.training) or {"3": np.zeros((8, 8, 3), np.uint8)}
    trainer.fit()
    assert drawn == bars == [False, False]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [event.step for event in events.Images("samples/3")] == [1, 2]


def test_of_equal_scores_the_later_weights_are_best(scenes, tmp_path):
    trainer = make_trainer(scenes, tmp_path / "run", evaluate_every=1, early_stop=2)
    trainer.evaluate = lambda model: {"PQ": 0.0}
    assert trainer.fit().step == 3
    assert trainer.complete
    assert_equal(weights_of(tmp_path / "run" / "best.pt"), weights_of(tmp_path / "run" / "last.pt"))


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


def test_skipped_steps_with_a_loss_scale(scenes, tmp_path):
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", device="cpu"))
    settings = {"precision": "16-mixed", "on_nonfinite": "skip", "steps": 4}
    trainer = poison(make_trainer(scenes, tmp_path / "run", fabric=fabric, **settings), 1, 2)
    assert trainer.fit().skipped == 2
    assert len(list((tmp_path / "run").glob("nonfinite_*"))) == 1
    assert fabric.strategy.precision.scaler.get_scale() <= 2.0**14


def test_last_checkpoints_are_kept(scenes, tmp_path):
    make_trainer(scenes, tmp_path / "run", keep_last=3, steps=5).fit()
    names = sorted(path.name for path in (tmp_path / "run").glob("*.pt"))
    assert names == ["best.pt", "last.pt", "step_00000003.pt", "step_00000004.pt", "step_00000005.pt"]
    assert load_checkpoint(tmp_path / "run" / "step_00000003.pt").training["state"]["step"] == 3


def test_full_disk(scenes, tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise CheckpointError("cannot write 'last.pt': No space left on device")

    monkeypatch.setattr("panoptic_detr.training.run_files.save_checkpoint", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        make_trainer(scenes, tmp_path / "a").fit()
    assert make_trainer(scenes, tmp_path / "b", on_disk_full="go_on").fit().step == 6
    assert "No space left on device; training goes on" in capsys.readouterr().err


def test_resume_refuses_another_model_and_an_exported_file(scenes, tmp_path):
    make_trainer(scenes, tmp_path / "run", steps=1).fit()
    with pytest.raises(CheckpointError, match="does not fit this model"):
        make_trainer(scenes, tmp_path / "run", overrides={**TINY, "num_queries": 3}, resume=True).fit()
    (tmp_path / "run" / "best.pt").rename(tmp_path / "run" / "last.pt")
    with pytest.raises(CheckpointError, match="no training part to go on from"):
        make_trainer(scenes, tmp_path / "run", resume=True).fit()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_run_begins_by_removing_what_a_killed_one_left_half_written(tmp_path):
    stage = DetectorStage(train=TrainConfig(output=tmp_path))
    fabric = Fabric(accelerator="cpu", devices=1)
    child = multiprocessing.get_context("fork").Process(target=die_while_writing, args=(tmp_path / "last.pt",))
    child.start()
    child.join(60)
    assert child.exitcode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".last.pt.*.tmp"))) == 1
    build.open_run_folder(stage, "train_detector", fabric)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def die_while_writing(path):
    write_atomically(path, lambda stream: os.kill(os.getpid(), signal.SIGKILL))


def test_resume_without_a_run_starts_one(scenes, tmp_path):
    assert make_trainer(scenes, tmp_path / "run", resume=True, steps=1).fit().step == 1


def test_per_step_overhead_is_small(scenes, tmp_path, monkeypatch):
    """Bookkeeping around forward, backward and step: a bound five times what it takes, so that a real slip is seen."""
    trainer = make_trainer(scenes, tmp_path / "run", steps=200, checkpoint_every=0)
    batch = next(iter(trainer.loader))
    monkeypatch.setattr(trainer, "_groups", lambda: iter([[batch]] * 200))
    monkeypatch.setattr(trainer, "_step", lambda group: {"loss": 1.0, **{f"class_layer{i}": 1.0 for i in range(18)}})
    monkeypatch.setattr(trainer_module.Trainer, "_finished", _count_steps)
    started = time.process_time()
    trainer.fit()
    assert (time.process_time() - started) / 200 < 0.01


def _count_steps(trainer, stop):
    trainer.state.step += 1
    return trainer.state.step > 200
