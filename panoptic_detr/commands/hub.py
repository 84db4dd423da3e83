"""Write a model as a folder in the form of the Hugging Face hub, with a model card, or push it there.

    panoptic-detr hub save runs/scenes_masks/best.pt shared/scenes --license apache-2.0 --picture photo.jpg
    panoptic-detr hub save runs/coco/best.pt for_transformers --format transformers
    panoptic-detr hub push runs/scenes_masks/best.pt my-name/scenes --private --scores scores/scores.json

The card takes what the run's folder tells (the checkpoint's own folder, or --run): data, command, settings, scores of the best
validation. --scores takes the whole table of `panoptic-detr evaluate ... --output scores` instead. Pushing uses the token of
`hf auth login` or HF_TOKEN.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from panoptic_detr.commands.arguments import CHECKPOINTS
from panoptic_detr.commands.cli import run
from panoptic_detr.images import encode_picture, fit, upright_rgb
from panoptic_detr.inference import Predictor
from panoptic_detr.visualization.draw import enlargement, overlay
from panoptic_detr.weights import (
    ModelNotes,
    check_source,
    open_model,
    open_source,
    push_to_hub,
    read_run,
    read_scores,
    save_pretrained,
)

LONG_SIDE = 1024  # of the card's picture


def main(argv: Sequence[str] | None = None) -> int:
    """Open the model, collect what the card says, write or push."""
    options = parse(argv)
    check_source(options.model)
    notes = collect_notes(options)
    checkpoint = open_source(options.model)
    if options.job == "save":
        folder = save_pretrained(checkpoint, options.folder, format=options.format, notes=notes)
        print(f"{folder}: {checkpoint.model.name} for {options.format}; the card is {folder / 'README.md'}")
        return 0
    address = push_to_hub(
        checkpoint,
        options.repository,
        private=True if options.private else None,
        revision=options.revision,
        format=options.format,
        notes=notes,
        message=options.message,
    )
    print(f"{address}: {checkpoint.model.name} for {options.format}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "panoptic-detr hub", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    jobs = parser.add_subparsers(dest="job", required=True, metavar="save | push")
    save, push = (
        jobs.add_parser(name, help=what) for name, what in (("save", "write a folder"), ("push", "commit it to the hub"))
    )
    for job in (save, push):
        job.add_argument("model", help=CHECKPOINTS)
    save.add_argument("folder", type=Path, help="folder to write; made if it is missing")
    push.add_argument("repository", help="organisation/name; made if it does not exist")
    push.add_argument("--private", action="store_true", help="a new repository is visible to its owners only")
    push.add_argument("--revision", help="branch to commit to (default: the main one)")
    push.add_argument("--message", default="Upload a model of panoptic-detr", help="of the commit")
    for job in (save, push):
        job.add_argument(
            "--format",
            choices=("panoptic_detr", "transformers"),
            default="panoptic_detr",
            help="what opens it: this project (default; loses nothing), or the library transformers",
        )
        job.add_argument("--name", default="", help="the card's title (default: the repository or the model's kind)")
        job.add_argument("--license", help="identifier of a licence as the hub has them, such as apache-2.0; or other")
        job.add_argument("--license-name", metavar="NAME", help="with --license other: its id, such as my-license-1.0")
        job.add_argument(
            "--license-link", metavar="LINK", help="to its text: an address, or LICENSE for a file of the repository"
        )
        job.add_argument(
            "--run", type=Path, help="folder of the run that made it (default: that of the checkpoint, if it is one)"
        )
        job.add_argument("--scores", type=Path, metavar="JSON", help="scores.json of `panoptic-detr evaluate --output`")
        job.add_argument("--data", help="what it was trained on, in words")
        job.add_argument("--picture", type=Path, help="a picture; the card shows what the model finds in it")
    return parser.parse_args(argv)


def collect_notes(options: argparse.Namespace) -> ModelNotes:
    """What the card says besides the model.

    Raises:
        InputError: a run, a table of scores or a picture that cannot be read; a licence that the hub does not know.
    """
    folder = options.run or Path(options.model).parent
    known = read_run(folder) if options.run or (folder / "run.json").is_file() else {}
    if options.scores is not None:
        known |= read_scores(options.scores)
    if options.data is not None:
        known["data"] = options.data
    licence = {name: getattr(options, name) for name in ("license", "license_name", "license_link")}
    notes = ModelNotes(**known, name=options.name, **licence)
    return notes if options.picture is None else replace(notes, picture=draw_prediction(options.model, options.picture))


def draw_prediction(source: str, picture: Path) -> bytes:
    """What a panoptic model finds in a picture, as a JPEG."""
    rgb = fit(upright_rgb(picture), LONG_SIDE)
    opened = open_model(source)
    found = Predictor(opened.model, opened.categories, settings=opened.settings, device="auto")(rgb)
    return encode_picture(overlay(rgb, found, scale=enlargement(rgb.shape)), ".jpg")


if __name__ == "__main__":
    sys.exit(run(main, None, "hub"))
