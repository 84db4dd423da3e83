"""Export a model: one file from pixels to the panoptic map, for ONNX Runtime, OpenVINO or PyTorch alone.

A checkpoint, in a minute; the file then goes wherever a checkpoint goes (predict, evaluate, load_model):

    panoptic-detr export runs/scenes_masks/best.pt scenes.onnx
    panoptic-detr predict scenes.onnx photo.jpg --output /tmp/predictions

For OpenVINO (the weights go into scenes.bin beside it):

    panoptic-detr export runs/scenes_masks/best.pt scenes.xml

For PyTorch without this package:

    panoptic-detr export runs/scenes_masks/best.pt scenes.pt2 --size 480 640

For one image size, with small weights, or the raw outputs of a detector:

    panoptic-detr export detr_r50_panoptic detr.onnx --size 800 1066 --precision int8
    panoptic-detr export deformable_detr_r50 boxes.onnx --raw

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
from panoptic_detr.exported.write import ExportReport, FilePrecision, export


def main(argv: Sequence[str] | None = None) -> int:
    """Export, compare, tell."""
    options = parse(argv)
    report = export(
        options.model,
        options.file,
        size=tuple(options.size) if options.size else None,
        precision=options.precision,
        raw=options.raw,
        check=options.check,
    )
    Console(markup=False).print(comparison_table(report))
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
    parser.add_argument("--raw", action="store_true", help="logits, boxes and masks of all queries instead of maps")
    parser.add_argument("--check", nargs="+", default=[], metavar="PICTURE", help="compare on these pictures too")
    return parser.parse_args(argv)


def comparison_table(report: ExportReport) -> Table:
    """How file and model agree, picture by picture."""
    table = Table("picture", "logits", "boxes", "masks", "equal pixels", "segments", title="largest differences")
    for one in report.comparisons:
        same = f"{one.segments}, {'equal' if one.same_segments else 'NOT EQUAL'}"
        differences = (f"{value:.1e}" for value in (one.logits, one.boxes, one.masks))
        table.add_row(one.name, *differences, f"{100 * one.equal_pixels:.3f}%", same)
    return table


if __name__ == "__main__":
    sys.exit(run(main, None, "export"))
