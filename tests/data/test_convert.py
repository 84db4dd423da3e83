"""Converters: mask files and LabelMe, counted by hand, COCO-panoptic there and back, and outputs that are whole or absent."""

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data.conversions import meanings, picture, truths, write
from PIL import Image

from panoptic_detr.commands.data import main
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.convert.formats import FORMATS
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.errors import DataError

coco_instances, to_instances, to_semantic = (FORMATS[name] for name in ("coco-instances", "to-instances", "to-semantic"))


def test_panoptic_to_instances_and_back_keeps_every_thing(tmp_path):
    root = tmp_path / "scenes"
    write_scenes(root, 5, size=64, workers=0)
    source = truths(root)
    out = tmp_path / "instances.json"
    conversion = to_instances(root / "annotations" / "panoptic_train.json", root / "panoptic_train", out, workers=0)
    things = [[s for s in truth.segments if s.isthing] for truth in source]
    assert conversion.segments == sum(map(len, things))
    coco_instances(out, root / "train", tmp_path / "again", workers=0)
    for before, after, kept in zip(source, truths(tmp_path / "again"), things, strict=True):
        assert [(s.category_id, s.area, s.box, s.iscrowd) for s in after.segments] == [
            (s.category_id, s.area, s.box, s.iscrowd) for s in kept
        ]
        is_kept = np.isin(before.segment_map, [s.id for s in kept])
        assert np.array_equal(meanings(after), np.where(is_kept, meanings(before), 0))
    with pytest.raises(DataError, match="there already"):
        to_instances(root / "annotations" / "panoptic_train.json", root / "panoptic_train", out)


def test_panoptic_to_semantic_is_the_category_of_each_pixel(tmp_path):
    root = tmp_path / "scenes"
    write_scenes(root, 3, size=64, workers=0)
    json_path, panoptic = root / "annotations" / "panoptic_train.json", root / "panoptic_train"
    to_semantic(json_path, panoptic, tmp_path / "semantic", workers=0)
    dataset = CocoPanoptic.from_root(root, "train")
    for i in range(3):
        values = cv2.imread(str(tmp_path / "semantic" / dataset.image_path(i).with_suffix(".png").name), cv2.IMREAD_UNCHANGED)
        expected = meanings(dataset.truth(i))
        assert np.array_equal(values, np.where(expected == 0, 255, expected))
    assert json.loads((tmp_path / "semantic" / "categories.json").read_text())["void"] == 255
    with pytest.raises(DataError, match="choose another --void"):
        to_semantic(json_path, panoptic, tmp_path / "x", void=3)
    with pytest.raises(DataError, match="is there already"):
        to_semantic(json_path, panoptic, tmp_path / "semantic")


def test_stuff_as_instances_and_ids_above_a_byte(layout):
    for entry in layout.content["categories"]:
        entry["id"] += 300
    for segment in layout.segments:
        segment["category_id"] += 300
    layout.save()
    out = layout.root / "all.json"
    to_instances(layout.json, layout.png.parent, out, stuff=True, workers=0)
    content = json.loads(out.read_text())
    assert [row["area"] for row in content["annotations"]] == [4, 2, 10, 4]
    assert [row["iscrowd"] for row in content["annotations"]] == [0, 1, 0, 0]
    to_semantic(layout.json, layout.png.parent, layout.root / "semantic", workers=0)
    values = cv2.imread(str(layout.root / "semantic" / "7.png"), cv2.IMREAD_UNCHANGED)
    assert values[1].tolist() == [302, 305, 305, 309, 302, 255]


def pair(root: Path, name: str, semantic: np.ndarray, instance: np.ndarray) -> None:
    picture(root / "images" / f"{name}.jpg", *semantic.shape)
    write(root / "semantic" / f"{name}.png", semantic)
    write(root / "instance" / f"{name}.png", instance)


def test_semantic_and_instance_pairs(tmp_path):
    # Two cars (1) that touch, one of them with number 300 (16 bits), a car without number, road (2), void (255).
    semantic = np.array([[1, 1, 2, 2], [1, 1, 255, 2]], np.uint8)
    instance = np.array([[5, 300, 5, 5], [5, 0, 5, 6]], np.uint16)
    pair(tmp_path, "street/a", semantic, instance)
    rows = [{"id": 1, "name": "car", "isthing": 1}, {"id": 2, "name": "road", "isthing": 0}]
    categories = tmp_path / "categories.json"
    categories.write_text(json.dumps({"categories": rows}))
    places = [str(tmp_path / name) for name in ("images", "semantic", "instance")]
    command = ["convert", "semantic-instance", *places, str(categories), str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 0
    (truth,) = truths(tmp_path / "out")
    assert sorted((s.category_id, s.area, s.iscrowd) for s in truth.segments) == [
        (1, 1, False),
        (1, 1, True),
        (1, 2, False),
        (2, 3, False),
    ]
    assert meanings(truth).tolist() == [[1, 1, 2, 2], [1, 1, 0, 2]]
    assert (tmp_path / "out" / "train" / "street" / "a.jpg").is_file()
    assert (tmp_path / "out" / "panoptic_train" / "street" / "a.png").is_file()
    write(tmp_path / "semantic" / "street" / "a.png", np.full((2, 4), 9, np.uint8))
    with pytest.raises(DataError, match="value 9 is no category id"):
        FORMATS["semantic-instance"](*map(Path, places), categories, tmp_path / "again", workers=0)


def test_cityscapes(tmp_path):
    name = "aachen/aachen_000000_000019"
    picture(tmp_path / "leftImg8bit" / f"{name}_leftImg8bit.png", 2, 4)
    labels = np.array([[26, 26, 7, 4], [26, 24, 7, 23]], np.uint8)  # 4 (static) is not evaluated
    ids = np.array([[26000, 26001, 7, 4], [26000, 24, 7, 23]], np.uint16)  # a group of persons
    write(tmp_path / "gtFine" / f"{name}_gtFine_labelIds.png", labels)
    write(tmp_path / "gtFine" / f"{name}_gtFine_instanceIds.png", ids)
    write(tmp_path / "gtFine" / f"{name}_gtFine_color.png", labels)
    FORMATS["cityscapes"](tmp_path / "leftImg8bit", tmp_path / "gtFine", tmp_path / "out", workers=0)
    (truth,) = truths(tmp_path / "out")
    assert sorted((s.category_id, s.area, s.iscrowd) for s in truth.segments) == [
        (7, 2, False),
        (23, 1, False),
        (24, 1, True),
        (26, 1, False),
        (26, 2, False),
    ]
    assert int((truth.segment_map == 0).sum()) == 1
    assert len(truth.categories.things) == 8
    assert len(truth.categories.stuff) == 11


@pytest.mark.parametrize("palette", [False, True])
def test_one_mask_with_instance_numbers(tmp_path, palette):
    picture(tmp_path / "PNGImages" / "FudanPed1.png", 2, 4)
    values = np.array([[0, 1, 1, 2], [0, 1, 9, 2]], np.uint8)
    mask = tmp_path / "PedMasks" / "FudanPed1_mask.png"
    mask.parent.mkdir()
    image = Image.fromarray(values)
    if palette:
        image = image.convert("P")
        image.putpalette([7, 8, 9] * 256)
    image.save(mask)
    arguments = [tmp_path / "PNGImages", tmp_path / "PedMasks"]
    options = {"category": "pedestrian", "mask_suffix": "_mask", "workers": 0}
    FORMATS["instance-masks"](*arguments, tmp_path / "out", rest="background", void=[9], **options)
    (truth,) = truths(tmp_path / "out")
    assert [(s.category_id, s.area) for s in truth.segments] == [(1, 3), (1, 2), (2, 2)]
    assert truth.segment_map.tolist() == [[3, 1, 1, 2], [3, 1, 0, 2]]
    with pytest.raises(DataError, match="1 of 1 images have no mask"):
        FORMATS["instance-masks"](*arguments, tmp_path / "x", category="a", mask_suffix="_other", workers=0)


def test_mask_of_another_size_is_refused(tmp_path):
    picture(tmp_path / "images" / "a.png")
    write(tmp_path / "masks" / "a.png", np.zeros((3, 3), np.uint8))
    with pytest.raises(DataError, match="3x3 pixels, but the image is 6x4"):
        FORMATS["instance-masks"](tmp_path / "images", tmp_path / "masks", tmp_path / "out", "cat", workers=0)
    assert not (tmp_path / "out").exists()


def shape(label: str, kind: str, points: Any, **fields: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": points, "group_id": None, **fields}


def labelme_file(path: Path, *shapes: dict[str, Any], image: str = "a.jpg") -> None:
    path.write_text(json.dumps({"imagePath": image, "imageData": None, "shapes": list(shapes)}))


DOT = base64.b64encode(cv2.imencode(".png", np.array([[255, 0], [255, 255]], np.uint8))[1].tobytes()).decode()


def test_labelme(tmp_path):
    picture(tmp_path / "in" / "a.jpg", 8, 10)
    labelme_file(
        tmp_path / "in" / "a.json",
        shape("sky", "rectangle", [[0, 0], [9, 3]]),  # pixels 0..9 x 0..3
        shape("sky", "polygon", [[0, 7], [9, 7], [9, 7]]),  # a second part: the last row
        shape("cat", "polygon", [[1, 1], [2, 1], [2, 2], [1, 2]], group_id=4),
        shape("cat", "rectangle", [[8, 6], [6, 5]], group_id=4),  # from right below; the same cat
        shape("cat", "mask", [[0, 5], [2, 7]], mask=DOT),
        shape("cat", "point", [[5, 5]]),
    )
    conversion = FORMATS["labelme"](tmp_path / "in", tmp_path / "out", stuff=["sky"], workers=0)
    assert conversion.notes == {"shape without area: 'point'": 1}
    (truth,) = truths(tmp_path / "out")
    assert [(c.id, c.name, c.isthing) for c in truth.categories.categories] == [(1, "cat", True), (2, "sky", False)]
    assert [(s.category_id, s.area) for s in truth.segments] == [(2, 46), (1, 10), (1, 3)]
    assert meanings(truth)[5].tolist() == [1, 0, 0, 0, 0, 0, 1, 1, 1, 0]
    FORMATS["labelme"](tmp_path / "in", tmp_path / "rest", stuff=["sky", "ground"], rest="ground", workers=0)
    assert [(c.name, c.isthing) for c in truths(tmp_path / "rest")[0].categories.categories][2] == ("ground", False)
    with pytest.raises(DataError, match="no shape has the stuff label 'sea'"):
        FORMATS["labelme"](tmp_path / "in", tmp_path / "x", stuff=["sea"])


@pytest.mark.parametrize(
    ("mask", "points", "message"),
    [
        ("no base64!", [[0, 5]], r"a\.json: shape 1: its mask is no picture in base64; draw it again"),
        (None, [], r"a\.json: shape 1: its mask is no picture in base64"),
        (base64.b64encode(b"no picture").decode(), [[0, 5], [2, 7]], r"a\.json: shape 1: its mask is no picture"),
        (DOT, [], r"a\.json: shape 1: its mask has no point, and the first says where it lies"),
    ],
)
def test_a_mask_that_cannot_be_read_is_no_shape_without_area(tmp_path, mask, points, message):
    picture(tmp_path / "in" / "a.jpg", 8, 10)
    labelme_file(tmp_path / "in" / "a.json", shape("cat", "point", [[1, 1]]), shape("cat", "mask", points, mask=mask))
    with pytest.raises(DataError, match=message):
        FORMATS["labelme"](tmp_path / "in", tmp_path / "out", workers=0)


def test_labelme_with_categories_of_the_first_split_and_images_elsewhere(tmp_path):
    picture(tmp_path / "photos" / "a.jpg", 8, 10)
    files = tmp_path / "files"
    files.mkdir()
    labelme_file(files / "a.json", shape("dog", "circle", [[4, 4], [6, 4]]), image="..\\photos\\a.jpg")
    with pytest.raises(DataError, match="leaves its folder"):
        FORMATS["labelme"](files, tmp_path / "out", workers=0)
    table = tmp_path / "table.json"
    rows = [{"id": 4, "name": "dog", "isthing": 1}, {"id": 6, "name": "ground", "isthing": 0}]
    table.write_text(json.dumps({"categories": rows}))
    options = {"images": tmp_path / "photos", "categories": table, "workers": 0}
    FORMATS["labelme"](files, tmp_path / "out", rest="ground", **options)
    (truth,) = truths(tmp_path / "out")
    assert [s.category_id for s in truth.segments] == [4, 6]
    assert truth.segments[0].box == (2, 2, 5, 5)
    with pytest.raises(DataError, match="is a thing"):
        FORMATS["labelme"](files, tmp_path / "x", rest="dog", **options)
    labelme_file(files / "a.json", shape("cow", "circle", [[4, 4], [6, 4]]))
    with pytest.raises(DataError, match="label 'cow' is not among"):
        FORMATS["labelme"](files, tmp_path / "x", **options)


def test_every_format_explains_itself(capsys):
    assert len(FORMATS) == 7
    for name in FORMATS:
        with pytest.raises(SystemExit) as end:
            main(["convert", name, "--help"])
        assert end.value.code == 0
        assert "--workers" in capsys.readouterr().out
