"""Id PNGs as runs of equal ids: three times faster for scoring than as maps (the extra "fast-pq"); maps in memory, counted.

An id map is piecewise constant, so what a PNG keeps of it is mostly zeros: after libdeflate only the bytes that are not 0, and
the runs of the line above, are looked at, and no pixel is painted. What does this is compiled by numba and kept on disk: three
seconds once, and one or two to load it, so it is for sets of many images.
"""

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from panoptic_detr.segment_maps import png_lines, read_bytes, read_id_png


@cache
def can_read_runs() -> bool:
    """Whether what is compiled is there and can be loaded, which takes a second or two when it is first asked.

    A numba that is too old for the NumPy beside it is installed and cannot be imported.
    """
    try:
        import deflate  # noqa: F401

        from panoptic_detr.id_runs.kernels import read_runs  # noqa: F401
    except (ImportError, AttributeError, OSError, SystemError):
        return False
    return True


def are_kernels_loaded() -> bool:
    """Whether what is compiled is loaded already, so that using it costs nothing."""
    return "panoptic_detr.id_runs.kernels" in sys.modules and can_read_runs()


@dataclass(frozen=True)
class IdRuns:
    """An id map as runs of pixels in reading order; neighbours may have the same id."""

    starts: np.ndarray  # (R,) int32, first pixel of each run; the first is 0
    ids: np.ndarray  # (R,) uint32
    shape: tuple[int, int]  # (H, W)

    def paint(self) -> np.ndarray:
        """The (H, W) int32 map."""
        lengths = np.diff(self.starts, append=self.shape[0] * self.shape[1])
        return self.ids.astype(np.int32).repeat(lengths).reshape(self.shape)


class RunReader:
    """Reads one id PNG after the other, each into the memory of the one before."""

    def __init__(self) -> None:
        self._places, self._starts, self._ids = np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0, np.uint32)

    def __call__(self, path: str | Path) -> "IdRuns | np.ndarray":
        """The runs of a sound 8-bit RGB PNG, valid until the next one is read; what else there is as by `read_id_png`.

        Raises:
            SegmentMapError: as `read_id_png`.
        """
        from panoptic_detr.id_runs.kernels import read_runs

        lines = png_lines(read_bytes(path))
        if lines is None:
            return read_id_png(path)
        data, (height, width) = lines
        if self._places.size <= data.size:
            self._places = np.empty(data.size + 1, np.int32)
        if self._starts.size < height * width:
            self._starts, self._ids = np.empty(height * width, np.int32), np.empty(height * width, np.uint32)
        words = data[: data.size // 8 * 8].view(np.uint64)
        count = read_runs(data, words, height, width, self._places, self._starts, self._ids)
        return IdRuns(self._starts[:count], self._ids[:count], (height, width)) if count else read_id_png(path)


Names = tuple[np.ndarray, np.ndarray]  # (S,) int64 ascending ids, (S,) int64 what to call each


def join_runs(first: IdRuns, names: Names, second: IdRuns, other_names: Names) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Runs over which neither of two maps of one size changes: name in the first, in the second, and length, int64 each.

    The name of an id that has none is -1.
    """
    from panoptic_detr.id_runs.kernels import join, name

    most = len(first.starts) + len(second.starts)
    one, other, lengths, names_of, other_names_of = (np.empty(most, np.int64) for _ in range(5))
    name(first.ids, *names, names_of)
    name(second.ids, *other_names, other_names_of)
    size = first.shape[0] * first.shape[1]
    count = join(first.starts, names_of, second.starts, other_names_of, size, one, other, lengths)
    return one[:count], other[:count], lengths[:count]


def join_maps(
    first: np.ndarray, names: Names, second: np.ndarray, other_names: Names
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As `join_runs`, of two painted maps of one size, each (H, W) int32; neighbours may have the same names.

    Ids with names are below 2^31: what is negative in a map becomes larger, and has no name.
    """
    from panoptic_detr.id_runs.kernels import find_changes, name

    size = first.size
    if not size:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    maps = first.ravel().view(np.uint32), second.ravel().view(np.uint32)
    starts, ids = np.empty(size + 8, np.int32), np.empty((2, size), np.uint32)
    count = find_changes(*maps, starts, *ids)
    found = np.empty((2, count), np.int64)
    for row, known, result in zip(ids, (names, other_names), found, strict=True):
        name(row[:count], *known, result)
    return found[0], found[1], np.diff(starts[:count], append=size).astype(np.int64)


def count_marks(first: np.ndarray, second: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many pixels of each run are marked in the first (H, W) bool map, in the second, in both: (3, R) int64."""
    from panoptic_detr.id_runs import kernels

    counts = np.empty((3, len(lengths)), np.int64)
    kernels.count_marks(first.ravel().view(np.uint8), second.ravel().view(np.uint8), lengths, counts)
    return counts
