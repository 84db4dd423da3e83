"""Several seeds of one training: folders, going on, the table and its file; the range test of learning rates."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from torch import nn
from training.test_stages import stage_on

from panoptic_detr.config.stages import MaskStage, TrainConfig
from panoptic_detr.errors import ConfigError, TrainingError
from panoptic_detr.training import seeds, stages
from panoptic_detr.training.run.folder import check_run_folder
from panoptic_detr.training.seeds import SeedResult, mean_and_spread, parts_of, read_result, summary
from panoptic_detr.training.watch.range_test import range_test, smooth


def test_every_seed_has_its_folder_and_the_mean_is_of_all(scenes, tmp_path, capsys, monkeypatch):
    stage = stage_on(scenes, tmp_path / "runs")
    stage.train = replace(stage.train, runs=2, seed=4)
    ran, once = [], stages.run_once

    def stopped_once(part, *rest):
        ran.append(part.train.seed)
        return None if ran == [4, 5] else once(part, *rest)

    monkeypatch.setattr(stages, "run_once", stopped_once)
    assert stages.train_detector(stage) is None
    assert not (tmp_path / "runs" / "runs.json").exists()
    stage.train = replace(stage.train, resume=True)
    result = stages.train_detector(stage)
    assert ran == [4, 5, 4, 5]
    told = json.loads((tmp_path / "runs" / "runs.json").read_text())
    assert [run["seed"] for run in told["runs"]] == [4, 5]
    assert [run["result"] for run in told["runs"]] == ["seed_4/best.pt", "seed_5/best.pt"]
    assert result in [tmp_path / "runs" / run["result"] for run in told["runs"]]
    losses = [run["scores"]["val loss"] for run in told["runs"]]
    assert losses[0] != losses[1]
    assert told["mean"]["val loss"] == pytest.approx(sum(losses) / 2)
    assert "mean" in capsys.readouterr().err
    assert TrainConfig(runs=3).runs == 3
    with pytest.raises(ConfigError, match=r"train\.runs"):
        TrainConfig(runs=0)


@pytest.mark.parametrize(
    ("there", "runs", "says"), [("last.pt", 3, "a run of one seed"), ("seed_0/last.pt", 1, "several seeds")]
)
def test_one_seed_and_several_do_not_share_a_folder(tmp_path, there, runs, says):
    (tmp_path / there).parent.mkdir(exist_ok=True)
    (tmp_path / there).touch()
    with pytest.raises(TrainingError, match=says):
        check_run_folder(TrainConfig(output=tmp_path, runs=runs, resume=True), "train_detector")


def test_stage_2_takes_the_detector_of_the_same_seed():
    stage = MaskStage(detector="runs/boxes/seed_{seed}/best.pt", train=TrainConfig(output=Path("m"), seed=1, runs=2))
    assert [part.detector for part in parts_of(stage)] == ["runs/boxes/seed_1/best.pt", "runs/boxes/seed_2/best.pt"]
    assert [str(part.train.output) for part in parts_of(stage)] == ["m/seed_1", "m/seed_2"]
    assert parts_of(replace(stage, train=TrainConfig()))[0].detector == "runs/boxes/seed_{seed}/best.pt"


def test_mean_and_spread_are_those_of_a_sample(tmp_path):
    results = [SeedResult(i, tmp_path / f"{i}.pt", 5, {"PQ": pq, "x": float("nan")}) for i, pq in enumerate((0.5, 0.6, 0.7))]
    means, spreads = mean_and_spread(results)
    assert (means["PQ"], spreads["PQ"]) == (pytest.approx(0.6), pytest.approx(0.1))
    assert json.loads(json.dumps(summary(results, tmp_path), allow_nan=False))["mean"]["x"] is None
    assert seeds.as_table(results).row_count == 5
    (tmp_path / "scores.csv").write_text("step,PQ,val loss\n10,nan,3\n20,0.4,2\n30,0.4,2.5\n40,0.3,1\n")
    assert read_result(0, tmp_path / "best.pt").scores == {"PQ": 0.4, "val loss": 2.5}
    (tmp_path / "scores.csv").unlink()
    (tmp_path / "log.csv").write_text("step,loss\n10,3\n20,1.5\n")
    assert read_result(0, tmp_path / "best.pt").scores == {"loss": 1.5}


def trainer_with(loss_of_rate):
    """As much of a trainer as a range test needs; its loss depends on the rate alone."""
    group = {"lr": 1e-3, "base_lr": 1e-3}
    optimizer = SimpleNamespace(param_groups=[group])
    return SimpleNamespace(
        model=nn.Identity(),
        frozen=(),
        optimizer=optimizer,
        rates=SimpleNamespace(lr=1e-3),
        batches=lambda: iter(lambda: ["a batch"], None),
        try_step=lambda batch: {"loss": loss_of_rate(group["lr"]), "gradient_norm": 1.0},
    )


def test_the_range_test_suggests_a_tenth_of_the_rate_of_the_lowest_loss(tmp_path):
    found = range_test(trainer_with(lambda rate: 5.0 + (np.log10(rate) + 2) ** 2), 200)
    assert found.rates[0] == pytest.approx(1e-6)
    assert 1e-3 < found.suggestion < 2e-3  # the smoothed loss lags behind
    assert found.rates[-1] == pytest.approx(0.1)
    found.write(tmp_path / "range.csv")
    assert len((tmp_path / "range.csv").read_text().splitlines()) == 201
    found.draw(tmp_path / "range.png", 1e-3)
    assert (tmp_path / "range.png").stat().st_size > 5000


def test_the_range_test_ends_where_the_loss_explodes_or_is_no_number():
    exploding = range_test(trainer_with(lambda rate: 1.0 if rate < 1e-3 else 1e3 * rate), 100)
    assert 1e-3 < exploding.rates[-1] < 1e-2
    vanishing = range_test(trainer_with(lambda rate: 1.0 if rate < 1e-3 else float("nan")), 100)
    assert vanishing.rates[-1] < 1e-3
    with pytest.raises(TrainingError, match="not finite at a thousandth"):
        range_test(trainer_with(lambda rate: float("inf")), 100)


def test_smoothing_is_without_the_pull_of_its_start():
    assert smooth([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smooth([0.0, 1.0])[-1] == pytest.approx(0.1 / 0.19)


def test_a_range_test_leaves_its_picture_and_no_run(scenes, tmp_path, capsys):
    stage = stage_on(scenes, tmp_path / "run")
    stage.train = replace(stage.train, range_test=20)
    assert stages.train_detector(stage) is None
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["range_test.csv", "range_test.png"]
    assert "try optimizer.lr" in capsys.readouterr().err
