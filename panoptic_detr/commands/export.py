"""Export a model: one file from pixels to the panoptic map, for ONNX Runtime, OpenVINO or PyTorch alone.

A checkpoint, in a minute; the file then goes wherever a checkpoint goes (predict, evaluate, load_model):

    panoptic-detr export runs/scenes_masks/best.pt scenes.onnx
    panoptic-detr predict scenes.onnx photo.jpg --output /tmp/exported

For OpenVINO (the weights go into scenes.bin beside it):

    panoptic-detr export runs/scenes_masks/best.pt scenes.xml

For PyTorch without this package:

    panoptic-detr export runs/scenes_masks/best.pt scenes.pt2 --size 480 640

For one image size, with small weights, or the raw outputs of a detector:

    panoptic-detr export detr_r50_panoptic detr.onnx --size 800 1066 --precision int8
    panoptic-detr export deformable_detr_r50 boxes.onnx --raw

With 8 bits in all products, for speed (fastest in .xml), unless it costs more than half a point of PQ on a data set:

    panoptic-detr export best.pt scenes.onnx --precision int8 --calibrate scenes/train --check scenes val --most-lost 0.5

File and model are run on three drawn pictures and on those of `--check`, and a table says how well they agree. A float32 file
with less than 99.9 % equal pixels is not written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.table import Table

from panoptic_detr.commands.arguments import CHECKPOINTS
from panoptic_detr.commands.cli import run
from panoptic_detr.exported.parity import Quality
from panoptic_detr.exported.write import ExportReport, FilePrecision, export


def main(argv: Sequence[str] | None = None) -> int:
    """Export, compare, tell."""
    options = parse(argv)
    report = export(
        options.model,
        options.file,
        size=tuple(options.size) if options.size else None,
        precision=options.precision,
        calibrate=options.calibrate,
        raw=options.raw,
        check=options.pictures,
        check_data=options.data,
        most_lost=options.most_lost,
    )
    console = Console(markup=False)
    console.print(comparison_table(report))
    if report.quality is not None:
        console.print(quality_table(report.quality))
    if warning := differs(report):
        print(warning, file=sys.stderr)
    print(f"written to {report.path}: {report.megabytes:.1f} MB, {report.precision}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "panoptic-detr export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help=CHECKPOINTS)
    parser.add_argument("file", type=Path, help="what to write; ends in .onnx, .xml (OpenVINO) or .pt2 (torch.export)")
    parser.add_argument("--size", type=int, nargs=2, metavar=("HEIGHT", "WIDTH"), help="resize every picture to this size")
    parser.add_argument(
        "--precision", choices=get_args(FilePrecision), default="fp32", help="of the weights in the file (default: fp32)"
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="FOLDER",
        help="pictures such as the file will see: int8 then computes in 8 bits",
    )
    parser.add_argument("--raw", action="store_true", help="logits, boxes and masks of all queries instead of maps")
    parser.add_argument(
        "--check",
        nargs="+",
        action="append",
        default=[],
        metavar="PICTURE",
        help="compare on these pictures too; or PQ on a data set, if it is a root folder and a split (may be repeated)",
    )
    parser.add_argument(
        "--most-lost", type=float, metavar="POINTS", help="of PQ on the data set; a file that loses more is not written"
    )
    options = parser.parse_args(argv)
    data = [given for given in options.check if Path(given[0]).is_dir()]
    if len(data) > 1 or any(len(given) != 2 for given in data):
        parser.error("--check takes one data set, by its root folder and split; pictures go into a --check of their own")
    options.data = (data[0][0], data[0][1]) if data else None
    options.pictures = [picture for given in options.check if given not in data for picture in given]
    return options


def comparison_table(report: ExportReport) -> Table:
    """How file and model agree, picture by picture."""
    table = Table("picture", "logits", "boxes", "masks", "equal pixels", "segments", title="largest differences")
    for one in report.comparisons:
        same = f"{one.segments}, {'equal' if one.same_segments else 'NOT EQUAL'}"
        differences = (f"{value:.1e}" for value in (one.logits, one.boxes, one.masks))
        table.add_row(one.name, *differences, f"{100 * one.equal_pixels:.3f}%", same)
    return table


def differs(report: ExportReport) -> str | None:
    """What it means that a file finds other segments, where no data set says what that costs."""
    unlike = [one.name for one in report.comparisons if not one.same_segments]
    if not unlike or report.quality is not None:
        return None
    if report.precision == "fp32":
        return (
            f"NOT EQUAL: on {len(unlike)} of {len(report.comparisons)} pictures rounding decides about single pixels where two "
            f"masks are nearly as sure; {100 * report.equal_pixels:.3f}% and more are equal"
        )
    return (
        f"warning: NOT EQUAL: on {len(unlike)} of {len(report.comparisons)} pictures the file finds other segments than the "
        f"model, or the same with other pixels; that is the price of {report.precision}. Drawn pictures are unlike those of "
        "the training, so this says little about yours; --check ROOT SPLIT measures the PQ lost on a data set"
    )


def quality_table(quality: Quality) -> Table:
    """Scores of both on the data set, in per cent."""
    rows = {"model": quality.model.summary(), "file": quality.file.summary()}
    table = Table("", *rows["model"], title=f"{quality.file.images} images: {quality.points_lost:.2f} points of PQ lost")
    for name, scores in rows.items():
        table.add_row(name, *(f"{100 * value:.2f}" for value in scores.values()))
    return table


if __name__ == "__main__":
    sys.exit(run(main, None, "export"))
