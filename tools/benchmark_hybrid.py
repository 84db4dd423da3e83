"""Compare the ways of hybrid matching (H-DETR) on the embedded scenes: box AP and PQ over steps, and what training costs.

Three quarters of an hour on one core; every finished training is kept, so that a stopped comparison goes on where it was:

    panoptic-detr benchmark hybrid --output hybrid
    panoptic-detr benchmark hybrid --output /tmp/hybrid --seeds 1 --steps 8 --mask_steps 4 --scenes 32 --held_out 8

Every scheme trains the detector of configs/scenes/detector.yaml and the masks of configs/scenes/masks.yaml, with the same
seeds, steps and order of scenes. Schemes differ in how sure of themselves the detectors get, so each training's thresholds
are chosen on scenes of their own (split "tune") before PQ is compared. The output folder gets `hybrid.json`, `hybrid.csv`,
`hybrid.png` and, below `runs/`, the trainings. docs/hybrid_matching.md shows what came out.
"""

import csv
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from panoptic_detr.config import DetectorStage
from panoptic_detr.config_reading import read_config
from panoptic_detr.data.coco_panoptic import CocoPanoptic
from panoptic_detr.data.loading import collate
from panoptic_detr.data.scenes import write_scenes
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.evaluation.calibrate import calibrate_thresholds
from panoptic_detr.evaluation.evaluate import evaluate_model
from panoptic_detr.evaluation.open_model import open_model
from panoptic_detr.tools import train_detector, train_masks
from panoptic_detr.tools.cli import run as run_tool
from panoptic_detr.training import build, build_data
from panoptic_detr.training.failures import TrainingError
from panoptic_detr.training.optimizer import build_optimizer, parameter_groups
from panoptic_detr.zoo import build_model

CONFIGS = Path(train_detector.__file__).parent.with_name("configs") / "scenes"
SIZE, POINTS, MASK_POINTS = 96, 4, 2
SCORES = (("box AP", "stage 1"), ("PQ", "stage 2"))
CALIBRATED = "calibrated PQ"
RESULTS = (*(score for score, _ in SCORES), CALIBRATED)
TUNING_SCENES = 100


@dataclass(frozen=True)
class Scheme:
    """One way of matching: its name and the settings of training that differ from plain one-to-one matching."""

    name: str
    settings: tuple[str, ...] = ()


SCHEMES = (
    Scheme("plain"),
    Scheme(
        "hybrid branch",
        ("--model.overrides.num_one_to_many=75", "--loss.hybrid=branch", "--loss.one_to_many_repeats=6"),
    ),
    # These two match the 25 queries themselves one-to-many: 3 times 5 or 6 objects leave some queries without an object.
    Scheme("hybrid epoch", ("--loss.hybrid=epoch", "--loss.one_to_many_repeats=3")),
    Scheme("hybrid layer", ("--loss.hybrid=layer", "--loss.one_to_many_repeats=3", "--loss.one_to_many_layers=2")),
)


@dataclass(frozen=True)
class Outcome:
    """What came out of one training of both stages.

    Attributes:
        scheme: name of the scheme.
        seed: of weights, order and augmentation.
        curves: for each score of `SCORES`, pairs of step and score.
        thresholds: of things and stuff, the best on the tuning scenes.
        quality: PQ of the last step on the held-out scenes with these thresholds.
    """

    scheme: str
    seed: int
    curves: dict[str, list[tuple[int, float]]]
    thresholds: tuple[float, float]
    quality: float

    def last(self, score: str) -> float:
        """What came out at the end, for a name of `SCORES` or for the calibrated PQ."""
        return self.quality if score == CALIBRATED else self.curves[score][-1][1]


def run(
    *,
    output: Path = Path("hybrid"),
    seeds: int = 3,
    steps: int = 700,
    mask_steps: int = 240,
    scenes: int = 4000,
    held_out: int = 150,
) -> dict[str, Any]:
    """Train and score every scheme with every seed; files are written after each training.

    Args:
        output: folder of results, trainings and scenes.
        seeds: trainings per scheme.
        steps: of the detector, 8 scenes each.
        mask_steps: of the mask head, 8 scenes each.
        scenes: to train on.
        held_out: scenes to score on.

    Returns:
        `schemes`: per scheme the last box AP, PQ and calibrated PQ as mean and standard deviation over seeds, `step_ms` and
        `time_ratio`;
        `outcomes`: the curves of every training; `settings`. Steps are of stage 1, in CPU time.
    """
    settings = {"seeds": seeds, "steps": steps, "mask_steps": mask_steps, "scenes": scenes, "held_out": held_out}
    for split, count in (("train", scenes), ("val", held_out), ("tune", min(TUNING_SCENES, held_out))):
        if not (output / "scenes" / "annotations" / f"panoptic_{split}.json").is_file():
            write_scenes(output / "scenes", count, size=SIZE, split=split)
    costs = step_costs(output / "scenes")
    outcomes: list[Outcome] = []
    for seed in range(seeds):
        for scheme in SCHEMES:
            outcomes.append(train(scheme, seed, output, steps, mask_steps))
            result = {
                "settings": settings,
                "schemes": summarize(outcomes, costs),
                "outcomes": [asdict(one) for one in outcomes],
            }
            write(result, outcomes, output)
    return result


def train(scheme: Scheme, seed: int, output: Path, steps: int, mask_steps: int) -> Outcome:
    """Both stages of one scheme, or what is missing of them."""
    folder = output / "runs" / f"{scheme.name.replace(' ', '_')}_{seed}"
    boxes, masks = folder / "boxes", folder / "masks"
    common = [f"--data.root={output / 'scenes'}", f"--train.seed={seed}", "--train.resume=true", "--train.tensorboard=false"]
    common += ["--train.batch_size=8", "--train.threads=1"]  # fixed, whatever the configurations say
    train_detector.main(
        [
            f"--config={CONFIGS / 'detector.yaml'}",
            f"--train.output={boxes}",
            f"--train.steps={steps}",
            f"--train.evaluate_every={max(steps // POINTS, 1)}",
            *scheme.settings,
            *common,
        ]
    )
    ap = curve(boxes, "box AP", steps)
    train_masks.main(
        [
            f"--config={CONFIGS / 'masks.yaml'}",
            f"--detector={boxes / 'last.pt'}",
            f"--train.output={masks}",
            f"--train.steps={mask_steps}",
            f"--train.evaluate_every={max(mask_steps // MASK_POINTS, 1)}",
            "--model.overrides.mask_inside_boxes=false",
            *common,
        ]
    )
    curves = {"box AP": ap, "PQ": curve(masks, "PQ", mask_steps)}
    return Outcome(scheme.name, seed, curves, *calibrated(masks / "last.pt", output / "scenes"))


def calibrated(checkpoint: Path, scenes: Path) -> tuple[tuple[float, float], float]:
    """The best thresholds on the tuning scenes, and PQ on the held-out ones with them."""
    opened = open_model(str(checkpoint))
    tune, held_out = (CocoPanoptic.from_root(scenes, split, transforms=eval_transform(None)) for split in ("tune", "val"))
    found = calibrate_thresholds(opened.model, tune, categories=opened.categories, settings=opened.settings, batch_size=8)
    scores = evaluate_model(
        opened.model, held_out, categories=opened.categories, settings=found.settings, ap="none", batch_size=8
    )
    assert scores.panoptic is not None  # the model has a mask head
    return found.thresholds, scores.panoptic.all.pq


def step_costs(scenes: Path, repeats: int = 12) -> dict[str, float]:
    """Median CPU milliseconds of a step of stage 1 by scheme; the schemes take turns, so that other work slows all alike."""
    steps = {scheme.name: training_step(scheme, scenes) for scheme in SCHEMES}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(-1, repeats):  # the first warms up
        for name, step in steps.items():
            begin = time.process_time()
            step(max(repeat, 0) / repeats)
            if repeat >= 0:
                times[name].append(1000 * (time.process_time() - begin))
    return {name: statistics.median(values) for name, values in times.items()}


def training_step(scheme: Scheme, scenes: Path) -> Callable[[float], None]:
    """One step of stage 1 on the first 8 scenes, as a function of the share of the training that is done."""
    stage = read_config(DetectorStage, [f"--config={CONFIGS / 'detector.yaml'}", f"--data.root={scenes}", *scheme.settings])
    dataset = build_data.open_train_set(stage.data, stage.augmentation, stage.inference, stage.train)
    batch = collate([dataset[i % len(dataset)] for i in range(stage.train.batch_size)])
    model = build_model(stage.model.name, num_labels=dataset.categories.num_labels, **stage.model.overrides)
    criterion = build.new_criterion(stage.model.name, dataset.categories.num_labels, stage.loss)
    optimizer = build_optimizer(parameter_groups(model, stage.optimizer), stage.optimizer)

    def step(progress: float) -> None:
        criterion.progress = progress
        criterion(model(batch.images, batch.padding_mask), batch.targets).total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def curve(folder: Path, score: str, steps: int) -> list[tuple[int, float]]:
    """Step and score of every evaluation of a run.

    Raises:
        TrainingError: the run was stopped before its end.
    """
    path = folder / "scores.csv"
    points = [(int(row["step"]), row[score]) for row in read_csv(path)] if path.is_file() else []
    if not points or points[-1][0] < steps:
        raise TrainingError(f"the training in {str(folder)!r} was stopped; the same command goes on with it")
    return points


def read_csv(path: Path) -> list[dict[str, float]]:
    """Rows of numbers; what was not logged in a row is left out."""
    with open(path, newline="", encoding="utf-8") as stream:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(stream)]


def summarize(outcomes: Sequence[Outcome], costs: Mapping[str, float]) -> list[dict[str, Any]]:
    """Last scores and cost of every scheme, in the order of the schemes; the time is relative to the first."""
    rows = []
    for scheme in SCHEMES:
        mine = [outcome for outcome in outcomes if outcome.scheme == scheme.name]
        if not mine:
            continue
        row: dict[str, Any] = {"scheme": scheme.name, "seeds": len(mine)}
        for score in RESULTS:
            last = [outcome.last(score) for outcome in mine]
            row[score] = {"mean": statistics.mean(last), "deviation": statistics.stdev(last) if len(last) > 1 else 0.0}
        row["step_ms"], row["time_ratio"] = costs[scheme.name], costs[scheme.name] / costs[SCHEMES[0].name]
        rows.append(row)
    return rows


def write(result: dict[str, Any], outcomes: Sequence[Outcome], output: Path) -> None:
    """Write JSON, CSV and figure into the output folder."""
    (output / "hybrid.json").write_text(json.dumps(result, indent=1), encoding="utf-8")
    with open(output / "hybrid.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("scheme", "seed", "score", "stage", "step", "value"))
        for outcome in outcomes:
            for score, stage in SCORES:
                writer.writerows((outcome.scheme, outcome.seed, score, stage, *point) for point in outcome.curves[score])
            last = outcome.curves["PQ"][-1][0]
            writer.writerow((outcome.scheme, outcome.seed, CALIBRATED, "stage 2", last, outcome.quality))
    draw(outcomes, output / "hybrid.png")


def draw(outcomes: Sequence[Outcome], path: Path) -> None:
    """Draw mean curves over steps, with the range of the seeds as a band."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (score, stage) in zip(figure.subplots(1, 2), SCORES, strict=True):
        for scheme in SCHEMES:
            curves = [outcome.curves[score] for outcome in outcomes if outcome.scheme == scheme.name]
            if not curves:
                continue
            points = [tuple(zip(*at_step, strict=True)) for at_step in zip(*curves, strict=True)]
            steps, values = [point[0][0] for point in points], [point[1] for point in points]
            line = axes.plot(steps, [statistics.mean(seeds) for seeds in values], marker="o", label=scheme.name)
            axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], color=line[0].get_color(), alpha=0.12)
        axes.set(title=f"{score} on held-out scenes", xlabel=f"step of {stage}", ylabel=score, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=110)


def table(result: dict[str, Any]) -> Table:
    """The figures of `run` for people."""
    settings = result["settings"]
    title = f"Hybrid matching, {settings['steps']} + {settings['mask_steps']} steps, {settings['seeds']} seed(s)"
    view = Table("matching", *RESULTS, "CPU ms per step", "time", title=title)
    for row in result["schemes"]:
        scores = [f"{100 * row[score]['mean']:.1f} ± {100 * row[score]['deviation']:.1f}" for score in RESULTS]
        view.add_row(row["scheme"], *scores, f"{row['step_ms']:.0f}", f"{row['time_ratio']:.2f}")
    return view


def main(argv: Sequence[str] | None = None) -> int:
    """Compare and print."""
    result = auto_cli(run, args=None if argv is None else list(argv), as_positional=False)
    Console().print(table(result))
    return 0


if __name__ == "__main__":
    sys.exit(run_tool(main, None, "benchmark_hybrid"))
