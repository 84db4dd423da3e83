"""The JSON, the paths and the file names: every defect is refused by name when the data set is opened."""

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.coco.layout import find_image, resolve_paths
from panoptic_detr.errors import CategoryError, DataError
from panoptic_detr.files import make_folder, safe_path
from panoptic_detr.images import read_image


def open_set(layout: Any) -> CocoPanoptic:
    return CocoPanoptic.from_root(layout.root, "val")


def edit(*path: Any, value: Any = None, delete: bool = False) -> Callable[[Any], None]:
    """Change one place of the JSON."""

    def damage(layout):
        place = layout.content
        for key in path[:-1]:
            place = place[key]
        if delete:
            del place[path[-1]]
        else:
            place[path[-1]] = value
        layout.save()

    return damage


def double(*path: Any) -> Callable[[Any], None]:
    """Repeat the first entry of a list of the JSON."""

    def damage(layout):
        place = layout.content
        for key in path:
            place = place[key]
        place.append(copy.deepcopy(place[0]))
        layout.save()

    return damage


SEGMENTS = ("annotations", 0, "segments_info")
JSON_DEFECTS = [
    (lambda x: x.json.write_text(x.json.read_text()[:-30]), r"panoptic_val\.json: not valid JSON .* may be truncated"),
    (lambda x: x.json.write_bytes(b"\xff\xfe\x00"), r"panoptic_val\.json: not valid JSON"),
    (lambda x: x.json.write_text("[]"), r"panoptic_val\.json: .* is an object"),
    (lambda x: x.json.write_text("[" * 100_000), r"panoptic_val\.json: not valid JSON"),
    (edit("annotations", delete=True), r"'annotations' is missing; .*convert"),
    (edit("images", value={}), r"'images' is not a list of objects"),
    (edit("categories", delete=True), r"'categories' is missing"),
    (edit("images", 0, "id", delete=True), r"images\[0\]: 'id' is missing"),
    (edit("images", 0, "id", value=[1]), r"images\[0\]: 'id' is \[1\], but must be"),
    (edit("images", 0, "file_name", delete=True), r"image 7: 'file_name' is missing"),
    (edit("annotations", 0, "file_name", delete=True), r"annotation of image 7: 'file_name' is missing"),
    (edit("annotations", 0, "image_id", value=8), r"1 annotation\(s\) of images that are not listed \(first: 8\)"),
    (edit("annotations", value=[]), r"1 image\(s\) without annotation \(first: 7\); annotate them .* or remove"),
    (double("images"), r"image id 7 is used more than once"),
    (double("annotations"), r"image 7 has more than one annotation"),
    (double(*SEGMENTS), r"image 7: segment id 70000 is used more than once"),
    (edit(*SEGMENTS, value=None), r"image 7: .* no list 'segments_info'.*convert"),
    (edit(*SEGMENTS, 0, "category_id", value=4), r"image 7: segment 70000: category 4 is not among the 3 categories"),
    (edit(*SEGMENTS, 0, "category_id", delete=True), r"image 7: segment 70000: 'category_id' is missing"),
    (edit(*SEGMENTS, 0, "id", value=0), r"image 7: segment 0: segment ids are integers from 1 to 16777215"),
    (edit(*SEGMENTS, 0, "id", value=256**3), r"segment 16777216: segment ids are integers"),
    (edit(*SEGMENTS, 0, "id", value="a"), r"segment 'a': segment ids are integers"),
    (edit(*SEGMENTS, 0, "iscrowd", value=2), r"image 7: segment 70000: iscrowd is 2, but must be 0 or 1"),
    (edit("images", 0, "file_name", value="../7.jpg"), r"image 7: file_name '\.\./7\.jpg' leaves its folder"),
    (edit("images", 0, "file_name", value="/etc/passwd"), r"file_name '/etc/passwd' leaves its folder"),
    (edit("annotations", 0, "file_name", value="a/../../7.png"), r"annotation of image 7: file_name .* leaves its folder"),
]


@pytest.mark.parametrize(("damage", "message"), JSON_DEFECTS)
def test_defective_jsons_are_refused_on_opening(layout, damage, message):
    damage(layout)
    with pytest.raises(DataError, match=message):
        open_set(layout)


def test_defective_category_list_names_the_file(layout):
    edit("categories", 1, "isthing", delete=True)(layout)
    with pytest.raises(CategoryError, match=r"panoptic_val\.json: category .* has no isthing"):
        open_set(layout)


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "C:\\x", "\\x", "..\\x", "", "."])
def test_names_that_leave_their_folder_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="leaves its folder"):
        safe_path(tmp_path, name, "image 1")


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 300], ids=["nul", "surrogate", "long"])
def test_names_that_no_file_can_have_are_refused(name, tmp_path):
    with pytest.raises(DataError, match="is no name that a file can have"):
        safe_path(tmp_path, name, "image 1")


def test_names_in_subfolders_are_fine(tmp_path):
    assert safe_path(tmp_path, "a/b..c.png", "image 1") == tmp_path / "a" / "b..c.png"


def test_missing_paths_are_listed_with_the_places_that_were_tried(tmp_path):
    with pytest.raises(DataError) as caught:
        resolve_paths(tmp_path, "train")
    message = str(caught.value)
    for place in ("train", "panoptic_train", "annotations/panoptic_train", "annotations/panoptic_train.json"):
        assert re.search(rf"(at|or) {re.escape(str(tmp_path / place))}\b", message)


def test_half_named_data_sets_are_refused(tmp_path):
    with pytest.raises(DataError, match="not fully named: give a root folder and a split"):
        resolve_paths(images=tmp_path, panoptic=tmp_path)


def test_folder_in_place_of_a_file_is_refused(tmp_path):
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        read_image(tmp_path)
    with pytest.raises(DataError, match=r"7\.jpg is missing"):
        find_image(tmp_path, "7.jpg", "image 7")


def test_output_folder_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/out: the folder cannot be made: Not a directory; choose another"):
        make_folder(tmp_path / "file" / "out")
