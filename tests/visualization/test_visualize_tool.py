"""The tool on a small data set of scenes, with predictions made from the truth and with an untrained model."""

import argparse
import re
from dataclasses import replace
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from plain_maps import areas, boxes_of
from visualization.visualize_helpers import SIDE, altered, save_model, source, told

from panoptic_detr.categories import CategoryTable
from panoptic_detr.commands import visualize
from panoptic_detr.commands.visualize import main
from panoptic_detr.evaluation import LayerPrecision
from panoptic_detr.inference import PictureFile, PredictionFolder
from panoptic_detr.inference.predictor import load_model
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.structures import DetectorOutput, FeatureLevel
from panoptic_detr.visualization.errors import ERROR_COLORS, ErrorKind
from panoptic_detr.visualization.queries import draw_query_boxes


def read(path):
    return cv2.imread(str(path))[..., ::-1]


def test_truth_alone_is_drawn_once_per_image(root, data, tmp_path, capsys):
    assert main(["coco", *source(root, "--output", tmp_path)]) == 0
    written = sorted(path.name for path in tmp_path.iterdir())
    assert written == sorted(f"{data.image_path(i).stem}.png" for i in range(3))
    assert read(tmp_path / written[0]).shape == (SIDE, SIDE, 3)
    assert "3" in capsys.readouterr().out


@pytest.mark.parametrize(("job", "kind"), [("coco", "png"), ("coco", "svg"), ("segments", None), ("zoom", None)])
def test_images_of_one_name_get_files_of_their_own(job, kind, twins, capsys):
    kinds = [] if kind is None else ["--kind", kind]
    assert main([job, *source(twins, "--output", twins / "out", *kinds)]) == 0
    written = {path.relative_to(twins / "out").as_posix() for path in (twins / "out").rglob("*.*")}
    assert written == {f"{stem}.{kind or 'png'}" for stem in ("cam1/0", "cam2/0", "cam2/0_2", "CAM2/0_3")}
    assert ": 4 in" in capsys.readouterr().out


def test_a_missed_thing_shows_in_the_error_view(root, data, results, tmp_path):
    chosen = data.image_ids[0]
    options = ["--pred-json", results, "--image-ids", chosen, "--show", "errors", "--output", tmp_path]
    assert main(["coco", *source(root, *options)]) == 0
    (path,) = tmp_path.iterdir()
    lost = next(segment for segment in data.truth(0).segments if segment.isthing)
    inside = cv2.erode((data.truth(0).segment_map == lost.id).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    drawn = read(path)[:SIDE].astype(int)
    grey = 0.8 * cv2.cvtColor(data.image(0), cv2.COLOR_RGB2GRAY)[..., None]
    expected = 0.2 * grey + 0.8 * np.array(ERROR_COLORS[ErrorKind.MISSED])
    assert np.abs(drawn - expected)[inside].max() <= 1


def test_side_by_side_with_a_prediction_is_wider(root, results, tmp_path):
    given = ["--pred-json", results.parent, "--limit", 1, "--scale", 2]
    assert main(["coco", *source(root, *given, "--output", tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    assert read(path).shape[1] > 3 * 2 * SIDE


def test_svg_and_strips(root, results, tmp_path):
    assert main(["coco", *source(root, "--kind", "svg", "--limit", 1, "--output", tmp_path / "svg")]) == 0
    (path,) = (tmp_path / "svg").iterdir()
    assert ElementTree.parse(path).getroot().get("viewBox") == f"0 0 {SIDE} {SIDE}"
    assert main(["segments", *source(root, "--pred-json", results, "--output", tmp_path / "strips")]) == 0
    assert len(list((tmp_path / "strips").iterdir())) == 3


def test_zoom_shows_the_named_segment_of_every_image(root, data, results, tmp_path, capsys):
    number = data.truth(1).segments[0].id
    chosen = ["--pred-json", results, "--image-ids", data.image_ids[1], "--output", tmp_path]
    assert main(["zoom", *source(root, *chosen, "--segment", number, "--side", 200)]) == 0
    (path,) = tmp_path.iterdir()
    assert 200 <= max(read(path).shape) <= 240, "200 and the title"
    assert f"there is no segment {10**6}" in told(capsys, "zoom", *source(root, *chosen, "--segment", 10**6))


def test_results_of_predict_are_a_data_set_of_their_own(root, data, results, tmp_path):
    places = ["--images", data.images, "--panoptic", results.parent / "panoptic", "--annotations", results]
    assert main(["coco", *map(str, [*places, "--output", tmp_path])]) == 0
    assert len(list(tmp_path.iterdir())) == 3


def test_report_from_results(root, data, results, tmp_path, capsys):
    path = tmp_path / "new" / "report.html"
    folder = results.parent  # which stands for the JSON in it
    assert main(["report", str(folder), *source(root, "--output", path, "--title", "Scenes")]) == 0
    page = path.read_text(encoding="utf-8")
    assert "<title>Scenes</title>" in page
    assert page.count("<article") == 3
    assert f'"query": {altered(data.truth(0)).segments[0].query}' in page, (
        "the query of a segment travels through the results JSON"
    )
    assert str(path) in capsys.readouterr().out


def test_report_says_what_it_shows(root, results, checkpoint, tmp_path):
    def facts(source_of_it, *more):
        path = tmp_path / "r.html"
        assert main(["report", str(source_of_it), *source(root, *more, "--output", path)]) == 0
        return dict(re.findall(r"<dt>([^<]+)</dt><dd>([^<]*)</dd>", path.read_text(encoding="utf-8")))

    said = facts(results, "--limit", 2)
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d", said["made"])
    assert (said["data set"], said["split"], said["images"]) == (str(root), "val", "2 of 3")
    assert said["threshold"] == "of the results"
    assert facts(checkpoint, "--limit", 1)["threshold"] == "0"
    assert facts(checkpoint, "--limit", 1, "--threshold", 0.25)["threshold"] == "0.25"


@pytest.mark.parametrize(
    ("name", "expected"), [("detr_r50_panoptic", "0.85"), ("deformable_detr_r50_panoptic", "0.4 for things, 0.3 for stuff")]
)
def test_the_models_own_thresholds_are_said(name, expected, data, tmp_path):
    path = save_model(data.categories, tmp_path / "m.pt", name)
    predictor = load_model(path)
    predictor.settings = replace(predictor.settings, threshold=None)
    assert visualize.thresholds_of(predictor, argparse.Namespace(threshold=None), data) == expected


def test_report_of_a_run_shows_its_curves(root, checkpoint, tmp_path):
    (checkpoint.parent / "log.csv").write_text("step,epoch,total\n1,0,3.5\n2,0,2.5\n")
    assert main(["report", str(checkpoint.parent), *source(root, "--limit", 1, "--output", tmp_path / "r.html")]) == 0
    assert "<b>total</b>" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_explain_prints_and_draws_every_query(data, checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    picture = data.image_path(0)
    assert main(["explain", str(picture), "--model", str(checkpoint), "--output", str(tmp_path), "--threshold", "0.183"]) == 0
    out = capsys.readouterr().out
    prediction = predict(checkpoint, data, 0.183)
    assert prediction.segments
    for segment in prediction.segments:
        assert f"segment {segment.id}" in out
    for dropped in prediction.dropped:
        assert dropped.reason.split()[0] in out
    assert read(tmp_path / f"{picture.stem}.png").shape[0] > SIDE


def test_attention_pictures_of_a_checkpoint(data, checkpoint, tmp_path):
    picture = data.image_path(0)
    options = ["--model", checkpoint, "--points", "0.5,0.5", "0.1,0.9", "--threshold", 0.0, "--output", tmp_path]
    assert main([str(a) for a in ("attention", picture, *options)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{picture.stem}_{n}.png" for n in ("decoder", "encoder", "masks")
    ]
    with pytest.raises(SystemExit):
        main(["attention", str(picture), "--model", str(checkpoint), "--points", "7,7", "--output", str(tmp_path)])


def predict(checkpoint, data, threshold):
    return load_model(checkpoint)(data.image(0), threshold)


def test_sweep_draws_a_picture_per_threshold(root, checkpoint, tmp_path):
    path = tmp_path / "sweep.png"
    options = ["--model", checkpoint, "--thresholds", 0.1, 0.5, "--limit", 1, "--output", path]
    assert main(["sweep", *source(root, *options)]) == 0
    assert read(path).shape[1] > 3 * SIDE
    assert min(visualize.THRESHOLDS) < 0.3


def test_small_images_are_enlarged_as_predict_does(root, data, checkpoint, tmp_path):
    options = ["--model", str(checkpoint), "--threshold", "0.0", "--output", str(tmp_path)]
    assert main(["explain", str(data.image_path(0)), *options]) == 0
    assert read(tmp_path / f"{data.image_path(0).stem}.png").shape[1] == round(480 / SIDE) * SIDE
    assert main(["attention", str(data.image_path(1)), *options]) == 0
    assert read(tmp_path / f"{data.image_path(1).stem}_decoder.png").shape[1] == round(480 / SIDE) * SIDE
    path = tmp_path / "sweep.png"
    assert main(["sweep", *source(root, *options[:2], "--thresholds", "0.1,0.2", "--limit", 1, "--output", path)]) == 0
    assert read(path).shape[1] > 3 * 480


def test_pictures_of_one_name_are_explained_in_files_of_their_own(data, checkpoint, tmp_path, capsys):
    for part in ("a", "b"):
        (tmp_path / part).mkdir()
        cv2.imwrite(str(tmp_path / part / "same.png"), data.image(0))
    pictures = [str(tmp_path / part) for part in ("a", "b")]
    options = ["--model", str(checkpoint), "--threshold", "1", "--output", str(tmp_path / "out"), "--scale", "1"]
    assert main(["explain", *pictures, *options]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["same.png", "same_2.png"]
    capsys.readouterr()
    assert main(["attention", *pictures, *options]) == 0
    out, error = capsys.readouterr()
    assert "pictures: 2 of 2 image(s)" in out
    assert "nothing was found, so there is no attention of objects" in error


def test_counts_of_nothing_are_explained(root, checkpoint, tmp_path, capsys):
    options = ["--model", checkpoint, "--limit", 1, "--grid", 2, "--threshold", 1, "--output", tmp_path]
    assert main(["queries", *source(root, *options)]) == 0
    assert "not one copy was found; try a lower --threshold" in capsys.readouterr().err


def test_pictures_of_queries(root, checkpoint, tmp_path):
    assert main(["queries", *source(root, "--model", checkpoint, "--limit", 2, "--grid", 2, "--output", tmp_path)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["counts.png", "layers.png", "query_boxes.png"]


def test_queries_are_scored_by_the_labels_of_the_model(data):
    table = CategoryTable.from_coco(data.categories.to_coco(), labels="id")
    truth = data.truth(0)
    things = [segment for segment in truth.segments if segment.isthing and not segment.iscrowd]
    corners = torch.tensor([segment.box for segment in things], dtype=torch.float32)  # left, top, width, height
    boxes = torch.cat([corners[:, :2] + corners[:, 2:] / 2, corners[:, 2:]], dim=1) / SIDE
    logits = torch.full((1, 1, len(things), table.num_labels + 1), -9.0)
    for row, segment in enumerate(things):
        logits[0, 0, row, table.label_of[segment.category_id]] = 9.0
    level = FeatureLevel(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.bool), 32)
    output = DetectorOutput(logits, boxes[None, None], torch.zeros(1, len(things), 4), level, level.features, ())
    layers = LayerPrecision(table)
    layers.update(data.image_ids[0], output, truth)
    assert layers.compute() == [pytest.approx((1.0, 1.0))]


def test_the_labels_of_a_model_reach_the_scorer(root, data, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(visualize, "LayerPrecision", lambda table: (seen.append(table), LayerPrecision(table))[1])
    path = save_model(CategoryTable.from_coco(data.categories.to_coco(), labels="id"), tmp_path / "ids.pt")
    assert main(["queries", *source(root, "--model", path, "--limit", 1, "--grid", 1, "--output", tmp_path / "out")]) == 0
    assert {table.labels for table in seen} == {"id"}


def test_queries_of_images_with_fewer_tokens_than_queries(data, tmp_path, monkeypatch):
    truth, folder = data.truth(0), PredictionFolder(tmp_path / "set", data.categories, overlays=False)
    (tmp_path / "images").mkdir()
    for name, rows in (("small", 8), ("large", SIDE)):
        segment_map = truth.segment_map[SIDE - rows :]
        pixels, boxes = areas(segment_map), boxes_of(segment_map)
        kept = [replace(s, area=pixels[s.id], box=boxes[s.id]) for s in truth.segments if s.id in boxes]
        path = tmp_path / "images" / f"{name}.png"
        cv2.imwrite(str(path), data.image(0)[SIDE - rows :, :, ::-1])
        folder.add(
            PictureFile(path, name, name),
            data.image(0)[SIDE - rows :],
            PanopticSegmentation(segment_map, kept, truth.categories),
        )
    shown = []
    monkeypatch.setattr(visualize, "draw_query_boxes", lambda boxes: (shown.extend(boxes), draw_query_boxes(boxes))[1])
    path = save_model(data.categories, tmp_path / "two.pt", "deformable_detr_r50_two_stage_panoptic", num_queries=40)
    places = ["--images", tmp_path / "images", "--annotations", folder.finish(), "--panoptic", tmp_path / "set" / "panoptic"]
    out = tmp_path / "out"
    assert main([str(a) for a in ("queries", *places, "--model", path, "--grid", 1, "--output", out)]) == 0
    assert [len(boxes) for boxes in shown] == [15, 40], "8 x 64 pixels are 8 + 4 + 2 + 1 tokens"
    assert sorted(path.name for path in out.iterdir()) == ["counts.png", "layers.png", "query_boxes.png"]


def test_queries_says_which_model_it_needs(capsys):
    with pytest.raises(SystemExit):
        main(["queries", "--help"])
    assert "what a panoptic model's queries do" in " ".join(capsys.readouterr().out.split())


def test_lists_take_commas_and_spaces_and_name_an_image_once(root, data, tmp_path, capsys):
    first, second, _ = data.image_ids
    for number, ids in enumerate(([f"{first},{second}"], [first, second], [f"{first},", second, first])):
        assert main(["coco", *source(root, "--output", tmp_path / str(number), "--image-ids", *ids)]) == 0
        assert len(list((tmp_path / str(number)).iterdir())) == 2
