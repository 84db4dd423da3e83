"""Predict panoptic maps of pictures: COCO-panoptic files and an overlay per picture.

Any checkpoint with a mask head, on pictures or folders of them, in seconds:

    panoptic-detr predict runs/scenes_masks/best.pt photo.jpg folder/ --output /tmp/predictions
    panoptic-detr predict detr_r50_panoptic photo.jpg --output /tmp/predictions --explain

Written to the output folder: `predictions.json` (images, annotations, categories), `panoptic/<name>.png` (segment ids),
`overlays/<name>.jpg`. Photographs are turned upright by their EXIF orientation. An unreadable picture does not stop the
others: it is named at the end, and the exit status is 1.
"""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from panoptic_detr.commands.cli import run
from panoptic_detr.config.inference import add_inference_options, changed_settings
from panoptic_detr.errors import PictureError
from panoptic_detr.images import upright_rgb
from panoptic_detr.inference import PictureFile, PredictionFolder, Predictor, find_pictures, load_model, prepare_folder
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import progress_bar
from panoptic_detr.visualization.explain import explain_table


@dataclass
class Notes:
    """What to say at the end: unreadable pictures, the best score that was too low, and tables if asked for."""

    unreadable: list[str] = field(default_factory=list)
    best_below: float = 0.0
    tables: list[Table] = field(default_factory=list)


def main(argv: Sequence[str] | None = None) -> int:
    """Find the pictures, load the model, predict, write."""
    options = parse(argv)
    files = find_pictures(options.pictures)
    prepare_folder(options.output, overlays=options.overlays)
    predictor = load_model(options.checkpoint, device=options.device, precision=options.precision)
    predictor.settings = changed_settings(predictor.settings, options)
    folder = PredictionFolder(options.output, predictor.categories, overlays=options.overlays)
    started = time.perf_counter()
    notes = predict_all(predictor, files, folder, options.explain)
    if not folder.images:
        raise PictureError("\n".join(["none of the pictures could be read:", *(f"  {line}" for line in notes.unreadable)]))
    folder.finish()
    report(folder, notes, time.perf_counter() - started)
    return 1 if notes.unreadable else 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "panoptic-detr predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint with a mask head, or the name of a published model")
    parser.add_argument("pictures", nargs="+", type=Path, help="pictures, or folders of pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to; made if it is missing")
    parser.add_argument("--threshold", type=float, help="least probability of a segment (default: the checkpoint's own)")
    parser.add_argument("--stuff-threshold", type=float, help="the same for stuff, where it differs")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is about twice as fast")
    parser.add_argument("--explain", action="store_true", help="print what became of every query, and why")
    parser.add_argument("--no-overlays", dest="overlays", action="store_false", help="write no overlay pictures")
    add_inference_options(parser)
    return parser.parse_args(argv)


def predict_all(predictor: Predictor, files: Sequence[PictureFile], folder: PredictionFolder, explain: bool) -> Notes:
    """Predict and write one picture after the other (on a GPU in batches), under a progress bar."""
    notes = Notes()
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(files))
        for start in range(0, len(files), predictor.batch_size):
            chunk = files[start : start + predictor.batch_size]
            read = [(file, picture) for file in chunk if (picture := read_picture(file, notes)) is not None]
            maps = predictor([picture for _, picture in read])
            for (file, picture), segmentation in zip(read, maps, strict=True):
                folder.add(file, picture, segmentation)
                take_notes(file, segmentation, notes, explain)
            bar.advance(task, len(chunk))
    return notes


def read_picture(file: PictureFile, notes: Notes) -> np.ndarray | None:
    """The upright picture, or None with a note if it cannot be read."""
    try:
        return upright_rgb(file.path)
    except PictureError as error:
        notes.unreadable.append(str(error))
        return None


def take_notes(file: PictureFile, segmentation: PanopticSegmentation, notes: Notes, explain: bool) -> None:
    """Remember what the report says about a prediction."""
    low = (dropped.score for dropped in segmentation.dropped if dropped.reason == "low score")
    notes.best_below = max(notes.best_below, *low, 0.0)
    if explain:
        notes.tables.append(explain_table(segmentation, title=str(file.path)))


def report(folder: PredictionFolder, notes: Notes, seconds: float) -> None:
    """Say what was found, where it lies, and which pictures could not be read."""
    for table in notes.tables:
        Console(markup=False).print(table)
    categories = folder.categories.by_id
    found = Counter(categories[s["category_id"]].name for entry in folder.annotations for s in entry["segments_info"])
    listed = ", ".join(f"{count} {name}" for name, count in found.most_common(8))
    print(f"pictures: {len(folder.images)}, segments: {found.total()} ({listed or 'none'}), seconds: {seconds:.1f}")
    print(f"written to {folder.folder}: predictions.json, panoptic/{', overlays/' if folder.overlays else ''}")
    if not found:
        print(f"no query passed the threshold; the best score below it was {notes.best_below:.2f}: try a lower --threshold")
    if notes.unreadable:
        print("\n".join(["could not be read:", *(f"  {line}" for line in notes.unreadable)]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main, None, "predict"))
