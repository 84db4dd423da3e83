"""Predict panoptic maps of pictures: COCO-panoptic files and an overlay per picture.

Any checkpoint with a mask head, on pictures or folders of them, in seconds:

    panoptic-detr predict runs/scenes_masks/best.pt photo.jpg folder/ --output /tmp/predictions
    panoptic-detr predict detr_r50_panoptic photo.jpg --output /tmp/predictions --explain

Written to the output folder: `predictions.json` (images, annotations, categories), `panoptic/<name>.png` (segment ids),
`overlays/<name>.jpg`. Photographs are turned upright by their EXIF orientation. A picture that cannot be read does not stop the
others: it is named at the end, and the exit status is 1.

Results are written as they come. After Ctrl-C or SIGTERM, which finish the picture, a lost
connection or a kill the same command goes on with the rest:

    panoptic-detr predict runs/scenes_masks/best.pt photos --recursive --like gt.json --output /tmp/predictions
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from panoptic_detr.commands.cli import run
from panoptic_detr.config.inference import add_inference_options, changed_settings
from panoptic_detr.data.coco import read_json
from panoptic_detr.errors import EvaluationError, PictureError
from panoptic_detr.evaluation import image_names, match_names
from panoptic_detr.images import upright_rgb
from panoptic_detr.inference import (
    PictureFile,
    PredictionFolder,
    Predictor,
    find_pictures,
    list_digest,
    load_model,
    prepare_folder,
)
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import progress_bar
from panoptic_detr.training.stopping import StopRequest
from panoptic_detr.visualization.draw import first_font
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
    files = find_pictures(options.pictures, recursive=options.recursive)
    if options.like is not None:
        files = like_truth(files, options.like)
    prepare_folder(options.output, overlays=options.overlays)
    predictor = load_model(options.checkpoint, device=options.device, precision=options.precision)
    predictor.settings = changed_settings(predictor.settings, options)
    with PredictionFolder(
        options.output, predictor.categories, overlays=options.overlays, made_by=made_by(options, predictor, files)
    ) as folder:
        started = time.perf_counter()
        if len(folder):
            print(f"going on: {len(folder)} of {len(files)} pictures are there already")
        with StopRequest() as stop, first_font(options.font_path):
            notes = predict_all(predictor, files, folder, options.explain, stop)
        if stop.received is not None and len(folder) + len(notes.unreadable) < len(files):
            print(
                f"stopped after {len(folder)} of {len(files)} pictures; the same command goes on with the others",
                file=sys.stderr,
            )
            return 128 + signal.Signals[stop.received]
        if not len(folder):
            raise PictureError("\n".join(["none of the pictures could be read:", *(f"  {line}" for line in notes.unreadable)]))
        folder.finish(files)
        report(folder, notes, time.perf_counter() - started)
    return 1 if notes.unreadable else 0


def like_truth(files: Sequence[PictureFile], path: Path) -> list[PictureFile]:
    """The pictures that a ground truth lists, under its ids and names.

    Raises:
        EvaluationError: a picture that fits several images, or none of the pictures is listed.
    """
    names = image_names(read_json(path).get("images"))
    pictures = {f"#{number}": file for number, file in enumerate(files, start=1)}  # keys that are no id of the truth
    file_names: dict[int | str, str] = {key: file.file_name for key, file in pictures.items()}
    place_of = match_names(names, file_names, "the pictures")
    if not place_of:
        raise EvaluationError(f"{path}: none of its {len(names)} images has the name of one of the {len(files)} pictures")
    if len(place_of) < len(files):
        print(f"left out: {len(files) - len(place_of)} pictures that {path} does not list")
    if len(place_of) < len(names):
        print(f"no picture is there for {len(names) - len(place_of)} of the {len(names)} images of {path}")
    return [replace(pictures[str(key)], image_id=i, file_name=names[i]) for i, key in place_of.items()]


def made_by(options: argparse.Namespace, predictor: Predictor, files: Sequence[PictureFile]) -> dict[str, object]:
    """What predictions depend on: an output that was started with something else is not gone on with."""
    weights = Path(options.checkpoint)
    state = weights.stat() if weights.is_file() else None
    return {
        "checkpoint": options.checkpoint,
        "weights": [state.st_size, state.st_mtime_ns] if state else None,
        "settings": predictor.settings.to_dict(),
        "precision": options.precision,
        "pictures": f"{len(files)} pictures, list {list_digest(files)}",
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "panoptic-detr predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="a checkpoint with a mask head, or the name of a published model")
    parser.add_argument("pictures", nargs="+", type=Path, help="pictures, or folders of pictures")
    parser.add_argument("--recursive", action="store_true", help="search the folders in folders too")
    parser.add_argument("--like", type=Path, metavar="JSON", help="take image ids and names from this COCO ground truth")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to; made if it is missing")
    parser.add_argument("--threshold", type=float, help="least probability of a segment (default: the checkpoint's own)")
    parser.add_argument("--stuff-threshold", type=float, help="the same for stuff, where it differs")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is about twice as fast")
    parser.add_argument("--explain", action="store_true", help="print what became of every query, and why")
    parser.add_argument("--font-path", type=Path, metavar="FILE", help="font for class names, as far as it has their glyphs")
    parser.add_argument("--no-overlays", dest="overlays", action="store_false", help="write no overlay pictures")
    add_inference_options(parser)
    return parser.parse_args(argv)


def predict_all(
    predictor: Predictor, files: Sequence[PictureFile], folder: PredictionFolder, explain: bool, stop: StopRequest
) -> Notes:
    """Predict and write what is missing, one picture after the other (on a GPU in batches), until an end is asked for."""
    notes = Notes()
    missing = [file for file in files if file not in folder]
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(files), completed=len(files) - len(missing))
        for start in range(0, len(missing), predictor.batch_size):
            if stop:
                break
            chunk = missing[start : start + predictor.batch_size]
            for file, picture, segmentation in predict_chunk(predictor, chunk, notes):
                folder.add(file, picture, segmentation)
                take_notes(file, segmentation, notes, explain)
            bar.advance(task, len(chunk))
    return notes


def predict_chunk(
    predictor: Predictor, files: Sequence[PictureFile], notes: Notes
) -> list[tuple[PictureFile, np.ndarray, PanopticSegmentation]]:
    """Pictures with their maps; those that cannot be read or do not fit the memory are noted."""
    read = [(file, picture) for file in files if (picture := read_picture(file, notes)) is not None]
    return predict_read(predictor, read, notes)


def predict_read(
    predictor: Predictor, read: Sequence[tuple[PictureFile, np.ndarray]], notes: Notes
) -> list[tuple[PictureFile, np.ndarray, PanopticSegmentation]]:
    """Pictures with their maps, one by one where they do not fit the memory together; those that never do are noted."""
    try:
        maps = predictor([picture for _, picture in read])
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        if len(read) > 1:
            return [row for pair in read for row in predict_read(predictor, [pair], notes)]
        notes.unreadable.append(f"{read[0][0].path}: too large for the memory; give a smaller copy, or --inference.short_side")
        return []
    return [(file, picture, segmentation) for (file, picture), segmentation in zip(read, maps, strict=True)]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had; on a CPU torch has no type of its own for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "not enough memory" in str(error)


def read_picture(file: PictureFile, notes: Notes) -> np.ndarray | None:
    """The upright picture, or None with a note if it cannot be read or its name cannot be written down."""
    try:
        str(file.path).encode()
        return upright_rgb(file.path)
    except PictureError as error:
        notes.unreadable.append(str(error))
    except UnicodeEncodeError:
        told = os.fsencode(file.path).decode(errors="backslashreplace")
        notes.unreadable.append(f"{told}: the name is not UTF-8; rename the file")
    except MemoryError:
        notes.unreadable.append(f"{file.path}: too large for the memory; give a smaller copy")
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
    found, categories = folder.found, folder.categories.by_id
    listed = ", ".join(f"{count} {categories[category_id].name}" for category_id, count in found.most_common(8))
    print(f"pictures: {len(folder)}, segments: {found.total()} ({listed or 'none'}), seconds: {seconds:.1f}")
    print(f"written to {folder.folder}: predictions.json, panoptic/{', overlays/' if folder.overlays else ''}")
    if not found:
        print(f"no query passed the threshold; the best score below it was {notes.best_below:.2f}: try a lower --threshold")
    if notes.unreadable:
        print("\n".join(["could not be read:", *(f"  {line}" for line in notes.unreadable)]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(run(main, None, "predict"))
