"""Pictures that EXIF turns: data sets use the stored pixels, prediction the upright ones, and the user is told."""

import json

import pytest
from PIL import Image

from panoptic_detr.data.coco.defects import KINDS
from panoptic_detr.data.convert.formats import FORMATS
from panoptic_detr.errors import DataError
from panoptic_detr.images import read_image, upright_rgb


@pytest.fixture
def photo(tmp_path):
    """6 columns by 4 rows as stored, turned by a quarter to be upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "in" / "a.jpg"
    path.parent.mkdir()
    Image.new("RGB", (6, 4), (9, 99, 199)).save(path, exif=exif)
    return path


def test_data_sets_have_stored_pixels_and_predictions_upright_ones(photo):
    assert read_image(photo).shape == (4, 6, 3)
    assert upright_rgb(photo).shape == (6, 4, 3)


def test_the_note_says_whose_pixels_are_annotated():
    advice = KINDS["exif_rotation"].remedy
    assert "annotations must be those of the stored pixels" in advice
    assert "`predict` turns pictures upright" in advice


@pytest.mark.parametrize(("drawn", "fits"), [((4, 6), True), ((None, None), True), ((6, 4), False)])
def test_labelme_shapes_on_the_turned_picture_are_refused(photo, tmp_path, drawn, fits):
    shape = {"label": "dog", "shape_type": "rectangle", "points": [[0, 0], [2, 2]]}
    sizes = {"imageHeight": drawn[0], "imageWidth": drawn[1]}
    photo.with_name("a.json").write_text(json.dumps({"imagePath": "a.jpg", "shapes": [shape], **sizes}))
    if fits:
        FORMATS["labelme"](photo.parent, tmp_path / "out", workers=0)
        return
    with pytest.raises(
        DataError,
        match=r"annotated at 4x6 pixels, but .*a\.jpg is stored at 6x4, and its EXIF orientation \(6\) asks viewers to turn it",
    ):
        FORMATS["labelme"](photo.parent, tmp_path / "out", workers=0)
