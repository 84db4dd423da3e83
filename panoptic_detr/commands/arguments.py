"""Kinds of arguments, each with a sentence for what it is not; options of several jobs; a parser with errors of one line."""

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

CHECKPOINTS = (  # what `weights.open_source` takes
    "a checkpoint, the name of a published model, a folder in the hub's form, or a repository of the hub (organisation/name "
    "or organisation/name@revision)"
)
MODELS = f"an exported file (.onnx, .xml, .pt2), {CHECKPOINTS}"  # what `load_model` takes
SWITCHES = {"--joint": "--joint", "--dry-run": "--train.dry_run"}  # of the stages, for settings that are true or false


def spelled_out(arguments: Sequence[str]) -> list[str]:
    """The command line of a stage with its bare switches as settings: `--joint` as `--joint true`."""
    following = [*arguments, "--"][1:]
    return [
        word
        for argument, after in zip(map(str, arguments), map(str, following), strict=True)
        for word in (
            [SWITCHES[argument], "true"]
            if argument in SWITCHES and after.startswith("--")
            else [SWITCHES.get(argument, argument)]
        )
    ]


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with status 2."""
        self.exit(2, f"{self.prog}: {message}; `{self.prog} --help` lists the settings\n")


def place(text: str) -> Path:
    """Read a path; an empty one, as of a variable that is not set, would be the current folder."""
    if not text.strip():
        raise argparse.ArgumentTypeError("is empty; give a path, or . for the current folder")
    return Path(text)


def results(text: str) -> Path:
    """Read the path of a results JSON; a folder that `predict` wrote stands for the one in it."""
    inside = place(text) / "predictions.json"
    return inside if os.path.isfile(inside) else place(text)


def whole(text: str) -> int:
    """Read a whole number from 1."""
    if not text.isascii() or not text.isdecimal() or not 1 <= int(text) < 10**9:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number from 1")
    return int(text)


def share(text: str) -> float:
    """Read a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 0 to 1")
    return value


def shares(text: str) -> list[float]:
    """Read numbers from 0 to 1 with commas between them."""
    return [share(part) for part in text.split(",") if part]


def point(text: str) -> tuple[float, float]:
    """Read "x,y"."""
    try:
        x, y = (float(part) for part in text.split(","))
    except ValueError:
        x = y = math.nan
    if not (0 <= x < 1 and 0 <= y < 1):
        raise argparse.ArgumentTypeError(f"{text!r} must be x,y as fractions of the image below 1, such as 0.25,0.5")
    return x, y


def add_drawing(parser: argparse.ArgumentParser, *, enlarges: bool) -> None:
    """Where and how pictures are drawn."""
    parser.add_argument("--output", type=Path, required=True, help="folder, or file for sweep and report")
    parser.add_argument("--palette", choices=("distinct", "coco"), default="distinct", help="distinct is colour-blind safe")
    parser.add_argument("--font-path", type=Path, metavar="FILE", help="font for class names, as far as it has their glyphs")
    parser.add_argument("--threshold", type=share, help="of the model, instead of its own setting")
    usual = "by default small ones, until labels fit" if enlarges else "1 by default"
    parser.add_argument("--scale", type=whole, default=None if enlarges else 1, help=f"enlarge images so many times; {usual}")


def add_data(parser: argparse.ArgumentParser) -> None:
    """The images of a data set that are drawn."""
    parser.add_argument("--root", type=Path, help="data set in COCO's own layout")
    parser.add_argument("--split", help="its part, for example val2017")
    parser.add_argument("--images", type=Path, help="image folder, instead of the layout's")
    parser.add_argument("--panoptic", type=Path, help="folder of the annotation PNGs, instead of the layout's")
    parser.add_argument("--annotations", type=Path, help="COCO-panoptic JSON, instead of the layout's")
    parser.add_argument("--image-ids", nargs="+", help="only these images, with spaces or commas")
    parser.add_argument("--limit", type=whole, help="at most so many images")
