"""The trainer on a tiny detector and 8 tiny scenes: weights, freezing, failures, files."""

import errno
import io
import itertools
import math
import os
import re
import signal
import sys

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from rich.console import Console
from torch import nn
from training.trainer_helpers import TINY, assert_equal, make_trainer, poison, read_rows, stop_at, weights_of

from panoptic_detr.config.stages import DetectorStage, ModelConfig, OptimizerConfig
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.loading import EpochSampler, make_loader
from panoptic_detr.data.transforms import scenes_transform
from panoptic_detr.errors import CheckpointError, TrainingError
from panoptic_detr.training import stages
from panoptic_detr.training import trainer as trainer_module
from panoptic_detr.training.optimizer import freeze_groups_at_rest
from panoptic_detr.training.run.log import CsvLog
from panoptic_detr.training.watch.diagnosis import overfit_verdict
from panoptic_detr.training.watch.progress import Scores, TrainingProgress
from panoptic_detr.weights.checkpoints import load_checkpoint


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


def test_tables_of_classes_are_logged_at_every_evaluation(scenes, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(scenes, tmp_path / "run", steps=2, evaluate_every=1, tensorboard=True)
    rows = [{"id": 1, "name": "cat", "pq": 0.25, "sq": 0.5, "rq": 0.5, "tp": 3, "iou": None}]
    trainer.evaluate = lambda model: Scores({"PQ": 0.25}, rows, {"missed": 0.75})
    trainer.fit()
    logged = read_rows(tmp_path / "run" / "classes.csv")
    assert [(row["step"], row["name"], row["pq"], row["tp"], row["iou"]) for row in logged] == [
        ("1", "cat", "0.25", "3", ""),
        ("2", "cat", "0.25", "3", ""),
    ]
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("PQ of classes/cat")] == [(1, 0.25), (2, 0.25)]
    assert [event.value for event in events.Scalars("points lost/missed")] == [0.75, 0.75]


def test_sample_pictures_go_to_tensorboard_at_every_evaluation(scenes, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = make_trainer(scenes, tmp_path / "run", steps=2, evaluate_every=1, tensorboard=True)
    trainer.reporter.progress = TrainingProgress(2, Console(file=io.StringIO(), force_terminal=True))
    drawn, bars = [], []
    trainer.evaluate = lambda model: bars.append(trainer.reporter.progress._live.is_started) or {"PQ": 0.5}
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

    monkeypatch.setattr("panoptic_detr.training.run.folder.save_checkpoint", refuse)
    with pytest.raises(CheckpointError, match="No space left"):
        make_trainer(scenes, tmp_path / "a").fit()
    lost = make_trainer(scenes, tmp_path / "b", on_disk_full="go_on")
    assert lost.fit().step == 6
    assert "No space left on device; training goes on" in capsys.readouterr().err
    with pytest.raises(TrainingError, match=r"the run is over, but '.*best\.pt' could not be written: its weights are lost"):
        stages.conclude(lost, DetectorStage(train=lost.config), Console(file=io.StringIO()))


def test_per_step_overhead_is_small(scenes, tmp_path, monkeypatch):
    """Bookkeeping around forward, backward and step, counted in calls of functions: the same on a slow or busy machine."""
    trainer = make_trainer(scenes, tmp_path / "run", steps=200, checkpoint_every=0)
    batch = next(iter(trainer.loader))
    monkeypatch.setattr(trainer, "_groups", lambda: iter([[batch]] * 200))
    monkeypatch.setattr(trainer, "_step", lambda group: {"loss": 1.0, **{f"class_layer{i}": 1.0 for i in range(18)}})
    monkeypatch.setattr(trainer_module.Trainer, "_finished", _count_steps)
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        trainer.fit()
    finally:
        sys.setprofile(None)
    assert 200 < calls / 200 < 700  # 467 in Python 3.11


def _count_steps(trainer, stop):
    trainer.state.step += 1
    return trainer.state.step > 200


def test_a_loss_scale_that_is_never_found_ends_the_run(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_module, "MOST_OVERFLOWS", 2)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=MixedPrecision("16-mixed", device="cpu"))
    trainer = make_trainer(scenes, tmp_path, fabric=fabric, precision="16-mixed")
    trainer.model.class_embed.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"step 2 is not.*; fp16 overflows in 3 steps in a row: use train\.precision"):
        trainer.fit()


@pytest.mark.parametrize("method", ["write", "__init__"])
def test_a_log_that_cannot_be_written_does_not_end_the_run(scenes, tmp_path, monkeypatch, capsys, method):
    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(CsvLog, method, refuse)
    trainer = make_trainer(scenes, tmp_path, evaluate_every=2, evaluate=lambda model: {"PQ": 0.5})
    assert trainer.fit().step == 6
    said = capsys.readouterr().err
    assert said.count(f"the log in '{tmp_path}' cannot be written (No space left on device); rows will be missing") == 1
    assert load_checkpoint(tmp_path / "last.pt").training["state"]["step"] == 6


def test_a_bad_batch_is_kept_with_its_regions(scenes, tmp_path):
    with pytest.raises(TrainingError):
        poison(make_trainer(scenes, tmp_path, augment=False), 0).fit()
    (kept,) = torch.load(tmp_path / "nonfinite_step_00000000_rank_0.pt", weights_only=True)
    for labels, segment_map in zip(kept["labels"], kept["segment_maps"], strict=True):
        assert segment_map.max() == len(labels)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # PyTorch's tracer makes it
def test_a_compiled_model_trains_as_it_is(scenes, tmp_path, monkeypatch):
    """Traced and cut into graphs by torch.compile; what makes machine code of them is PyTorch's own affair, and slow."""
    whole = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda model, **given: whole(model, backend="eager", **given))
    rows = []
    for compiled in (False, True):
        trainer = make_trainer(scenes, tmp_path / str(compiled), steps=2, overrides={**TINY, "dropout": 0.0})
        stages.prepare(trainer.model, ModelConfig(compile=compiled), trainer.rates)
        assert (trainer.model._compiled_call_impl is not None) == compiled
        trainer.fit()
        rows += [read_rows(tmp_path / str(compiled) / "log.csv")]
    same = [name for name in rows[0][0] if name not in ("seconds", "wait", "wait_share")]
    for plain, changed in zip(*rows, strict=True):
        assert [float(changed[name]) for name in same] == pytest.approx([float(plain[name]) for name in same], rel=1e-4)


def test_an_undefined_score_decides_nothing(scenes, tmp_path, capsys):
    trainer = make_trainer(scenes, tmp_path, evaluate=lambda model: {"box AP": math.nan}, evaluate_every=1, early_stop=2)
    assert trainer.fit().step == 6
    assert (trainer.state.best, trainer.state.evaluations_since_best) == (None, 0)
    told = capsys.readouterr().err
    assert "step 6: box AP -\n" in told
    assert "best" not in told
    assert_equal(weights_of(tmp_path / "best.pt"), weights_of(tmp_path / "last.pt"))
    assert "no verdict, because box AP is undefined" in overfit_verdict(trainer.last_scores)


def test_the_end_by_early_stopping_is_said(scenes, tmp_path, capsys):
    settings = {"evaluate": lambda model: {"PQ": 0.5}, "evaluate_every": 1, "early_stop": 2}
    assert make_trainer(scenes, tmp_path, **settings).fit().step == 3
    told = capsys.readouterr().err
    assert "step 1: PQ 50.0  (best PQ so far)" in told
    assert "stopped early after step 3: 2 evaluations without a better score" in told
    make_trainer(scenes, tmp_path, resume=True, **settings).fit()
    assert "the run is complete; it stopped early, and goes on without train.early_stop" in capsys.readouterr().err


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no such signal here")
def test_a_lost_connection_stops_a_run_in_good_order_unless_it_was_told_to_ignore_that(scenes, tmp_path, capsys):
    assert stop_at(make_trainer(scenes, tmp_path / "run"), 2, signal.SIGHUP).fit().step == 3
    assert "stopped by SIGHUP after step 3" in capsys.readouterr().err
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stop_at(make_trainer(scenes, tmp_path / "nohup"), 2, signal.SIGHUP).fit().step == 6
    finally:
        signal.signal(signal.SIGHUP, before)
