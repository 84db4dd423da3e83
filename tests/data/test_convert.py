"""Converters: regions counted by hand, round trips, and outputs that are whole or absent."""

import base64
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from panoptic_detr.categories import CategoryError
from panoptic_detr.data.coco_files import DataError
from panoptic_detr.data.coco_panoptic import CocoPanoptic
from panoptic_detr.data.convert import FORMATS
from panoptic_detr.data.convert_masks_coco import packed_runs, segmentation_mask
from panoptic_detr.data.doctor import check_dataset, find_splits
from panoptic_detr.data.scenes import write_scenes
from panoptic_detr.structures import PanopticSegmentation
from panoptic_detr.tools.data import main

coco_instances, to_instances, to_semantic = (FORMATS[name] for name in ("coco-instances", "to-instances", "to-semantic"))


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def picture(path: Path, height: int = 4, width: int = 6) -> Path:
    return write(path, np.full((height, width, 3), 99, np.uint8))


def truths(root: Path, split: str = "train") -> list[PanopticSegmentation]:
    """Every annotation of a converted set, after the doctor has found no error in it."""
    defects: list[Any] = []
    check_dataset(find_splits(root, split), defects.append, workers=0)
    assert [defect.line() for defect in defects if defect.severity == "error"] == []
    dataset = CocoPanoptic.from_root(root, split)
    assert all(dataset.image(i) is not None for i in range(len(dataset)))
    return [dataset.truth(i) for i in range(len(dataset))]


def meanings(truth: PanopticSegmentation) -> np.ndarray:
    """The map with category ids in place of segment ids."""
    table = {0: 0, **{segment.id: segment.category_id for segment in truth.segments}}
    return np.vectorize(table.get)(truth.segment_map)


def box_polygon(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    """Covers the pixels left..right-1, top..bottom-1."""
    return [[left, top, right, top, right, bottom, left, bottom]]


class Instances:
    """A COCO instances data set of one 6x4 image."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.json = root, root / "images", root / "instances.json"
        self.jpg = picture(self.images / "1.jpg")
        self.content: dict[str, Any] = {
            "images": [{"id": 1, "file_name": "1.jpg", "width": 6, "height": 4}],
            "annotations": [],
            "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
        }
        self.save()

    def add(self, segmentation: Any, category_id: int = 3, **fields: Any) -> None:
        rows = self.content["annotations"]
        rows.append({"id": len(rows), "image_id": 1, "category_id": category_id, "segmentation": segmentation, **fields})
        self.save()

    def save(self) -> None:
        self.json.write_text(json.dumps(self.content))

    def convert(self, **options: Any) -> PanopticSegmentation:
        coco_instances(self.json, self.images, self.root / "out", workers=0, **options)
        (truth,) = truths(self.root / "out")
        return truth


@pytest.fixture
def instances(tmp_path: Path) -> Instances:
    return Instances(tmp_path)


def test_smaller_on_top_crowd_below_rest_void(instances):
    instances.add(box_polygon(1, 1, 3, 3), 7)  # 4 pixels, on top of the next although listed before it
    instances.add(box_polygon(0, 0, 4, 4))  # 16 pixels
    crowd = np.asfortranarray(np.pad(np.ones((1, 5), np.uint8), ((0, 3), (0, 1))))  # the first row without its last pixel
    instances.add({"size": [4, 6], "counts": coco_mask.encode(crowd)["counts"].decode()}, 7, iscrowd=1)
    truth = instances.convert()
    assert [(s.category_id, s.area, s.iscrowd) for s in truth.segments] == [(7, 4, False), (3, 12, False), (7, 1, True)]
    assert truth.segment_map.tolist() == [[2, 2, 2, 2, 3, 0], [2, 1, 1, 2, 0, 0], [2, 1, 1, 2, 0, 0], [2, 2, 2, 2, 0, 0]]
    assert truth.categories.to_coco()[0]["name"] == "cat"
    assert truth.categories.by_id[7].isthing


def test_equal_areas_later_on_top(instances):
    instances.add(box_polygon(0, 0, 2, 2), 3)
    instances.add(box_polygon(1, 0, 3, 2), 7)
    assert meanings(instances.convert())[0].tolist() == [3, 7, 7, 0, 0, 0]


def test_rest_becomes_one_stuff_class(instances):
    instances.add(box_polygon(0, 0, 6, 2))
    truth = instances.convert(rest="background")
    assert [(s.category_id, s.isthing, s.area) for s in truth.segments] == [(3, True, 12), (8, False, 12)]
    assert truth.categories.by_id[8].name == "background"


def test_plain_run_lengths_and_parts(instances):
    instances.add({"size": [4, 6], "counts": [0, 4, 20]})  # the first column
    instances.add([*box_polygon(2, 0, 3, 1), *box_polygon(5, 3, 6, 4)], 7)  # two parts, one instance
    truth = instances.convert()
    assert [(s.area, s.box) for s in truth.segments] == [(4, (0, 0, 1, 4)), (2, (2, 0, 4, 4))]


def test_what_draws_nothing_is_counted(instances, capsys):
    instances.add([[1, 1, 2, 2]])  # two corners
    instances.add([])
    instances.add(box_polygon(0, 0, 2, 2))
    instances.add(box_polygon(0, 0, 2, 2), 7)  # covers the one before
    arguments = [str(instances.json), str(instances.images), str(instances.root / "out"), "--workers", "1"]
    assert main(["convert", "coco-instances", *arguments]) == 0
    out = capsys.readouterr().out
    assert "2 times: instance without a pixel" in out
    assert "1 times: instance wholly covered" in out
    assert "1 images, 1 segments, 83.3% of the pixels void" in out


def test_stuff_maps_lie_below_instances(instances):
    instances.add(box_polygon(0, 0, 2, 4))
    # stuffthingmaps: value + 1 is the category id; 2 is the cat itself, 255 nothing, 91 and 92 stuff.
    values = np.array([[91, 91, 91, 92, 255, 2]] * 4, np.uint8)
    write(instances.root / "stuff" / "1.png", values)
    names = {"categories": [{"id": 92, "name": "banner"}, {"id": 93, "name": "blanket"}, {"id": 3, "name": "cat"}]}
    (instances.root / "stuff.json").write_text(json.dumps(names))
    options = {"stuff_maps": instances.root / "stuff", "stuff_categories": instances.root / "stuff.json", "stuff_offset": 1}
    truth = instances.convert(**options, rest="other")
    assert meanings(truth)[0].tolist() == [3, 3, 92, 93, 94, 94]
    assert [category.name for category in truth.categories.stuff] == ["banner", "blanket", "other"]
    with pytest.raises(DataError, match="need their categories"):
        coco_instances(instances.json, instances.images, instances.root / "x", stuff_maps=instances.root / "stuff")


def test_rest_joins_what_the_stuff_maps_have_of_its_class(instances):
    instances.add(box_polygon(0, 0, 2, 4))
    write(instances.root / "stuff" / "1.png", np.array([[92, 92, 92, 255, 93, 255]] * 4, np.uint8))
    names = {"categories": [{"id": 92, "name": "banner"}, {"id": 93, "name": "blanket"}]}
    (instances.root / "stuff.json").write_text(json.dumps(names))
    options = {"stuff_maps": instances.root / "stuff", "stuff_categories": instances.root / "stuff.json"}
    truth = instances.convert(**options, rest="banner")
    assert sorted((s.category_id, s.area) for s in truth.segments) == [(3, 8), (92, 12), (93, 4)], (
        "one segment of a stuff class"
    )
    assert meanings(truth)[0].tolist() == [3, 3, 92, 92, 93, 92]


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (None, "must be polygons or run lengths"),
        ([[1, 2, "x", 4, 5, 6]], "must be a list of numbers"),
        ([[1, 2, 3, 4, 5, 6, 7]], "odd number"),
        ([[1, 2, 3, float("nan"), 5, 6]], "between"),
        ([[1, 2, 3, 10**400, 5, 6]], "between"),
        ({"size": [6, 4], "counts": [24]}, "for size"),
        ({"size": [4, 6], "counts": [25]}, "add up to 24"),
        ({"size": [4, 6], "counts": [30, -6]}, "add up to 24"),
        ({"size": [4, 6], "counts": "~"}, "damaged"),
        ({"size": [4, 6], "counts": "P"}, "cut off"),
        ({"size": [4, 6]}, "add up to 24"),
    ],
)
def test_broken_masks_are_refused_by_place(instances, segmentation, message):
    instances.add(segmentation)
    with pytest.raises(DataError, match=message) as error:
        instances.convert()
    assert "image 1, annotation 0" in str(error.value)
    assert not (instances.root / "out").exists()
    assert {path.name for path in instances.root.iterdir()} == {"images", "instances.json"}


@pytest.mark.parametrize("seed", range(20))
def test_packed_runs_equal_pycocotools(seed):
    rng = np.random.default_rng(seed)
    mask = rng.random((int(rng.integers(1, 90)), int(rng.integers(1, 90)))) < rng.random()
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    text = packed["counts"].decode()
    assert np.array_equal(segmentation_mask({"size": list(mask.shape), "counts": text}, mask.shape, ""), mask)
    assert sum(packed_runs(text, "")) == mask.size


@pytest.mark.parametrize(
    "change", [{"file_name": "../images/1.jpg"}, {"file_name": "/etc/passwd"}, {"file_name": None}, {"id": None}]
)
def test_names_and_ids_from_the_json_are_not_trusted(instances, change):
    instances.content["images"][0].update(change)
    instances.save()
    with pytest.raises(DataError):
        instances.convert()
    assert not (instances.root / "out").exists()


def test_category_and_image_ids_must_be_known(instances):
    instances.add(box_polygon(0, 0, 2, 2), 99)
    with pytest.raises(DataError, match="category_id 99"):
        instances.convert()
    instances.content["annotations"][0].update(category_id=3, image_id=5)
    instances.save()
    with pytest.raises(DataError, match="image_id 5"):
        instances.convert()
    instances.content["categories"].append({"id": 3, "name": "again"})
    instances.content["annotations"].clear()
    instances.save()
    with pytest.raises(CategoryError, match="more than once"):
        instances.convert()


def test_splits_join_one_folder_and_none_is_overwritten(instances):
    instances.add(box_polygon(0, 0, 2, 2))
    instances.convert()
    coco_instances(instances.json, instances.images, instances.root / "out", split="val", copy_images=True, workers=0)
    assert sorted(find_splits(instances.root / "out")) == ["train", "val"]
    assert (instances.root / "out" / "train" / "1.jpg").is_symlink()
    assert not (instances.root / "out" / "val" / "1.jpg").is_symlink()
    with pytest.raises(DataError, match="is there already"):
        instances.convert()
    for split in ("", "../x", "a/b", ".hidden"):
        with pytest.raises(DataError, match="no folder name"):
            instances.convert(split=split)


def test_images_of_one_name_are_refused(instances):
    picture(instances.images / "1.png")
    instances.content["images"].append({"id": 2, "file_name": "1.png", "width": 6, "height": 4})
    instances.save()
    with pytest.raises(DataError, match="two images want"):
        instances.convert()


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


def test_labelme(tmp_path):
    picture(tmp_path / "in" / "a.jpg", 8, 10)
    dot = base64.b64encode(cv2.imencode(".png", np.array([[255, 0], [255, 255]], np.uint8))[1].tobytes()).decode()
    labelme_file(
        tmp_path / "in" / "a.json",
        shape("sky", "rectangle", [[0, 0], [9, 3]]),  # pixels 0..9 x 0..3
        shape("sky", "polygon", [[0, 7], [9, 7], [9, 7]]),  # a second part: the last row
        shape("cat", "polygon", [[1, 1], [2, 1], [2, 2], [1, 2]], group_id=4),
        shape("cat", "rectangle", [[8, 6], [6, 5]], group_id=4),  # from right below; the same cat
        shape("cat", "mask", [[0, 5], [2, 7]], mask=dot),
        shape("cat", "point", [[5, 5]]),
    )
    conversion = FORMATS["labelme"](tmp_path / "in", tmp_path / "out", stuff=["sky"], workers=0)
    assert conversion.notes == {"shape without area: 'point'": 1}
    (truth,) = truths(tmp_path / "out")
    assert [(c.id, c.name, c.isthing) for c in truth.categories.categories] == [(1, "cat", True), (2, "sky", False)]
    assert [(s.category_id, s.area) for s in truth.segments] == [(2, 46), (1, 10), (1, 3)]
    assert meanings(truth)[5].tolist() == [1, 0, 0, 0, 0, 0, 1, 1, 1, 0]
    with pytest.raises(DataError, match="no shape has the stuff label 'sea'"):
        FORMATS["labelme"](tmp_path / "in", tmp_path / "x", stuff=["sea"])


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
