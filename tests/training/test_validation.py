"""Scores and sample pictures of the validation set while a model trains."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.losses import LossConfig
from panoptic_detr.config.stages import DetectorStage, MaskStage, TrainConfig
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.evaluation import evaluate as evaluate_module
from panoptic_detr.parallel import progress_bar
from panoptic_detr.training.losses import criterion_for
from panoptic_detr.training.run.log import open_board, write_pictures
from panoptic_detr.training.watch.validation import evaluator, sample_drawer
from panoptic_detr.zoo import build_model

TINY = {"backbone": "small", "backbone_norm": "batch", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 5, size=48, workers=1)
    return CocoPanoptic.from_root(root, "train", transforms=eval_transform(None))


def tiny(name):
    torch.manual_seed(0)
    return build_model(name, num_labels=8, **TINY, encoder_layers=1, decoder_layers=1, num_queries=4).eval()


def stage_of(kind, **train):
    return kind(inference=InferenceSettings(threshold=0.05), train=TrainConfig(output=Path("never"), **train))


@pytest.mark.parametrize(
    ("kind", "name"), [(DetectorStage, "detr_r50"), (DetectorStage, "mask_detr_r50"), (MaskStage, "detr_r50_panoptic")]
)
def test_truth_and_prediction_of_the_same_images_are_drawn_at_every_evaluation(kind, name, dataset):
    model, draw = tiny(name), sample_drawer(stage_of(kind, sample_pictures=3), dataset)
    before = torch.get_rng_state()
    first, again = draw(model), draw(model)
    assert torch.equal(before, torch.get_rng_state())
    assert list(first) == [str(dataset.image_ids[index]) for index in (0, 2, 4)]
    count = 2 if name == "detr_r50" else 3  # with masks also the errors
    for name, picture in first.items():
        assert picture.dtype == np.uint8
        assert picture.shape[1] > count * 48 * 6
        np.testing.assert_array_equal(picture, again[name])
    # Another model: its prediction changes, the annotation beside it does not.
    with torch.no_grad():
        for head in (parameter for key, parameter in model.named_parameters() if "_embed" in key):
            head.add_(torch.randn(head.shape))
    for name, picture in draw(model).items():
        left = picture.shape[1] // count - 20
        np.testing.assert_array_equal(picture[:, :left], first[name][:, :left])
        assert not np.array_equal(picture[:, left:], first[name][:, left:])


@pytest.mark.parametrize(
    ("kind", "name", "first"),
    [(DetectorStage, "detr_r50", "box AP"), (DetectorStage, "mask_detr_r50", "PQ"), (MaskStage, "detr_r50_panoptic", "PQ")],
)
def test_an_evaluation_shows_its_own_bar(kind, name, first, dataset, monkeypatch):
    seen = []

    def bar(*, shown):
        seen.append(shown)
        return progress_bar(shown=False)

    monkeypatch.setattr(evaluate_module, "progress_bar", bar)
    evaluate = evaluator(stage_of(kind), dataset, Fabric(accelerator="cpu", devices=1))
    assert next(iter(evaluate(tiny(name)))) == first
    assert seen == [True]


def test_an_evaluation_brings_its_tables(dataset):
    scores = evaluator(stage_of(MaskStage), dataset, Fabric(accelerator="cpu", devices=1))(tiny("detr_r50_panoptic"))
    assert scores.classes
    assert {"id", "name", "pq", "sq", "rq", "tp", "fp", "fn", "points_missed"} <= set(scores.classes[0])
    assert all(row["tp"] + row["fp"] + row["fn"] for row in scores.classes)
    assert sum(scores.lost.values()) == pytest.approx(1 - scores["PQ"])


def test_without_validation_set_or_wish_there_is_nothing_to_call(dataset):
    assert sample_drawer(stage_of(DetectorStage), None) is None
    assert sample_drawer(stage_of(DetectorStage, sample_pictures=0), dataset) is None
    assert evaluator(stage_of(DetectorStage), None, Fabric(accelerator="cpu", devices=1)) is None


def test_tensorboard_gets_the_pictures(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = open_board(tmp_path, 0)
    write_pictures(board, {"7": np.full((4, 6, 3), 200, np.uint8)}, 30)
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.width, event.height) for event in events.Images("samples/7")] == [(30, 6, 4)]


@pytest.mark.parametrize("kind", [DetectorStage, MaskStage])
def test_the_loss_of_the_validation_set_has_the_terms_of_training_and_leaves_random_numbers_alone(kind, dataset):
    torch.manual_seed(0)
    overrides = {**TINY, "hidden_dim": 32, "encoder": "dense", "dense_aux": True, "num_one_to_many": 3, "dropout": 0.5}
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "num_queries": 4}
    model = build_model("h_deformable_detr_r50" + "_panoptic" * (kind is MaskStage), num_labels=8, **overrides, **sizes).eval()
    stage = stage_of(kind)
    criterion = criterion_for(model, 8, LossConfig(), frozen_detector=kind is MaskStage)
    seen = []
    criterion.register_forward_hook(lambda module, inputs, losses: seen.append((set(losses.terms), float(losses.total))))
    before = torch.get_rng_state()
    evaluate = evaluator(stage, dataset, Fabric(accelerator="cpu", devices=1), criterion)
    scores = evaluate(model)
    assert torch.equal(before, torch.get_rng_state())
    assert list(scores)[-1] == "val loss"
    assert scores["val loss"] == pytest.approx((4 * seen[0][1] + seen[1][1]) / 5)  # batches of four images and of one
    assert evaluate(model)["val loss"] == scores["val loss"]
    assert not any(module.training for module in model.modules())
    extra = {"dense", "class_one_to_many"}
    assert (extra <= seen[0][0]) == (kind is DetectorStage)
    assert ("mask_dice" in seen[0][0]) == (kind is MaskStage)
