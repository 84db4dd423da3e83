"""The jobs of `visualize` that look into a model: explanations, attention, threshold sweep, queries."""

from argparse import Namespace
from dataclasses import replace

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torchvision.ops import batched_nms

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands.visualize_data import open_data, open_model
from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.data.transforms import eval_transform, image_tensor
from panoptic_detr.errors import DataError
from panoptic_detr.evaluation import AveragePrecision, find_things
from panoptic_detr.files import make_folder
from panoptic_detr.images import picture_ending, save_picture, upright_rgb
from panoptic_detr.inference import Predictor, load_model
from panoptic_detr.quality import PanopticQuality
from panoptic_detr.structures import Batch, DetectorOutput, Sample, Target
from panoptic_detr.visualization.attention import boxes_of_queries, draw_look, look
from panoptic_detr.visualization.draw import overlay
from panoptic_detr.visualization.explain import SweepStep, draw_explanation, explain_table, sweep_figure
from panoptic_detr.visualization.queries import LayerScore, count_instances, draw_counts, draw_layer_scores, draw_query_boxes


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
