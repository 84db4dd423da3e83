"""The optional decoder of id maps and OpenCV read the same, and refuse the same in the same words."""

import zlib

import cv2
import numpy as np
import pytest

from panoptic_detr import segment_maps
from panoptic_detr.errors import SegmentMapError
from panoptic_detr.segment_maps import MAX_ID, IdBuffer, read_id_png, write_id_png

RANDOM = np.random.default_rng(0)


def outcome(path):
    try:
        return read_id_png(path).tolist()
    except SegmentMapError as error:
        return str(error)


def both(path, monkeypatch):
    """What is read with the fast decoder, where it is installed, and without."""
    fast = outcome(path)
    with monkeypatch.context() as patch:
        patch.setattr(segment_maps, "fast_decoder", None)
        return fast, outcome(path)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (37, 20)])
def test_maps_come_back_with_either(tmp_path, monkeypatch, size):
    ids = RANDOM.integers(0, MAX_ID, size, endpoint=True).astype(np.int32)
    write_id_png(tmp_path / "a.png", ids)
    assert both(tmp_path / "a.png", monkeypatch) == (ids.tolist(), ids.tolist())


def chunk(kind, content):
    body = kind + content
    return len(content).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")


def test_what_is_no_id_map_is_refused_in_the_same_words(tmp_path, monkeypatch):
    write_id_png(tmp_path / "whole.png", RANDOM.integers(0, 9, (16, 20)))
    whole = (tmp_path / "whole.png").read_bytes()
    transparent = whole[:33] + chunk(b"tRNS", bytes(6)) + whole[33:]
    files = {"empty": b"", "head": whole[:20], "half": whole[: len(whole) // 2], "transparent": transparent}
    files["jpeg"] = cv2.imencode(".jpg", np.zeros((4, 4, 3), np.uint8))[1].tobytes()
    for name, picture in (("grey", np.zeros((4, 4), np.uint8)), ("deep", np.zeros((4, 4, 3), np.uint16))):
        files[name] = cv2.imencode(".png", picture)[1].tobytes()
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        fast, slow = both(tmp_path / name, monkeypatch)
        assert fast == slow, name
        assert isinstance(fast, str), name


def test_a_buffer_is_used_again_and_grows(tmp_path):
    buffer, maps = IdBuffer(), [RANDOM.integers(0, MAX_ID, size) for size in ((4, 6), (6, 4), (2, 3), (9, 9))]
    read = []
    for ids in maps:
        write_id_png(tmp_path / "a.png", ids)
        read.append(read_id_png(tmp_path / "a.png", buffer))
        assert (read[-1] == ids).all()
    assert np.shares_memory(read[0], read[2])
    assert not np.shares_memory(read[0], read[3])
