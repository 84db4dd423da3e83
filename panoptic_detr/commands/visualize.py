"""Draw panoptic ground truth, predictions and their errors; explain predictions; make a report.

A picture per image of a data set, next to the predictions that `panoptic-detr predict` wrote, in seconds:

    panoptic-detr visualize coco --root DATA --split val2017 --output /tmp/pictures
    panoptic-detr visualize coco --images DIR --panoptic DIR --annotations JSON --pred-json predictions.json --output OUT
    panoptic-detr visualize report runs/scenes_masks --root DATA --split val --output /tmp/report.html
    panoptic-detr visualize fiftyone --root DATA --split val --pred-json predictions.json --output /tmp/fiftyone

`panoptic-detr visualize JOB --help` lists the settings of a job. A results JSON of `predict` is a data set too: to draw it
without a ground truth, name it as --annotations and its `panoptic` folder as --panoptic.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from rich.console import Console

from panoptic_detr.commands.arguments import MODELS, OneLineParser, add_data, add_drawing, point, results, share, shares, whole
from panoptic_detr.commands.cli import run
from panoptic_detr.data.coco import CocoPanoptic, resolve_paths
from panoptic_detr.errors import DataError, InputError
from panoptic_detr.evaluation import LayerPrecision, check_same_categories, results_of
from panoptic_detr.exported.open import is_exported
from panoptic_detr.exported.open import load_model as open_any
from panoptic_detr.exported.runtime import ExportedPredictor
from panoptic_detr.files import make_folder, none_left_empty, write_whole
from panoptic_detr.images import picture_ending, save_picture, upright_rgb
from panoptic_detr.inference import Predictor, find_pictures, load_model, unique_name
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import track
from panoptic_detr.quality import PanopticQuality
from panoptic_detr.visualization.attention import boxes_of_queries, draw_look, look
from panoptic_detr.visualization.draw import enlargement, first_font, mask_strip, overlay, svg_overlay, zoom
from panoptic_detr.visualization.errors import Entry, draw_entry
from panoptic_detr.visualization.explain import SweepStep, draw_explanation, explain_table, sweep_figure
from panoptic_detr.visualization.fiftyone import open_fiftyone, write_fiftyone
from panoptic_detr.visualization.queries import LayerScore, count_instances, draw_counts, draw_layer_scores, draw_query_boxes
from panoptic_detr.visualization.report import read_curves, write_report
from panoptic_detr.weights import check_source, is_hub_folder

Predict = Callable[[int], PanopticSegmentation]

THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.85)
POINTS = ((0.25, 0.3), (0.75, 0.3), (0.25, 0.7), (0.75, 0.7))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job and return its exit status."""
    options = parse(argv)
    with first_font(options.font_path), none_left_empty(options.output):
        print(JOBS[options.job](options))
    return 0


def parse(argv: Sequence[str] | None) -> Namespace:
    """Read the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser("panoptic-detr visualize", description=__doc__, formatter_class=form)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    added = {name: jobs.add_parser(name, help=job.__doc__, description=job.__doc__) for name, job in JOBS.items()}
    for name, job in added.items():
        add_drawing(job, enlarges=name in ("explain", "attention", "sweep"))
    for name in ("coco", "segments", "zoom", "fiftyone", "sweep", "queries", "report"):
        add_data(added[name])
    for name in ("coco", "segments", "zoom", "fiftyone"):
        added[name].add_argument("--pred-json", type=results, help="results JSON, or the folder of predict with it")
        added[name].add_argument("--pred-panoptic", type=Path, help="its PNGs; by default 'panoptic' beside it")
    for name in ("coco", "segments", "zoom", "fiftyone", "sweep", "queries", "explain", "attention"):
        needed = name not in ("coco", "segments", "zoom", "fiftyone")
        added[name].add_argument("--model", required=needed, help=f"that predicts: {MODELS}")
    added["fiftyone"].add_argument("--copy", action="store_true", help="copy the images into the folder, for another machine")
    added["fiftyone"].add_argument("--no-app", dest="app", action="store_false", help="write the folder and open no app")
    added["coco"].add_argument("--show", choices=("all", "truth", "prediction", "errors"), default="all")
    added["coco"].add_argument("--kind", choices=("png", "jpg", "svg"), default="png", help="svg: outlines of one map")
    added["coco"].add_argument("--alpha", type=share, default=0.5, help="opacity of the fill")
    added["zoom"].add_argument("--segment", type=int, default=1, help="its id in the segment map; the numbers of `explain`")
    added["zoom"].add_argument("--side", type=whole, default=480, help="pixels of the longer side of the picture")
    for name in ("explain", "attention"):
        added[name].add_argument("pictures", type=Path, nargs="+", help="pictures, or folders of pictures")
        added[name].add_argument("--kind", choices=("png", "jpg"), default="png")
    added["attention"].add_argument("--points", type=point, nargs="+", default=POINTS, help="x,y as fractions of the image")
    added["attention"].add_argument("--layer", type=int, default=-1, help="of encoder and decoder; the last by default")
    added["queries"].add_argument("--grid", type=whole, default=10, help="places per side for counting")
    added["sweep"].add_argument("--thresholds", type=shares, nargs="+", default=[THRESHOLDS], help="with spaces or commas")
    added["report"].add_argument("source", type=Path, help=f"folder of a run or of predict, results JSON, or a model: {MODELS}")
    added["report"].add_argument("--title", default="Panoptic segmentation report")
    added["report"].set_defaults(pred_panoptic=None)
    for name in ("segments", "zoom"):
        added[name].set_defaults(kind="png")
    return parser.parse_args(argv)


def coco(options: Namespace) -> str:
    """Draw the images of a data set: truth, prediction and errors, side by side or one of them."""
    look_of = {"palette": options.palette, "alpha": options.alpha}
    if options.kind != "svg":
        return draw_each(options, "pictures", partial(draw_entry, show=options.show, scale=options.scale, **look_of))
    if options.show == "errors":
        raise InputError("--kind svg has the outlines of one map, not of errors; give --show truth or --show prediction")
    truth = options.show == "truth"
    return draw_each(options, "pictures", lambda entry: svg_overlay(entry.shown(truth=truth), entry.image, **look_of))


def segments(options: Namespace) -> str:
    """Cut out every segment by itself, one strip per image; of the prediction, where there is one."""
    return draw_each(options, "strips", lambda entry: mask_strip(entry.image, entry.shown(), palette=options.palette))


def enlarge(options: Namespace) -> str:
    """Enlarge one segment of each image, its surroundings dimmed; of the prediction, where there is one."""
    draw = partial(zoom, segment_id=options.segment, long_side=options.side, palette=options.palette)
    return draw_each(options, "enlarged", lambda entry: draw(entry.image, entry.shown()))


def fiftyone(options: Namespace) -> str:
    """Open the images of a data set with truth, prediction and what is right of it in FiftyOne; write them as its folder."""
    data, predict = open_both(options)
    rows = zip(entries(data, predict), (data.image_path(i) for i in range(len(data))), data.image_ids, strict=True)
    folder = write_fiftyone(
        options.output,
        track(rows, "writing", len(data)),
        data.categories,
        tag=options.split or "",
        copy=options.copy,
        palette=options.palette,
    )
    written = f"images: {len(data)} in {folder}"
    if options.app:
        try:
            open_fiftyone(folder, folder.resolve().name)
        except InputError as error:
            warn(f"{error}; the folder is written")
    return f"{written}; to open it anywhere: fiftyone app view --dataset-dir {folder} --type fiftyone.types.FiftyOneDataset"


def draw_each(options: Namespace, what: str, draw: Callable[[Entry], np.ndarray | str]) -> str:
    """Save what is drawn of each image, a picture or an SVG document, under a name of its own; say how many and where."""
    data, predict = open_both(options)
    folder, taken = make_folder(options.output), set[str]()
    for entry in track(entries(data, predict), "drawing", len(data)):
        path = folder / f"{unique_name(PurePosixPath(entry.name).with_suffix('').as_posix(), taken)}.{options.kind}"
        drawn = draw(entry)
        make_folder(path.parent)
        if isinstance(drawn, str):
            write_whole(path, drawn.encode())
        else:
            save_picture(path, drawn)
    return f"{what}: {len(data)} in {folder}"


def explain(options: Namespace) -> str:
    """Say and draw which queries of a model were kept, which dropped, and why."""
    files = find_pictures(options.pictures)
    predictor, folder, console = open_inside(options.model), make_folder(options.output), Console(markup=False)
    for file in files:
        picture = upright_rgb(file.path)
        prediction = predictor(picture, options.threshold)
        console.print(explain_table(prediction, title=file.path.name))
        boxes, scale = boxes_of_queries(predictor.detect(picture)), options.scale or enlargement(picture.shape)
        drawn = draw_explanation(picture, prediction, boxes, palette=options.palette, scale=scale)
        save_picture(folder / f"{file.name}.{options.kind}", drawn)
    return f"pictures: {len(files)} in {folder}"


def attention(options: Namespace) -> str:
    """Draw where a model looks: from points of the image, for its objects, and in its mask head."""
    files, written = find_pictures(options.pictures), 0
    predictor, folder = open_inside(options.model), make_folder(options.output)
    for file in files:
        picture = upright_rgb(file.path)
        prediction, scale = predictor(picture, options.threshold), options.scale or enlargement(picture.shape)
        seen = look(predictor.model, predictor.prepare(picture))
        drawn = draw_look(picture, prediction, seen, points=options.points, layer=options.layer, scale=scale)
        for name, one in drawn.items():
            save_picture(folder / f"{file.name}_{name}.{options.kind}", one)
        written += len(drawn)
        if not prediction.segments:
            warn(f"{file.path}: nothing was found, so there is no attention of objects; try a lower --threshold")
    return f"pictures: {written} of {len(files)} image(s) in {folder}"


def sweep(options: Namespace) -> str:
    """Draw the first image at several thresholds, with the PQ of all chosen images."""
    picture_ending(options.output)
    data = open_data(options)
    predictor, steps = open_model(options, data), []
    make_folder(options.output.parent)
    first = data.image(0)
    scale = options.scale or enlargement(first.shape)
    thresholds = [one for part in options.thresholds for one in part]
    for threshold in track(thresholds, "thresholds", len(thresholds)):
        quality = PanopticQuality(data.categories)
        results = [predictor(data.image(i), threshold) for i in range(len(data))]
        for i, result in enumerate(results):
            quality.update(result, data.truth(i))
        scores = quality.compute()
        picture = overlay(first, results[0], palette=options.palette, scale=scale)
        steps.append(SweepStep(threshold, picture, len(results[0].segments), scores.all.pq, scores.things.pq, scores.stuff.pq))
    save_picture(options.output, sweep_figure(steps))
    return f"threshold sweep: {options.output}"


def queries(options: Namespace) -> str:
    """Draw what a panoptic model's queries do: box centres by slot, AP by decoder layer, how many instances are found."""
    data = open_data(options)
    predictor = open_inside(options.model)
    check_same_categories(predictor.categories, data.categories)
    folder = make_folder(options.output)
    layers, boxes = LayerPrecision(predictor.categories), []
    for i in track(range(len(data)), "detecting", len(data)):
        output = predictor.detect(data.image(i))
        boxes.append(boxes_of_queries(output))
        layers.update(data.image_ids[i], output, data.truth(i))
    save_picture(folder / "query_boxes.png", draw_query_boxes(boxes))
    rows = [LayerScore(layer, *pair) for layer, pair in enumerate(layers.compute(), start=1)]
    save_picture(folder / "layers.png", draw_layer_scores(rows))
    scenes = ((data.image(i), data.truth(i)) for i in range(len(data)))
    present, found = count_instances(lambda picture: predictor(picture, options.threshold), scenes, grid=options.grid)
    save_picture(folder / "counts.png", draw_counts(present, found))
    if not found.any():
        warn(f"{folder / 'counts.png'}: not one copy was found; try a lower --threshold, or a smaller --grid for larger copies")
    return f"pictures: query_boxes, layers and counts in {folder}"


def warn(message: str) -> None:
    """Say what the pictures alone would leave unexplained."""
    print(f"warning: {message}", file=sys.stderr)


def report(options: Namespace) -> str:
    """Write one HTML page with scores, curves, confusions and a gallery of what a run or a results JSON predicts."""
    best = options.source / "best.pt"
    source: Path = options.source if best.is_file() else results(str(options.source))
    check_report(source, options.output)
    run_folder, of_results = source if source.is_dir() else source.parent, source.suffix == ".json"
    options.pred_json = source if of_results else None
    options.model = None if of_results else str(best if best.is_file() else source)
    every = open_all(options)
    data = chosen(options, every)
    predictor = None if of_results else open_model(options, data)
    predict = from_model(predictor, options, data) if predictor else results_of(data, options.pred_json, options.pred_panoptic)
    quality = PanopticQuality(data.categories)
    make_folder(options.output.parent)

    def counted() -> Iterator[Entry]:
        for entry in track(entries(data, predict), "looking", len(data)):
            if entry.prediction is not None and entry.truth is not None:
                quality.update(entry.prediction, entry.truth)
            yield entry

    facts = {
        "made": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        "predictions": str(source),
        "data set": str(options.annotations or options.root),
        "split": options.split or "-",
        "threshold": thresholds_of(predictor, options, data),
        "images": f"{len(data)} of {len(every)}",
    }
    curves = read_curves(run_folder / "log.csv", run_folder / "scores.csv")
    more = {"title": options.title, "palette": options.palette, "count": len(data)}
    write_report(
        options.output, counted(), partial(scores_of, quality), categories=data.categories, curves=curves, facts=facts, **more
    )
    return f"report: {options.output}"


def scores_of(quality: PanopticQuality) -> dict[str, object]:
    """What a report tells of the quality that was counted until now."""
    result = quality.compute()
    lost = {name: result.loss(ids) for name, ids in result.groups().items()}
    points = {name: {cause: sum(sizes) for cause, sizes in loss.items()} for name, loss in lost.items()}
    return {**result.as_dict(), "per_class": result.per_class, "points_lost": points}


def check_report(source: Path, output: Path) -> None:
    """Raise `DataError` before any work if a report has nothing to be made from, or no file to be written to."""
    if source.is_dir() and not (source / "best.pt").is_file() and not is_hub_folder(source):
        raise DataError(f"{source}: no best.pt in this folder; name a run's folder, a model, or a results JSON")
    if source.suffix == ".json" and not source.is_file():
        raise DataError(f"{source}: there is no such results JSON to report on")
    if source.suffix != ".json" and not source.is_dir() and not is_exported(str(source)):
        check_source(str(source))
    if output.is_dir():
        raise DataError(f"{output} is a folder; name the file to write the report to, such as {output / 'report.html'}")


def thresholds_of(predictor: Predictor | ExportedPredictor | None, options: Namespace, data: CocoPanoptic) -> str:
    """The thresholds behind a report's predictions, in words."""
    if predictor is None:
        return "of the results"
    settings = predictor.settings.with_thresholds(options.threshold)
    if isinstance(predictor, ExportedPredictor):
        no_object = bool(predictor.notes["no_object"])
    else:
        no_object = settings.threshold is None and predictor.detect(data.image(0)).no_object  # only then the model decides
    things, stuff = settings.thresholds(no_object)
    return f"{things:g}" if things == stuff else f"{things:g} for things, {stuff:g} for stuff"


def open_all(options: Namespace) -> CocoPanoptic:
    """The whole data set."""
    explicit = {name: getattr(options, name) for name in ("images", "panoptic", "annotations")}
    paths = resolve_paths(options.root, options.split, **explicit)
    return CocoPanoptic(paths.images, paths.panoptic, paths.annotations)


def chosen(options: Namespace, data: CocoPanoptic) -> CocoPanoptic:
    """The images that the options choose: each once, at least one.

    Raises:
        DataError: an id that is not there, or nothing to choose from.
    """
    if not len(data):
        raise DataError(f"{data.panoptic}: there is no image in this data set, so nothing can be drawn")
    data = data.named(options.image_ids) if options.image_ids else data
    return data if options.limit is None else data.subset(range(min(options.limit, len(data))))


def open_data(options: Namespace) -> CocoPanoptic:
    """The chosen images of the data set."""
    return chosen(options, open_all(options))


def open_both(options: Namespace) -> tuple[CocoPanoptic, Predict | None]:
    """The chosen images, and what predicts the i-th of them: the results JSON, the model, or nothing.

    Raises:
        InputError: both a JSON and a model, or PNGs without a JSON.
    """
    if options.pred_json is not None and options.model is not None:
        raise InputError("--pred-json and --model both say what is predicted; give one of them")
    if options.pred_panoptic is not None and options.pred_json is None:
        raise InputError(
            f"--pred-panoptic {options.pred_panoptic} has no meaning without the results JSON; give --pred-json too"
        )
    data = open_data(options)
    if options.pred_json is not None:
        return data, results_of(data, options.pred_json, options.pred_panoptic)
    return data, None if options.model is None else from_model(open_model(options, data), options, data)


def open_model(options: Namespace, data: CocoPanoptic) -> Predictor | ExportedPredictor:
    """The chosen model, to be shown beside the annotations of the data set.

    Raises:
        EvaluationError: the model's categories are not the data set's.
    """
    predictor = open_any(options.model)
    check_same_categories(predictor.categories, data.categories)
    return predictor


def open_inside(source: str) -> Predictor:
    """A model of which more than its maps is drawn.

    Raises:
        InputError: an exported file.
    """
    if is_exported(source):
        raise InputError(
            f"{source} is an exported file and gives maps only; these pictures look into a model: name its checkpoint"
        )
    return load_model(source)


def entries(data: CocoPanoptic, predict: Predict | None) -> Iterator[Entry]:
    """Images with truth and prediction, one at a time, by their names inside the image folder."""
    for i in range(len(data)):
        name = data.image_path(i).relative_to(data.images).as_posix()
        yield Entry(name, data.image(i), data.truth(i), predict(i) if predict else None)


def from_model(predictor: Predictor | ExportedPredictor, options: Namespace, data: CocoPanoptic) -> Predict:
    """Predict with a model."""
    return lambda i: predictor(data.image(i), options.threshold)


JOBS: dict[str, Callable[[Namespace], str]] = {
    "coco": coco,
    "segments": segments,
    "zoom": enlarge,
    "fiftyone": fiftyone,
    "explain": explain,
    "attention": attention,
    "sweep": sweep,
    "queries": queries,
    "report": report,
}

if __name__ == "__main__":
    sys.exit(run(main, None, "visualize"))
