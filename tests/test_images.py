import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from panoptic_detr.data.coco import find_image
from panoptic_detr.errors import DataError, PictureError, SegmentMapError
from panoptic_detr.images import as_rgb, encode_picture, read_image, upright_rgb
from panoptic_detr.segment_maps import read_id_png, write_id_png


def test_a_header_that_claims_too_many_pixels_is_named(tmp_path):
    png = encode_picture(np.zeros((4, 4, 3), np.uint8))
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + png[24:29]
    path = tmp_path / "huge.png"
    path.write_bytes(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    with pytest.raises(PictureError, match=r"huge\.png: not a readable image"):
        as_rgb(path)


@pytest.mark.parametrize(("values", "expected"), [([0, 32896, 65535], [0, 128, 255]), ([0, 9, 255], [0, 9, 255])])
def test_pictures_of_32_bits_hold_16_or_8(values, expected):
    picture = Image.fromarray(np.array([values], np.int32))
    assert picture.mode == "I"
    assert upright_rgb(picture)[0, :, 0].tolist() == expected
    with pytest.raises(PictureError, match=r"must be in 0\.\.65535, but its values are -1\.\.3"):
        upright_rgb(Image.fromarray(np.array([[-1, 3]], np.int32)))


def test_pictures_of_fractions_are_read_as_such():
    picture = Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32))
    assert picture.mode == "F"
    assert upright_rgb(picture)[0, :, 0].tolist() == [0, 128, 255]
    with pytest.raises(PictureError, match=r"must be in 0\.\.1, but this one has NaN"):
        as_rgb(np.array([[0.5, np.nan]], np.float32))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_pipes_and_links_to_nothing_are_told_and_do_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(PictureError, match=r"pipe\.png: the image cannot be read: it is a pipe or a device"):
        as_rgb(tmp_path / "pipe.png")
    with pytest.raises(SegmentMapError, match="it is a pipe or a device"):
        read_id_png(tmp_path / "pipe.png")
    (tmp_path / "link.png").symlink_to("elsewhere.png")
    with pytest.raises(PictureError, match=r"link\.png: .* it is a link to 'elsewhere\.png', where there is nothing"):
        read_image(tmp_path / "link.png")
    with pytest.raises(DataError, match=r"is a link to 'elsewhere\.png', where there is nothing; mend the link"):
        find_image(tmp_path, "link.png", "image 1")


def test_id_maps_are_not_written_with_loss(tmp_path):
    with pytest.raises(SegmentMapError, match=r"x\.jpg: an id map is written as PNG, .*; name the file x\.png"):
        write_id_png(tmp_path / "x.jpg", np.ones((2, 2), int))
    assert list(tmp_path.iterdir()) == []
