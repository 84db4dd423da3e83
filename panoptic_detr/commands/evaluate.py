"""Score a checkpoint on a data set, or a folder of predictions on its ground truth.

A folder of COCO-panoptic predictions, of this project or any other, in seconds:

    panoptic-detr evaluate --gt-json gt.json --gt-folder gt --pred-json predictions.json --pred-folder panoptic

Two of them, held against each other image by image: is the difference real, and what changed most?

    panoptic-detr evaluate --gt-json gt.json --gt-folder gt --compare a/predictions.json b/predictions.json --output changes

Films, whose segments keep their ids from frame to frame (`predict film.mp4 --track`): VPQ and STQ:

    panoptic-detr evaluate --gt-json gt.json --gt-folder gt --pred-json predictions.json --pred-folder panoptic --films

A checkpoint: PQ, box AP and mask AP over things in one pass, without files in between; under torchrun or srun the processes
share the images, and the scores are those of one:

    panoptic-detr evaluate runs/scenes_masks/best.pt --data.root scenes --data.split val --per-class --output scores
    torchrun --nproc-per-node 4 -m panoptic_detr.commands.evaluate detr_r50_panoptic --data.root coco --data.split val2017

The same with another setting of prediction than the checkpoint's own:

    panoptic-detr evaluate runs/scenes_masks/best.pt --data.root scenes --data.split val --inference.min_visible 0.5

The thresholds of the best PQ, found on images that are not those to be scored, and kept in the checkpoint, together with what
else the command line sets:

    panoptic-detr evaluate runs/scenes_masks/best.pt --data.root scenes --data.split train --data.limit 200 --calibrate --store

Printed scores are in per cent (83.8). Written to the output folder, as fractions (0.838): `scores.json`, `classes.csv` (PQ,
counts and causes of errors per category), `ap.csv`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from panoptic_detr.commands.arguments import MODELS, results
from panoptic_detr.commands.cli import run
from panoptic_detr.config.inference import PREFIX, InferenceSettings, add_inference_options, changed_settings
from panoptic_detr.data.coco import CocoPanoptic, resolve_paths
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.errors import ConfigError, DataError, EvaluationError
from panoptic_detr.evaluation import (
    ModelScores,
    calibrate_thresholds,
    compare_predictions,
    comparison_table,
    draw_changes,
    evaluate_films,
    evaluate_model,
    evaluate_panoptic,
    evaluate_predictor,
    film_scores,
    film_table,
    folder_of,
    show_scores,
    write_comparison,
    write_scores,
)
from panoptic_detr.exported.open import is_exported, load_model
from panoptic_detr.files import make_folder, none_left_empty, write_whole
from panoptic_detr.inference import Share, join_processes, leave_processes
from panoptic_detr.quality import WINDOWS
from panoptic_detr.weights import OpenedModel, choose_device, load_checkpoint, open_model, save_checkpoint

ALONE = Share()
FILES = {
    "gt_json": "COCO-panoptic ground truth",
    "gt_folder": "its PNGs",
    "pred_json": "predictions; segments need only id and category_id",
    "pred_folder": "their PNGs (default: the folder panoptic beside the JSON, or the one of its name)",
}


class NothingFoundError(EvaluationError):
    """No thresholds gave a PQ above 0, so there is nothing to store."""


def main(argv: Sequence[str] | None = None) -> int:
    """Score, show, write."""
    options = parse(argv)
    with ExitStack() as stack:
        share = join_processes()
        stack.callback(leave_processes)
        if options.checkpoint is None and not share.first:
            return 0  # files are scored by the threads of one process
        if options.output is not None:
            stack.enter_context(none_left_empty(options.output))
            make_folder(options.output)
        work = compare if options.compare is not None else score_films if options.films is not None else score
        return work(options) if options.checkpoint is None else score(options, share)


def score(options: argparse.Namespace, share: Share = ALONE) -> int:
    """Score a checkpoint or a folder of predictions."""
    if options.checkpoint is not None:
        scores = score_checkpoint(options, share)
        result, things = scores.panoptic, scores.things
    else:
        places = (getattr(options, name) for name in FILES)
        asked = {"per_image": options.intervals, "boundary": options.boundary}
        result, things = evaluate_panoptic(*places, workers=scorers(options), **asked), None
    if share.first:
        if result is None:
            print(
                f"{options.checkpoint} is a detector without a mask head: box AP only. Train the head with train_masks for PQ"
            )
        show_scores(result, things, per_class=options.per_class)
        if options.output is not None:
            write_scores(options.output, result, things)
    return 0


def scorers(options: argparse.Namespace) -> int | None:
    """Workers that score files; 0 does it alone, as 1."""
    return None if options.workers is None else max(1, options.workers)


def compare(options: argparse.Namespace) -> int:
    """Hold two sets of predictions against each other; with an output folder, write tables and draw what changed most."""
    comparison = compare_predictions(options.gt_json, options.gt_folder, *options.compare, workers=scorers(options))
    console = Console(markup=False)
    console.print(comparison_table(comparison, per_class=options.per_class))
    console.print(comparison.summary(), highlight=False)
    for path, result in zip(options.compare, comparison.results, strict=True):
        for note in result.notes:
            console.print(f"note on {path}: {note}", highlight=False, soft_wrap=True)
    if options.output is not None:
        write_comparison(comparison, options.output)
        count = draw_changes(comparison, options.output, options.images)
        console.print(f"pictures of the largest changes: {count} in {options.output}", highlight=False, soft_wrap=True)
    return 0


def score_films(options: argparse.Namespace) -> int:
    """Show VPQ and STQ; with an output folder, write them to `films.json`."""
    places, chosen = (getattr(options, name) for name in FILES), {"windows": options.windows or WINDOWS, "films": options.films}
    result = evaluate_films(*places, workers=scorers(options), **chosen)
    console = Console(markup=False)
    console.print(film_table(result))
    for note in result.frames.notes:
        console.print(f"note: {note}", highlight=False, soft_wrap=True)
    if options.output is not None:
        text = json.dumps(film_scores(result), indent=1, ensure_ascii=False)
        write_whole(options.output / "films.json", f"{text}\n".encode())
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; it names a checkpoint, or all four places of prediction files."""
    parser = argparse.ArgumentParser(
        "panoptic-detr evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", help=MODELS)
    parser.add_argument("--per-class", action="store_true", help="show every category, with TP, FP, FN and causes of errors")
    parser.add_argument("--output", type=Path, help="folder for JSON and CSV; made if it is missing")
    parser.add_argument(
        "--workers",
        type=at_least(0),
        help="threads or processes that read and score files, one per core by default, or that read images, none by default",
    )
    parser.add_argument("--intervals", action="store_true", help="95 %% intervals by drawing the images again (bootstrap)")
    parser.add_argument("--boundary", action="store_true", help="boundary PQ too (Cheng et al. 2021); slower")
    files = parser.add_argument_group("a folder of predictions")
    add_file_options(files)
    of_models = add_model_options(parser.add_argument_group("a checkpoint"))
    add_inference_options(parser)
    options = parser.parse_args(argv)
    _check_films(parser, options)
    if options.compare is not None:
        _check_compare(parser, options)
    else:
        _check_places(parser, options)
        _check_calibration(parser, options)
    if options.checkpoint is None:
        _check_settings(parser, options, of_models)
    elif is_exported(options.checkpoint) and options.ap in ("boxes", "masks"):
        parser.error(
            f"--ap {options.ap}: {options.checkpoint} is an exported file, which gives maps and no boxes and masks of single "
            "queries; score the checkpoint that it was made from, or leave --ap out for PQ alone"
        )
    options.ap = options.ap or "masks"
    return options


def add_file_options(files: "argparse._ArgumentGroup") -> None:
    """Options of files of predictions: one or two sets, their truth, films."""
    files.add_argument(
        "--compare",
        nargs=2,
        type=results,
        metavar="JSON",
        help="two results JSONs, or folders of predict, instead of one, their PNGs beside them",
    )
    files.add_argument(
        "--films", nargs="*", metavar="FILM", help="VPQ and STQ of all films, or of these: video_id, or folder of the PNGs"
    )
    files.add_argument("--windows", nargs="+", type=at_least(1), metavar="N", help="frames for VPQ (default: 1 5 10 15)")
    for name, meaning in FILES.items():
        kind = results if name == "pred_json" else Path
        files.add_argument(f"--{name.replace('_', '-')}", type=kind, metavar="PATH", help=meaning)


def _check_settings(parser: argparse.ArgumentParser, options: argparse.Namespace, of_models: list[argparse.Action]) -> None:
    """Settings of a model say nothing about files, which are scored as they are; their pictures lie under what is compared."""
    given = [action.option_strings[0] for action in of_models if getattr(options, action.dest) != action.default]
    given += [f"--{PREFIX}*"] if any(name.startswith(PREFIX) for name in vars(options)) else []
    if foreign := [name for name in given if options.compare is None or name != "--data.images"]:
        parser.error(f"{foreign[0]}: such are settings of a checkpoint; prediction files are scored as they are: leave it out")


def _check_places(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """A checkpoint, or the places of prediction files, whose PNGs lie where `predict` writes them if none is said."""
    if options.pred_json is not None and options.pred_folder is None:
        options.pred_folder = folder_of(options.pred_json)
    missing = [f"--{name.replace('_', '-')}" for name in FILES if getattr(options, name) is None]
    if options.checkpoint is None and missing:
        parser.error(f"give a checkpoint, or a folder of predictions and its truth ({', '.join(missing)} missing)")
    if options.checkpoint is not None and len(missing) < len(FILES):
        parser.error("give a checkpoint or prediction files, not both; --data.* name a checkpoint's data set")
    predictions = Path(options.checkpoint or "") / "predictions.json"
    if options.checkpoint is not None and predictions.is_file():
        parser.error(
            f"{options.checkpoint} holds predictions; score them with --pred-json {options.checkpoint} "
            "--gt-json FILE --gt-folder DIR"
        )


def _check_calibration(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.calibrate and options.checkpoint is None:
        parser.error("--calibrate is for a checkpoint, in one process")
    if options.store and not options.calibrate:
        parser.error("--store keeps what --calibrate finds in a checkpoint file: give both")
    if options.store and not Path(options.checkpoint).is_file():
        parser.error(f"--store keeps what --calibrate finds in a checkpoint file, and {options.checkpoint!r} is none")


def _check_films(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.films is None and options.windows is not None:
        parser.error("--windows are of films: give --films too")
    others = options.checkpoint is not None or options.compare or options.per_class or options.intervals or options.boundary
    if options.films is not None and others:
        parser.error(
            "--films scores files of predictions; leave checkpoint, --compare, --per-class, --intervals, --boundary out"
        )


def _check_compare(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """A comparison needs a truth and nothing else to score."""
    if options.gt_json is None or options.gt_folder is None:
        parser.error("--compare needs the truth of both: --gt-json and --gt-folder")
    if options.checkpoint is not None or options.pred_json is not None or options.pred_folder is not None:
        parser.error("--compare scores the two JSONs that it names; leave checkpoint, --pred-json and --pred-folder out")
    if options.boundary or options.intervals:
        parser.error("--compare gives differences of PQ, with their intervals; leave --boundary and --intervals out")


def add_model_options(group: "argparse._ArgumentGroup") -> list[argparse.Action]:
    """Options of a checkpoint: data set, device, settings that differ from the checkpoint's own."""
    return [
        group.add_argument("--data.root", dest="root", type=Path, metavar="DIR", help="data set in COCO's own layout"),
        group.add_argument("--data.split", dest="split", help="its part (default: the only one there is, or val2017)"),
        group.add_argument("--data.images", dest="images", type=Path, metavar="DIR", help="folder of images, instead of root"),
        group.add_argument("--data.panoptic", dest="panoptic", type=Path, metavar="DIR", help="folder of id PNGs"),
        group.add_argument("--data.annotations", dest="annotations", type=Path, metavar="FILE", help="COCO-panoptic JSON"),
        group.add_argument("--data.limit", dest="limit", type=at_least(1), help="only the first N images"),
        group.add_argument("--batch-size", type=at_least(1), default=1, help="images at a time"),
        group.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, mps or auto (default)"),
        group.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help="bf16 is about twice as fast"),
        group.add_argument(
            "--threshold", type=float, help="least probability of things and stuff (default: the checkpoint's own)"
        ),
        group.add_argument("--stuff-threshold", type=float, help="the same for stuff alone"),
        group.add_argument("--calibrate", action="store_true", help="find the thresholds of the best PQ here; score with them"),
        group.add_argument("--store", action="store_true", help="with --calibrate: keep the settings in the checkpoint"),
        group.add_argument(
            "--ap",
            choices=("none", "boxes", "masks"),
            help="AP of boxes, or also of masks (slower; default; not of exported files)",
        ),
    ]


def score_checkpoint(options: argparse.Namespace, share: Share = ALONE) -> ModelScores:
    """Run the model over the data set, each of several processes over its share.

    Raises:
        ConfigError: several processes would calibrate.
    """
    if options.calibrate and share.processes > 1:
        raise ConfigError(
            f"--calibrate is for a checkpoint, in one process, and here are {share.processes}; leave the launcher out"
        )
    if is_exported(options.checkpoint):
        return score_exported(options, share)
    opened = open_model(options.checkpoint).on(choose_device(options.device, share.local_rank))
    settings = changed_settings(opened.settings, options)
    if options.calibrate and not opened.panoptic:
        raise EvaluationError(
            f"{options.checkpoint} is a detector without a mask head, so it has no PQ to calibrate; train the head first "
            "(train_masks)"
        )
    dataset = open_data(options, settings)
    if options.calibrate:
        settings = calibrate(options, opened, dataset, settings)
    return evaluate_model(
        opened.model,
        dataset,
        categories=opened.categories,
        settings=settings,
        panoptic=opened.panoptic,
        ap=options.ap if opened.panoptic else "boxes",
        batch_size=options.batch_size,
        workers=options.workers or 0,
        precision=options.precision,
        share=share.processes > 1,
        per_image=options.intervals,
        boundary=options.boundary,
    )


def score_exported(options: argparse.Namespace, share: Share = ALONE) -> ModelScores:
    """Run an exported file over the data set: PQ only, since it gives maps and no masks of single queries."""
    if options.calibrate:
        raise EvaluationError("--calibrate needs the checkpoint; calibrate and store there, then export again")
    predictor = load_model(options.checkpoint, device=share.device(options.device), precision=options.precision)
    predictor.settings = changed_settings(predictor.settings, options)
    return evaluate_predictor(
        predictor,
        open_data(options, predictor.settings),
        categories=predictor.categories,
        share=share.processes > 1,
        per_image=options.intervals,
        boundary=options.boundary,
    )


def calibrate(
    options: argparse.Namespace, opened: OpenedModel, dataset: CocoPanoptic, settings: InferenceSettings
) -> InferenceSettings:
    """Settings with the thresholds of the best PQ on this data set; with `--store` the checkpoint gets all of them."""
    found = calibrate_thresholds(
        opened.model,
        dataset,
        categories=opened.categories,
        settings=settings,
        batch_size=options.batch_size,
        workers=options.workers or 0,
        precision=options.precision,
    )
    things, stuff = found.thresholds
    if options.store and not found.quality > 0:
        raise NothingFoundError(
            f"no thresholds gave a PQ above 0 on these {found.images} images, so nothing is stored in {options.checkpoint}; "
            "calibrate on images with segments, with a model that finds some"
        )
    print(
        f"best thresholds on {found.images} images: {things:g} for things, {stuff:g} for stuff; "
        f"PQ {100 * found.quality:.1f}, before {100 * found.before:.1f}"
    )
    if options.store:
        checkpoint = load_checkpoint(options.checkpoint)
        save_checkpoint(options.checkpoint, replace(checkpoint, inference=found.settings.to_dict()))
        print(f"stored in {options.checkpoint}")
    return found.settings


def open_data(options: argparse.Namespace, settings: InferenceSettings) -> CocoPanoptic:
    """The data set, prepared as the settings say."""
    paths = resolve_paths(
        options.root, options.split, images=options.images, panoptic=options.panoptic, annotations=options.annotations
    )
    transform = eval_transform(settings.short_side, settings.long_side, settings.image_mean, settings.image_std)
    dataset = CocoPanoptic(paths.images, paths.panoptic, paths.annotations, transforms=transform)
    if not len(dataset):
        raise DataError(f"{paths.annotations}: there is no image in it, so nothing to score; give another split")
    return dataset.subset(range(min(options.limit, len(dataset)))) if options.limit else dataset


def at_least(least: int) -> Callable[[str], int]:
    """A reader of whole numbers from `least`, for the command line."""

    def read(text: str) -> int:
        if not text.lstrip("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number, {least} or more, but is {text!r}")
        return int(text)

    return read


if __name__ == "__main__":
    sys.exit(run(main, None, "evaluate"))
