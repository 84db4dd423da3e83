"""Train both stages on one's own data, calibrate, score, draw: from annotations to a panoptic model and its report.

A try in a few minutes, and all of it:

    panoptic-detr train --data.root scenes --recipe small --output runs/try --detector-steps 20 --mask-steps 10
    panoptic-detr train --data.root data/mine --recipe small --output runs/mine

`--dry-run` says before what both stages will need in time and memory, and writes nothing. `--runs 3` trains both with three
seeds, and goes on with the best of them.

A recipe names two files of configs/finetune: `small` (random weights, a CPU is enough), `nuclei` (many small things) and
`photos` (a few hundred photographs), both with ImageNet weights (--backbone), `detr_r50` (published weights, for GPUs);
`panoptic-detr configs` lists them.

The classes, and which of them are things, are those of the annotations. A GPU is taken where there is one
(CUDA_VISIBLE_DEVICES chooses it, and empty means none). Ctrl-C, SIGTERM or a lost connection end the work in good order,
and the same command goes on, wherever that was. All other settings (batch size, learning rate, several GPUs) are those of
the stages' own commands, train_detector and train_masks, which take the same files.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from panoptic_detr.commands import evaluate, visualize
from panoptic_detr.commands.arguments import OneLineParser, whole
from panoptic_detr.commands.cli import run
from panoptic_detr.commands.demo import Steps, draw_overview, stopped_in_order
from panoptic_detr.config.reading import PACKAGED, read_config
from panoptic_detr.config.stages import DetectorStage, MaskStage
from panoptic_detr.data.transforms import PAPER_LONG_SIDE, PAPER_SHORT_SIDES
from panoptic_detr.errors import ConfigError, DataError, TrainingError
from panoptic_detr.training.seeds import SEED
from panoptic_detr.training.stages import save_untrained, train_detector, train_masks

RECIPES = PACKAGED / "finetune"
CALIBRATED_ON = 200  # training images

Stage = TypeVar("Stage", bound=DetectorStage)


def main(argv: Sequence[str] | None = None) -> int:
    """Train boxes, then masks; calibrate, score, draw.

    Raises:
        TrainingError: a signal asked for an end.
    """
    options = parse(argv)
    with stopped_in_order("the same command goes on where it was"):
        (forecast_all if options.dry_run else do_all)(options)
    return 0


def do_all(options: argparse.Namespace) -> None:
    """Every step of the work, one after the other."""
    out, console, started = options.output, Console(markup=False), time.monotonic()
    step = Steps(console)

    step("Stage 1: a detector of boxes around things and stuff")
    detector = str(train(settings(DetectorStage, options), train_detector))

    step("Stage 2: masks on the frozen detector")
    detectors = str(out / "boxes" / f"seed_{SEED}" / "best.pt") if options.runs > 1 else detector
    best = str(train(settings(MaskStage, options, detectors), train_masks))

    train_split, val_split = options.train_split, options.val_split
    root = ["--data.root", str(options.root), "--data.split"]
    step("Thresholds of the best panoptic quality on training images")
    calibration = ["--data.limit", str(CALIBRATED_ON), "--calibrate", "--store", "--ap", "none"]
    try:
        evaluate.main([best, *root, train_split, *calibration])
    except evaluate.NothingFoundError as error:
        console.print(f"thresholds stay as they are: {error}", highlight=False, soft_wrap=True)

    step(f"Panoptic quality on split {val_split}")
    evaluate.main([best, *root, val_split, "--per-class", "--ap", "boxes", "--output", str(out / "scores")])

    step("Pictures and report")
    pictures, report, shown = out / "pictures", out / "report.html", ["--root", str(options.root), "--split", val_split]
    visualize.main(["coco", *shown, "--model", best, "--limit", "24", "--output", str(pictures)])
    draw_overview(pictures, out / "overview.png")
    visualize.main(["report", str(Path(best).parent), *shown, "--limit", "100", "--output", str(report)])

    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"\nDone in {minutes} min {seconds} s.", style="bold")
    for what, where in (("pictures", pictures), ("report", report), ("scores", out / "scores"), ("model", best)):
        print(f"{what:8} {where}")


def forecast_all(options: argparse.Namespace) -> None:
    """What both stages will need; the second by an untrained detector, whose steps cost the same and whose evaluations less."""
    step = Steps(Console(markup=False))
    step("Stage 1: a detector of boxes around things and stuff")
    boxes = settings(DetectorStage, options)
    train_detector(as_dry_run(boxes))
    step("Stage 2: masks on the frozen detector")
    with tempfile.TemporaryDirectory() as folder:
        detector = save_untrained(boxes, Path(folder) / "untrained.pt")
        train_masks(as_dry_run(settings(MaskStage, options, str(detector))))
    print("the masks of what a trained detector finds come on top of the evaluations")
    if options.runs > 1:
        print(f"{options.runs} runs take {options.runs} times as long")


def as_dry_run(stage: Stage) -> Stage:
    """The settings of a stage that only says what one run needs."""
    return replace(stage, train=replace(stage.train, dry_run=True, runs=1))


def train(stage: Stage, run_stage: Callable[[Stage], Path | None]) -> Path:
    """Run a stage, or go on with what an earlier call has begun; its result.

    Raises:
        TrainingError: the stage was stopped by a signal.
    """
    result = run_stage(stage)
    if result is None:
        raise TrainingError("stopped; the same command goes on where it was")
    return result


def settings(kind: type[Stage], options: argparse.Namespace, detector: str | None = None) -> Stage:
    """The settings of a stage: its recipe, and what the command line says.

    Args:
        kind: of the stage.
        options: the command line.
        detector: that stage 2 starts from.
    """
    masks = issubclass(kind, MaskStage)
    name, steps = ("masks", options.mask_steps) if masks else ("boxes", options.detector_steps)
    folder = options.output / name
    begun = any(folder.rglob("last.pt")) or any(folder.rglob("best.pt"))
    values = {
        "config": RECIPES / f"{options.recipe}_{name}.yaml",
        "data.root": options.root,
        "data.train_split": options.train_split,
        "data.val_split": options.val_split,
        "train.output": folder,
        "train.seed": options.seed,
        "train.runs": options.runs,
        "train.resume": str(begun).lower(),
        "train.steps": steps,
        "detector": detector,
        "model.overrides.pretrained_backbone": None if masks else options.backbone,
    }
    words = [word for key, value in values.items() if value is not None for word in (f"--{key}", str(value))]
    stage = read_config(kind, words)
    return stage if options.image_size is None else resized(stage, options.image_size)


def resized(stage: Stage, short_side: int) -> Stage:
    """A stage for images of another size: all lengths of its recipe in proportion.

    Args:
        stage: settings of the recipe.
        short_side: of the images in evaluation and prediction, in pixels; the sizes in training are as many times larger.

    Raises:
        ConfigError: the recipe takes images as they are.
    """
    old, augmentation = stage.inference, stage.augmentation
    if old.short_side is None:
        raise ConfigError("--image-size has nothing to change, because this recipe takes images in their own size")
    factor = short_side / old.short_side
    paper = augmentation.preset == "paper"
    sides = augmentation.short_sides or (PAPER_SHORT_SIDES if paper else ())
    long_side, crop_size = augmentation.long_side or (PAPER_LONG_SIDE if paper else None), augmentation.crop_size
    augmentation = replace(
        augmentation,
        short_sides=[round(side * factor) for side in sides] or None,
        long_side=None if long_side is None else round(long_side * factor),
        crop_size=None if crop_size is None else round(crop_size * factor),
        window=[round(side * factor) for side in augmentation.window or ()] or None,
    )
    inference = replace(old, short_side=short_side, long_side=round(old.long_side * factor))
    return replace(stage, augmentation=augmentation, inference=inference)


def recipes() -> list[str]:
    """Names for which there are settings of both stages."""
    both = [{path.stem.removesuffix(end) for path in RECIPES.glob(f"*{end}.yaml")} for end in ("_boxes", "_masks")]
    return sorted(both[0] & both[1])


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line.

    Raises:
        DataError: one of the two splits is not there.
    """
    parser = OneLineParser("panoptic-detr train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data.root", dest="root", type=Path, required=True, metavar="DIR", help="data in COCO's own layout")
    parser.add_argument("--recipe", choices=recipes(), default="small", help="settings of both stages (default: small)")
    parser.add_argument("--output", type=Path, help="folder for everything (default: runs/RECIPE)")
    parser.add_argument("--data.train_split", dest="train_split", default="train", help="to train on (default: train)")
    parser.add_argument("--data.val_split", dest="val_split", default="val", help="to score on (default: val)")
    parser.add_argument(
        "--image-size", type=whole, metavar="PIXELS", help="short side of images for the model; by default that of the recipe"
    )
    parser.add_argument("--detector-steps", type=whole, help="steps of stage 1; by default those of the recipe")
    parser.add_argument("--mask-steps", type=whole, help="steps of stage 2; by default those of the recipe")
    parser.add_argument("--backbone", metavar="true|FILE", help="ImageNet weights of the backbone: fetched, or their file")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    parser.add_argument("--runs", type=whole, default=1, help="train with so many seeds; the best goes on (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="say what it needs in time and memory, and stop there")
    options = parser.parse_args(argv)
    options.output = options.output or Path("runs") / options.recipe
    for split in (options.train_split, options.val_split):
        path = options.root / "annotations" / f"panoptic_{split}.json"
        if not path.is_file():
            raise DataError(
                f"there is no split {split!r} ({path}); `panoptic-detr data split {options.root} --val 0.2` takes a validation "
                "split from the training images, --data.train_split and --data.val_split name others"
            )
    return options


if __name__ == "__main__":
    sys.exit(run(main, None, "train"))
