"""Each kind of defect is planted and must be found by name, at its place, alone."""

import copy
import json
import struct
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from panoptic_detr.data.coco_files import DataError
from panoptic_detr.data.coco_panoptic import CocoPanoptic
from panoptic_detr.data.doctor import check_dataset, find_splits
from panoptic_detr.data.doctor_files import orientation
from panoptic_detr.data.doctor_kinds import KINDS, Defect
from panoptic_detr.data.scenes import write_scenes
from panoptic_detr.segment_maps import png_kind, read_id_png
from panoptic_detr.tools.data import main

BALL, CUBE, CROWD, LAWN = 70_000, 300, 9, 1_000_000
MEASURES = {BALL: (4, [0, 0, 5, 2]), CUBE: (4, [1, 1, 2, 2]), CROWD: (2, [3, 3, 2, 1]), LAWN: (10, [0, 0, 5, 4])}


@pytest.fixture
def clean(layout: Any) -> Any:
    """The tiny data set without a defect: areas and boxes counted by hand in the map of conftest."""
    for segment in layout.segments:
        segment["area"], segment["bbox"] = MEASURES[segment["id"]]
        segment.setdefault("iscrowd", 0)
    layout.save()
    return layout


def check(root: Path, **options: Any) -> list[Defect]:
    """Every defect but the notes about the tiny segments that the tiny data set is made of."""
    defects: list[Defect] = []
    check_dataset(find_splits(root), defects.append, workers=0, **options)
    return [defect for defect in defects if defect.kind != "segment_tiny"]


def ids_of(layout: Any) -> np.ndarray:
    return read_id_png(layout.png)


def repaint(layout: Any, old: int, new: int) -> None:
    ids = ids_of(layout)
    ids[ids == old] = new
    layout.save_map(ids)


def segment(layout: Any, segment_id: int) -> dict[str, Any]:
    return next(row for row in layout.segments if row["id"] == segment_id)


def second_image(layout: Any, image_id: int = 8) -> dict[str, Any]:
    """List a second image with files of its own; returns its annotation."""
    content = layout.content
    content["images"].append({**content["images"][0], "id": image_id, "file_name": f"{image_id}.jpg"})
    annotation = {**copy.deepcopy(content["annotations"][0]), "image_id": image_id, "file_name": f"{image_id}.png"}
    content["annotations"].append(annotation)
    layout.save_image(np.full((4, 6, 3), image_id, np.uint8), f"{image_id}.jpg")
    layout.png.with_name(f"{image_id}.png").write_bytes(layout.png.read_bytes())
    return annotation


def write_pixels(path: Path, pixels: np.ndarray) -> None:
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def exif_jpeg(path: Path, turned: int, size: tuple[int, int] = (6, 4)) -> None:
    exif = Image.Exif()
    exif[0x0112] = turned
    Image.new("RGB", size, (9, 99, 199)).save(path, "JPEG", exif=exif)


def test_a_clean_set_has_no_defect(clean):
    assert check(clean.root) == []


# Each function plants one defect; None as segment: the defect is about the image or the file.


def plant_area(layout):
    segment(layout, CUBE)["area"] = 5


def plant_area_missing(layout):
    del segment(layout, CUBE)["area"]


def plant_area_infinite(layout):
    segment(layout, CUBE)["area"] = float("inf")


def plant_bbox(layout):
    segment(layout, CUBE)["bbox"] = [1, 1, 3, 2]


def plant_bbox_text(layout):
    segment(layout, CUBE)["bbox"] = "here"


def plant_json_only(layout):
    layout.segments.append({"id": 44, "category_id": 5, "iscrowd": 0, "area": 3, "bbox": [0, 0, 1, 3]})


def plant_png_only(layout):
    layout.segments.remove(segment(layout, CUBE))


def plant_segment_twice(layout):
    layout.segments.append({**segment(layout, CUBE), "category_id": 2})


def plant_segment_id(layout):
    segment(layout, CUBE)["id"] = "300"


def plant_segment_no_object(layout):
    layout.segments.append(17)


def plant_crowd(layout):
    segment(layout, CUBE)["iscrowd"] = 2


def plant_crowd_missing(layout):
    del segment(layout, CUBE)["iscrowd"]


def plant_category_unknown(layout):
    segment(layout, CUBE)["category_id"] = 77


def plant_category_list(layout):
    segment(layout, CUBE)["category_id"] = [5]


def plant_stuff_twice(layout):
    segment(layout, CUBE)["category_id"] = 9


def plant_category_twice(layout):
    layout.content["categories"].append({"id": 5, "name": "other", "isthing": 1})


def plant_category_name(layout):
    layout.content["categories"].append({"id": 6, "name": "cube", "isthing": 1})


def plant_no_isthing(layout):
    layout.content["categories"].append({"id": 6, "name": "wall"})


def plant_image_twice(layout):
    layout.content["images"].append({**layout.content["images"][0], "file_name": "other.jpg"})


def plant_image_file_twice(layout):
    second_image(layout)
    layout.content["images"][1]["file_name"] = "7.jpg"
    layout.jpg.with_name("8.jpg").unlink()


def plant_image_id(layout):
    layout.content["images"].append({"id": None, "file_name": "x.jpg"})


def plant_image_name(layout):
    del second_image(layout)["segments_info"][:]
    layout.content["annotations"][1]["segments_info"] = copy.deepcopy(layout.segments)
    layout.content["images"][1]["file_name"] = 5


def plant_annotation_twice(layout):
    layout.content["annotations"].append({**layout.content["annotations"][0], "file_name": "other.png"})


def plant_annotation_missing(layout):
    second_image(layout)
    del layout.content["annotations"][1]
    layout.png.with_name("8.png").unlink()


def plant_annotation_alone(layout):
    layout.content["annotations"].append({"image_id": 99, "file_name": "99.png", "segments_info": []})


def plant_annotation_list(layout):
    layout.content["annotations"][0]["segments_info"] = {"id": 3}


def plant_annotation_empty(layout):
    layout.segments.clear()
    layout.save_map(np.zeros((4, 6), np.int32))


def plant_png_shared(layout):
    second_image(layout)["file_name"] = "7.png"
    layout.png.with_name("8.png").unlink()


def plant_no_list(layout):
    layout.content["images"] = {}
    layout.content["annotations"] = []
    layout.png.unlink()
    layout.jpg.unlink()


def plant_unsafe_image(layout):
    layout.content["images"][0]["file_name"] = "../val/7.jpg"
    layout.jpg.unlink()


def plant_unsafe_png(layout):
    layout.content["annotations"][0]["file_name"] = "/etc/7.png"
    layout.png.unlink()


def plant_blank(layout):
    layout.content["images"][0]["file_name"] = "my photo.jpg"
    layout.jpg.rename(layout.jpg.with_name("my photo.jpg"))


def plant_umlaut(layout):
    layout.content["annotations"][0]["file_name"] = "Bär.png"
    layout.png.rename(layout.png.with_name("Bär.png"))


def plant_ending(layout):
    layout.jpg.rename(layout.jpg.with_name("7.png"))


def plant_image_missing(layout):
    layout.jpg.unlink()


def plant_image_truncated(layout):
    data = layout.jpg.read_bytes()
    layout.jpg.write_bytes(data[: len(data) // 2])


def plant_image_text(layout):
    layout.jpg.write_text("<html>404</html>")


def plant_image_folder(layout):
    layout.jpg.unlink()
    layout.jpg.mkdir()


def plant_json_size(layout):
    layout.content["images"][0].update(width=4, height=6)


def plant_exif(layout):
    exif_jpeg(layout.jpg, 3)


def plant_exif_turned(layout):
    exif_jpeg(layout.jpg, 6, (4, 6))
    layout.content["images"][0].update(width=4, height=6)


def plant_png_missing(layout):
    layout.png.unlink()


def plant_png_truncated(layout):
    data = layout.png.read_bytes()
    layout.png.write_bytes(data[: len(data) * 2 // 3])


def plant_png_size(layout):
    layout.save_map(np.pad(ids_of(layout), ((0, 1), (0, 0))))


def small_ids(layout):
    """Renumber so that the ids fit one byte."""
    for new, old in enumerate((BALL, CUBE, CROWD, LAWN), start=1):
        repaint(layout, old, new)
        segment(layout, old)["id"] = new


def plant_png_grey(layout):
    small_ids(layout)
    write_pixels(layout.png, ids_of(layout).astype(np.uint8))


def plant_png_16_bit(layout):
    small_ids(layout)
    write_pixels(layout.png, ids_of(layout).astype(np.uint16))


def plant_png_palette(layout):
    small_ids(layout)
    picture = Image.fromarray(ids_of(layout).astype(np.uint8))
    picture = picture.convert("P")
    picture.putpalette([value for color in range(256) for value in (color, 255 - color, 7)])
    picture.save(layout.png)


def plant_png_rgba(layout):
    bgr = cv2.imread(str(layout.png))
    write_pixels(layout.png, np.concatenate([bgr, np.full((4, 6, 1), 255, np.uint8)], axis=2))


def plant_png_jpeg(layout):
    layout.png.write_bytes(cv2.imencode(".jpg", cv2.imread(str(layout.png)))[1].tobytes())


def plant_tiny(layout):
    ids = ids_of(layout)
    ids[0, 0] = 77
    layout.save_map(ids)
    segment(layout, BALL).update(area=3)
    layout.segments.append({"id": 77, "category_id": 5, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]})


def plant_void(layout):
    repaint(layout, LAWN, 0)
    layout.segments.remove(segment(layout, LAWN))


def plant_same_picture(layout):
    second_image(layout)
    layout.jpg.with_name("8.jpg").write_bytes(layout.jpg.read_bytes())


def plant_unlisted(layout):
    layout.jpg.with_name("forgotten.jpeg").write_bytes(b"x")


PLANTED = [
    (plant_area, {"area_wrong"}, CUBE),
    (plant_area_missing, {"area_wrong"}, CUBE),
    (plant_area_infinite, {"area_wrong"}, CUBE),
    (plant_bbox, {"bbox_wrong"}, CUBE),
    (plant_bbox_text, {"bbox_wrong"}, CUBE),
    (plant_json_only, {"segment_only_in_json"}, 44),
    (plant_png_only, {"segment_only_in_png"}, CUBE),
    (plant_segment_twice, {"segment_duplicate"}, CUBE),
    (plant_segment_id, {"segment_invalid", "segment_only_in_png"}, "300"),
    (plant_segment_no_object, {"segment_invalid"}, None),
    (plant_crowd, {"segment_invalid"}, CUBE),
    (plant_crowd_missing, {"iscrowd_missing"}, None),
    (plant_category_unknown, {"category_unknown"}, CUBE),
    (plant_category_list, {"category_unknown"}, CUBE),
    (plant_stuff_twice, {"stuff_repeated"}, CUBE),
    (plant_category_twice, {"category_duplicate"}, None),
    (plant_category_name, {"category_name_repeated"}, None),
    (plant_no_isthing, {"category_invalid"}, None),
    (plant_image_twice, {"image_duplicate"}, None),
    (plant_image_file_twice, {"image_file_duplicate", "image_repeated"}, None),
    (plant_image_id, {"image_invalid"}, None),
    (plant_image_name, {"image_invalid", "file_unlisted"}, None),
    (plant_annotation_twice, {"annotation_duplicate"}, None),
    (plant_annotation_missing, {"annotation_missing"}, None),
    (plant_annotation_alone, {"annotation_without_image"}, None),
    (plant_annotation_list, {"annotation_invalid"}, None),
    (plant_annotation_empty, {"annotation_empty", "void_share"}, None),
    (plant_png_shared, {"png_shared"}, None),
    (plant_no_list, {"json_structure"}, None),
    (plant_unsafe_image, {"file_name_unsafe"}, None),
    (plant_unsafe_png, {"file_name_unsafe"}, None),
    (plant_blank, {"file_name_unusual"}, None),
    (plant_umlaut, {"file_name_unusual"}, None),
    (plant_ending, {"image_ending"}, None),
    (plant_image_missing, {"image_missing"}, None),
    (plant_image_truncated, {"image_unreadable"}, None),
    (plant_image_text, {"image_unreadable"}, None),
    (plant_image_folder, {"image_missing"}, None),
    (plant_json_size, {"image_size"}, None),
    (plant_exif, {"exif_rotation"}, None),
    (plant_exif_turned, {"exif_rotation", "png_size"}, None),
    (plant_png_missing, {"png_missing"}, None),
    (plant_png_truncated, {"png_unreadable"}, None),
    (plant_png_size, {"png_size"}, None),
    (plant_png_grey, {"png_format"}, None),
    (plant_png_16_bit, {"png_format"}, None),
    (plant_png_palette, {"png_format"}, None),
    (plant_png_rgba, {"png_format"}, None),
    (plant_png_jpeg, {"png_format"}, None),
    (plant_void, {"void_share"}, None),
    (plant_same_picture, {"image_repeated"}, None),
    (plant_unlisted, {"file_unlisted"}, None),
]


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


def fingerprint(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


REPAIRABLE = [
    plant_area,
    plant_bbox_text,
    plant_json_only,
    plant_png_only,
    plant_crowd_missing,
    plant_stuff_twice,
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
    (image,) = (clean.root / "fixed" / "val").iterdir()
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

    monkeypatch.setattr("panoptic_detr.data.doctor.write_json", fail)
    before = fingerprint(clean.root)
    with pytest.raises(OSError, match="No space"):
        check(clean.root, fix=clean.root / "fixed")
    assert fingerprint(clean.root) == before
    assert {path.name for path in clean.root.iterdir()} == {"annotations", "panoptic_val", "val"}


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


def test_limit_and_no_defects_json(clean, tmp_path, capsys):
    assert main(["check", "--root", str(clean.root), "--workers", "1", "--limit", "1"]) == 0
    assert capsys.readouterr().out.count("note segment_tiny:") == 1
    for row in clean.segments:
        row["category_id"] = 77
    clean.save()
    file = tmp_path / "found.json"
    main(["check", "--root", str(clean.root), "--workers", "1", "--json", str(file)])
    assert json.loads(file.read_text())["summary"]["errors"] == {"category_unknown": 4}


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
    assert orientation((tmp_path / "a.jpg").read_bytes()) == turned


def test_orientation_of_a_png_and_of_nonsense():
    tiff = b"MM\0*" + struct.pack(">IHHHIHH", 8, 1, 0x0112, 3, 1, 8, 0)
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + b"\0\0\0\0"
    png = b"\x89PNG\r\n\x1a\n" + chunk
    assert orientation(png) == 8
    assert all(orientation(png[:length]) in (1, 8) for length in range(len(png)))
    assert orientation(b"\xff\xd8\xff\xe1\0\0") == 1
    assert png_kind(b"GIF89a") == "no PNG"
