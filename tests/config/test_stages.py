from pathlib import Path
from typing import Literal

import pytest

from panoptic_detr.config.losses import LossConfig
from panoptic_detr.config.reading import plain, read_config, read_config_or_exit, save_config, typed_keys
from panoptic_detr.config.stages import (
    AugmentationConfig,
    DataConfig,
    DetectorStage,
    MaskStage,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
)
from panoptic_detr.config.types import type_name
from panoptic_detr.errors import ConfigError
from panoptic_detr.training.stages import train_detector, train_masks


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "stage.yaml"
    path.write_text(
        "model: {name: detr_r50, overrides: {num_queries: 25, box_scale: 1e-3}}\n"
        "optimizer: {lr: 2e-3, drop_at: [3, 5]}\n"
        "train: {steps: 5, output: runs/x}\n"
        "loss: {class_weight: 2}\n"
    )
    return str(path)


def test_file_and_command_line(config_file):
    stage = read_config(
        DetectorStage,
        [
            "--config",
            config_file,
            "--train.steps",
            "7",
            "--model.overrides.num_queries=9",
            "--data.root",
            "coco",
            "--loss.aux_loss",
            "false",
        ],
    )
    assert stage.model.overrides == {"num_queries": 9, "box_scale": 0.001}
    assert stage.optimizer == OptimizerConfig(lr=0.002, drop_at=[3, 5])
    assert stage.train == TrainConfig(steps=7, output=Path("runs/x"))
    assert stage.data.root == Path("coco")
    assert stage.loss == LossConfig(class_weight=2, aux_loss=False)


def test_stage_2_names_no_model_of_its_own(tmp_path):
    assert read_config(DetectorStage, []).model.name == "detr_r50"
    stage = read_config(MaskStage, ["--model.overrides.num_queries", "5"])
    assert (stage.model.name, stage.model.overrides) == ("", {"num_queries": 5})
    save_config(stage, tmp_path / "saved.yaml")
    assert read_config(MaskStage, ["--config", str(tmp_path / "saved.yaml")]) == stage


def test_later_file_wins(config_file, tmp_path):
    later = tmp_path / "later.yaml"
    later.write_text("optimizer: {lr: 1}\n")
    stage = read_config(DetectorStage, [f"--config={config_file}", "--config", str(later)])
    assert stage.optimizer.lr == 1.0
    assert stage.optimizer.drop_at == [3, 5]


def test_saved_config_reads_back_equal(config_file, tmp_path):
    stage = read_config(MaskStage, ["--config", config_file, "--detector", "a/b.pt", "--joint", "true"])
    save_config(stage, tmp_path / "saved.yaml")
    assert read_config(MaskStage, ["--config", str(tmp_path / "saved.yaml")]) == stage
    assert plain(stage)["detector"] == "a/b.pt"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("augmentation: {horizontal_flip: 50}", r"setting 'augmentation\.horizontal_flip' must be in \[0, 1\], but got 50"),
        ("augmentation: {brightness: 20}", r"setting 'augmentation\.brightness' must be in \[0, 1\], but got 20"),
        ("augmentation: {short_sides: [64, -64]}", r"setting 'augmentation\.short_sides' must be at least 1, but got -64"),
        ("augmentation: {short_sides: []}", r"setting 'augmentation\.short_sides' is an empty list"),
        ("augmentation: {crop_size: 0}", r"setting 'augmentation\.crop_size' must be at least 1, but got 0"),
        (
            "model:\n  overrides:\n    # none",
            r"section 'model\.overrides' in .*bad\.yaml is empty; give it settings, or leave it out",
        ),
        ("loss:\n  # none", r"section 'loss' in .*bad\.yaml is empty"),
        ("train:", r"section 'train' in .*bad\.yaml is empty"),
        ("train: 5", r"section 'train' in .*bad\.yaml must hold keys and values, but holds int"),
        ("loss: [1]", r"section 'loss' in .*bad\.yaml must hold keys and values, but holds list"),
        ("model: {nmae: x}", r"unknown setting 'model\.nmae' in .*bad\.yaml; did you mean 'model\.name'\?"),
        ("train: {lr: 1}", r"unknown setting 'train\.lr' .*did you mean 'optimizer\.lr'\?"),
        ("optimiser: {lr: 1}", r"unknown setting 'optimiser' .*did you mean 'optimizer'\?"),
        ("optimizer: {lr: fast}", r"setting 'optimizer\.lr' must be float, but got 'fast'"),
        ("train: {steps: 1.5}", r"setting 'train\.steps' must be int or null, but got '1\.5'"),
        ("train: {precision: 8}", r"must be one of 32-true, bf16-mixed, 16-mixed, but got '8'"),
        ("optimizer: {drop_at: x}", r"setting 'optimizer\.drop_at' must be list\[int\], but got 'x'"),
        ("optimizer: {drop_at: [5, 3]}", r"ascending order, but got \[5, 3\]"),
        ("optimizer: {warmup: 1.5}", r"fraction of the run in \[0, 1\), but got 1\.5"),
        ("optimizer: {lr: -1}", r"setting 'optimizer\.lr' must be at least 0, but got -1"),
        ("train: {batch_size: 0}", r"setting 'train\.batch_size' must be at least 1, but got 0"),
        ("train: {seed: -1}", r"setting 'train\.seed' must be at least 0, but got -1"),
        ("train: {seed: 4294967295}", r"setting 'train\.seed' must be below 2\*\*32 less one per process, but got 4294967295"),
        ("data: {train_limit: 0}", r"setting 'data\.train_limit' must be at least 1, but got 0"),
        ("data: {val_limit: 0}", r"setting 'data\.val_limit' must be at least 1, but got 0"),
        ("train: {ema_decay: 1.0}", r"must be in \[0, 1\), but got 1\.0"),
        ("train: {lr: [", r"bad\.yaml' is not valid YAML: "),
        ("loss: {l1_wieght: 1}", r"unknown setting 'loss\.l1_wieght' in .*bad\.yaml; did you mean 'loss\.l1_weight'\?"),
        ("train: {steps: 1}\nloss: {}\ntrain: {seed: 1}\n", r"bad\.yaml': 'train' stands twice, in line 1 and in line 3"),
        ("train:\n  steps: 1\n  seed: 2\n  steps: 3\n", r"bad\.yaml': 'steps' stands twice, in line 2 and in line 4"),
        ("model: &m\n  overrides: *m\n", r"bad\.yaml': what begins in line 1 holds itself"),
        ("- a\n- b\n", r"must hold keys and values, but holds list"),
    ],
)
def test_wrong_file(tmp_path, text, message):
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_config(DetectorStage, ["--config", str(path)])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "nowhere.yaml"], r"config file 'nowhere\.yaml' cannot be read: No such file"),
        (["--lr", "1"], r"unknown setting 'lr' in the command line; did you mean 'optimizer\.lr'\?"),
        (["--train.stesp=1"], r"did you mean 'train\.steps'\?"),
        (["--detector", "x"], r"setting 'detector' in the command line belongs to train_masks"),
        (["--optimizer.learning_rate", "1"], r"unknown setting 'optimizer\.learning_rate' .*did you mean 'optimizer\.lr'\?"),
        (["--learning_rate", "1"], r"unknown setting 'learning_rate' .*did you mean 'optimizer\.lr'\?"),
        (["--batchsize", "1"], r"unknown setting 'batchsize' .*did you mean 'train\.batch_size'\?"),
        (["--val_splitt", "x"], r"unknown setting 'val_splitt' .*did you mean 'data\.val_split'\?"),
        (["--train.log_rows", "1"], r"unknown setting 'train\.log_rows' .*did you mean 'train\.log_every'\?"),
        (["--train.step", "1"], r"unknown setting 'train\.step' .*did you mean 'train\.steps'\?"),
        (["--optimizer.rate", "1"], r"unknown setting 'optimizer\.rate' .*did you mean 'optimizer\.lr'\?"),
        (["--train.frobnicate", "1"], r"unknown setting 'train\.frobnicate' in the command line; what a model's builder takes"),
        (["--loss.box_weight", "5"], r"unknown setting 'loss\.box_weight' in the command line; did you mean 'loss\."),
        (["--loss.mask_points", "many"], r"setting 'loss\.mask_points' must be int, but got 'many'"),
        (["--loss.hybrid", "both"], r"setting 'loss\.hybrid' must be one of none, branch, epoch, layer, auto, but got 'both'"),
        (
            ["--inference", "{a:1}"],
            r"section 'inference' holds keys and values; give them one by one, as --inference\.NAME VALUE",
        ),
        (["--model.overrides", "5"], r"section 'model\.overrides' holds keys and values"),
        (["--train.steps", "[1,2]"], r"setting 'train\.steps' must be int or null, but got '\[1, 2\]'"),
        (["--train.resume", "maybe"], r"setting 'train\.resume' must be bool, but got 'maybe'"),
        (["--train.steps"], r"--train\.steps: expected one argument"),
        (["stray"], r"unrecognized arguments: stray"),
    ],
)
def test_wrong_command_line(arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_config(DetectorStage, arguments)


def test_wrong_setting_is_one_line_and_exit_code_2(capsys):
    with pytest.raises(SystemExit) as caught:
        read_config_or_exit(DetectorStage, ["--train.steps", "many"], prog="train_detector", description="")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "train_detector: setting 'train.steps' must be int or null, but got 'many'\n"


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as caught:
        read_config(MaskStage, ["--help"], prog="train_masks", description="Train masks.")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    leaves = [key for key in typed_keys(MaskStage) if "." in key or key in ("loss", "inference", "detector", "joint")]
    assert len(leaves) > 40
    assert [key for key in leaves if f"--{key}" not in text] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--model.overrides.num_classes", "5"],
            r"no setting 'model\.overrides\.num_classes': the classes, and so their number",
        ),
        (["--model.overrides.num_labels", "5"], r"come from the categories of the annotations; leave it out"),
        (["--num_classes", "5"], r"unknown setting 'num_classes' in the command line: the classes, and so their number, come"),
        (["--model.num_classes", "5"], r"unknown setting 'model\.num_classes' in the command line: the classes"),
        (["--model.num_queries", "5"], r"builder takes goes under 'model\.overrides', what the criterion takes under 'loss'\."),
        (["--loss.hybrid_weight", "2"], r"'loss\.hybrid_weight'; did you mean 'loss\.one_to_many_weight'\?"),
        (
            ["--loss.hybrid.weight", "2"],
            r"'loss\.hybrid\.weight'; did you mean 'loss\.one_to_many_weight'\? 'loss\.hybrid' itself",
        ),
    ],
)
def test_settings_under_other_names_are_pointed_to(arguments, message):
    with pytest.raises(ConfigError, match=message):
        read_config(MaskStage, arguments)


def test_several_lists_of_choices_read_as_one():
    assert type_name(Literal["a", "b"] | Literal["auto"]) == "one of a, b, auto"
    assert type_name(Literal["a"] | None) == "one of a or null"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
def test_numbers_are_finite(value):
    with pytest.raises(ConfigError, match=r"setting 'optimizer.lr' must be at least 0( and finite)?, but got"):
        OptimizerConfig(lr=value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(seed=None), "'train.seed' must be int, but got None"),
        (lambda: TrainConfig(output=None), "'train.output' must be a path, but got None"),
        (lambda: TrainConfig(ema_decay="x"), "'train.ema_decay' must be float, but got 'x'"),
        (lambda: TrainConfig(strategy="x"), "'train.strategy' must be one of auto, ddp, fsdp, but got 'x'"),
        (lambda: OptimizerConfig(drop_at=None), "'optimizer.drop_at' must be"),
        (lambda: OptimizerConfig(drop_at=["a"]), "'optimizer.drop_at' must be"),
        (lambda: ModelConfig(overrides=None), "'model.overrides' must be"),
        (lambda: DataConfig(root=5), "'data.root' must be a path or null, but got 5"),
        (lambda: AugmentationConfig(preset="x"), "'augmentation.preset' must be one of paper"),
        (lambda: LossConfig(aux_loss=3), "'loss.aux_loss' must be bool, but got 3"),
        (lambda: DetectorStage(model=None), "'train_detector.model' must be ModelConfig, but got None"),
        (lambda: train_detector("a.yaml"), "a DetectorStage is needed, but got 'a.yaml'"),
        (lambda: train_masks(DetectorStage()), "a MaskStage is needed, but got DetectorStage"),
    ],
)
def test_settings_made_in_python_keep_their_types(make, message):
    with pytest.raises(ConfigError, match=message):
        make()


def test_texts_are_paths_and_tuples_lists_where_these_are_wanted():
    assert DataConfig(root="a", train_split="b").root == Path("a")
    assert AugmentationConfig(preset="photos", window=(64, 96)).window == [64, 96]


def test_a_yaml_without_end_is_no_settings(tmp_path):
    (tmp_path / "deep.yaml").write_text("[" * 3000)
    with pytest.raises(ConfigError, match=r"deep\.yaml' is not valid YAML: maximum recursion depth"):
        read_config(DetectorStage, ["--config", str(tmp_path / "deep.yaml")])
