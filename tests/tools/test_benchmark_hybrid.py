"""The comparison of matching schemes: its sums are right, its files are written, and every scheme's settings exist."""

import csv
import inspect
import json

import pytest

from panoptic_detr.evaluation.calibrate import CANDIDATES
from panoptic_detr.tools import benchmark_hybrid
from panoptic_detr.tools.benchmark_hybrid import SCHEMES, Outcome
from panoptic_detr.training.criterion import build_criterion
from panoptic_detr.training.failures import TrainingError
from panoptic_detr.zoo import override_names


def outcome(scheme, seed, ap, pq):
    return Outcome(scheme, seed, {"box AP": [(5, ap / 2), (10, ap)], "PQ": [(4, pq)]}, (0.3, 0.2), pq + 0.1)


OUTCOMES = [outcome("plain", 0, 0.4, 0.5), outcome("plain", 1, 0.5, 0.7), outcome("hybrid branch", 0, 0.6, 0.8)]
COSTS = {"plain": 110.0, "hybrid branch": 132.0, "hybrid epoch": 110.0, "hybrid layer": 110.0}


def test_summary_is_of_the_last_scores_and_relative_to_plain():
    plain, branch = benchmark_hybrid.summarize(OUTCOMES, COSTS)
    assert (plain["scheme"], plain["seeds"], plain["time_ratio"]) == ("plain", 2, 1.0)
    assert plain["box AP"] == {"mean": pytest.approx(0.45), "deviation": pytest.approx(0.0707, abs=1e-4)}
    assert branch["PQ"] == {"mean": 0.8, "deviation": 0.0}
    assert branch["calibrated PQ"]["mean"] == pytest.approx(0.9)
    assert (branch["step_ms"], branch["time_ratio"]) == (132.0, pytest.approx(1.2))


def test_every_scheme_is_made_of_settings_that_exist():
    losses = inspect.signature(build_criterion).parameters
    overrides = override_names("deformable_detr_r50_two_stage")
    for setting in (setting for scheme in SCHEMES for setting in scheme.settings):
        section, _, name = setting.removeprefix("--").partition("=")[0].rpartition(".")
        assert name in (losses if section == "loss" else overrides)
    assert [scheme.name for scheme in SCHEMES] == ["plain", "hybrid branch", "hybrid epoch", "hybrid layer"]


def test_results_are_written_after_each_training_and_a_stopped_comparison_goes_on(tmp_path, monkeypatch):
    trained = []

    def train(scheme, seed, output, steps, mask_steps):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((scheme.name, seed))
        return outcome(scheme.name, seed, 0.5, 0.5)

    monkeypatch.setattr(benchmark_hybrid, "train", train)
    monkeypatch.setattr(benchmark_hybrid, "step_costs", lambda _: COSTS)
    with pytest.raises(KeyboardInterrupt):
        benchmark_hybrid.run(output=tmp_path, seeds=2, steps=10, mask_steps=4, scenes=2, held_out=2)
    assert trained == [("plain", 0), ("hybrid branch", 0), ("hybrid epoch", 0)]
    assert [row["scheme"] for row in json.loads((tmp_path / "hybrid.json").read_text())["schemes"]] == [n for n, _ in trained]
    with open(tmp_path / "hybrid.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 12
    assert rows[0] == {"scheme": "plain", "seed": "0", "score": "box AP", "stage": "stage 1", "step": "5", "value": "0.25"}
    assert (tmp_path / "hybrid.png").stat().st_size > 5000
    trained.clear()
    monkeypatch.setattr(benchmark_hybrid, "SCHEMES", SCHEMES[:1])
    result = benchmark_hybrid.run(output=tmp_path, seeds=1, steps=10, mask_steps=4, scenes=2, held_out=2)
    assert result["schemes"][0]["box AP"]["mean"] == 0.5
    assert "plain" in str(list(benchmark_hybrid.table(result).columns[0].cells))


def test_command_trains_both_stages(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark_hybrid, "SCHEMES", SCHEMES[1:2])
    monkeypatch.setattr(benchmark_hybrid.step_costs, "__defaults__", (1,))
    options = ["--seeds=1", "--steps=2", "--mask_steps=2", "--scenes=8", "--held_out=2"]
    assert benchmark_hybrid.main([f"--output={tmp_path}", *options]) == 0
    result = json.loads((tmp_path / "hybrid.json").read_text())
    (trained,) = result["outcomes"]
    assert [step for step, _ in trained["curves"]["box AP"]] == [1, 2]
    assert [step for step, _ in trained["curves"]["PQ"]] == [1, 2]
    assert result["schemes"][0]["step_ms"] > 0
    assert trained["thresholds"][0] in CANDIDATES
    assert 0 <= trained["quality"] <= 1
    assert "num_one_to_many: 75" in (tmp_path / "runs" / "hybrid_branch_0" / "boxes" / "config.yaml").read_text()
    assert "hybrid branch" in capsys.readouterr().out


def test_a_training_that_was_stopped_is_not_taken_for_a_result(tmp_path):
    (tmp_path / "scores.csv").write_text("step,box AP\n1,0.1\n")
    assert benchmark_hybrid.curve(tmp_path, "box AP", 1) == [(1, 0.1)]
    with pytest.raises(TrainingError, match="was stopped; the same command goes on with it"):
        benchmark_hybrid.curve(tmp_path, "box AP", 2)
    with pytest.raises(TrainingError, match="was stopped"):
        benchmark_hybrid.curve(tmp_path / "nothing", "box AP", 1)
