"""Draw panoptic ground truth, predictions and their errors; explain predictions; make a report.

A picture per image of a data set, next to the predictions that `panoptic-detr predict` wrote, in seconds:

    panoptic-detr visualize coco --root DATA --split val2017 --output /tmp/pictures
    panoptic-detr visualize coco --images DIR --panoptic DIR --annotations JSON --pred-json predictions.json --output OUT
    panoptic-detr visualize report runs/scenes_masks --root DATA --split val --output /tmp/report.html

`panoptic-detr visualize JOB --help` lists the settings of a job. A results JSON of `predict` is a data set too: to draw it
without a ground truth, name it as --annotations and its `panoptic` folder as --panoptic.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from panoptic_detr.commands import visualize_data, visualize_models
from panoptic_detr.commands.cli import run
from panoptic_detr.errors import InputError

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job and return its exit status."""
    options = parse(argv)
    print(JOBS[options.job](options))
    return 0


def point(text: str) -> tuple[float, float]:
    """Read "x,y"."""
    x, y = (float(part) for part in text.split(","))
    if not (0 <= x < 1 and 0 <= y < 1):
        raise InputError(text)
    return x, y


def parse(argv: Sequence[str] | None) -> Namespace:
    """Read the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("panoptic-detr visualize", description=__doc__, formatter_class=form)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    added = {name: jobs.add_parser(name, help=job.__doc__, description=job.__doc__) for name, job in JOBS.items()}
    for job in added.values():
        job.add_argument("--output", type=Path, required=True, help="folder, or file for sweep and report")
        job.add_argument("--palette", choices=("distinct", "coco"), default="distinct", help="distinct is colour-blind safe")
        job.add_argument("--threshold", type=float, help="of the model, instead of its own setting")
        job.add_argument("--scale", type=int, default=1, help="enlarge small images so many times")
    for name in ("coco", "segments", "zoom", "sweep", "queries", "report"):
        _add_data(added[name])
    for name in ("coco", "segments", "zoom"):
        added[name].add_argument("--pred-json", type=Path, help="results JSON")
        added[name].add_argument("--pred-panoptic", type=Path, help="its PNGs; by default 'panoptic' beside it")
    for name in ("coco", "segments", "zoom", "sweep", "queries", "explain", "attention"):
        needed = name not in ("coco", "segments", "zoom")
        added[name].add_argument("--model", required=needed, help="checkpoint or published model that predicts")
    added["coco"].add_argument("--show", choices=("all", "truth", "prediction", "errors"), default="all")
    added["coco"].add_argument("--kind", choices=("png", "jpg", "svg"), default="png", help="svg: outlines of one map")
    added["coco"].add_argument("--alpha", type=float, default=0.5, help="opacity of the fill")
    added["zoom"].add_argument("--segment", type=int, default=1, help="its id in the segment map; the numbers of `explain`")
    added["zoom"].add_argument("--side", type=int, default=480, help="pixels of the longer side of the picture")
    for name in ("explain", "attention"):
        added[name].add_argument("pictures", type=Path, nargs="+")
        added[name].add_argument("--kind", choices=("png", "jpg"), default="png")
    places = ((0.25, 0.3), (0.75, 0.3), (0.25, 0.7), (0.75, 0.7))
    added["attention"].add_argument("--points", type=point, nargs="+", default=places, help="x,y as fractions of the image")
    added["attention"].add_argument("--layer", type=int, default=-1, help="of encoder and decoder; the last by default")
    added["queries"].add_argument("--grid", type=int, default=10, help="places per side for counting")
    added["sweep"].add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    added["report"].add_argument("source", type=Path, help="run folder, checkpoint, or results JSON")
    added["report"].add_argument("--title", default="Panoptic segmentation report")
    added["report"].set_defaults(pred_panoptic=None)
    return parser.parse_args(argv)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, help="data set in COCO's own layout")
    parser.add_argument("--split", help="its part, for example val2017")
    parser.add_argument("--images", type=Path, help="image folder, instead of the layout's")
    parser.add_argument("--panoptic", type=Path, help="folder of the annotation PNGs, instead of the layout's")
    parser.add_argument("--annotations", type=Path, help="COCO-panoptic JSON, instead of the layout's")
    parser.add_argument("--image-ids", nargs="+", help="only these images")
    parser.add_argument("--limit", type=int, help="at most so many images")


JOBS: dict[str, Callable[[Namespace], str]] = {
    "coco": visualize_data.coco,
    "segments": visualize_data.segments,
    "zoom": visualize_data.enlarge,
    "explain": visualize_models.explain,
    "attention": visualize_models.attention,
    "sweep": visualize_models.sweep,
    "queries": visualize_models.queries,
    "report": visualize_data.report,
}

if __name__ == "__main__":
    sys.exit(run(main, None, "visualize"))
