"""Bring published weights into this project and back, and export checkpoints as safetensors.

    panoptic-detr convert_checkpoint detr-r50-panoptic-00ce5173.pth detr_r50_panoptic.pth          # published -> ours
    panoptic-detr convert_checkpoint reference_run/checkpoint.pth ours.pth --model detr_r50        # a run of the authors' code
    panoptic-detr convert_checkpoint runs/masks/best.pt best.safetensors                          # ours -> safetensors
    panoptic-detr convert_checkpoint ours.pth for_the_authors_code.pth --to published              # ours -> published names
    panoptic-detr convert_checkpoint SenseTime/deformable-detr ours.pth                            # the hub's -> ours

What is written is for use: what a run needs to go on (optimizer, random states) is left out.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands.cli import run
from panoptic_detr.data.coco import read_json
from panoptic_detr.errors import CheckpointError, InputError, OfficialWeightsError
from panoptic_detr.weights import (
    PUBLISHED,
    Checkpoint,
    load_checkpoint,
    open_source,
    published_categories,
    read_weights,
    save_checkpoint,
    write_atomically,
)
from panoptic_detr.weights.names import load_official, to_official
from panoptic_detr.zoo import build_model, list_models, spec_of

ENDINGS = (".pt", ".pth", ".safetensors")


def main(argv: Sequence[str] | None = None) -> int:
    """Read one file, write the other, say what was done."""
    options = parse(argv)
    if os.path.realpath(options.source) == os.path.realpath(options.output):
        raise CheckpointError(f"source and output are the same file, {options.output}; name another output")
    name = options.model or name_of_published(options.source)
    checkpoint = read_published(name, options) if name else read_ours(options)
    if options.to == "published":
        weights = {"model": to_official(checkpoint.state_dict)}
        write_atomically(options.output, lambda stream: torch.save(weights, stream))
    else:
        save_checkpoint(options.output, replace(checkpoint, training=None))
    print(f"{options.output}: {describe(checkpoint)}, {options.output.stat().st_size / 1e6:.1f} MB")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "panoptic-detr convert_checkpoint", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source",
        help="checkpoint to read: one of this project, one of the authors' code, a hub folder, a repository of the hub",
    )
    parser.add_argument("output", type=Path, help="file to write; a name ending in .safetensors writes that format")
    parser.add_argument("--to", choices=("ours", "published"), default="ours", help="names of the weights in the output")
    parser.add_argument(
        "--model",
        metavar="NAME",
        help="the source is from the authors' code and is this model; not needed for published file names that are known",
    )
    parser.add_argument("--num-labels", type=int, help="with --model: label slots without no-object, if not the published ones")
    parser.add_argument(
        "--overrides", default="{}", help="with --model: builder arguments as JSON, such as '{\"num_queries\": 50}'"
    )
    parser.add_argument("--categories", type=Path, help="COCO-panoptic JSON whose classes the labels mean, if not COCO's own")
    options = parser.parse_args(argv)
    if options.model and options.model not in list_models():
        parser.error(f"there is no model {options.model!r}; the models are {', '.join(list_models())}")
    if options.output.suffix not in ENDINGS:
        parser.error(f"checkpoints are written as {', '.join(ENDINGS)}, but the output is {options.output.name!r}")
    if options.to == "published" and options.output.suffix == ".safetensors":
        parser.error("the authors' code reads .pth files: give the output that ending, or leave out --to published")
    return options


def name_of_published(source: str) -> str | None:
    """Model name of a file that still has the name under which it is published."""
    names = {published.file_name: name for name, published in PUBLISHED.items()}
    return names.get(Path(source).name)


def read_published(name: str, options: argparse.Namespace) -> Checkpoint:
    """Build the model and fill it strictly with the weights of the authors' code.

    Raises:
        InputError: the file cannot be opened safely, or its weights do not belong to the model.
    """
    model = build_model(name, num_labels=options.num_labels, **read_overrides(options.overrides))
    try:
        load_official(model, read_weights(Path(options.source)))
    except OfficialWeightsError as error:
        raise OfficialWeightsError(f"{str(options.source)!r}: {error}") from error
    spec = spec_of(model)
    return Checkpoint(spec, model.state_dict(), read_categories(options.categories, spec.num_labels))


def read_ours(options: argparse.Namespace) -> Checkpoint:
    """Read a checkpoint of this project or a model of the hub, with other classes if asked for."""
    source = Path(options.source)
    if not source.is_file():
        checkpoint = open_source(options.source)
        return checkpoint if options.categories is None else _with_categories(checkpoint, options.categories)
    try:
        checkpoint = load_checkpoint(source)
    except CheckpointError as error:
        raise CheckpointError(f"{error}. If it comes from the authors' code, say which model it is with --model") from error
    return checkpoint if options.categories is None else _with_categories(checkpoint, options.categories)


def _with_categories(checkpoint: Checkpoint, path: Path) -> Checkpoint:
    return replace(checkpoint, categories=read_categories(path, checkpoint.model.num_labels))


def read_overrides(text: str) -> dict[str, object]:
    """Parse `--overrides`."""
    try:
        overrides = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"--overrides must be a JSON object, but {text!r} is not: {error}") from None
    if not isinstance(overrides, dict):
        raise InputError(f"--overrides must be a JSON object, but got {text!r}")
    if "num_labels" in overrides:
        raise InputError("the number of label slots is no override: give --num-labels")
    return overrides


def read_categories(path: Path | None, num_labels: int) -> CategoryTable | None:
    """The class table for so many label slots: from a file, or COCO's for the published sizes, or none."""
    if path is None:
        return published_categories(num_labels)
    rows = read_json(path).get("categories")
    if not isinstance(rows, list):
        raise InputError(f"{path}: not a COCO-panoptic JSON (an object with a list of 'categories')")
    return CategoryTable.of(rows, num_labels=num_labels)


def describe(checkpoint: Checkpoint) -> str:
    """One line: model, size, classes."""
    count = sum(value.numel() for value in checkpoint.state_dict.values())
    classes = "no class table" if checkpoint.categories is None else f"{len(checkpoint.categories.categories)} classes"
    return f"{checkpoint.model.name} with {checkpoint.model.num_labels} label slots, {count / 1e6:.1f}M values, {classes}"


if __name__ == "__main__":
    sys.exit(run(main, None, "convert_checkpoint"))
