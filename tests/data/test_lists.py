"""Lists on the command line: with commas, with blanks, and as YAML writes them."""

import json
from pathlib import Path

import numpy as np
import pytest
from data.conversions import picture, write

from panoptic_detr.commands.data import main
from panoptic_detr.config.reading import gather_lists, read_config
from panoptic_detr.config.stages import DetectorStage
from panoptic_detr.errors import ConfigError

KINDS = {"stuff": list[str] | None, "void": list[int], "rest": str | None}


@pytest.mark.parametrize(
    ("typed", "gathered"),
    [
        ("--stuff sky,road", '--stuff=["sky", "road"]'),
        ("--stuff sky road", '--stuff=["sky", "road"]'),
        ("--stuff=sky,road", '--stuff=["sky", "road"]'),
        ("--stuff sky", '--stuff=["sky"]'),
        ("--stuff no", '--stuff=["no"]'),
        ("--stuff [sky,road] in", "--stuff=[sky,road] in"),
        ("--stuff sky,road in --rest x", '--stuff=["sky", "road"] in --rest x'),
        ("--stuff sky road --void 0 255", '--stuff=["sky", "road"] --void=[0, 255]'),
        ("--stuff null", "--stuff=null"),
        ("--stuff --rest x", "--stuff --rest x"),
        ("in out --rest a,b", "in out --rest a,b"),
    ],
)
def test_every_spelling_is_one_word(typed, gathered):
    assert " ".join(gather_lists(typed.split(), KINDS)) == gathered


@pytest.mark.parametrize("spelling", [["30,40"], ["30", "40"], ["[30, 40]"]])
def test_lists_of_settings(spelling):
    assert read_config(DetectorStage, ["--optimizer.drop_at", *spelling]).optimizer.drop_at == [30, 40]


def test_lists_of_converters(tmp_path):
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "masks" / "a.png", np.array([[0, 1, 2, 3, 4, 5]] * 4, np.uint8))
    for number, spelling in enumerate((["4,5"], ["4", "5"], ["[4, 5]"])):
        out = tmp_path / str(number)
        words = ["convert", "instance-masks", str(tmp_path / "images"), str(tmp_path / "masks"), str(out), "cell"]
        assert main([*words, "--void", *spelling, "--workers", "1"]) == 0
        content = json.loads((out / "annotations" / "panoptic_train.json").read_text())
        assert len(content["annotations"][0]["segments_info"]) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["scenes", "out", "--count", "many"], "panoptic-detr data scenes: 'count' must be int, but got 'many'"),
        (["check", "--queries", "x"], "panoptic-detr data check: 'queries' must be int"),
        (["convert", "labelme", "a", "b", "--copy_images", "7"], "'copy_images' must be bool, but got '7'"),
        (["convert", "coco-instances", "a", "b", "c", "--crowds", "x"], "'crowds' must be one of groups, objects"),
    ],
)
def test_a_value_of_the_wrong_type_is_one_sentence(words, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_packaged_settings_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = read_config(DetectorStage, ["--config", str(Path(__file__).parents[2] / "configs/finetune/small_boxes.yaml")])
    for name in ("finetune/small_boxes", "finetune/small_boxes.yaml", "configs/finetune/small_boxes.yaml"):
        assert read_config(DetectorStage, ["--config", name]) == expected
        assert read_config(DetectorStage, [f"--config={name}"]) == expected
    assert read_config(DetectorStage, []) != expected
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "small_boxes").write_text("train: {steps: 7}")
    assert read_config(DetectorStage, ["--config", "finetune/small_boxes"]).train.steps == 7
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(DetectorStage, ["--config", "finetune/no_such"])
