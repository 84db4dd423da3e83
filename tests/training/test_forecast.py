"""What a run says it will need: measured without a trace, for the batches that it will see."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from training.test_stages import stage_on
from training.trainer_helpers import assert_equal, weights_of

import panoptic_detr as pd
from panoptic_detr.commands.arguments import spelled_out
from panoptic_detr.errors import TrainingError
from panoptic_detr.training import stages
from panoptic_detr.training.watch import forecast as module
from panoptic_detr.training.watch.forecast import Forecast, choose_batches, heap_growth


def test_a_forecast_leaves_no_trace_in_the_run(scenes, tmp_path, monkeypatch, capsys):
    """Batch statistics, dropout's random numbers, the optimizer's moments and averages of weights are all in the result."""
    said = []
    for name, fewest in (("with", 1), ("without", 10**9)):
        monkeypatch.setattr(stages, "FEWEST_STEPS", fewest)
        stage = stage_on(scenes, tmp_path / name)
        stage.model.overrides = {**stage.model.overrides, "dropout": 0.3}
        stage.train = replace(stage.train, steps=3, ema_decay=0.5)
        stages.train_detector(stage)
        said.append("forecast: " in capsys.readouterr().err)
    assert said == [True, False]
    assert_equal(weights_of(tmp_path / "with" / "best.pt"), weights_of(tmp_path / "without" / "best.pt"))


def test_a_dry_run_says_what_it_needs_and_writes_nothing(scenes, tmp_path, capsys):
    stage = stage_on(scenes, tmp_path / "run")
    stage.train = replace(stage.train, steps=300, dry_run=True, evaluate_every=100, runs=2)
    assert pd.train_detector(stage) is None
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("forecast: ")]
    assert "for 300 steps of " in line
    assert ", 3 evaluations of " in line
    assert not (tmp_path / "run").exists()
    assert spelled_out(["--dry-run", "--joint", "false"]) == ["--train.dry_run", "true", "--joint", "false"]


def test_the_largest_batch_has_the_tallest_and_the_widest_sample():
    sizes = [(40, 40, 2), (100, 30, 2), (0, 0, 0), (30, 120, 2), (50, 50, 2), (45, 45, 9)]
    largest, *typical = choose_batches(sizes, 3)
    assert set(largest) == {1, 3, 5}  # the last for its segments
    assert len(largest) == 3
    every = [(a, b) for a in (0, 1, 3, 4, 5) for b in (0, 1, 3, 4, 5) if a < b]
    mean = sum(max(sizes[a][0], sizes[b][0]) * max(sizes[a][1], sizes[b][1]) for a, b in every) / len(every)
    for batch in choose_batches(sizes, 2)[1:]:
        assert 2 not in batch
        assert math.prod(max(sizes[place][axis] for place in batch) for axis in (0, 1)) == pytest.approx(mean, rel=0.25)
    assert typical
    assert choose_batches(sizes, 1)[0] == [5]
    assert sorted(choose_batches(sizes, 9)[0]) == [0, 1, 3, 4, 5]


def test_average_batches_have_an_average_number_of_segments():
    sizes = [(64, 64, count) for count in (1, 1, 1, 2, 2, 3, 5, 8, 40, 60)]  # most images hold few
    average = choose_batches(sizes, 4)[1:]
    assert average
    for batch in average:
        assert sum(sizes[place][2] for place in batch) == pytest.approx(4 * 12.3, rel=0.15)


@pytest.mark.parametrize(
    ("sizes", "growth"),
    [
        ([(64, 64, 9), (0, 0, 0), (64, 64, 20)], 1.0),
        ([(64, 64, 9), (64, 80, 9)], 1.15),
        ([(64, 64, 2)] * 9 + [(64, 64, 50)], 1.15),
    ],
)
def test_a_heap_grows_where_samples_vary(sizes, growth):
    assert heap_growth(sizes) == growth


def test_all_parts_of_the_time_are_added_up():
    found = Forecast(100, 0.5, 3, 10.0, 4.0, 3 * 2**30, (4, 320, 480), "cpu")
    assert found.seconds == 84
    assert str(found) == (
        "forecast: 0:01:24 for 100 steps of 0.50 s, 3 evaluations of 10.0 s, checkpoints 4 s; up to 3.0G of memory in this "
        "process (largest batch 4 x 320 x 480 pixels)"
    )
    assert "1 evaluation of" in str(replace(found, evaluations=1))
    assert "gaps in the heap of glibc may double that" in str(replace(found, heap_grows=True))


def test_another_allocator_is_seen_among_what_is_loaded(monkeypatch):
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("glibc", "2.36"))
    maps = "7f0-7f1 r-xp 0 0:0 9 /lib/libc.so.6\n"
    monkeypatch.setattr(module.Path, "read_text", lambda *given, **named: maps)
    assert module.allocates_by_glibc()
    maps += "7f2-7f3 r-xp 0 0:0 8 /usr/lib/libtcmalloc_minimal.so.4\n"
    assert not module.allocates_by_glibc()
    monkeypatch.setattr(module.platform, "libc_ver", lambda: ("", ""))
    assert not module.allocates_by_glibc()


def test_a_batch_that_does_not_fit_is_told_before_the_run(scenes, tmp_path, monkeypatch):
    def no_room(trainer, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "_timed_step", no_room)
    stage = stage_on(scenes, Path(tmp_path / "run"))
    stage.train = replace(stage.train, dry_run=True)
    with pytest.raises(TrainingError, match=r"a batch of 2 x \d+ x \d+ pixels does not fit .* train\.batch_size"):
        stages.train_detector(stage)
