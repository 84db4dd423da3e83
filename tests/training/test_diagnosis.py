"""Each known failure is named once, and a healthy run hears nothing."""

import io
import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import MagicMock

import cv2
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from matplotlib.axes import Axes
from rich.console import Console

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.stages import AugmentationConfig, DataConfig, DetectorStage, TrainConfig
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import scene_categories, write_scenes
from panoptic_detr.data.transforms import crops_transform, eval_transform, scenes_transform, train_transform
from panoptic_detr.errors import DataError
from panoptic_detr.images import as_rgb
from panoptic_detr.training import build_data, stages
from panoptic_detr.training.build_data import TolerantPanoptic, readable_part
from panoptic_detr.training.run.log import draw_curves, loss_curve
from panoptic_detr.training.watch.diagnosis import Diagnosis, learning_verdict, overfit_verdict, vital_signs
from panoptic_detr.training.watch.sanity import DataFacts, inspect_samples
from panoptic_detr.zoo import ModelSpec, build_model

HEALTHY = {"confidence": 0.6, "box_spread": 0.2, "mask_dice": 0.4}


def run(values, *, steps=1000, end=2.0):
    watch = Diagnosis(steps, [])
    said = []
    for step in range(1, steps + 1):
        loss = 10 + (end - 10) * step / steps
        said += watch.note(step, {"loss": loss, **HEALTHY, **values})
    return said


def test_a_healthy_run_hears_nothing():
    assert run({}) == []


@pytest.mark.parametrize(
    ("values", "end", "message"),
    [
        ({}, 10.5, "step 500: the loss is as high as at the start"),
        ({"confidence": 0.01}, 2.0, "step 500: the detector calls everything no-object"),
        ({"box_spread": 0.001}, 2.0, "step 500: all queries predict the same box"),
        ({"mask_dice": 0.99}, 2.0, "step 500: the masks stay empty"),
    ],
)
def test_each_failure_is_named_once(values, end, message):
    said = run(values, end=end)
    assert len(said) == 1
    assert said[0].startswith(message)


def test_nothing_is_said_in_the_first_quarter():
    assert run({"confidence": 0.01}, steps=400) == []


def test_a_run_that_is_continued_is_compared_with_its_own_beginning():
    first_losses: list[float] = []
    for step in range(1, 301):
        Diagnosis(1000, first_losses).note(step, {"loss": 10.0, **HEALTHY})  # made anew, as by a resume
    assert first_losses == [10.0] * 100
    for beginning, told in ((first_losses, 0), ([2.0] * 100, 1), ([], 0)):
        watch = Diagnosis(1000, beginning)
        assert len([text for step in range(401, 601) for text in watch.note(step, {"loss": 2.0, **HEALTHY})]) == told


def test_a_skipped_step_does_not_blind_the_watch():
    watch, said = Diagnosis(1000, []), []
    for step in range(1, 1001):
        said += watch.note(step, {"loss": math.nan if step in (7, 450) else 10.0, **HEALTHY})
    assert [text[:9] for text in said] == ["step 500:"]


def test_detectors_without_mask_terms_are_watched_too():
    watch = Diagnosis(500, [])
    said = [
        line for step in range(1, 501) for line in watch.note(step, {"loss": 1.0 / step, "confidence": 0.5, "box_spread": 0.3})
    ]
    assert said == []


def test_vital_signs_of_a_collapsed_and_a_spread_detector():
    overrides = {"backbone": "small", "backbone_norm": "batch", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16}
    model = build_model("detr_r50", num_labels=3, **overrides, encoder_layers=1, decoder_layers=1, num_queries=4).eval()
    output = model(torch.rand(2, 3, 48, 48), torch.zeros(2, 48, 48, dtype=torch.bool))
    output.boxes.fill_(0.5)
    output.logits.fill_(0.0)
    signs = vital_signs(output)
    assert signs["box_spread"] == 0
    assert signs["confidence"] == pytest.approx(0.25)
    output.boxes[-1, :, :2] = torch.tensor([0.0, 0.0, 1.0, 1.0]).view(1, 4, 1)[:, :2]
    output.boxes[-1, :, 2:, :2] = 1.0
    assert vital_signs(output)["box_spread"] > 0.2


def test_overfit_verdict():
    assert overfit_verdict({"PQ": 0.8}).startswith("overfit: masks, boxes and classes can be learned (PQ 80.0")
    assert overfit_verdict({"box AP": 0.1}).startswith("overfit: boxes and classes were not learned (box AP 10.0")


def test_curves_are_drawn(tmp_path, monkeypatch):
    drawn, plot = {}, Axes.plot

    def noted(axes, x, y, **more):
        drawn[more.get("label")] = list(y)
        return plot(axes, x, y, **more)

    monkeypatch.setattr(Axes, "plot", noted)
    assert draw_curves(tmp_path) is None
    (tmp_path / "log.csv").write_text("step,epoch,lr,loss,class,class_layer0\n10,0,0.1,3,1,1\n20,0,0.1,2,,1\n")
    (tmp_path / "scores.csv").write_text("step,PQ\n20,0.5\n")
    picture = as_rgb(draw_curves(tmp_path))
    assert picture.shape[1] == 1700
    assert (picture != 255).any()
    assert drawn["PQ"] == [50.0]  # in per cent


@pytest.fixture
def scenes(tmp_path):
    write_scenes(tmp_path, 6, size=48, workers=1)
    return tmp_path


def test_samples_are_drawn_and_counted(scenes, tmp_path):
    facts = inspect_samples(CocoPanoptic.from_root(scenes, "train", transforms=scenes_transform()), tmp_path / "samples.png")
    assert facts.images == 6
    assert sum(facts.classes.values()) == sum(facts.segments)
    assert len(facts.classes) == 8
    assert as_rgb(tmp_path / "samples.png").shape[1] > 4 * 300
    text = "\n".join(facts.lines(2))
    assert "48-48 x 48-48 pixels" in text
    assert f"warning: an image has {max(facts.segments)} segments but the model only 2 queries" in text
    assert "warning" not in "\n".join(facts.lines(100))
    assert "left out" not in text


def test_segments_that_augmentation_removes_are_counted(scenes):
    whole = CocoPanoptic.from_root(scenes, "train")
    cut = inspect_samples(CocoPanoptic.from_root(scenes, "train", transforms=crops_transform(crop_size=16, short_sides=(48,))))
    assert cut.left_out == whole.segment_count - sum(cut.segments) > 0
    assert f"{cut.left_out} of their {whole.segment_count} segments lie outside the crop" in "\n".join(cut.lines(100))


@pytest.fixture(scope="module")
def many_scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    write_scenes(folder, 24, size=64, workers=1)
    return folder


def scale_warnings(folder, transform, short_side, count=24):
    dataset = CocoPanoptic.from_root(folder, "train", transforms=transform).subset(range(count))
    facts = inspect_samples(dataset, evaluation=eval_transform(short_side))
    assert dataset.transforms == transform
    return facts, [line.removeprefix("warning: ") for line in facts.lines(100) if line.startswith("warning: ")]


@pytest.mark.parametrize(
    ("short_side", "warnings"),
    [
        (None, []),
        (72, []),
        (96, ["training shows 64-64 x 64-64 pixels, evaluation 96-96 x 96-96"]),
        (128, ["training shows 64-64 x 64-64 pixels, evaluation 128-128 x 128-128", "the median thing measures "]),
        (32, ["training shows 64-64 x 64-64 pixels, evaluation 32-32 x 32-32", "the median thing measures "]),
    ],
)
def test_evaluation_at_other_sizes_than_training_is_a_warning(many_scenes, short_side, warnings):
    facts, found = scale_warnings(many_scenes, scenes_transform(), short_side)
    assert len(found) == len(warnings)
    assert all(line.startswith(start) for line, start in zip(found, warnings, strict=True))
    assert np.median(facts.eval_sides) == pytest.approx(np.median(facts.sides) * (short_side or 64) / 64, rel=0.15)


def test_what_a_crop_cuts_is_not_taken_for_small(many_scenes):
    """Of crops at evaluation's own scale the cut things are left out, and stuff counts nowhere."""
    facts, found = scale_warnings(many_scenes, crops_transform(crop_size=48, short_sides=(64,)), 64)
    assert len(facts.sides) < len(facts.eval_sides)
    assert [line for line in found if "median thing" in line] == []


def test_a_few_random_sizes_say_nothing_about_the_others(many_scenes):
    varied = train_transform(short_sides=(32, 48, 64, 96), crop_probability=0)
    assert any("training shows" in line for line in scale_warnings(many_scenes, varied, 160)[1])
    for count in (1, 2, 3, 8):
        facts, found = scale_warnings(many_scenes, varied, 160, count)
        assert not found or len(set(facts.sizes)) == 1 < count
    assert scale_warnings(many_scenes, scenes_transform(), 160, 2)[1]  # two of one size do


def test_a_data_set_without_any_segment_is_refused(scenes):
    path = scenes / "annotations" / "panoptic_train.json"
    content = json.loads(path.read_text())
    data, train = DataConfig(root=scenes, train_split="train"), TrainConfig()

    def opened():
        path.write_text(json.dumps(content))
        return build_data.open_train_set(data, AugmentationConfig(preset="scenes"), InferenceSettings(short_side=None), train)

    assert opened().segment_count == sum(len(entry["segments_info"]) for entry in content["annotations"])
    for entry in content["annotations"]:
        for row in entry["segments_info"]:
            row["iscrowd"] = 1
    with pytest.raises(DataError, match="none of the 6 training images has a segment"):
        opened()


def introduction(tmp_path, model, short_side=None):
    """What a run of this model says before its first step."""
    stream, table = io.StringIO(), scene_categories()
    fabric = SimpleNamespace(is_global_zero=True, world_size=1, device=torch.device("cpu"))
    template = SimpleNamespace(model=model)
    trainer = SimpleNamespace(
        fabric=fabric, total_steps=1, resumed=False, template=template, model=torch.nn.Linear(1, 1), groups=[]
    )
    dataset = MagicMock(categories=table)
    dataset.__len__.return_value = 1
    stage = DetectorStage(train=TrainConfig(output=tmp_path), inference=InferenceSettings(short_side=short_side))
    with stages.announced(trainer, stage, dataset, Console(file=stream)):
        pass
    return " ".join(stream.getvalue().split())


@pytest.mark.parametrize(("overrides", "warned"), [({}, True), ({"num_queries": 101}, False), ({"num_queries": 25}, True)])
def test_a_run_warns_of_more_segments_than_the_model_has_queries(tmp_path, monkeypatch, overrides, warned):
    facts = DataFacts(images=1, segments=[101], classes={}, sizes=[(48, 48)])
    monkeypatch.setattr(stages, "inspect_samples", lambda dataset, picture, evaluation: facts)
    text = introduction(tmp_path, ModelSpec("detr_r50", 91, overrides))
    assert (f"101 segments but the model only {overrides.get('num_queries', 100)} queries" in text) is warned


def test_a_run_compares_its_samples_with_its_own_evaluation(tmp_path, monkeypatch):
    seen = []
    facts = DataFacts(images=1, segments=[1], classes={}, sizes=[(48, 48)])
    monkeypatch.setattr(stages, "inspect_samples", lambda dataset, picture, evaluation: seen.append(evaluation) or facts)
    introduction(tmp_path, ModelSpec("detr_r50", 91), short_side=72)
    assert seen == [eval_transform(72)]


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_left_out_of_evaluation(scenes, capfd, workers):
    (scenes / "train" / "000002.png").write_bytes(b"no picture")
    (scenes / "panoptic_train" / "000004.png").write_bytes(b"no map")
    cv2.imwrite(str(scenes / "train" / "000005.png"), np.zeros((40, 40, 3), np.uint8))
    data = DataConfig(root=scenes, train_split="train", val_split="train", workers=workers)

    def opened(train=None, **changes):
        given = (replace(data, **changes), InferenceSettings(short_side=None), train or TrainConfig(), scene_categories())
        return build_data.open_val_set(*given, Fabric(accelerator="cpu")).image_ids

    assert opened() == [0, 1, 2, 3, 4, 5]
    assert opened(on_unreadable="skip") == [0, 1, 3]
    text = capfd.readouterr().err
    assert text.count("left out of evaluation: ") == 3
    assert "the image is 40x40 pixels but its annotation" in text
    assert "000002.png" in text
    assert "000004.png" in text
    assert opened(TrainConfig(overfit=4), on_unreadable="skip") == [0, 1, 3]
    assert opened(on_unreadable="skip", val_limit=3) == [0, 1]


@pytest.mark.parametrize(("key", "value"), [("name", "pentagon"), ("isthing", 0)])
def test_a_validation_set_of_other_categories_is_refused(scenes, key, value):
    write_scenes(scenes, 2, size=48, split="val", workers=1)
    path = scenes / "annotations" / "panoptic_val.json"
    content = json.loads(path.read_text())
    data, settings = DataConfig(root=scenes, train_split="train", val_split="val"), InferenceSettings(short_side=None)
    used = {row["category_id"] for entry in content["annotations"] for row in entry["segments_info"]}
    rows = content["categories"]
    content["categories"] = [row for row in rows if row["id"] in used or row["id"] == 1]
    path.write_text(json.dumps(content))
    whole = build_data.open_val_set(data, settings, TrainConfig(), scene_categories(), Fabric(accelerator="cpu"))
    assert whole.categories == scene_categories()  # it may lack some
    rows[0][key] = value
    content["categories"] = rows
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"panoptic_val\.json: category 1 is '(pentagon|circle)' .* but 'circle' \(thing\) in"):
        build_data.open_val_set(data, settings, TrainConfig(), scene_categories(), Fabric(accelerator="cpu"))


def test_an_evaluation_without_any_readable_image_is_refused(scenes):
    for path in (scenes / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 6 images for evaluation can be read; the last one: .*000005"):
        readable_part(CocoPanoptic.from_root(scenes, "train"), Fabric(accelerator="cpu"))


def test_unreadable_images_are_left_out_and_named_once(scenes, capsys):
    (scenes / "train" / "000002.png").write_bytes(b"no picture")
    whole = CocoPanoptic.from_root(scenes, "train", transforms=scenes_transform())
    with pytest.raises(DataError):
        whole[2]
    tolerant = TolerantPanoptic.from_root(scenes, "train", transforms=scenes_transform())
    assert [tolerant[i].target.image_id for i in (1, 2, 3, 2)] == [1, 3, 3, 3]
    text = capsys.readouterr().err
    assert text.count("left out: ") == 1
    assert "000002.png" in text
    for path in (scenes / "train").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="20 samples in a row cannot be read; the last one: "):
        tolerant[0]


def curve(train, val):
    return [(100 * (i + 1), float(a), float(b)) for i, (a, b) in enumerate(zip(train, val, strict=True))]


@pytest.mark.parametrize(
    ("train", "val", "kind", "words"),
    [
        ((9, 6, 4, 3, 2), (9, 7, 6, 7, 8), "over", r"since step 300 .*\(4\.000 to 2\.000\).*\(6\.000 to 8\.000\)"),
        ((9, 6, 4, 3, 2), (9, 7, 6, 5.5, 6), "gap", "more images"),
        ((9, 8, 7, 6, 5), (9, 8, 7, 6, 5), "under", "more steps"),
        ((9, 6, 5, 4.9, 4.9), (9, 7, 6, 5.5, 5.5), "fits", "do not drift apart"),
        ((9, 6, 5, 6, 7), (9, 7, 6, 7, 8), "fits", "do not drift apart"),  # both rise: that is no overfitting
        ((9, 6), (9, 7), "", ""),
        ((9, 6, float("nan")), (9, 7, 8), "", ""),
    ],
)
def test_the_curves_of_both_losses_tell_over_from_underfitting(train, val, kind, words):
    found, sentence = learning_verdict(curve(train, val))
    assert found == kind
    assert re.search(words, sentence)


def test_training_losses_are_averaged_between_evaluations_and_both_are_drawn(tmp_path):
    (tmp_path / "log.csv").write_text("step,loss,lr\n" + "".join(f"{s},{100 - s},1\n" for s in range(10, 61, 10)))
    (tmp_path / "scores.csv").write_text("step,PQ,val loss\n20,0.1,90\n40,0.2,91\n60,0.2,99\n")
    assert loss_curve(tmp_path) == [(20, 85.0, 90.0), (40, 65.0, 91.0), (60, 45.0, 99.0)]
    with_val = draw_curves(tmp_path).read_bytes()
    (tmp_path / "scores.csv").write_text("step,PQ\n20,0.1\n40,0.2\n60,0.2\n")
    assert loss_curve(tmp_path) == []
    assert draw_curves(tmp_path).read_bytes() != with_val
