"""COCO instances to COCO-panoptic: overlaps, stuff and masks counted by hand, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.conversions import meanings, picture, truths, write
from pycocotools import mask as coco_mask

from panoptic_detr.commands.data import main
from panoptic_detr.data.convert.drawing import packed_runs, segmentation_mask
from panoptic_detr.data.convert.formats import FORMATS
from panoptic_detr.data.doctor.examine import find_splits
from panoptic_detr.errors import CategoryError, DataError
from panoptic_detr.panoptic import PanopticSegmentation

coco_instances = FORMATS["coco-instances"]


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
