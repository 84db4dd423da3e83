"""The optional decoder of id maps and OpenCV read the same, and refuse the same in the same words."""

import struct
import zlib

import cv2
import numpy as np
import pytest

from panoptic_detr import segment_maps
from panoptic_detr.errors import SegmentMapError
from panoptic_detr.id_runs import IdRuns, RunReader, can_read_runs
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


def damaged():
    """Pictures whose every checksum of a chunk is right, by what is wrong with them."""
    ids = RANDOM.integers(0, MAX_ID, (16, 20))
    head = struct.pack(">IIBBBBB", 20, 16, 8, 2, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in segment_maps.encode_ids(ids))
    packed = zlib.compress(lines)
    small = zlib.compressobj(wbits=15)  # looks back 671 bytes
    repeated = small.compress(lines[:671] + lines[:305]) + small.flush()
    begin, image, end = (b"IHDR", head), (b"IDAT", packed), (b"IEND", b"")
    two = (b"IDAT", packed[:9]), (b"IDAT", packed[9:])
    text, rest = (b"tEXt", b"a\0b"), packed[2:]
    yield "nothing", [begin, text, *two, text, end]
    yield "not in a row", [begin, two[0], text, two[1], end]
    yield "long head", [(b"IHDR", head + b"\0"), image, end]
    yield "two heads", [begin, begin, image, end]
    yield "late head", [text, begin, image, end]
    yield "no head", [image, end]
    yield "checksum of the lines", [begin, (b"IDAT", packed[:-1] + bytes([packed[-1] ^ 1])), end]
    yield "no checksum of the lines", [begin, (b"IDAT", packed[:-4]), end]
    yield "more than the lines", [begin, (b"IDAT", packed + b"12"), end]
    yield "too many lines", [begin, (b"IDAT", zlib.compress(lines + lines)), end]
    yield "too few lines", [begin, (b"IDAT", zlib.compress(lines[:-1])), end]
    yield "a filter that there is not", [begin, (b"IDAT", zlib.compress(b"\7" + lines[1:])), end]
    for window in range(16):
        first = window << 4 | 8
        start = bytes([first, 31 - (first << 8) % 31])
        yield f"window {window}", [begin, (b"IDAT", start + rest), end]
        yield f"window {window}, far back", [begin, (b"IDAT", start + repeated[2:]), end]
    kinds = (
        b"texT",
        b"t\1Xt",
        b"tExt",
        b"TEXt",
        b"PLTE",
        b"tRNS",
        b"acTL",
        b"fcTL",
        b"fdAT",
        b"gAMA",
        b"sRGB",
        b"tIME",
        b"pHYs",
    )
    for kind in (*kinds, b"IEND", b"abCd", b"iCCP", b"cHRM", b"eXIf", b"sBIT", b"bKGD"):
        for content in (b"", b"\0\0\1", bytes(range(1, 10))):
            yield f"{kind!r} {len(content)}", [begin, (kind, content), image, end]
            yield f"{kind!r} {len(content)} behind", [begin, image, (kind, content), end]
    for number in range(150):
        parts = [begin, text, *two, text, end]
        for _ in range(RANDOM.integers(1, 3)):
            place = RANDOM.integers(len(parts))
            kind, content = parts[place]
            content = bytearray(content or b"\0")
            content[RANDOM.integers(len(content))] ^= 1 << RANDOM.integers(8)
            parts[place] = (kind, bytes(content))
        yield f"random {number}", [parts[i] for i in RANDOM.permutation(6)] if number % 5 == 0 else parts


def test_what_is_damaged_is_read_or_refused_alike_by_all(tmp_path, monkeypatch):
    read, path, refused = RunReader() if can_read_runs() else read_id_png, tmp_path / "a.png", 0
    for name, parts in damaged():
        path.write_bytes(segment_maps.SIGNATURE + b"".join(chunk(*part) for part in parts))
        fast, slow = both(path, monkeypatch)
        try:
            runs = read(path)
            as_runs = (runs.paint() if isinstance(runs, IdRuns) else runs).tolist()
        except SegmentMapError as error:
            as_runs = str(error)
        assert fast == slow, name
        assert as_runs == slow, name
        refused += isinstance(slow, str)
        assert name != "nothing" or isinstance(runs, IdRuns) == can_read_runs()
    assert refused > 100
