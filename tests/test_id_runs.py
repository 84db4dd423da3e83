"""Runs of an id PNG are those of its map, whichever filters it was written with."""

import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from panoptic_detr.errors import SegmentMapError
from panoptic_detr.id_runs import IdRuns, RunReader, are_kernels_loaded, count_marks, join_maps, join_runs
from panoptic_detr.segment_maps import encode_ids, read_id_png

pytest.importorskip("numba")
RANDOM = np.random.default_rng(0)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def remainders(row, above, kind):
    """A line behind its filter, byte by byte as the specification says it."""
    left, corner = (np.concatenate([np.zeros(3, int), line[:-3]]) for line in (row, above))
    guess = left + above - corner
    to_left, to_above, to_corner = (abs(guess - other) for other in (left, above, corner))
    nearest = np.where((to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner))
    return (row - [0 * row, left, above, (left + above) // 2, nearest][kind]) % 256


def png(ids, kinds, parts=1, head=(8, 2, 0, 0, 0)):
    """A PNG of an id map whose lines have these filters."""
    above, lines = np.zeros(3 * ids.shape[1], int), bytearray()
    for row, kind in zip(encode_ids(ids).reshape(len(ids), -1).astype(int), kinds, strict=True):
        lines += bytes([kind]) + remainders(row, above, min(kind, 4)).astype(np.uint8).tobytes()
        above = row
    data = zlib.compress(bytes(lines))
    size = len(data) if parts == 1 else 7
    pieces = [chunk(b"IDAT", data[i : i + size]) for i in range(0, len(data), size)]
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", ids.shape[1], len(ids), *head))
    return start + chunk(b"tEXt", b"made\0by hand") + b"".join(pieces) + chunk(b"IEND", b"")


def some_map(index):
    height, width = RANDOM.integers(1, 30, 2)
    numbers = RANDOM.integers(0, 2**24, RANDOM.integers(1, 5))
    places = RANDOM.integers(0, len(numbers), (height // 3 + 1, width // 3 + 1))
    if index % 3:
        return numbers[places.repeat(3, 0).repeat(3, 1)[:height, :width]]
    return RANDOM.choice(numbers, (height, width))


def test_every_filter_on_random_maps(tmp_path):
    read = RunReader()
    for index in range(150):
        ids, path = some_map(index), tmp_path / "a.png"
        path.write_bytes(png(ids, RANDOM.integers(0, 5, len(ids)), parts=1 + index % 2))
        runs = read(path)
        assert isinstance(runs, IdRuns)
        assert (runs.paint() == ids).all()
        assert (read_id_png(path) == ids).all()


def test_a_tall_map_after_a_wide_one_gets_the_memory_that_it_needs(tmp_path):
    read = RunReader()
    for size in ((2, 300), (600, 1), (1, 600)):  # one number of pixels; a line has a byte more than its pixels
        ids = RANDOM.integers(0, 2**24, size)
        (tmp_path / "a.png").write_bytes(png(ids, [1] * len(ids)))
        assert (read(tmp_path / "a.png").paint() == ids).all()


def test_nothing_is_written_out_of_bounds(tmp_path):
    # What is compiled does not look at bounds unless it is told to, and a small overrun shows nowhere else.
    checked = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    functions = (
        test_every_filter_on_random_maps,
        test_a_tall_map_after_a_wide_one_gets_the_memory_that_it_needs,
        test_files_of_others_and_joined_runs,
        test_joined_maps_are_joined_pixel_by_pixel,
        test_marks_of_runs,
    )
    calls = "; ".join(f"tests.{function.__name__}(Path({str(tmp_path)!r}))" for function in functions)
    script = f"from pathlib import Path; import test_id_runs as tests; {calls}"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parent, env=checked, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


def test_files_of_others_and_joined_runs(tmp_path):
    readers = RunReader(), RunReader()
    for index in range(20):
        ids = some_map(index)
        others = RANDOM.integers(0, 3, ids.shape)
        Image.fromarray(encode_ids(ids)).save(tmp_path / "a.png", optimize=index % 2 == 0)
        cv2.imwrite(str(tmp_path / "b.png"), encode_ids(others)[..., ::-1])
        runs = [read(tmp_path / name) for read, name in zip(readers, ("a.png", "b.png"), strict=True)]
        known = np.unique(ids)
        first, second, lengths = join_runs(
            runs[0], (known, known + 5), runs[1], (np.array([0, 2], np.int64), np.array([7, 9], np.int64))
        )
        assert (first.repeat(lengths) == ids.ravel() + 5).all()
        assert (second.repeat(lengths) == np.array([7, -1, 9])[others.ravel()]).all()
        assert ((first[1:] != first[:-1]) | (second[1:] != second[:-1])).all()


def test_joined_maps_are_joined_pixel_by_pixel(tmp_path):
    sizes = [(0, 7), (1, 1), (3, 7), (64, 64), (1, 4097), (70, 131), (1, 8200)]
    for index, size in enumerate([*sizes, *(RANDOM.integers(1, 200, 2) for _ in range(20))]):
        coarse = RANDOM.integers(-1, 4, (size[0] // 5 + 1, size[1] // 5 + 1), dtype=np.int32)
        ids = coarse.repeat(5, 0).repeat(5, 1)[: size[0], : size[1]]
        others = RANDOM.choice(np.array([0, 7, 2**24 - 1], np.int32), size) if index % 2 else np.roll(ids, 1, 1) * 7
        known = np.array([0, 1, 3], np.int64), np.array([2, 5, 4], np.int64)
        first, second, lengths = join_maps(ids, known, others, (np.array([7, 2**24 - 1]), np.array([1, 0])))
        names, other_names = {0: 2, 1: 5, 3: 4}, {7: 1, 2**24 - 1: 0}
        assert first.repeat(lengths).tolist() == [names.get(i, -1) for i in ids.ravel().tolist()]
        assert second.repeat(lengths).tolist() == [other_names.get(i, -1) for i in others.ravel().tolist()]
        assert len(lengths) == 0 or lengths.min() > 0
    assert are_kernels_loaded()


def test_marks_of_runs(tmp_path):
    lengths = np.append(RANDOM.integers(1, 60, 30), 1)
    marks = RANDOM.random((2, 1, lengths.sum())) < 0.4
    ends = np.cumsum(lengths)
    rows = [row[0] for row in (*marks, marks[0] & marks[1])]
    wanted = [[row[end - length : end].sum() for end, length in zip(ends, lengths, strict=True)] for row in rows]
    assert count_marks(*marks, lengths).tolist() == wanted


def test_what_is_not_read_as_runs_is_read_or_refused_as_a_map(tmp_path):
    ids, path = RANDOM.integers(0, 9, (6, 7)), tmp_path / "a.png"
    whole = png(ids, [1] * 6)
    path.write_bytes(png(ids, [1, 1, 1, 1, 1, 7]))
    for data in (whole[:-30], whole.replace(b"IDAT", b"IDAU"), path.read_bytes(), png(ids, [1] * 6, head=(8, 6, 0, 0, 0)), b""):
        path.write_bytes(data)
        with pytest.raises(SegmentMapError, match=r"a\.png: "):
            RunReader()(path)
    transparent = whole[:33] + chunk(b"tRNS", bytes(6)) + whole[33:]
    path.write_bytes(transparent)
    with pytest.raises(SegmentMapError, match="must be an 8-bit RGB PNG"):
        RunReader()(path)
