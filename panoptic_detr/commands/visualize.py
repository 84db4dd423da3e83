"""Draw panoptic ground truth, predictions and their errors; explain predictions; make a report.

A picture per image of a data set, next to the predictions that `panoptic-detr predict` wrote, in seconds:

    panoptic-detr visualize coco --root DATA --split val2017 --output /tmp/pictures
    panoptic-detr visualize coco --images DIR --panoptic DIR --annotations JSON --pred-json predictions.json --output OUT
    panoptic-detr visualize report runs/scenes_masks --root DATA --split val --output /tmp/report.html

`panoptic-detr visualize JOB --help` lists the settings of a job. A results JSON of `predict` is a data set too: to draw it
without a ground truth, name it as --annotations and its `panoptic` folder as --panoptic.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.ops import batched_nms

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands.cli import run
from panoptic_detr.data.coco import CocoPanoptic, resolve_paths
from panoptic_detr.data.transforms import eval_transform, image_tensor
from panoptic_detr.errors import DataError, InputError
from panoptic_detr.evaluation import (
    AnnotationSet,
    AveragePrecision,
    check_same_categories,
    check_same_images,
    check_same_names,
    find_things,
    read_annotations,
)
from panoptic_detr.files import make_folder, write_whole
from panoptic_detr.images import picture_ending, save_picture, upright_rgb
from panoptic_detr.inference import Predictor, load_model
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.quality import PanopticQuality
from panoptic_detr.structures import Batch, DetectorOutput, Sample, Target
from panoptic_detr.visualization.attention import boxes_of_queries, draw_look, look
from panoptic_detr.visualization.draw import mask_strip, overlay, svg_overlay, zoom
from panoptic_detr.visualization.errors import Entry, draw_entry
from panoptic_detr.visualization.explain import SweepStep, draw_explanation, explain_table, sweep_figure
from panoptic_detr.visualization.queries import LayerScore, count_instances, draw_counts, draw_layer_scores, draw_query_boxes
from panoptic_detr.visualization.report import read_curves, write_report
from panoptic_detr.zoo import list_models

Predict = Callable[[int], PanopticSegmentation]

THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one job and return its exit status."""
    options = parse(argv)
    print(JOBS[options.job](options))
    return 0


def point(text: str) -> tuple[float, float]:
    """Read "x,y"."""
    x, y = (float(part) for part in text.split(","))
    if not (0 <= x < 1 and 0 <= y < 1):
        raise InputError(text)
    return x, y


def parse(argv: Sequence[str] | None) -> Namespace:
    """Read the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("panoptic-detr visualize", description=__doc__, formatter_class=form)
    jobs = parser.add_subparsers(dest="job", required=True, metavar="JOB")
    added = {name: jobs.add_parser(name, help=job.__doc__, description=job.__doc__) for name, job in JOBS.items()}
    for job in added.values():
        job.add_argument("--output", type=Path, required=True, help="folder, or file for sweep and report")
        job.add_argument("--palette", choices=("distinct", "coco"), default="distinct", help="distinct is colour-blind safe")
        job.add_argument("--threshold", type=float, help="of the model, instead of its own setting")
        job.add_argument("--scale", type=int, default=1, help="enlarge small images so many times")
    for name in ("coco", "segments", "zoom", "sweep", "queries", "report"):
        _add_data(added[name])
    for name in ("coco", "segments", "zoom"):
        added[name].add_argument("--pred-json", type=Path, help="results JSON")
        added[name].add_argument("--pred-panoptic", type=Path, help="its PNGs; by default 'panoptic' beside it")
    for name in ("coco", "segments", "zoom", "sweep", "queries", "explain", "attention"):
        needed = name not in ("coco", "segments", "zoom")
        added[name].add_argument("--model", required=needed, help="checkpoint or published model that predicts")
    added["coco"].add_argument("--show", choices=("all", "truth", "prediction", "errors"), default="all")
    added["coco"].add_argument("--kind", choices=("png", "jpg", "svg"), default="png", help="svg: outlines of one map")
    added["coco"].add_argument("--alpha", type=float, default=0.5, help="opacity of the fill")
    added["zoom"].add_argument("--segment", type=int, default=1, help="its id in the segment map; the numbers of `explain`")
    added["zoom"].add_argument("--side", type=int, default=480, help="pixels of the longer side of the picture")
    for name in ("explain", "attention"):
        added[name].add_argument("pictures", type=Path, nargs="+")
        added[name].add_argument("--kind", choices=("png", "jpg"), default="png")
    places = ((0.25, 0.3), (0.75, 0.3), (0.25, 0.7), (0.75, 0.7))
    added["attention"].add_argument("--points", type=point, nargs="+", default=places, help="x,y as fractions of the image")
    added["attention"].add_argument("--layer", type=int, default=-1, help="of encoder and decoder; the last by default")
    added["queries"].add_argument("--grid", type=int, default=10, help="places per side for counting")
    added["sweep"].add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    added["report"].add_argument("source", type=Path, help="run folder, checkpoint, or results JSON")
    added["report"].add_argument("--title", default="Panoptic segmentation report")
    added["report"].set_defaults(pred_panoptic=None)
    return parser.parse_args(argv)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, help="data set in COCO's own layout")
    parser.add_argument("--split", help="its part, for example val2017")
    parser.add_argument("--images", type=Path, help="image folder, instead of the layout's")
    parser.add_argument("--panoptic", type=Path, help="folder of the annotation PNGs, instead of the layout's")
    parser.add_argument("--annotations", type=Path, help="COCO-panoptic JSON, instead of the layout's")
    parser.add_argument("--image-ids", nargs="+", help="only these images")
    parser.add_argument("--limit", type=int, help="at most so many images")


def coco(options: Namespace) -> str:
    """Draw the images of a data set: truth, prediction and errors, side by side or one of them."""
    data = open_data(options)
    predict, folder = predictions(options, data), make_folder(options.output)
    for entry in track(entries(data, predict), "drawing", len(data)):
        path = folder / f"{Path(entry.name).stem}.{options.kind}"
        if options.kind != "svg":
            picture = draw_entry(entry, show=options.show, palette=options.palette, alpha=options.alpha, scale=options.scale)
            save_picture(path, picture)
            continue
        drawn = entry.truth if options.show == "truth" or entry.prediction is None else entry.prediction
        if drawn is not None:
            write_whole(path, svg_overlay(drawn, entry.image, palette=options.palette, alpha=options.alpha).encode())
    return f"pictures: {len(data)} in {folder}"


def segments(options: Namespace) -> str:
    """Cut out every segment by itself, one strip per image; of the prediction, where there is one."""
    return draw_each(options, "strips", partial(mask_strip, palette=options.palette))


def enlarge(options: Namespace) -> str:
    """Enlarge one segment of each image, its surroundings dimmed; of the prediction, where there is one."""
    draw = partial(zoom, segment_id=options.segment, long_side=options.side, palette=options.palette)
    return draw_each(options, "enlarged", draw)


def draw_each(options: Namespace, what: str, draw: Callable[[np.ndarray, PanopticSegmentation], np.ndarray]) -> str:
    """Save a picture of each image's prediction, or of its truth where there is none; say how many and where."""
    data = open_data(options)
    predict, folder = predictions(options, data), make_folder(options.output)
    for entry in track(entries(data, predict), "drawing", len(data)):
        drawn = entry.prediction or entry.truth
        if drawn is not None:
            save_picture(folder / f"{Path(entry.name).stem}.png", draw(entry.image, drawn))
    return f"{what}: {len(data)} in {folder}"


def explain(options: Namespace) -> str:
    """Say and draw which queries of a model were kept, which dropped, and why."""
    predictor, folder, console = load_model(options.model), make_folder(options.output), Console(markup=False)
    for path in options.pictures:
        picture = upright_rgb(path)
        prediction = predictor(picture, options.threshold)
        console.print(explain_table(prediction, title=path.name))
        boxes = boxes_of_queries(detect(predictor, picture))
        drawn = draw_explanation(picture, prediction, boxes, palette=options.palette, scale=options.scale)
        save_picture(folder / f"{path.stem}.{options.kind}", drawn)
    return f"pictures: {len(options.pictures)} in {folder}"


def attention(options: Namespace) -> str:
    """Draw where a model looks: from points of the image, for its objects, and in its mask head."""
    predictor, folder = load_model(options.model), make_folder(options.output)
    for path in options.pictures:
        picture = upright_rgb(path)
        prediction = predictor(picture, options.threshold)
        seen = look(predictor.model, prepared(predictor, picture))
        drawn = draw_look(picture, prediction, seen, points=options.points, layer=options.layer, scale=options.scale)
        for name, one in drawn.items():
            save_picture(folder / f"{path.stem}_{name}.{options.kind}", one)
    return f"pictures: {len(options.pictures)} in {folder}"


def sweep(options: Namespace) -> str:
    """Draw the first image at several thresholds, with the PQ of all chosen images."""
    picture_ending(options.output)
    data = open_data(options)
    if not len(data):
        raise DataError("a threshold sweep needs at least one image, but none was chosen")
    predictor, steps = open_model(options, data), []
    make_folder(options.output.parent)
    for threshold in track(options.thresholds, "thresholds"):
        quality = PanopticQuality(data.categories)
        results = [predictor(data.image(i), threshold) for i in range(len(data))]
        for i, result in enumerate(results):
            quality.update(result, data.truth(i))
        scores = quality.compute()
        picture = overlay(data.image(0), results[0], palette=options.palette, scale=options.scale)
        steps.append(SweepStep(threshold, picture, len(results[0].segments), scores.all.pq, scores.things.pq, scores.stuff.pq))
    save_picture(options.output, sweep_figure(steps))
    return f"threshold sweep: {options.output}"


def queries(options: Namespace) -> str:
    """Draw what a panoptic model's queries do: box centres by slot, AP by decoder layer, how many instances are found."""
    data = open_data(options)
    predictor, folder = open_model(options, data), make_folder(options.output)
    scorers: dict[tuple[int, bool], AveragePrecision] = {}
    boxes = []
    for i in track(range(len(data)), "detecting"):
        output = detect(predictor, data.image(i))
        boxes.append(boxes_of_queries(output))
        for layer in range(len(output.logits)):
            add_layer(scorers, layer, output, predictor.categories, data, i)
    if not boxes:
        raise DataError("the pictures of queries need at least one image, but none was chosen")
    save_picture(folder / "query_boxes.png", draw_query_boxes(boxes))
    scores = [[scorers[layer, nms].compute().boxes.ap or 0.0 for nms in (False, True)] for layer in range(len(output.logits))]
    rows = [LayerScore(layer, *pair) for layer, pair in enumerate(scores, start=1)]
    save_picture(folder / "layers.png", draw_layer_scores(rows))
    scenes = ((data.image(i), data.truth(i)) for i in range(len(data)))
    present, found = count_instances(predictor, scenes, grid=options.grid)
    save_picture(folder / "counts.png", draw_counts(present, found))
    return f"pictures: query_boxes, layers and counts in {folder}"


def report(options: Namespace) -> str:
    """Write one HTML page with scores, curves, confusions and a gallery of what a run or a results JSON predicts."""
    source: Path = options.source
    check_report(source, options.output)
    run_folder = source if source.is_dir() else source.parent
    results = source.suffix == ".json"
    options.pred_json = source if results else None
    options.model = None if results else str(source / "best.pt" if source.is_dir() else source)
    data = open_data(options)
    predict, quality = predictions(options, data), PanopticQuality(data.categories)
    make_folder(options.output.parent)

    def counted() -> Iterator[Entry]:
        for entry in track(entries(data, predict), "looking", len(data)):
            if entry.prediction is not None and entry.truth is not None:
                quality.update(entry.prediction, entry.truth)
            yield entry

    def scores() -> dict[str, Any]:
        result = quality.compute()
        return {**result.as_dict(), "per_class": result.per_class}

    write_report(
        options.output,
        counted(),
        scores,
        categories=data.categories,
        curves=read_curves(run_folder / "log.csv", run_folder / "scores.csv"),
        title=options.title,
        facts={"predictions": str(source), "images": str(len(data))},
        palette=options.palette,
        count=len(data),
    )
    return f"report: {options.output}"


def check_report(source: Path, output: Path) -> None:
    """Raise `DataError` before any work if a report has nothing to be made from, or no file to be written to."""
    if not source.exists() and str(source) not in list_models():
        raise DataError(f"{source}: there is no such run folder, checkpoint or results JSON to report on")
    if source.is_dir() and not (source / "best.pt").is_file():
        raise DataError(f"{source}: no best.pt in this folder; name a run's folder, a checkpoint, or a results JSON")
    if output.is_dir():
        raise DataError(f"{output} is a folder; name the file to write the report to, such as {output / 'report.html'}")


def open_data(options: Namespace) -> CocoPanoptic:
    """The chosen images of the data set."""
    explicit = {name: getattr(options, name) for name in ("images", "panoptic", "annotations")}
    paths = resolve_paths(options.root, options.split, **explicit)
    data = CocoPanoptic(paths.images, paths.panoptic, paths.annotations)
    if options.image_ids:
        place = {str(image_id): index for index, image_id in enumerate(data.image_ids)}
        missing = [image_id for image_id in options.image_ids if image_id not in place]
        if missing:
            raise DataError(f"{paths.annotations}: there is no image {missing[0]} among its {len(data)}; check --image-ids")
        data = data.subset([place[image_id] for image_id in options.image_ids])
    return data if options.limit is None else data.subset(range(min(options.limit, len(data))))


def open_model(options: Namespace, data: CocoPanoptic) -> Predictor:
    """The chosen model, to be shown beside the annotations of the data set.

    Raises:
        EvaluationError: the model's categories are not the data set's.
    """
    predictor = load_model(options.model)
    check_same_categories(predictor.categories, data.categories)
    return predictor


def entries(data: CocoPanoptic, predict: Predict | None) -> Iterator[Entry]:
    """Images with truth and prediction, one at a time."""
    for i in range(len(data)):
        yield Entry(data.image_path(i).name, data.image(i), data.truth(i), predict(i) if predict else None)


def predictions(options: Namespace, data: CocoPanoptic) -> Predict | None:
    """What predicts the i-th image: the results JSON, the model, or nothing."""
    if options.pred_json is not None:
        beside, named = options.pred_json.parent / "panoptic", options.pred_json.with_suffix("")
        folder = options.pred_panoptic or (beside if beside.is_dir() else named)
        results = read_annotations(options.pred_json, folder)
        names: dict[int | str, str] = {data.image_ids[i]: data.image_path(i).name for i in range(len(data))}
        check_same_images(results, AnnotationSet(data.images, data.panoptic, {i: {} for i in names}, image_names=names))
        check_same_names(results, data.categories)
        return lambda i: results.segmentation(data.image_ids[i], data.categories)
    if options.model is not None:
        predictor = open_model(options, data)
        return lambda i: predictor(data.image(i), options.threshold)
    return None


@torch.no_grad()
def detect(predictor: Predictor, picture: np.ndarray) -> DetectorOutput:
    """The output of the predictor's model for one picture."""
    images = prepared(predictor, picture)
    return predictor.model(images, torch.zeros_like(images[:, 0], dtype=torch.bool))


def add_layer(
    scorers: dict[tuple[int, bool], AveragePrecision],
    layer: int,
    output: DetectorOutput,
    categories: CategoryTable,
    data: CocoPanoptic,
    i: int,
) -> None:
    """Add one decoder layer's things of the i-th image to the scorers, without and with non-maximum suppression.

    Args:
        scorers: by layer and whether with suppression.
        layer: its index.
        output: of the model for the image alone.
        categories: what the model's labels mean; those of published models are category ids, unlike the data set's.
        data: with the truth.
        i: index of the image.
    """
    truth = data.truth(i)
    one = replace(output, logits=output.logits[layer : layer + 1], boxes=output.boxes[layer : layer + 1])
    size = (truth.segment_map.shape[0], truth.segment_map.shape[1])
    batch = Batch(torch.zeros(1, 3, 1, 1), torch.zeros(1, 1, 1), original_sizes=[size])
    (found,) = find_things(one, batch, categories)
    every = torch.arange(len(found.scores))
    for nms, rows in ((False, every), (True, batched_nms(found.boxes, found.scores, found.category_ids, 0.7))):
        scorer = scorers.setdefault((layer, nms), AveragePrecision(data.categories))
        boxes, scores, category_ids = (values[rows].numpy() for values in (found.boxes, found.scores, found.category_ids))
        scorer.update(data.image_ids[i], boxes, scores, category_ids, None, truth)


def prepared(predictor: Predictor, picture: np.ndarray) -> Tensor:
    """The picture as the predictor's model sees it: (1, 3, H, W)."""
    nothing = Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    sample = Sample(image_tensor(picture), nothing, (picture.shape[0], picture.shape[1]))
    transform = eval_transform(predictor.settings.short_side, predictor.settings.long_side)
    return transform(sample).image[None].to(predictor.device)


JOBS: dict[str, Callable[[Namespace], str]] = {
    "coco": coco,
    "segments": segments,
    "zoom": enlarge,
    "explain": explain,
    "attention": attention,
    "sweep": sweep,
    "queries": queries,
    "report": report,
}

if __name__ == "__main__":
    sys.exit(run(main, None, "visualize"))
