import errno
import struct
import zlib

import cv2
import numpy as np
import pytest

from panoptic_detr.errors import SegmentMapError
from panoptic_detr.files import write_whole
from panoptic_detr.segment_maps import (
    MAX_ID,
    decode_ids,
    decode_picture,
    encode_ids,
    measure,
    read_id_png,
    resize_ids,
    with_ids,
    write_id_png,
)


def test_ids_round_trip_through_pictures(tmp_path):
    segment_map = np.random.default_rng(0).integers(0, MAX_ID + 1, (13, 17), dtype=np.int64)
    assert (decode_ids(encode_ids(segment_map)) == segment_map).all()
    write_id_png(tmp_path / "ids.png", segment_map)
    assert (read_id_png(tmp_path / "ids.png") == segment_map).all()


def test_colours_are_cocos():
    picture = np.array([[[10, 20, 30]]], np.uint8)
    assert decode_ids(picture)[0, 0] == 10 + 20 * 256 + 30 * 65536


def test_areas_and_boxes_equal_the_plain_computation():
    segment_map = np.random.default_rng(1).integers(0, 6, (9, 14)) * 1000
    segment_map[segment_map == 3000] = 0
    found = measure(segment_map)
    assert found.keys() == set(np.unique(segment_map)) - {0}
    for id, (area, (left, top, width, height)) in found.items():
        y, x = np.nonzero(segment_map == id)
        assert (left, top, width, height) == (x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1)
        assert area == len(y)
    assert measure(np.zeros((3, 3), int)) == {}


def test_resizing_takes_the_nearest_pixel_centre():
    assert resize_ids(np.array([[1, 2, 3, 4]]), (1, 2)).tolist() == [[2, 4]]
    assert resize_ids(np.array([[1, 2]]), (2, 4)).tolist() == [[1, 1, 2, 2]] * 2
    assert resize_ids(np.array([[5, 6], [7, 8]]), (2, 2)).tolist() == [[5, 6], [7, 8]]


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4), np.uint8), "this one is grey"),
        (np.zeros((4, 4, 4), np.uint8), "this one is RGBA"),
        (np.zeros((4, 4, 3), np.uint16), "this one is 16-bit RGB"),
    ],
)
def test_pictures_of_another_kind_are_named(tmp_path, picture, message):
    path = tmp_path / "annotation.png"
    cv2.imwrite(str(path), picture)
    with pytest.raises(SegmentMapError, match=message) as error:
        read_id_png(path)
    assert "annotation.png" in str(error.value)


def test_palettes_are_refused(tmp_path):
    from PIL import Image

    Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P").save(tmp_path / "palette.png")
    with pytest.raises(SegmentMapError, match=r"palette\.png.*this one is palette"):
        read_id_png(tmp_path / "palette.png")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(SegmentMapError, match=r"gone\.png: the annotation PNG is missing"):
        read_id_png(tmp_path / "gone.png")
    write_id_png(tmp_path / "cut.png", np.arange(400).reshape(20, 20))
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(SegmentMapError, match=r"cut\.png"):
        read_id_png(tmp_path / "cut.png")


def test_ids_out_of_range_are_refused_and_nothing_is_written(tmp_path):
    for value in (-1, MAX_ID + 1):
        with pytest.raises(SegmentMapError, match="segment ids must be in"):
            write_id_png(tmp_path / "ids.png", np.full((2, 2), value))
    assert list(tmp_path.iterdir()) == []


def test_other_formats_are_refused_although_they_decode(tmp_path):
    path = tmp_path / "lossy.png"
    path.write_bytes(cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1].tobytes())
    with pytest.raises(SegmentMapError, match=r"lossy\.png: .*this one is no PNG"):
        read_id_png(path)


def test_headers_that_claim_too_many_pixels_are_no_picture(tmp_path):
    write_id_png(tmp_path / "huge.png", np.ones((4, 4), int))
    data = claim_size((tmp_path / "huge.png").read_bytes(), 60_000)
    assert decode_picture(data) is None
    (tmp_path / "huge.png").write_bytes(data)
    with pytest.raises(SegmentMapError, match=r"huge\.png: not a readable picture"):
        read_id_png(tmp_path / "huge.png")


def claim_size(png, side):
    """The PNG with another width and height in its header."""
    header = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


def test_a_full_disk_names_the_file(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("panoptic_detr.files.os.replace", lambda *_: full(0))
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.json'"):
        write_whole(tmp_path / "a.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_other_ids_and_void_for_those_that_have_none():
    segment_map = np.array([[0, 7, 7], [3, 3, 9]])
    assert with_ids(segment_map, {3: 1, 9: 70000, 12: 5}).tolist() == [[0, 0, 0], [1, 1, 70000]]
    assert with_ids(segment_map, {}).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert with_ids(np.zeros((0, 2), int), {1: 2}).shape == (0, 2)
