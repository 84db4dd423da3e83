"""Inputs that people have: each is read rightly, or refused with what is wrong and the way out."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.conversions import meanings, picture, truths, write
from PIL import Image

from panoptic_detr.categories import read_category
from panoptic_detr.data.coco import find_image
from panoptic_detr.data.convert.drawing import segmentation_mask
from panoptic_detr.data.convert.formats import FORMATS
from panoptic_detr.data.convert.sources import number_classes, read_categories
from panoptic_detr.data.doctor import read_values
from panoptic_detr.errors import CategoryError, DataError
from panoptic_detr.files import safe_path
from panoptic_detr.images import upright_rgb

CAR, ROAD = {"id": 1, "name": "car", "isthing": 1}, {"id": 2, "name": "road", "isthing": 0}


def box(left: int, top: int, right: int, bottom: int) -> list[list[int]]:
    return [[left, top, right, top, right, bottom, left, bottom]]


def shape(label: str, kind: str | None, *points: tuple[float, float]) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": [list(point) for point in points], "group_id": None}


def segments(out: Path) -> list[tuple[int, int, bool]]:
    (truth,) = truths(out)
    return [(s.category_id, s.area, s.iscrowd) for s in truth.segments]


class Source:
    """One 6x4 image `a.png`, annotated in LabelMe's form or as COCO instances."""

    def __init__(self, root: Path) -> None:
        self.root, self.images, self.out = root, root / "in", root / "out"
        picture(self.images / "a.png")

    def labelme(
        self, *shapes: dict[str, Any], image: str = "a.png", size: tuple[int, int] | None = None, **options: Any
    ) -> Any:
        content = {"imagePath": image, "shapes": list(shapes)}
        if size is not None:
            content |= {"imageWidth": size[0], "imageHeight": size[1]}
        (self.images / "a.json").write_text(json.dumps(content))
        return FORMATS["labelme"](self.images, self.out, workers=0, **options)

    def instances(
        self, *annotations: dict[str, Any], categories: Any = (CAR, ROAD), image: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        rows = [{"id": i, "image_id": 1, "category_id": 1, **row} for i, row in enumerate(annotations)]
        images = [{"id": 1, "file_name": "a.png", **(image or {})}]
        path = self.root / "i.json"
        path.write_text(json.dumps({"images": images, "annotations": rows, "categories": list(categories)}))
        return FORMATS["coco-instances"](path, self.images, self.out, workers=0, **options)

    def write_categories(self, *rows: dict[str, Any]) -> Path:
        path = self.root / "categories.json"
        path.write_text(json.dumps({"categories": rows}))
        return path


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return Source(tmp_path)


def test_a_rectangle_is_the_box_of_all_its_points(source):
    source.labelme(shape("crate", "rectangle", (1, 1), (3, 1), (3, 2), (1, 2)))
    assert segments(source.out) == [(1, 6, False)]


@pytest.mark.parametrize("kind", ["rotation", "oriented_rectangle", None])
def test_three_points_or_more_of_an_unknown_kind_are_a_polygon(source, kind):
    source.labelme(shape("ship", kind, (1, 1), (3, 1), (3, 2), (1, 2)))
    assert segments(source.out) == [(1, 6, False)]


def test_a_shape_of_unknown_area_is_void_not_background(source):
    conversion = source.labelme(
        shape("pool", "ellipse", (1, 1), (2, 2)), shape("pool", "linestrip", (0, 0), (5, 0), (5, 3)), rest="ground"
    )
    assert conversion.notes == {
        "unknown shape, with area, so its box is void: 'ellipse'": 1,
        "shape without area: 'linestrip'": 1,
    }
    (truth,) = truths(source.out)
    assert meanings(truth).tolist() == [[2] * 6, [2, 0, 0, 2, 2, 2], [2, 0, 0, 2, 2, 2], [2] * 6]


def test_ignored_pixels_are_void_and_no_class(source):
    source.labelme(shape("__ignore__", "rectangle", (0, 0), (1, 3)), shape("cat", "rectangle", (4, 0), (5, 3)), rest="ground")
    (truth,) = truths(source.out)
    assert [category.name for category in truth.categories.categories] == ["cat", "ground"]
    assert meanings(truth)[0].tolist() == [0, 0, 2, 2, 1, 1]


def test_labels_that_differ_in_case_or_blanks_are_said(source):
    conversion = source.labelme(
        *(shape(name, "rectangle", (i, 0), (i, 3)) for i, name in enumerate(("cat", "Cat", "cat ", "dog")))
    )
    (warning,) = conversion.warnings
    assert "'Cat', 'cat', 'cat '" in warning
    assert "dog" not in warning
    assert conversion.lines()[0] == f"warning: {warning}"


def test_the_path_in_a_labelme_file_of_windows(source):
    picture(source.images / "sub" / "b.png")
    source.labelme(shape("cat", "rectangle", (0, 0), (1, 1)), image="sub\\b.png")
    assert len(truths(source.out)) == 1
    with pytest.raises(DataError, match=r"imagePath '\.\.\\\\a\.png' leaves its folder.*name it with --images"):
        source.labelme(shape("cat", "rectangle", (0, 0), (1, 1)), image="..\\a.png", split="val")


def test_id_0_is_an_id(source):
    table = source.write_categories({"id": 0, "name": "soil", "isthing": 0}, {"id": 1, "name": "crop", "isthing": 1})
    source.labelme(shape("crop", "rectangle", (0, 0), (1, 3)), categories=table, rest="soil")
    assert segments(source.out) == [(1, 8, False), (0, 16, False)]


def test_stuff_against_the_categories_is_refused(source):
    table = source.write_categories(CAR, ROAD)
    with pytest.raises(DataError, match="--stuff names 'car', but the categories say that it is a thing"):
        source.labelme(shape("car", "rectangle", (0, 0), (1, 3)), categories=table, stuff=["car"])
    with pytest.raises(DataError, match="--stuff names 'car', but the categories say that it is a thing"):
        source.instances(stuff=["car"])
    source.labelme(shape("car", "rectangle", (0, 0), (1, 3)), categories=table, stuff=["road"])
    assert segments(source.out) == [(1, 8, False)]


def test_instance_number_0_is_a_number_where_numbers_begin_with_it(source):
    write(source.root / "semantic" / "a.png", np.full((4, 6), 1, np.uint8))
    write(source.root / "instance" / "a.png", np.repeat(np.array([[0, 0, 1, 1, 2, 2]], np.uint8), 4, 0))
    places = [source.images, source.root / "semantic", source.root / "instance", source.write_categories(CAR)]
    FORMATS["semantic-instance"](*places, source.out, first_instance=0, workers=0)
    assert segments(source.out) == [(1, 8, False)] * 3
    FORMATS["semantic-instance"](*places, source.root / "other", workers=0)
    assert segments(source.root / "other") == [(1, 8, True), (1, 8, False), (1, 8, False)]
    write(source.root / "instance" / "a.png", np.zeros((4, 6), np.uint8))
    conversion = FORMATS["semantic-instance"](*places, source.root / "crowds", workers=0)
    assert "ALL segments of 'car' are crowds" in conversion.warnings[0]
    assert "--first_instance" in conversion.warnings[0]


def test_a_class_of_crowds_only_is_said_and_can_be_taken_as_objects(source):
    annotations = [{"segmentation": box(0, 0, 2, 2), "iscrowd": 1}, {"segmentation": box(3, 0, 5, 2), "iscrowd": 1}]
    (warning,) = source.instances(*annotations).warnings
    assert "ALL segments of 'car' are crowds" in warning
    assert "--crowds objects" in warning
    assert segments(source.out) == [(1, 4, True), (1, 4, True)]
    assert source.instances(*annotations, split="val", crowds="objects").warnings == []
    (truth,) = truths(source.out, "val")
    assert [s.iscrowd for s in truth.segments] == [False, False]
    single = {"segmentation": box(0, 2, 2, 4)}
    assert source.instances(*annotations, single, split="test").warnings == []


def test_stuff_in_instances_stays_stuff_and_its_pieces_join(source, tmp_path):
    pieces = [{"segmentation": box(0, 2, 2, 4), "category_id": 2}, {"segmentation": box(4, 2, 6, 4), "category_id": 2}]
    source.instances({"segmentation": box(0, 0, 3, 3)}, *pieces)
    assert segments(source.out) == [(1, 9, False), (2, 6, False)]
    back = tmp_path / "back.json"
    FORMATS["to-instances"](
        source.out / "annotations" / "panoptic_train.json", source.out / "panoptic_train", back, stuff=True, workers=0
    )
    FORMATS["coco-instances"](back, source.images, tmp_path / "again", workers=0)
    for name in ("annotations/panoptic_train.json", "panoptic_train/a.png"):
        assert (source.out / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_stuff_by_name_in_instances_that_do_not_say(source):
    bare = [{"id": 1, "name": "car"}, {"id": 2, "name": "road"}]
    source.instances({"segmentation": box(0, 2, 2, 4), "category_id": 2}, categories=bare, stuff=["road"])
    (truth,) = truths(source.out)
    assert [category.isthing for category in truth.categories.categories] == [True, False]
    with pytest.raises(DataError, match=r"stuff label 'sea'.*the labels are car, road"):
        source.instances(categories=bare, stuff=["sea"], split="val")


def test_stuff_maps_join_annotated_stuff(source):
    write(source.root / "maps" / "a.png", np.full((4, 6), 2, np.uint8))
    options = {"stuff_maps": source.root / "maps", "stuff_categories": source.write_categories(ROAD)}
    source.instances({"segmentation": box(0, 0, 2, 2)}, {"segmentation": box(3, 0, 5, 2), "category_id": 2}, **options)
    assert segments(source.out) == [(1, 4, False), (2, 20, False)]


def test_numbers_written_as_floats(source):
    runs = {"size": [4.0, 6.0], "counts": [0.0, 4.0, 20.0]}
    source.instances({"segmentation": runs, "image_id": 1.0, "category_id": 1.0}, image={"id": 1.0})
    (truth,) = truths(source.out)
    assert truth.image_id == 1
    assert isinstance(truth.image_id, int)
    with pytest.raises(DataError, match=r"id 1\.5 must be an integer"):
        source.instances(image={"id": 1.5}, split="val")
    with pytest.raises(DataError, match="do not add up"):
        segmentation_mask({"size": [4, 6], "counts": [0.5, 23.5]}, (4, 6), "here")


def test_another_size_in_the_json_is_refused_or_scaled(source):
    annotation, image = {"segmentation": box(4, 2, 8, 6)}, {"width": 12, "height": 8}
    with pytest.raises(DataError, match=r"annotated at 12x8 pixels, but .* is stored at 6x4.*--resize_annotations true"):
        source.instances(annotation, image=image)
    source.instances(annotation, image=image, resize_annotations=True)
    assert [segment.box for segment in truths(source.out)[0].segments] == [(2, 1, 2, 2)]
    rectangle = shape("cat", "rectangle", (4, 2), (7, 5))
    with pytest.raises(DataError, match="annotated at 12x8 pixels"):
        source.labelme(rectangle, size=(12, 8), split="val")
    source.labelme(rectangle, size=(12, 8), split="val", resize_annotations=True)
    assert [segment.box for segment in truths(source.out, "val")[0].segments] == [(2, 1, 2, 2)]


@pytest.mark.parametrize("size", [(-1, 4), (float("nan"), 4), (6, -5), (6, True), (0, 4), (None, -5)])
def test_what_is_no_size_is_refused(source, size):
    with pytest.raises(DataError, match="are no size; correct them"):
        source.labelme(shape("cat", "rectangle", (0, 0), (1, 1)), size=size)
    with pytest.raises(DataError, match="are no size; correct them"):
        source.instances({"segmentation": box(0, 0, 2, 2)}, image={"width": size[0], "height": size[1]})


@pytest.mark.parametrize("name", ["", " "])
def test_a_class_has_a_name(source, name):
    with pytest.raises(DataError, match=r"label is .*; name its class"):
        source.labelme(shape(name, "rectangle", (0, 0), (1, 1)))
    with pytest.raises(DataError, match="the rest cannot be"):
        source.instances(rest=name)


@pytest.mark.parametrize("text", ["[]", "3"])
def test_the_format_is_named_that_a_json_is_not(source, text):
    with pytest.raises(DataError, match=r"no \.json annotation lies there"):
        FORMATS["labelme"](source.images, source.out)
    (source.images / "a.json").write_text(text)
    with pytest.raises(DataError, match="not a LabelMe JSON"):
        FORMATS["labelme"](source.images, source.out)
    with pytest.raises(DataError, match="not a COCO instances JSON"):
        FORMATS["coco-instances"](source.images / "a.json", source.images, source.out)


def test_a_picture_that_exif_turns_is_named(source):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(source.images / "turned.jpg", exif=exif)
    with pytest.raises(DataError, match=r"annotated at 4x6 pixels.*EXIF orientation \(6\).* or give --resize_annotations true"):
        source.instances(image={"file_name": "turned.jpg", "width": 4, "height": 6})
    with pytest.raises(DataError, match=r"annotated at 9x20 pixels.*the proportions do not tell whether"):
        source.instances(image={"file_name": "turned.jpg", "width": 9, "height": 20}, resize_annotations=True)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
@pytest.mark.parametrize("scale", [1, 3])
def test_annotations_of_the_upright_picture_are_turned_back_with_it(source, orientation, scale):
    """The white corner is where it is annotated, for whoever looks at the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.zeros((4, 6, 3), np.uint8)
    stored[:2, :3] = 255
    Image.fromarray(stored).save(source.images / "turned.png", exif=exif)
    rows, columns = upright_rgb(source.images / "turned.png")[..., 0].nonzero()
    corners = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) * scale
    image = {"file_name": "turned.png", "width": 4 * scale, "height": 6 * scale}
    source.instances({"segmentation": box(*corners.tolist())}, image=image, resize_annotations=True)
    (truth,) = truths(source.out)
    assert [segment.box for segment in truth.segments] == [(0, 0, 3, 2)]


def test_annotations_of_the_stored_pixels_are_scaled_though_exif_turns_the_picture(source):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(source.images / "turned.png", exif=exif)
    image = {"file_name": "turned.png", "width": 12, "height": 8}
    source.instances({"segmentation": box(4, 2, 8, 6)}, image=image, resize_annotations=True)
    assert [segment.box for segment in truths(source.out)[0].segments] == [(2, 1, 2, 2)]


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (3.5, "id 3.5 is not an integer"),
        ("3", "id '3' is a text, not an integer; write 3"),
        (True, "id True is a truth value, but ids are integers"),
        (10**18, "does not fit into 32 bits"),
        (1e300, "id 1e\\+300 is not an integer"),
    ],
)
def test_category_ids_are_one_thing_for_every_converter_and_for_the_check(source, given, problem):
    wrong = [{"id": given, "name": "car", "isthing": 1}]
    path = source.write_categories(*wrong)
    for convert in (
        lambda: source.instances(categories=wrong),
        lambda: source.labelme(shape("car", "rectangle", (0, 0), (2, 2)), categories=path),
        lambda: number_classes(read_categories(path), "here"),
        lambda: read_category(wrong[0]),
    ):
        with pytest.raises(CategoryError, match=problem):
            convert()


def test_whole_numbers_written_as_floats_are_category_ids_for_every_converter(source):
    wrong = [{"id": 3.0, "name": "car", "isthing": 1}]
    assert list(number_classes(read_categories(source.write_categories(*wrong)), "here").isthing) == [3]
    with pytest.raises(CategoryError, match=r"category id 3\.0 is not an integer; write 3"):
        read_category(wrong[0])
    with pytest.raises(DataError, match="category_id '1' is a text, not an integer; write 1"):
        source.instances({"segmentation": box(0, 0, 2, 2), "category_id": "1"})


def test_a_backslash_in_a_name_separates_folders(source):
    picture(source.images / "cam" / "b.png")
    source.instances({"segmentation": box(0, 0, 2, 2)}, image={"file_name": "cam\\b.png"})
    content = json.loads((source.out / "annotations" / "panoptic_train.json").read_text())
    assert content["images"][0]["file_name"] == "cam/b.png"
    assert content["annotations"][0]["file_name"] == "cam/b.png"
    with pytest.raises(DataError, match="leaves its folder"):
        safe_path(source.images, "cam\\..\\..\\b.png", "here")


def test_what_follows_a_dot_is_an_ending_only_if_it_is_one(source):
    for name in ("scan.jpg", "scan.1.jpg", "scan.2.jpg", "other.png"):
        picture(source.images / name)
    assert find_image(source.images, "scan.1", "here").name == "scan.1.jpg"
    assert find_image(source.images, "other.tif", "here").name == "other.png"
    with pytest.raises(DataError, match=r"scan\.3 is missing"):
        find_image(source.images, "scan.3", "here")
    source.instances({"segmentation": box(0, 0, 2, 2)}, image={"file_name": "scan.1"})
    content = json.loads((source.out / "annotations" / "panoptic_train.json").read_text())
    assert content["images"][0]["file_name"] == "scan.1.jpg"
    assert content["annotations"][0]["file_name"] == "scan.1.png"
    back = source.root / "semantic"
    FORMATS["to-semantic"](source.out / "annotations" / "panoptic_train.json", source.out / "panoptic_train", back, workers=0)
    assert (back / "scan.1.png").is_file()


@pytest.mark.parametrize("name", ["mask.jpg", "mask.png", "mask.webp", "mask.tif"])
def test_lossy_masks_are_refused_by_name(tmp_path, name):
    options = {"mask.webp": {"quality": 80}, "mask.tif": {"compression": "jpeg"}}.get(name, {})
    kind = {".webp": "WEBP", ".tif": "TIFF"}.get(Path(name).suffix, "JPEG")  # whatever the name says
    Image.fromarray(np.arange(24, dtype=np.uint8).reshape(4, 6)).save(tmp_path / name, kind, **options)
    with pytest.raises(DataError, match=rf"{name}: .*{kind}.* changes values a little"):
        read_values(tmp_path / name)


def test_several_pages_are_refused(tmp_path):
    pages = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (1, 2, 3)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(DataError, match=r"stack\.tif: 3 pages in one file"):
        read_values(tmp_path / "stack.tif")


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("bits.png", np.array([[0, 1], [1, 0]], bool)),
        ("bits.tif", np.array([[0, 1], [1, 0]], bool)),
        ("wide.tif", np.array([[0, 70000], [3, 1]], np.int32)),
        ("floats.tif", np.array([[0, 7], [3, 1]], np.float32)),
        ("deep.png", np.array([[0, 700], [3, 1]], np.uint16)),
    ],
)
def test_raw_values_of_masks(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    assert np.array_equal(read_values(tmp_path / name), values.astype(np.int32))


@pytest.mark.parametrize("bits", [2, 4])
def test_palettes_of_few_bits(tmp_path, bits):
    values = np.array([[0, 1], [2, 3]], np.uint8)
    image = Image.fromarray(values)
    image = image.convert("P")
    image.putpalette([7, 8, 9] * 256)
    image.save(tmp_path / "few.png", bits=bits)
    assert np.array_equal(read_values(tmp_path / "few.png"), values)


def test_fractions_and_negative_numbers_are_no_labels(tmp_path):
    Image.fromarray(np.array([[0.5, 1]], np.float32)).save(tmp_path / "half.tif")
    Image.fromarray(np.array([[-1, 1]], np.int32)).save(tmp_path / "negative.tif")
    with pytest.raises(DataError, match="whole numbers"):
        read_values(tmp_path / "half.tif")
    with pytest.raises(DataError, match="the mask has the value -1"):
        read_values(tmp_path / "negative.tif")
