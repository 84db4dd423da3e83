"""Make, check and convert panoptic data sets.

Ten seconds on one core:

    panoptic-detr data scenes /tmp/scenes --count 500 --size 96 --seed 0 --split train
    panoptic-detr data check --root /tmp/scenes

Own images with COCO instances, then the check:

    panoptic-detr data convert coco-instances instances.json images mine --split train --rest background
    panoptic-detr data check --root mine

`panoptic-detr data --help` lists the jobs, `panoptic-detr data JOB --help` the settings of one.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from jsonargparse import ArgumentParser

from panoptic_detr.commands.cli import run
from panoptic_detr.config.reading import explain, gather_lists
from panoptic_detr.config.types import at_least, keyword_types
from panoptic_detr.data.coco import resolve_paths
from panoptic_detr.data.convert import FORMATS
from panoptic_detr.data.doctor import find_splits, report_check
from panoptic_detr.data.scenes import write_films, write_scenes
from panoptic_detr.data.split import split_dataset


def scenes(
    out: Path,
    count: int = 500,
    size: int = 128,
    seed: int = 0,
    split: str = "train",
    workers: int | None = None,
    film: int = 0,
) -> int:
    """Write procedural scenes as a COCO-panoptic data set.

    Args:
        out: root of the data set, made if missing.
        count: number of scenes.
        size: side in pixels, 48 to 4096.
        seed: of the whole set.
        split: name of the part, for example train or val.
        workers: processes; by default one per core.
        film: so many frames of each scene, in which its things move and keep their ids; 0 for pictures that stand still.

    Returns:
        The exit status.
    """
    if film:
        annotations = write_films(out, count, frames=film, size=size, seed=seed, split=split, workers=workers)
        print(f"{count} films of {film} frames of {size}x{size}: {annotations}")
        return 0
    annotations = write_scenes(out, count, size=size, seed=seed, split=split, workers=workers)
    print(f"{count} scenes of {size}x{size}: {annotations}")
    return 0


def check(
    root: Path | None = None,
    split: str | None = None,
    images: Path | None = None,
    panoptic: Path | None = None,
    annotations: Path | None = None,
    queries: int = 100,
    fix: Path | None = None,
    copy_images: bool = False,
    things: list[str] | None = None,
    json: Path | None = None,
    figure: Path | None = None,
    limit: int | None = None,
    strict: bool = False,
    workers: int | None = None,
) -> int:
    """List every defect of a panoptic data set, and what a trainer needs to know of it.

    Args:
        root: a folder in COCO's own layout.
        split: the part to check; by default every annotations/panoptic_*.json under the root.
        images: folder of the images, instead of root.
        panoptic: folder of the annotation PNGs, instead of root.
        annotations: the COCO-panoptic JSON, instead of root.
        queries: of the detector to be trained; images with more segments are counted.
        fix: folder for a repaired copy; what cannot be repaired with certainty is left out of it. The original is not touched.
        copy_images: copy images into the repaired copy instead of linking to the originals.
        things: names of categories that are things, whatever the JSON says; with --fix, the copy says so.
        json: write all defects and statistics to this JSON.
        figure: draw the statistics into this picture.
        limit: lines per kind of defect; all by default.
        strict: fail for notes as well as for errors.
        workers: processes; by default one per core.

    Returns:
        The exit status: 1 if there is an error.
    """
    at_least("queries", queries, 1)
    at_least("limit", limit, 0)
    return report_check(
        find_splits(root, split, images=images, panoptic=panoptic, annotations=annotations),
        queries=queries,
        fix=fix,
        copy_images=copy_images,
        things=things or [],
        json_file=json,
        figure=figure,
        limit=limit,
        strict=strict,
        workers=workers,
    )


def split(
    root: Path,
    out: Path | None = None,
    val: float = 0.2,
    split: str | None = None,
    group: str | None = None,
    seed: int = 0,
    copy_files: bool = False,
) -> int:
    """Divide one split into train and val, with every class in its share.

    Args:
        root: a folder in COCO's own layout.
        out: root of the new data set; by default the old one's name with _split.
        val: share of the images that are for validation.
        split: the part to divide; by default the only one there is.
        group: regular expression; images in whose file names it finds the same (its first group, or all of it) stay together,
            such as frames of one film.
        seed: of the choice among equals.
        copy_files: copy images and PNGs instead of linking to them.

    Returns:
        The exit status.
    """
    target = root.resolve().with_name(f"{root.resolve().name}_split") if out is None else out
    lines = split_dataset(resolve_paths(root, split), target, val=val, group=group, seed=seed, copy_files=copy_files)
    print("\n".join(lines))
    return 0


JOBS: dict[str, Callable[..., int]] = {"check": check, "scenes": scenes, "split": split}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job and return its exit status."""
    parser = ArgumentParser(prog="panoptic-detr data", description="Make, check and convert panoptic data sets.")
    converter = ArgumentParser(description="Convert other annotations to COCO-panoptic, and back.")
    _add_jobs(parser, "job", {**{name: _parser(function) for name, function in JOBS.items()}, "convert": converter})
    _add_jobs(converter, "format", {name: _parser(function) for name, function in FORMATS.items()})
    arguments = parser.parse_args(_gathered(sys.argv[1:] if argv is None else argv))
    chosen = arguments[arguments.job]
    if arguments.job != "convert":
        return JOBS[arguments.job](**chosen.as_dict())
    print("\n".join(FORMATS[chosen.format](**chosen[chosen.format].as_dict()).lines()))
    return 0


def _add_jobs(parser: ArgumentParser, dest: str, jobs: Mapping[str, ArgumentParser]) -> None:
    choices = parser.add_subcommands(dest=dest)
    for name, job in jobs.items():
        choices.add_subcommand(name, job, help=job.description)
        job.prog = f"{parser.prog} {name}"  # without the " [options]" that the library puts between


def _gathered(words: Sequence[str]) -> list[str]:
    """The command line of the job or format that it names, each list as one word."""
    named = [function for word in words[:2] if (function := JOBS.get(word) or FORMATS.get(word)) is not None]
    return gather_lists(words, keyword_types(named[0]) if named else {})


class _Parser(ArgumentParser):
    """A parser of a function's arguments that says in a sentence what is wrong with one."""

    kinds: Mapping[str, object] = {}

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        print(f"{self.prog}: {explain(self.kinds, message)}; --help explains every argument", file=sys.stderr)
        raise SystemExit(2) from ex


def _parser(function: Callable[..., object]) -> ArgumentParser:
    parser = _Parser(description=(function.__doc__ or "").splitlines()[0])
    parser.kinds = keyword_types(function)
    parser.add_function_arguments(function, as_positional=True)
    return parser


if __name__ == "__main__":
    sys.exit(run(main, None, "data"))
