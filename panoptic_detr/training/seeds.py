"""The same training with several seeds: how much of a score is chance."""

import json
import math
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from lightning_fabric import Fabric
from rich.console import Console
from rich.table import Table

from panoptic_detr.config.reading import save_config
from panoptic_detr.config.stages import DetectorStage, MaskStage
from panoptic_detr.files import write_whole
from panoptic_detr.training.run.log import read_log
from panoptic_detr.training.watch.diagnosis import shown_score

SEED = "{seed}"  # in the path of stage 2's detector
Stage = TypeVar("Stage", bound=DetectorStage)


@dataclass(frozen=True)
class SeedResult:
    """What one seed has given.

    Attributes:
        seed: of the run.
        result: its best checkpoint.
        step: that this is of.
        scores: at that step, by name, the first deciding which is best; without evaluation the last loss.
    """

    seed: int
    result: Path
    step: int
    scores: Mapping[str, float]


def parts_of(stage: Stage) -> list[Stage]:
    """The settings of every seed: with a folder of its own, and with the detector of this seed where the path says `{seed}`."""
    if stage.train.runs == 1:
        return [stage]
    parts = []
    for seed in range(stage.train.seed, stage.train.seed + stage.train.runs):
        train = replace(stage.train, seed=seed, runs=1, output=stage.train.output / f"seed_{seed}")
        part = replace(stage, train=train)
        if isinstance(part, MaskStage) and part.detector is not None:
            part.detector = part.detector.replace(SEED, str(seed))
        parts.append(part)
    return parts


def train_seeds(stage: Stage, fabric: Fabric, console: Console, run: Callable[[Stage, str], Path | None]) -> Path | None:
    """Train with every seed, or go on where this was stopped; print and keep what came out.

    Args:
        stage: settings.
        fabric: launched.
        console: where to speak.
        run: trains one part; takes its settings and the command that goes on with all of them.

    Returns:
        The best of the results; None if a run was stopped.
    """
    folder, results = stage.train.output, []
    command = f"panoptic-detr {stage.job} --config {shlex.quote(str(folder / 'config.yaml'))} --train.resume true"
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        save_config(stage, folder / "config.yaml")
    for number, part in enumerate(parts_of(stage), start=1):
        console.print(f"run {number} of {stage.train.runs}: seed {part.train.seed}", highlight=False)
        fabric.seed_everything(part.train.seed + fabric.global_rank, verbose=False)
        result = run(part, command)
        if result is None:
            return None
        results.append(read_result(part.train.seed, result))
    if fabric.is_global_zero:
        write_whole(folder / "runs.json", json.dumps(summary(results, folder), indent=1).encode())
        console.print(as_table(results))
        console.print(f"scores of all runs: {folder / 'runs.json'}", highlight=False, soft_wrap=True)
    return max(results, key=lambda found: _order(next(iter(found.scores.items()), ("", math.nan)))).result


def read_result(seed: int, result: Path) -> SeedResult:
    """What a run's folder says about its best checkpoint."""
    scores, log = read_log(result.parent / "scores.csv"), read_log(result.parent / "log.csv")
    names = [name for name in scores if name != "step"]
    if not names:
        row = {"loss": float(log["loss"][-1])} if "loss" in log else {}
        return SeedResult(seed, result, int(log["step"][-1]) if "step" in log else 0, row)
    first = np.nan_to_num(scores[names[0]], nan=-math.inf)
    best = len(first) - 1 - int(np.argmax(first[::-1]))  # of equal ones the last, as the trainer keeps them
    return SeedResult(seed, result, int(scores["step"][best]), {name: float(scores[name][best]) for name in names})


def mean_and_spread(results: Sequence[SeedResult]) -> tuple[dict[str, float], dict[str, float]]:
    """Mean and standard deviation (of the sample, n - 1) of every score."""
    values = {name: [found.scores[name] for found in results] for name in results[0].scores}
    means = {name: statistics.fmean(column) for name, column in values.items()}
    return means, {name: float(np.std(column, ddof=1)) if len(column) > 1 else math.nan for name, column in values.items()}


def summary(results: Sequence[SeedResult], folder: Path) -> dict[str, object]:
    """Plain values for `runs.json`; what is undefined is null."""
    means, spreads = mean_and_spread(results)
    runs = [
        {
            "seed": found.seed,
            "result": found.result.relative_to(folder).as_posix(),
            "step": found.step,
            "scores": _finite(found.scores),
        }
        for found in results
    ]
    return {"runs": runs, "mean": _finite(means), "spread": _finite(spreads)}


def as_table(results: Sequence[SeedResult]) -> Table:
    """A row for each run, for the mean and for the spread; scores in per cent."""
    table = Table(title="runs", title_justify="left")
    for column in ("seed", "step", *results[0].scores):
        table.add_column(column, justify="right")
    for found in results:
        table.add_row(str(found.seed), str(found.step), *map(shown_score, found.scores, found.scores.values()))
    table.add_section()
    for name, values in zip(("mean", "spread"), mean_and_spread(results), strict=True):
        table.add_row(name, "", *map(shown_score, values, values.values()))
    return table


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _order(score: tuple[str, float]) -> float:
    """What is larger is better: a score, or a loss turned round."""
    name, value = score
    return -math.inf if math.isnan(value) else -value if name == "loss" else value
