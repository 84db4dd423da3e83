"""Both stages from their settings: what a model says of itself decides about its losses, not how it is called."""

from functools import partial

import pytest
import torch
from training.criterion_helpers import LABELS, output, target
from training.trainer_helpers import TINY

import panoptic_detr as pd
from panoptic_detr import build_criterion, zoo
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.losses import LossConfig
from panoptic_detr.config.stages import AugmentationConfig, DataConfig, DetectorStage, MaskStage, ModelConfig, TrainConfig
from panoptic_detr.errors import ConfigError, DataError, TrainingError
from panoptic_detr.models import build_detr
from panoptic_detr.models.deformable import build_deformable_detr
from panoptic_detr.training import stages

DEFORMABLE = {"backbone": "small", "hidden_dim": 16, "num_heads": 2, "ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1}


@pytest.fixture
def own_detector(monkeypatch):
    """A detector with a no-object class, registered under a name that begins like none of ours."""
    monkeypatch.setitem(zoo.BUILDERS, "my_detr", build_detr)
    return "my_detr"


def test_a_detector_of_any_name_trains_with_its_own_class_loss(own_detector, scenes, tmp_path, monkeypatch):
    seen = []
    fit = stages.Trainer.fit
    monkeypatch.setattr(stages.Trainer, "fit", lambda trainer: (seen.append(trainer), fit(trainer))[1])
    stage = DetectorStage(
        model=ModelConfig(name=own_detector, overrides=TINY),
        data=DataConfig(root=scenes, train_split="train", val_split=None, workers=0),
        augmentation=AugmentationConfig(preset="none"),
        train=TrainConfig(output=tmp_path / "run", steps=1, batch_size=2, tensorboard=False),
    )
    stage.inference = type(stage.inference)(short_side=None)
    stages.train_detector(stage)
    (trainer,) = seen
    assert trainer.criterion.matcher.class_cost == "softmax"
    assert trainer.criterion.weights.class_ == trainer.criterion.matcher.class_weight == 1.0
    assert (tmp_path / "run" / "best.pt").is_file()
    masks = MaskStage(**{**vars(stage), "model": ModelConfig(name="")}, detector=str(tmp_path / "run" / "best.pt"))
    masks.train = TrainConfig(output=tmp_path / "masks", steps=1, batch_size=2, tensorboard=False)
    stages.train_masks(masks)
    criterion = seen[-1].criterion
    assert (criterion.masks, criterion.matcher.class_cost, criterion.weights.class_) == (True, "softmax", 0.0)


def test_the_criterion_of_a_name_is_that_of_its_builder(own_detector, monkeypatch):
    found, targets = output(), [target(2), target(1, 1)]
    here, there = (build_criterion(name, num_labels=LABELS)(found, targets) for name in (own_detector, "detr_r50"))
    assert torch.equal(here.total, there.total)
    assert build_criterion(own_detector + "_panoptic", num_labels=LABELS).masks
    monkeypatch.setitem(zoo.BUILDERS, "detr_mine", partial(build_deformable_detr, **DEFORMABLE))
    monkeypatch.setitem(zoo.BUILDERS, "mine", partial(zoo.BUILDERS["deformable_detr_r50_two_stage"], num_one_to_many=5))
    assert build_criterion("detr_mine").matcher.class_cost == "sigmoid"
    assert build_criterion("detr_mine").hybrid.scheme == "none"
    assert build_criterion("mine").hybrid.scheme == "branch"


def test_null_leaves_the_detectors_terms_out_where_it_is_frozen():
    model = zoo.build_model("detr_r50", num_labels=LABELS, **TINY)
    given = LossConfig(class_weight=None, l1_weight=3.0)
    weights = [stages.criterion_for(model, LABELS, given, frozen_detector=frozen).weights for frozen in (False, True)]
    assert [(w.class_, w.box_l1, w.box_giou, w.dense) for w in weights] == [(1.0, 3.0, 2.0, 5.0), (0.0, 3.0, 0.0, 0.0)]


def stage_on(scenes, output, **data):
    return DetectorStage(
        model=ModelConfig(name="detr_r50", overrides=TINY),
        data=DataConfig(**{"root": scenes, "train_split": "train", "val_split": "train", "workers": 0, **data}),
        augmentation=AugmentationConfig(preset="none"),
        train=TrainConfig(output=output, steps=1, batch_size=2, tensorboard=False),
        inference=InferenceSettings(short_side=None),
    )


def test_a_result_that_was_cut_short_is_not_called_one(scenes, tmp_path, capsys):
    stage = stage_on(str(scenes), str(tmp_path / "run"))  # text is as good as a path
    assert pd.train_detector(stage) == tmp_path / "run" / "best.pt"
    assert "validation and training have the same images" in capsys.readouterr().err
    stage.train.resume = True
    assert pd.train_detector(stage) == tmp_path / "run" / "best.pt"
    whole = (tmp_path / "run" / "best.pt").read_bytes()
    (tmp_path / "run" / "best.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"the run is over, but its result is unusable: .*best\.pt.* has the last weights"):
        pd.train_detector(stage)


def test_where_there_is_no_validation_split_both_ways_out_are_named(scenes, tmp_path):
    with pytest.raises(DataError, match=r"no validation split 'val': .*`panoptic-detr data split .* --data.val_split null"):
        stages.train_detector(stage_on(scenes, tmp_path / "run", val_split="val"))


def test_more_processes_than_devices_are_refused_by_number(scenes, tmp_path):
    stage = stage_on(scenes, tmp_path / "run")
    stage.train.devices, stage.train.accelerator = 1000, "cpu"
    with pytest.raises(ConfigError, match=r"train\.devices is 1000, but this machine has \d+ CPU cores"):
        stages.train_detector(stage)
