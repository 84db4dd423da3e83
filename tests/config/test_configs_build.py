"""Every file under configs/ reads, builds its model and criterion, and says what it costs."""

import re
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric

from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.losses import LossConfig
from panoptic_detr.config.reading import plain, read_config
from panoptic_detr.config.stages import AugmentationConfig, DataConfig, DetectorStage, MaskStage, TrainConfig
from panoptic_detr.data.scenes.dataset import scene_categories
from panoptic_detr.data.transforms import eval_transform
from panoptic_detr.errors import ConfigError, DataError
from panoptic_detr.structures import Sample, Target
from panoptic_detr.training import build_data, stages
from panoptic_detr.training.losses import MaskCriterion, build_criterion, criterion_for
from panoptic_detr.training.optimizer import parameter_groups, rate_factor
from panoptic_detr.training.watch.sanity import DataFacts
from panoptic_detr.weights.published import PUBLISHED
from panoptic_detr.zoo import PANOPTIC, build_model

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
PAPER = {"detr_r50", "detr_r50_dc5", "detr_r101", "detr_r101_dc5"}


def read(path):
    stage = MaskStage if "masks" in path.stem else DetectorStage
    return read_config(stage, ["--config", str(path)])


def test_there_are_configs():
    names = {path.stem for path in CONFIGS if path.parent.name == "coco"}
    assert {f"{model}_{stage}" for model in PAPER for stage in ("boxes", "masks")} <= names
    assert {path.stem for path in CONFIGS if path.parent.name == "scenes"} >= {"detector", "masks"}
    finetune = {path.stem for path in CONFIGS if path.parent.name == "finetune"}
    assert finetune >= {
        f"{name}_{stage}" for name in ("detr_r50", "nuclei", "overfit", "photos") for stage in ("boxes", "masks")
    }


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_builds(path):
    stage, detector = read(path), read(path.with_name(path.name.replace("masks", "boxes" if "_" in path.stem else "detector")))
    name = detector.model.name + (PANOPTIC if isinstance(stage, MaskStage) else "")
    overrides = {**detector.model.overrides, **stage.model.overrides, "pretrained_backbone": False}
    with torch.device("meta"):
        model = build_model(name, num_labels=133, **overrides)
    groups = {group.name: group.lr for group in parameter_groups(model, stage.optimizer)}
    assert groups["transformer and heads"] == stage.optimizer.lr
    criterion = criterion_for(model, 133, stage.loss)
    assert isinstance(criterion, MaskCriterion) or criterion.masks is isinstance(stage, MaskStage)
    build_data.build_augmentation(stage.augmentation, eval_transform())
    InferenceSettings.from_dict(plain(stage)["inference"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_evaluates_images_of_sizes_that_it_trains_on(path):
    stage, detector = read(path), read(path.with_name(path.name.replace("masks", "boxes" if "_" in path.stem else "detector")))
    whole = eval_transform(stage.inference.short_side, stage.inference.long_side)
    augmentation = build_data.build_augmentation(stage.augmentation, whole)
    in_fractions = not detector.model.name.startswith("mask_detr")
    facts = DataFacts(20, [1], {}, sizes_of(augmentation), eval_sizes=sizes_of(whole)[:1], fractions=in_fractions)
    assert not [line for line in facts.lines(100) if "warning" in line]


@cache
def sizes_of(transform):
    sample = Sample(
        torch.zeros(3, 480, 640, dtype=torch.uint8), Target(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4)), None
    )
    return [tuple(transform(sample, torch.Generator().manual_seed(seed)).image.shape[1:]) for seed in range(20)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_opens_with_command_and_cost(path):
    comment = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    text = "\n".join(comment)
    assert f"configs/{path.parent.name}/{path.name}" in text
    assert "Cost: " in text
    assert "train_masks" in text if "masks" in path.stem else "train_detector" in text


@pytest.mark.parametrize("name", sorted(PAPER))
def test_paper_recipe(name):
    folder = Path(__file__).parents[2] / "configs" / "coco"
    boxes, masks = read(folder / f"{name}_boxes.yaml"), read(folder / f"{name}_masks.yaml")
    assert boxes.model.name == name
    for stage, epochs, drop in ((boxes, 300, 200), (masks, 25, 15)):
        assert (stage.train.epochs, stage.optimizer.drop_at) == (epochs, [drop])
        assert (stage.optimizer.lr, stage.optimizer.backbone_lr_scale) == (1e-4, 0.1)
        assert (stage.optimizer.weight_decay, stage.optimizer.clip_norm) == (1e-4, 0.1)
        assert stage.train.batch_size * stage.train.accumulate * 8 == 64
        steps = [rate_factor(epoch * 10, epochs * 10, 10, stage.optimizer) for epoch in (0, drop - 1, drop, epochs - 1)]
        assert steps == pytest.approx([1, 1, 0.1, 0.1])
        assert stage.loss == LossConfig()
    assert masks.inference == InferenceSettings(threshold=0.85)


def test_own_data_starts_from_published_weights_and_the_converters_splits():
    folder = Path(__file__).parents[2] / "configs" / "finetune"
    for stage in (read(folder / "detr_r50_boxes.yaml"), read(folder / "detr_r50_masks.yaml")):
        assert stage.model.weights in PUBLISHED
        assert (stage.data.train_split, stage.data.val_split) == ("train", "val")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"preset": "paper", "crop_size": 64}, "'augmentation.crop_size' belongs to preset crops, not to paper"),
        ({"preset": "crops", "crop_probability": 0.5}, "'augmentation.crop_probability' does not go with preset crops"),
        ({"preset": "crops", "crop_size": 512}, "a crop of 512 pixels needs short sides of at least that, but got 256"),
    ],
)
def test_augmentation_settings_of_another_preset_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_data.build_augmentation(AugmentationConfig(**settings), eval_transform())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mask_dice_weight": "abc"}, "setting 'loss.mask_dice_weight' must be float, but got 'abc'"),
        ({"one_to_many_repeats": 2.5}, "setting 'loss.one_to_many_repeats' must be int, but got 2.5"),
        ({"aux_loss": 1}, "setting 'loss.aux_loss' must be bool, but got 1"),
        ({"class_weight": [1]}, r"setting 'loss.class_weight' must be float or null, but got \[1\]"),
        ({"mask_loss": "some"}, "setting 'loss.mask_loss' must be one of full, points, but got 'some'"),
        ({"hybrid": True}, "setting 'loss.hybrid' must be one of none, branch, epoch, layer, auto, but got True"),
        ({"box_weight": 1.0}, r"unknown setting 'loss.box_weight'; did you mean 'loss\."),
    ],
)
def test_wrong_settings_of_the_loss_are_refused_by_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        build_criterion("detr_r50_panoptic", num_labels=8, **settings)


def test_right_settings_of_the_loss_are_taken():
    settings = {"mask_dice_weight": 3, "class_weight": None, "one_to_many_repeats": 2, "mask_loss": "points", "hybrid": "auto"}
    assert build_criterion("h_deformable_detr_r50_panoptic", num_labels=8, **settings).weights.mask_dice == 3


@pytest.mark.parametrize(
    ("queries", "hybrid", "message"),
    [
        (5, "branch", None),
        (0, "epoch", None),
        (0, "none", None),
        (5, "epoch", "the model has 5 one-to-many queries, which cost time in training, but 'loss.hybrid: epoch' trains none"),
        (5, "none", "give --model.overrides.num_one_to_many 0, or --loss.hybrid branch"),
        (0, "branch", "'loss.hybrid: branch' trains one-to-many queries, and the model has none"),
    ],
)
@pytest.mark.parametrize("name", ["deformable_detr_r50_two_stage", "deformable_detr_r50_two_stage_panoptic"])
def test_one_to_many_queries_and_their_losses_go_together(name, queries, hybrid, message):
    sizes = {"hidden_dim": 16, "num_heads": 2, "ffn_dim": 16, "encoder_layers": 1, "decoder_layers": 1, "num_queries": 3}
    if name.endswith("_panoptic"):
        sizes |= {"hidden_dim": 128, "num_heads": 8}
    model = build_model(name, num_labels=8, backbone="small", num_one_to_many=queries, **sizes)
    criterion = build_criterion(name, num_labels=8, hybrid=hybrid)
    with nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        stages.check_one_to_many(model, criterion)


def test_training_data_at_explicit_places_has_no_validation_unless_named(tmp_path):
    places = {f"train_{name}": tmp_path / name for name in ("images", "panoptic", "annotations")}
    settings = (InferenceSettings(), TrainConfig(output=tmp_path), scene_categories(), Fabric(accelerator="cpu"))
    assert build_data.open_val_set(DataConfig(**places), *settings) is None
    with pytest.raises(DataError, match="no image folder at"):
        build_data.open_val_set(DataConfig(**places, root=tmp_path), *settings)


def test_the_short_schedule_of_h_detr_that_its_file_names():
    (path,) = (path for path in CONFIGS if path.stem == "h_deformable_detr_r50_boxes")
    options = re.findall(r"\(48\.7 in 12: (.*)\)", path.read_text())[0].split()
    stage = read_config(DetectorStage, ["--config", str(path), *options])
    assert stage.train.epochs == 12
    factors = [rate_factor(epoch, 12, 1, stage.optimizer) for epoch in (0, 10, 11)]
    assert factors == pytest.approx([1, 1, 0.1])
