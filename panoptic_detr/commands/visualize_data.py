"""The jobs of `visualize` on data sets: pictures, cut-outs, one segment enlarged, the report."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from panoptic_detr.data.coco import CocoPanoptic, resolve_paths
from panoptic_detr.errors import DataError
from panoptic_detr.evaluation import (
    AnnotationSet,
    as_images_of,
    check_same_categories,
    check_same_names,
    read_annotations,
)
from panoptic_detr.files import make_folder
from panoptic_detr.images import Picture, save_picture
from panoptic_detr.inference import Predictor, load_model
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.quality import PanopticQuality
from panoptic_detr.segment_maps import write_bytes
from panoptic_detr.visualization.draw import mask_strip, svg_overlay, zoom
from panoptic_detr.visualization.entry import Entry, draw_entry
from panoptic_detr.visualization.report import read_curves, write_report
from panoptic_detr.zoo import list_models

Predict = Callable[[int], PanopticSegmentation]


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
            write_bytes(path, svg_overlay(drawn, entry.image, palette=options.palette, alpha=options.alpha).encode())
    return f"pictures: {len(data)} in {folder}"


def segments(options: Namespace) -> str:
    """Cut out every segment by itself, one strip per image; of the prediction, where there is one."""
    return draw_each(options, "strips", lambda image, drawn: mask_strip(image, drawn, palette=options.palette))


def enlarge(options: Namespace) -> str:
    """Enlarge one segment of each image, its surroundings dimmed; of the prediction, where there is one."""

    def draw(image: Picture, drawn: PanopticSegmentation) -> np.ndarray:
        return zoom(image, drawn, options.segment, long_side=options.side, palette=options.palette)

    return draw_each(options, "enlarged", draw)


def draw_each(options: Namespace, what: str, draw: Callable[[Picture, PanopticSegmentation], np.ndarray]) -> str:
    """Save a picture of each image's prediction, or of its truth where there is none; say how many and where."""
    data = open_data(options)
    predict, folder = predictions(options, data), make_folder(options.output)
    for entry in track(entries(data, predict), "drawing", len(data)):
        drawn = entry.prediction or entry.truth
        if drawn is not None:
            save_picture(folder / f"{Path(entry.name).stem}.png", draw(entry.image, drawn))
    return f"{what}: {len(data)} in {folder}"


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
        truth = AnnotationSet(data.annotations, data.panoptic, {i: {} for i in data.names}, image_names=data.names)
        results, _ = as_images_of(results, truth)
        check_same_names(results, data.categories)
        return lambda i: results.segmentation(data.image_ids[i], data.categories)
    if options.model is not None:
        predictor = open_model(options, data)
        return lambda i: predictor(data.image(i), options.threshold)
    return None
