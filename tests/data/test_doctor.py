"""Each kind of defect is planted and must be found by name, at its place, alone; the check's command says so."""

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from data.planting import BALL, CROWD, CUBE, LAWN, PLANTED_IN_JSON, check, plant_area
from data.planting_files import PLANTED_IN_FILES, exif_jpeg, plant_tiny
from PIL import Image

from panoptic_detr.commands.data import main
from panoptic_detr.data.coco.defects import KINDS, Defect
from panoptic_detr.data.doctor.examine import check_dataset, find_splits
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.errors import ConfigError, DataError
from panoptic_detr.images import exif_orientation
from panoptic_detr.segment_maps import png_kind

PLANTED = [*PLANTED_IN_JSON, *PLANTED_IN_FILES]


def test_a_clean_set_has_no_defect(clean):
    assert check(clean.root) == []


@pytest.mark.parametrize(("plant", "kinds", "segment_id"), PLANTED, ids=lambda value: getattr(value, "__name__", ""))
def test_planted_defect_is_found_by_name(clean, plant, kinds, segment_id):
    plant(clean)
    clean.save()
    found = check(clean.root)
    assert {defect.kind for defect in found} == kinds
    assert segment_id in {defect.segment_id for defect in found}
    for defect in found:
        assert defect.split == "val"
        assert Path(defect.file).is_absolute()
        assert defect.kind in defect.line()
        assert KINDS[defect.kind].remedy in defect.line()


def test_tiny_segments_are_noted(clean):
    plant_tiny(clean)
    clean.save()
    defects: list[Defect] = []
    check_dataset(find_splits(clean.root), defects.append, workers=0)
    assert {(d.kind, d.segment_id) for d in defects} >= {("segment_tiny", 77)}
    assert LAWN not in {d.segment_id for d in defects}


def test_every_kind_is_planted_somewhere():
    planted = set().union(*(kinds for _, kinds, _ in PLANTED))
    elsewhere = {"json_unreadable", "segment_tiny", "image_in_two_splits", "categories_differ"}
    assert planted | elsewhere == set(KINDS)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"images": [1, null], "annotations": [[]], "categories": ["x"]}'])
def test_json_garbage_is_a_defect(layout, text):
    layout.json.write_text(text)
    kinds = {defect.kind for defect in check(layout.root)}
    assert kinds & {"json_unreadable", "image_invalid"}


def other_split(layout: Any) -> dict[str, Any]:
    """The same data set again as split train; returns its content."""
    for source, name in ((layout.jpg.parent, "train"), (layout.png.parent, "panoptic_train")):
        (layout.root / name).mkdir()
        for file in source.iterdir():
            (layout.root / name / file.name).write_bytes(file.read_bytes())
    return copy.deepcopy(layout.content)


def test_pictures_in_two_splits_and_other_categories(clean):
    content = other_split(clean)
    content["categories"][0]["name"] = "sphere"
    clean.json.with_name("panoptic_train.json").write_text(json.dumps(content))
    found = {defect.kind: defect for defect in check(clean.root)}
    assert found.keys() == {"image_in_two_splits", "categories_differ"}
    assert found["image_in_two_splits"].image_id == 7
    assert "of train" in found["image_in_two_splits"].what
    assert "2 is 'ball' (thing) here and 'sphere' (thing) in train" in found["categories_differ"].what


def test_scenes_are_clean(tmp_path):
    write_scenes(tmp_path, 6, size=64, workers=0)
    errors = [defect for defect in check(tmp_path) if defect.severity == "error"]
    assert errors == []


def test_command_reports_counts_and_writes_json_and_figure(clean, capsys):
    plant_area(clean)
    clean.save()
    out = clean.root / "out"
    outputs = ["--json", str(out / "defects.json"), "--figure", str(out / "statistics.png")]
    assert main(["check", "--root", str(clean.root), "--queries", "2", "--workers", "1", *outputs]) == 1
    text = capsys.readouterr().out
    assert f"image 7, {clean.json}, segment {CUBE}: area is 5, but it has 4 pixels; count the pixels (--fix can)" in text
    assert "1 images: 1 errors" in text
    content = json.loads((out / "defects.json").read_text())
    assert content["defects"][-1]["segment_id"] in (CUBE, CROWD, BALL)
    assert content["summary"]["errors"] == {"area_wrong": 1}
    statistics = content["summary"]["statistics"]["val"]
    assert statistics["images_over_queries"] == 1  # ball, cube, lawn; the crowd does not count
    assert statistics["segments_per_image"] == {"mean": 3.0, "median": 3.0, "most": 3.0}
    assert statistics["crowds"] == 1
    assert statistics["void_share"] == pytest.approx(4 / 24)
    assert statistics["categories"][2] == {"id": 9, "name": "lawn", "isthing": 0, "segments": 1, "images": 1, "pixels": 10}
    assert cv2.imread(str(out / "statistics.png")) is not None


def test_command_succeeds_on_a_clean_set_unless_strict(clean, capsys):
    assert main(["check", "--root", str(clean.root), "--split", "val", "--workers", "1"]) == 0
    paths = ["--images", str(clean.jpg.parent), "--panoptic", str(clean.png.parent), "--annotations", str(clean.json)]
    assert main(["check", *paths, "--workers", "1", "--strict", "true"]) == 1
    assert "note segment_tiny" in capsys.readouterr().out


def test_processes_find_what_one_finds_in_the_same_order(tmp_path, capsys):
    annotations = write_scenes(tmp_path / "set", 5, size=48, workers=0)
    content = json.loads(annotations.read_text())
    for row in content["annotations"][1::2]:
        row["segments_info"][0]["area"] += 1
    annotations.write_text(json.dumps(content))
    (tmp_path / "set" / "train" / "000004.png").write_bytes((tmp_path / "set" / "train" / "000002.png").read_bytes())
    said = []
    for workers in ("0", "2"):
        given = ["--root", str(tmp_path / "set"), "--workers", workers, "--json", str(tmp_path / f"{workers}.json")]
        assert main(["check", *given]) == 1
        said.append((capsys.readouterr().out, (tmp_path / f"{workers}.json").read_text()))
    assert said[0] == said[1]
    kinds = [defect["kind"] for defect in json.loads(said[0][1])["defects"]]
    assert (kinds.count("area_wrong"), kinds.count("image_repeated")) == (2, 1)


def test_limit_and_no_defects_json(clean, tmp_path, capsys):
    assert main(["check", "--root", str(clean.root), "--workers", "1", "--limit", "1"]) == 0
    assert capsys.readouterr().out.count("note segment_tiny:") == 1
    for row in clean.segments:
        row["category_id"] = 77
    clean.save()
    file = tmp_path / "found.json"
    main(["check", "--root", str(clean.root), "--workers", "1", "--json", str(file)])
    assert json.loads(file.read_text())["summary"]["errors"] == {"category_unknown": 4}


@pytest.mark.parametrize("option", ["--queries", "--limit"])
def test_negative_numbers_are_refused(clean, option):
    with pytest.raises(ConfigError, match=f"'{option[2:]}' must be at least"):
        main(["check", "--root", str(clean.root), "--workers", "0", option, "-1"])


def test_missing_splits_are_refused_with_the_way_out(tmp_path):
    with pytest.raises(DataError, match="convert other forms"):
        find_splits(tmp_path)


def test_lines_never_carry_what_a_terminal_obeys():
    line = Defect("area_wrong", "area is \x1b[2J\n", "val", "\ud800", "a\rb").line()
    assert line.isprintable()
    line.encode("utf-8")


@pytest.mark.parametrize("turned", range(1, 9))
def test_orientation_is_read(tmp_path, turned):
    exif_jpeg(tmp_path / "a.jpg", turned)
    assert exif_orientation((tmp_path / "a.jpg").read_bytes()) == turned


def test_orientation_of_a_png_and_of_nonsense(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (6, 4)).save(tmp_path / "a.png", exif=exif)
    png = (tmp_path / "a.png").read_bytes()
    assert exif_orientation(png) == 8
    assert all(exif_orientation(png[:length]) in (1, 8) for length in range(len(png)))
    assert exif_orientation(b"\xff\xd8\xff\xe1\0\0") == 1
    assert png_kind(b"GIF89a") == "no PNG"
