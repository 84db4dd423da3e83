"""Predict panoptic maps of pictures: COCO-panoptic files and an overlay per picture.

Any checkpoint with a mask head, on pictures or folders of them, in seconds:

    panoptic-detr predict runs/scenes_masks/best.pt photo.jpg folder/ --output /tmp/predictions
    panoptic-detr predict detr_r50_panoptic photo.jpg --output /tmp/explained --explain
    panoptic-detr predict facebook/detr-resnet-50-panoptic photo.jpg --output /tmp/from_the_hub

Patterns (`'photos/**/*.jpg'`), lists (`list.txt`), shards (`shard-000.tar`) and the standard input (`-`) name pictures too.
Written to the output folder: `predictions.json` (images, annotations, categories), `panoptic/<name>.png` (segment ids),
`overlays/<name>.jpg`. Photographs are turned upright by their EXIF orientation. A picture that cannot be read does not stop the
others: it is named at the end and in `failures.json`, and the exit status is 1.

A film becomes an overlay film and COCO files of its frames, several films one for each and COCO files together; --track keeps
the ids of things over the frames:

    panoptic-detr predict runs/scenes_masks/best.pt film.mp4 --output out.mp4 --track
    panoptic-detr predict runs/scenes_masks/best.pt a.mp4 b.mp4 folders_of_frames/ --output films --track

Results are written as they come. After Ctrl-C, which finishes the picture, or a kill the same command goes on with the rest;
another model, other settings or other pictures need another folder, and one that is finished stays as it is:

    panoptic-detr predict runs/scenes_masks/best.pt photos --recursive --like gt.json --output /tmp/photos

Under torchrun or srun the processes share the pictures, and the first joins their results (docs/large_scale.md):

    torchrun --nproc-per-node 4 -m panoptic_detr.commands.predict runs/scenes_masks/best.pt photos --output /tmp/shared
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from panoptic_detr.commands.arguments import MODELS, place, whole
from panoptic_detr.commands.cli import run
from panoptic_detr.config.inference import InferenceSettings, add_inference_options, changed_settings
from panoptic_detr.errors import ConfigError
from panoptic_detr.evaluation import like_truth
from panoptic_detr.exported.open import is_exported, load_model
from panoptic_detr.exported.runtime import ExportedPredictor
from panoptic_detr.files import by_numbers, none_left_empty
from panoptic_detr.inference import (
    FAILURES,
    WRITTEN,
    Failure,
    Film,
    Outcome,
    PictureFile,
    PictureModel,
    PredictionFolder,
    Predictor,
    Recipe,
    Share,
    Tiled,
    check_apart,
    check_drawn,
    check_tifffile,
    films_identity,
    films_left_out,
    find_pictures,
    holds_films,
    is_film,
    join_processes,
    leave_processes,
    list_digest,
    nothing_read,
    open_films,
    predict_files,
    predict_films,
    prepare_folder,
    ray_predict,
    read_by_windows,
    usual_overlap,
)
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import progress_bar, speed_bar
from panoptic_detr.signals import StopRequest
from panoptic_detr.visualization.draw import first_font
from panoptic_detr.visualization.explain import explain_table
from panoptic_detr.weights import identity

FASTEST = 1000  # frames per second that a film can be written with


def main(argv: Sequence[str] | None = None) -> int:
    """Find the pictures, load the model, predict, write."""
    options = parse(argv)
    check_options(options)
    with first_font(options.font_path):
        return predict(options)


def check_options(options: argparse.Namespace) -> None:
    """Raise `ConfigError` for options that mean nothing here; set those that were not given."""
    if not options.device.strip():
        raise ConfigError("--device is empty; give auto, cpu, cuda, cuda:1 and so on, or mps")
    if options.overlap is not None and options.tile is None:
        raise ConfigError(f"--overlap {options.overlap} means nothing without --tile; give --tile too, or leave it out")
    if options.tiff:
        check_tifffile()
    if options.fps is not None and (not of_film(options) or options.fps > FASTEST):
        raise ConfigError(f"--fps {options.fps}: films are written with 1 to {FASTEST} frames per second; pictures have none")
    if options.tiff and of_film(options):
        raise ConfigError("--tiff is for pictures; leave it out for films")
    if options.cluster is not None and (of_film(options) or options.explain or is_exported(options.checkpoint)):
        raise ConfigError(
            "--cluster is for pictures and checkpoints, without --explain; leave it out for films and exported files"
        )
    if options.cluster is not None and options.device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"--device {options.device} with --cluster: Ray chooses each actor's GPU; give cpu, cuda (GPUs or nothing) or auto"
        )
    if options.actors is not None and options.cluster is None:
        raise ConfigError(f"--actors {options.actors} means nothing without --cluster; give --cluster ray too, or leave it out")
    options.actors = 2 if options.actors is None else options.actors
    if options.tile is not None and options.overlap is None:
        options.overlap = usual_overlap(options.tile)


def of_film(options: argparse.Namespace) -> bool:
    """Whether films are predicted, or folders of frames as such."""
    named = any(is_film(path) for path in (*options.pictures, options.output))
    return named or options.track or (not options.recursive and any(map(holds_films, options.pictures)))


def predict(options: argparse.Namespace) -> int:
    """Predict a film, or this process's share of the pictures."""
    for line in films_left_out(options.pictures, recursive=options.recursive):
        print(line)
    if of_film(options):
        return predict_as_films(options)
    files = find_pictures(options.pictures, recursive=options.recursive, without=[options.output / name for name in WRITTEN])
    check_apart(files, options.output)
    if options.like is not None:
        files, notes = like_truth(files, options.like)
        print("\n".join(notes), end="\n" if notes else "")
    with none_left_empty(options.output):
        prepare_folder(options.output, overlays=options.overlays)
        share = join_processes()
        try:
            return predict_share(options, files, share)
        finally:
            leave_processes()


def predict_share(options: argparse.Namespace, files: Sequence[PictureFile], share: Share) -> int:
    """Predict the pictures of this process; the first one joins what all have written, and reports.

    Raises:
        ConfigError: a cluster of Ray is asked for in each of several processes.
    """
    if options.cluster is not None and share.processes > 1:
        raise ConfigError(
            f"--cluster ray was started in {share.processes} processes, each of which would start all actors; "
            "start it once, without torchrun or srun's tasks"
        )
    device = share.device(options.device) if options.cluster is None else "cpu"  # actors have models of their own
    predictor = load_model(options.checkpoint, device=device, precision=options.precision)
    predictor.settings = changed_settings(predictor.settings, options)
    made, model = made_by(options, predictor, files), tiled(options, predictor, options.output)
    with PredictionFolder(
        options.output, predictor.categories, overlays=options.overlays, tiffs=options.tiff, made_by=made, part=share.part
    ) as folder:
        if folder.finished and all(file in folder for file in files):
            return nothing_to_do(folder, share)
        share.gather(None)  # nobody begins before the first has looked at the folder
        if len(folder) and share.first:
            print(f"going on: {len(folder)} of {len(files)} pictures are there already")
        with StopRequest() as request:
            if options.cluster is not None:
                outcomes = on_cluster(options, predictor.settings, files, folder, request.numbers)
                return finish(folder, files, Outcome.joined(outcomes, files), request.numbers)
            outcome = predict_all(model, share.of(files), folder, options.explain, request.numbers)
        told = share.gather((outcome, request.numbers))
        stopped = [number for _, asked in told for number in asked]
        if not share.first:
            return 128 + stopped[0] if stopped else 0
        folder.read_others()
        return finish(folder, files, Outcome.joined([outcome for outcome, _ in told], files), stopped)


def on_cluster(
    options: argparse.Namespace,
    settings: InferenceSettings,
    files: Sequence[PictureFile],
    folder: PredictionFolder,
    requests: Sequence[int],
) -> list[Outcome]:
    """Let the actors of a cluster predict what is missing."""
    tile = (options.tile, options.overlap) if options.tile else None
    recipe = Recipe(options.checkpoint, settings, options.precision, tile)
    with progress_bar() as bar:
        task = bar.add_task("predicting", total=len(files) - len(folder))

        def watch(done: int) -> None:
            bar.update(task, completed=done)

        return ray_predict(recipe, files, folder, actors=options.actors, device=options.device, requests=requests, watch=watch)


def predict_as_films(options: argparse.Namespace) -> int:
    """Predict films or folders of frames: overlay films, and COCO files of the frames in a folder.

    Raises:
        ConfigError: an option that is for pictures; several films into one; a film into itself, or over one that is there.
    """
    if options.like or options.recursive or options.explain:
        raise ConfigError("films are predicted without --like, --recursive and --explain; leave them out")
    output: Path = options.output
    films, failed = open_films(options.pictures, options.fps)
    if is_film(output) and films[0].number:
        raise ConfigError(
            f"--output {output}: several films have several overlay films, and these are {len(films)} (each folder of frames "
            "is one); name a folder"
        )
    folder = output.with_suffix("") if is_film(output) else output

    def target(film: Film) -> Path | None:
        name = f"overlays/{film.name}.mp4" if film.number else "overlays.mp4"
        return (output if is_film(output) else folder / name) if options.overlays else None

    check_apart([film.first() for film in films], folder)
    check_drawn([path for film in films if (path := target(film))], films)
    with none_left_empty(folder):
        prepare_folder(folder, overlays=False)
        share = join_processes()
        try:
            return predict_share_of_films(options, films, failed, target, folder, share)
        finally:
            leave_processes()


def predict_share_of_films(
    options: argparse.Namespace,
    films: Sequence[Film],
    failed: list[Failure],
    target: Callable[[Film], Path | None],
    output: Path,
    share: Share,
) -> int:
    """Predict the films of this process; the first one joins what all have written, and reports."""
    predictor = load_model(options.checkpoint, device=share.device(options.device), precision=options.precision)
    predictor.settings = changed_settings(predictor.settings, options)
    model, mine, drawn = tiled(options, predictor, output), share.of(films), [path for film in films if (path := target(film))]
    made = {**made_by(options, predictor, ()), "pictures": films_identity(films, failed), "track": options.track}
    made["fps"] = options.fps if drawn else None
    with PredictionFolder(output, predictor.categories, overlays=False, made_by=made, part=share.part) as folder:
        whole = not failed and not any(film.first() not in folder or film.has_changed(folder) for film in films)
        if folder.finished and whole and not (output / FAILURES).exists() and all(path.is_file() for path in drawn):
            return nothing_to_do(folder, share)
        if foreign := [] if len(folder) else [path for path in drawn if path.exists()]:  # drawn last, when frames are there
            raise ConfigError(f"--output: {foreign[0]} is there, and not of these predictions; remove it, or give another name")
        share.gather(None)  # nobody begins before the first has looked at the folder
        frames = sum(film.count for film in mine) or None
        with StopRequest() as request, speed_bar("predicting", frames, unit=" frames/s") as advance:
            given = {"track": options.track, "requests": request.numbers, "watch": lambda _: advance()}
            told = share.gather((predict_films(model, mine, folder, target, **given), request.numbers))
        stopped = [number for _, asked in told for number in asked]
        if not share.first:
            return 128 + stopped[0] if stopped else 0
        folder.read_others()
        outcome = Outcome.joined([outcome for outcome, _ in told])
        outcome.failed = sorted((*failed, *outcome.failed), key=lambda failure: int(failure.image_id))
        return finish_films(folder, outcome, drawn, stopped)


def finish_films(folder: PredictionFolder, outcome: Outcome, drawn: Sequence[Path], stopped: Sequence[int]) -> int:
    """Write the JSONs of films and say how it went; the exit status."""
    folder.write_failures(outcome.failed)
    if stopped:
        print(f"stopped after {len(folder)} frames; the same command goes on with the others", file=sys.stderr)
        return 128 + stopped[0]
    if not len(folder):
        raise nothing_read("films", outcome.failed)
    folder.finish(key=by_numbers)
    speed = f", {outcome.done / outcome.seconds:.1f} per second" if outcome.done else ", none of them new"
    print(f"frames: {len(folder)}{speed}; the model waited {outcome.wait_share:.0%} of the time")
    films = ", ".join(map(str, {path if len(drawn) == 1 else path.parent for path in drawn}))
    print(f"written: {f'{films}, ' if films else ''}{folder.folder / 'predictions.json'}, {folder.folder / 'panoptic'}")
    return report_failures(outcome)


def tiled(options: argparse.Namespace, predictor: Predictor | ExportedPredictor, scratch: Path) -> PictureModel:
    """What predicts: the predictor, on tiles if that is asked for."""
    if options.tile is None:
        return predictor
    if isinstance(predictor, ExportedPredictor):
        raise ConfigError(
            f"{options.checkpoint} is an exported file, and tiles need masks before they are merged: name the checkpoint"
        )
    return Tiled(predictor, tile=options.tile, overlap=options.overlap, scratch=scratch)


def nothing_to_do(folder: PredictionFolder, share: Share) -> int:
    """Say that all is there, and how to have it anew; the exit status."""
    if share.first:
        print(f"nothing to do: all {len(folder)} predictions are in {folder.folder} already, made with these settings")
        print("to predict them again choose another output folder, or remove the predictions.json in it")
    return 0


def finish(folder: PredictionFolder, files: Sequence[PictureFile], outcome: Outcome, stopped: Sequence[int]) -> int:
    """Write the JSONs and say how it went; the exit status."""
    folder.write_failures(outcome.failed)
    if stopped and len(folder) + len(outcome.failed) < len(files):
        print(
            f"stopped after {len(folder)} of {len(files)} pictures; the same command goes on with the others", file=sys.stderr
        )
        return 128 + stopped[0]
    if not len(folder):
        raise nothing_read("pictures", outcome.failed)
    folder.finish(files)
    print(outcome.summary(folder))
    return report_failures(outcome)


def made_by(
    options: argparse.Namespace, predictor: Predictor | ExportedPredictor, files: Sequence[PictureFile]
) -> dict[str, object]:
    """What predictions depend on: an output that was started with something else is not gone on with."""
    return {
        **identity(options.checkpoint),
        "settings": predictor.settings.to_dict(),
        "precision": options.precision,
        "tiles": [options.tile, options.overlap] if options.tile else None,
        "font": str(options.font_path.resolve()) if options.font_path and options.overlays else None,
        "pictures": f"{len(files)} pictures, list {list_digest(files)}",
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        "panoptic-detr predict", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help=f"a model with a mask head: {MODELS}")
    parser.add_argument(
        "pictures",
        nargs="+",
        type=place,
        help="pictures, folders, patterns, lists (.txt), shards (.tar), or - for a list on the standard input; or films",
    )
    parser.add_argument("--recursive", action="store_true", help="search the folders in folders too")
    parser.add_argument("--like", type=Path, metavar="JSON", help="take image ids and names from this COCO ground truth")
    parser.add_argument("--output", type=place, required=True, help="folder to write to; made if it is missing")
    parser.add_argument("--threshold", type=float, help="least probability of things and stuff (default: the checkpoint's own)")
    parser.add_argument("--stuff-threshold", type=float, help="the same for stuff alone")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is about twice as fast")
    parser.add_argument("--tile", type=whole, metavar="PIXELS", help="predict large pictures by square tiles of this side")
    parser.add_argument(
        "--overlap", type=whole, metavar="PIXELS", help="of neighbouring tiles (default: 256, or half of a smaller tile)"
    )
    parser.add_argument("--track", action="store_true", help="of films and folders of frames: things keep their ids")
    parser.add_argument("--fps", type=whole, metavar="N", help="frames per second of the film that is written")
    parser.add_argument(
        "--cluster", choices=("ray",), help="predict on the machines of a Ray cluster, or by actors on this one"
    )
    parser.add_argument("--actors", type=whole, metavar="N", help="predictors of the cluster (default: 2)")
    parser.add_argument("--explain", action="store_true", help="print what became of every query, and why")
    parser.add_argument("--font-path", type=Path, metavar="FILE", help="font for class names, as far as it has their glyphs")
    parser.add_argument("--tiff", action="store_true", help="also write the ids as tiled TIFFs (tiff/<name>.tif)")
    parser.add_argument("--no-overlays", dest="overlays", action="store_false", help="write no overlay pictures")
    add_inference_options(parser)
    return parser.parse_args(argv)


def predict_all(
    model: PictureModel,
    files: Sequence[PictureFile],
    folder: PredictionFolder,
    explain: bool,
    requests: Sequence[int] = (),
) -> Outcome:
    """Predict and write what is missing until an end is asked for."""
    there = sum(file in folder for file in files)
    with speed_bar("predicting", len(files), done=there) as advance:

        def watch(file: PictureFile, segmentation: PanopticSegmentation | None) -> None:
            if segmentation is not None and explain:
                Console(markup=False).print(explain_table(segmentation, title=str(file.path)))
            advance()

        read = read_by_windows if isinstance(model, Tiled) else PictureFile.read
        return predict_files(model, files, folder, requests=requests, watch=watch, read=read)


def report_failures(outcome: Outcome) -> int:
    """Say what could not be read; the exit status."""
    if outcome.failed:
        print("\n".join(["could not be read:", *(f"  {failure}" for failure in outcome.failed)]), file=sys.stderr)
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    sys.exit(run(main, None, "predict"))
