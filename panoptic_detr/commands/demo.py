"""The main job on the embedded data set: boxes, then masks on the frozen detector, PQ on held-out scenes, pictures, report.

    panoptic-detr demo                                                     # about 8 minutes on 2 cores
    panoptic-detr demo --output /tmp/demo --scenes 64 --detector-steps 20 --mask-steps 10 --held-out 8     # seconds, poor masks

Everything is written below the output folder. The same seed gives the same numbers on the same machine.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from rich.console import Console
from rich.text import Text

from panoptic_detr.commands import data, evaluate, visualize
from panoptic_detr.commands.cli import run
from panoptic_detr.config.reading import packaged_configs, read_config
from panoptic_detr.config.stages import DetectorStage, MaskStage
from panoptic_detr.errors import DataError, TrainingError
from panoptic_detr.images import as_rgb, fit, save_picture
from panoptic_detr.signals import interrupted_by_signals
from panoptic_detr.training.stages import train_detector, train_masks
from panoptic_detr.visualization.draw import side_by_side

Stage = TypeVar("Stage", bound=DetectorStage)

SIZE = 96
MARK = "made_by_the_demo"
PRODUCTS = ("scenes", "detector", "masks", "scores", "pictures", "overview.png", "report.html")


def main(argv: Sequence[str] | None = None) -> int:
    """Make scenes, train both stages, evaluate, draw.

    Raises:
        TrainingError: a signal asked for an end.
    """
    options = parse(argv)
    with stopped_in_order("it begins anew when the same command is run again"):
        do_all(options)
    return 0


@contextmanager
def stopped_in_order(what_then: str) -> Iterator[None]:
    """Inside this context a signal that asks for an end becomes a `TrainingError` that says what the next call does."""
    try:
        with interrupted_by_signals():
            yield
    except KeyboardInterrupt as interrupt:
        raise TrainingError(f"stopped by {str(interrupt) or 'a second signal'}; {what_then}") from None


def do_all(options: argparse.Namespace) -> None:
    """Every step of the demo, one after the other."""
    out, console, started = options.output, Console(markup=False), time.monotonic()
    prepare_folder(out)
    step = Steps(console)

    step(f"Data: {options.scenes} scenes to train on and {options.held_out} held out, {SIZE} x {SIZE} pixels")
    for split, count in (("train", options.scenes), ("val", options.held_out)):
        data.main(["scenes", str(out / "scenes"), f"--count={count}", f"--size={SIZE}", f"--split={split}"])

    step("Stage 1: a detector of boxes around things and stuff")
    detector = train(DetectorStage, train_detector, "detector", options, options.detector_steps)

    step("Stage 2: masks on the frozen detector")
    best = train(MaskStage, train_masks, "masks", options, options.mask_steps, "--detector", detector)

    step("Panoptic quality on the held-out scenes")
    held_out = ["--root", str(out / "scenes"), "--split", "val"]
    scored = ["--data.root", str(out / "scenes"), "--data.split", "val", "--output", str(out / "scores")]
    evaluate.main([best, *scored, "--per-class", "--batch-size", "8", "--ap", "boxes"])

    step("Pictures and report")
    pictures, report = out / "pictures", out / "report.html"
    visualize.main(["coco", *held_out, "--model", best, "--limit", "24", "--scale", "4", "--output", str(pictures)])
    draw_overview(pictures, out / "overview.png")
    visualize.main(["report", str(out / "masks"), *held_out, "--limit", "100", "--output", str(report)])

    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    console.print(f"\nDone in {minutes} min {seconds} s.", style="bold")
    for what, where in (("pictures", pictures), ("report", report), ("scores", out / "scores"), ("model", best)):
        print(f"{what:8} {where}")


class Steps:
    """Announces numbered steps."""

    def __init__(self, console: Console) -> None:
        self.console, self.number = console, 0

    def __call__(self, title: str) -> None:
        """Print the next step's heading."""
        self.number += 1
        self.console.rule(Text(f"{self.number}. {title}", style="bold"), align="left")


def draw_overview(folder: Path, path: Path) -> None:
    """Set the first pictures of a folder into one."""
    first = [as_rgb(picture) for picture in sorted(folder.glob("*.png"))[:4]]
    save_picture(path, fit(side_by_side(first, columns=2), 1600))


def train(
    kind: type[Stage],
    run_stage: Callable[[Stage], Path | None],
    name: str,
    options: argparse.Namespace,
    steps: int | None,
    *more: str,
) -> str:
    """Run a stage with its YAML, or with other steps than that says; the path of its best checkpoint.

    Raises:
        TrainingError: the stage was stopped, which ends a training without an error.
    """
    arguments = ["--config", str(packaged_configs()[f"scenes/{name}"]), "--train.output", str(options.output / name), *more]
    arguments += ["--data.root", str(options.output / "scenes"), "--train.seed", str(options.seed)]
    best = run_stage(read_config(kind, [*arguments, *(() if steps is None else ("--train.steps", str(steps)))]))
    if best is None:
        raise TrainingError(
            "the demo was stopped; it begins anew when it is run again (the line above goes on with this stage alone)"
        )
    return str(best)


def prepare_folder(folder: Path) -> None:
    """Make the output folder; remove what an earlier demo made there (`PRODUCTS`), and nothing that lies beside it.

    Raises:
        DataError: the folder holds something that is not the demo's, or cannot be written.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / MARK).exists():
        raise DataError(f"'{folder}' is not empty and not made by an earlier demo; name another folder with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for product in (folder / name for name in PRODUCTS):
            if product.is_dir() and not product.is_symlink():
                shutil.rmtree(product)
            else:
                product.unlink(missing_ok=True)
        (folder / MARK).touch()
    except OSError as error:
        raise DataError(f"'{folder}' cannot be written: {error.strerror}; name another folder with --output") from None


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser("panoptic-detr demo", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for everything")
    parser.add_argument("--scenes", type=int, default=4000, help="training scenes")
    parser.add_argument("--held-out", type=int, default=500, help="scenes to evaluate on")
    parser.add_argument("--detector-steps", type=int, help="steps of stage 1; by default those of configs/scenes/detector.yaml")
    parser.add_argument("--mask-steps", type=int, help="steps of stage 2; by default those of configs/scenes/masks.yaml")
    parser.add_argument("--seed", type=int, default=0, help="of weights and order")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run(main, None, "demo"))
