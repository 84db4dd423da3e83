"""Repaired copies: clean where repair is certain, without the rest, whole or absent, and the original as it was."""

import json
from pathlib import Path
from typing import Any

import pytest
from data.planting import (
    BALL,
    CROWD,
    CUBE,
    LAWN,
    check,
    plant_area,
    plant_bbox_text,
    plant_crowd_missing,
    plant_json_only,
    plant_png_only,
    plant_stuff_twice,
    repaint,
    second_image,
    segment,
)
from data.planting_files import (
    plant_backslash,
    plant_ending,
    plant_json_size,
    plant_png_16_bit,
    plant_png_grey,
    plant_png_palette,
    plant_png_rgba,
)

from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.coco.defects import Defect
from panoptic_detr.data.doctor.examine import check_dataset, find_splits
from panoptic_detr.errors import DataError
from panoptic_detr.segment_maps import read_id_png


def fingerprint(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


REPAIRABLE = [
    plant_area,
    plant_bbox_text,
    plant_json_only,
    plant_png_only,
    plant_crowd_missing,
    plant_stuff_twice,
    plant_backslash,
    plant_ending,
    plant_json_size,
    plant_png_grey,
    plant_png_16_bit,
    plant_png_palette,
    plant_png_rgba,
]


@pytest.mark.parametrize("plant", REPAIRABLE)
@pytest.mark.parametrize("copy_images", [False, True])
def test_repaired_copy_is_clean_and_the_original_untouched(clean, plant, copy_images):
    source = clean.root / "source"
    for name in ("annotations", "panoptic_val", "val"):
        source.mkdir(exist_ok=True)
        (clean.root / name).rename(source / name)
    clean.json, clean.png, clean.jpg = (source / path.relative_to(clean.root) for path in (clean.json, clean.png, clean.jpg))
    (clean.root / "val").symlink_to(source / "val")  # where the fixture saves images
    plant(clean)
    clean.save()
    before = fingerprint(source)
    found = check(source, fix=clean.root / "fixed", copy_images=copy_images)
    assert found
    assert all(defect.repairable for defect in found)
    assert fingerprint(source) == before
    assert check(clean.root / "fixed") == []
    (image,) = (path for path in (clean.root / "fixed" / "val").rglob("*") if not path.is_dir())
    assert image.is_symlink() != copy_images
    assert len(CocoPanoptic.from_root(clean.root / "fixed", "val")[0].target) >= 2


def test_repairs_are_the_right_ones(clean):
    segment(clean, CUBE)["category_id"] = 9  # a second lawn
    segment(clean, BALL).update(area=99, note="kept")
    repaint(clean, CROWD, 55)  # void: 55 is not listed; and the crowd has no pixel
    clean.save()
    check(clean.root, fix=clean.root / "fixed")
    content = json.loads((clean.root / "fixed" / "annotations" / "panoptic_val.json").read_text())
    rows = content["annotations"][0]["segments_info"]
    ball = {"id": BALL, "category_id": 2, "iscrowd": 0, "area": 4, "bbox": [0, 0, 5, 2], "note": "kept"}
    lawn = {"id": LAWN, "category_id": 9, "iscrowd": 0, "area": 14, "bbox": [0, 0, 5, 4]}
    assert rows == [ball, lawn]
    ids = read_id_png(clean.root / "fixed" / "panoptic_val" / "7.png")
    assert ids[1].tolist() == [BALL, LAWN, LAWN, LAWN, BALL, 0]
    assert ids[3].tolist() == [LAWN, LAWN, LAWN, 0, 0, 0]


def test_what_cannot_be_repaired_is_left_out_and_named(clean):
    second_image(clean)["segments_info"][0]["category_id"] = 77
    clean.save()
    defects: list[Defect] = []
    diagnosis = check_dataset(find_splits(clean.root), defects.append, fix=clean.root / "fixed", workers=0)
    assert diagnosis.left_out == {"val": [8]}
    assert diagnosis.fixed == {"val": 1}
    assert check(clean.root / "fixed") == []
    assert [path.name for path in (clean.root / "fixed" / "panoptic_val").iterdir()] == ["7.png"]


def test_no_copy_is_made_over_another(clean):
    with pytest.raises(DataError, match="is there already"):
        check(clean.root, fix=clean.root)
    assert check(clean.root) == []


def test_nothing_is_left_of_a_copy_that_fails(clean, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("panoptic_detr.data.doctor.examine.write_json", fail)
    before = fingerprint(clean.root)
    with pytest.raises(OSError, match="No space"):
        check(clean.root, fix=clean.root / "fixed")
    assert fingerprint(clean.root) == before
    assert {path.name for path in clean.root.iterdir()} == {"annotations", "panoptic_val", "val"}


def test_names_with_backslashes_are_written_with_slashes(clean):
    plant_backslash(clean)
    clean.save()
    check(clean.root, fix=clean.root / "fixed")
    content = json.loads((clean.root / "fixed" / "annotations" / "panoptic_val.json").read_text())
    assert content["images"][0]["file_name"] == "cam/7.jpg"
    assert content["annotations"][0]["file_name"] == "cam/7.png"


def test_stuff_is_not_joined_where_nobody_said_what_is_a_thing(clean):
    segment(clean, CUBE)["category_id"] = 2  # a second ball
    segment(clean, CROWD).update(category_id=2, iscrowd=1)
    for category in clean.content["categories"]:
        category["isthing"] = 0
    clean.save()
    found = {defect.kind: defect for defect in check(clean.root, fix=clean.root / "fixed")}
    assert found.keys() == {"stuff_repeated", "no_things"}
    assert not found["stuff_repeated"].repairable
    assert "or set isthing to 1" in found["stuff_repeated"].line()
    assert check(clean.root, fix=clean.root / "set", things=["ball"]) == []
    content = json.loads((clean.root / "set" / "annotations" / "panoptic_val.json").read_text())
    assert [row["isthing"] for row in content["categories"]] == [1, 0, 0]
    assert {BALL, CUBE} <= {row["id"] for row in content["annotations"][0]["segments_info"]}
    with pytest.raises(DataError, match="no category is called 'bal'; the categories are ball, cube, lawn"):
        check(clean.root, things=["bal"])
