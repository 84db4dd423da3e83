"""What is compiled: the lines of an id PNG to runs, the runs of two maps to those of both, and where two painted maps change.

Filters: PNG specification, third edition, section 9. Where a line has no remainder, under a stretch of one id, Sub and Paeth
repeat the pixel on the left and Up repeats the one above; so only remainders and the ends of stretches above are looked at. A
pixel is three bytes R, G, B as one number, as an id is.
"""

from collections.abc import Callable
from typing import Any

import numba as nb
import numpy as np

_SUB, _UP, _AVERAGE, _PAETH = 1, 2, 3, 4
_OUTER, _MIDDLE, _BYTE, _TWICE = np.uint32(0xFF00FF), np.uint32(0xFF00), np.uint32(255), np.uint32(16)


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile when this module is imported; numba keeps the result on disk if there is a folder that it may write to."""

    def compile_function(function: Callable[..., Any]) -> Any:
        try:
            return nb.njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:
            return nb.njit(signature, nogil=True)(function)

    return compile_function


@_compiled("uint32(uint32, uint32)")
def _add(pixel: np.uint32, remainder: np.uint32) -> np.uint32:
    """Channel by channel, modulo 256."""
    outer = ((pixel & _OUTER) + (remainder & _OUTER)) & _OUTER
    return outer | (((pixel & _MIDDLE) + (remainder & _MIDDLE)) & _MIDDLE)


@_compiled("uint32(uint32, uint32, uint32)")
def _paeth(left: np.uint32, above: np.uint32, corner: np.uint32) -> np.uint32:
    if above == corner or left == above:
        return left
    if left == corner:
        return above
    pixel = np.uint32(0)
    for shift in (0, 8, 16):
        a, b, c = (np.int32((left >> shift) & 255), np.int32((above >> shift) & 255), np.int32((corner >> shift) & 255))
        to_a, to_b, to_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
        nearest = a if to_a <= to_b and to_a <= to_c else (b if to_b <= to_c else c)
        pixel |= np.uint32(nearest) << np.uint32(shift)
    return pixel


@_compiled("uint32(uint32, uint32)")
def _mean(left: np.uint32, above: np.uint32) -> np.uint32:
    pixel = np.uint32(0)
    for shift in (0, 8, 16):
        both = ((left >> np.uint32(shift)) & _BYTE) + ((above >> np.uint32(shift)) & _BYTE)
        pixel |= (both >> np.uint32(1)) << np.uint32(shift)
    return pixel


@_compiled("uint32(int64, uint32, uint32, uint32)")
def _predict(kind: int, left: np.uint32, above: np.uint32, corner: np.uint32) -> np.uint32:
    if kind == _UP:
        return above
    if kind == _SUB:
        return left
    if kind == _PAETH:
        return _paeth(left, above, corner)
    return _mean(left, above) if kind == _AVERAGE else np.uint32(0)


_BYTES, _WORDS = (nb.types.Array(kind, 1, "C", readonly=True) for kind in (nb.uint8, nb.uint64))
_INT, _PLACES, _IDS = nb.int64, nb.int32[::1], nb.uint32[::1]


@_compiled(nb.void(_BYTES, _WORDS, _PLACES))
def _find_remainders(data: np.ndarray, words: np.ndarray, places: np.ndarray) -> None:
    """Places of the bytes that are not 0, and one behind the end."""
    count, whole = 0, len(words) // 4 * 4
    for word in range(0, whole, 4):
        if words[word] | words[word + 1] | words[word + 2] | words[word + 3]:
            for place in range(8 * word, 8 * word + 32):
                places[count] = place
                count += data[place] != 0
    for place in range(8 * whole, len(data)):
        places[count] = place
        count += data[place] != 0
    places[count] = len(data) + 3


@_compiled(nb.types.UniTuple(_INT, 2)(_BYTES, _INT, _PLACES, _INT, _IDS, _PLACES, _PLACES, _PLACES, _IDS))
def _line(
    data: np.ndarray,
    y: int,
    places: np.ndarray,
    k: int,
    row: np.ndarray,
    old: np.ndarray,
    new: np.ndarray,
    starts: np.ndarray,
    ids: np.ndarray,
) -> tuple[int, int]:
    """Line `y`: `row` holds the one above and becomes this one; where runs begin in it, in `old` above, is written to `new`.

    First pixel and id of the runs are written to `starts` and `ids`. `k` is the place of the line's first remainder; returns
    that of the next line, and the number of runs.
    """
    width, news, j, x = len(row), 0, 0, 0
    begin, first = y * (1 + 3 * width) + 1, y * width
    kind = data[begin - 1]
    left = corner = np.uint32(0)
    while x < width:
        above, byte, end = row[x], begin + 3 * x, x + 1
        value = _predict(kind, left, above, corner)
        changed = places[k] < byte + 3
        if changed:
            remainder = np.uint32(data[byte]) | np.uint32(data[byte + 1]) << np.uint32(8) | np.uint32(data[byte + 2]) << _TWICE
            value = _add(value, remainder)
            while places[k] < byte + 3:
                k += 1
        j += j < len(old) and old[j] == x
        if news == 0 or value != left:
            new[news], starts[news], ids[news] = x, first + x, value
            news += 1
        if kind == _SUB or kind == _PAETH or (kind == _UP and not changed):
            end = min(width, (places[k] - begin) // 3)
            end = min(end, old[j]) if j < len(old) else end
        if value != above:
            for pixel in range(x, end):
                row[pixel] = value
        left, corner, x = value, above, end
    return k, news


@_compiled(_INT(_BYTES, _WORDS, _INT, _INT, _PLACES, _PLACES, _IDS))
def read_runs(
    data: np.ndarray, words: np.ndarray, height: int, width: int, places: np.ndarray, starts: np.ndarray, ids: np.ndarray
) -> int:
    """The number of runs in the filtered lines of a PNG, whose first pixels and ids are written; 0 for lines that are none.

    Args:
        data: (H * (1 + 3 W),) uint8.
        words: the same as (N // 8,) uint64.
        height: H.
        width: W.
        places: memory for (N + 1,) int32.
        starts: memory for (H W,) int32.
        ids: memory for (H W,) uint32.
    """
    _find_remainders(data, words, places)
    row, old, new = np.zeros(width, np.uint32), np.zeros(width, np.int32), np.zeros(width, np.int32)
    count, olds, k = 0, 1, 0
    for y in range(height):
        begin, first = y * (1 + 3 * width) + 1, y * width
        kind = data[begin - 1]
        if kind > _PAETH:
            return 0
        k += kind != 0
        if kind == _UP and places[k] >= begin + 3 * width:  # the line above once more
            for edge in range(olds):
                starts[count + edge], ids[count + edge] = first + old[edge], row[old[edge]]
            count += olds
        else:
            k, olds = _line(data, y, places, k, row, old[:olds], new, starts[count:], ids[count:])
            old, new, count = new, old, count + olds
    return count


_NUMBERS = nb.int64[::1]
_SPREAD, _CELL = np.uint32(2654435761), np.uint32(24)  # Knuth's multiplicative hash, to 8 bits


@_compiled(nb.void(_IDS, _NUMBERS, _NUMBERS, _NUMBERS))
def name(ids: np.ndarray, known: np.ndarray, names: np.ndarray, found: np.ndarray) -> None:
    """Write the name of each id, from the ascending `known`, of which results are kept; -1 for one of no name."""
    seen, seen_names = np.full(256, known[0], np.uint32), np.full(256, names[0])
    for run in range(len(ids)):
        value = ids[run]
        cell = (value * _SPREAD >> _CELL) & _BYTE
        if seen[cell] != value:
            low, high = 0, len(known)
            while low < high:
                middle = (low + high) // 2
                if known[middle] < value:
                    low = middle + 1
                else:
                    high = middle
            seen[cell], seen_names[cell] = value, names[low] if low < len(known) and known[low] == value else -1
        found[run] = seen_names[cell]


@_compiled(_INT(_PLACES, _NUMBERS, _PLACES, _NUMBERS, _INT, _NUMBERS, _NUMBERS, _NUMBERS))
def join(
    starts: np.ndarray,
    names: np.ndarray,
    other_starts: np.ndarray,
    other_names: np.ndarray,
    pixels: int,
    first: np.ndarray,
    second: np.ndarray,
    lengths: np.ndarray,
) -> int:
    """The number of runs over which neither of two maps changes; their two names and lengths are written."""
    i = j = place = 0
    count = -1
    while place < pixels:
        end = starts[i + 1] if i + 1 < len(starts) else pixels
        other_end = other_starts[j + 1] if j + 1 < len(other_starts) else pixels
        nearest = min(end, other_end)
        if count < 0 or first[count] != names[i] or second[count] != other_names[j]:
            count += 1
            first[count], second[count], lengths[count] = names[i], other_names[j], 0
        lengths[count] += nearest - place
        i, j, place = i + (end == nearest), j + (other_end == nearest), nearest
    return count + 1


_MAP = nb.types.Array(nb.uint32, 1, "C", readonly=True)
_PIECE = 4096  # pixels whose marks stay in the first cache


@_compiled(nb.void(_MAP, _MAP, _MAP, _MAP, nb.uint8[::1]))
def _mark(left: np.ndarray, pixels: np.ndarray, other_left: np.ndarray, others: np.ndarray, marks: np.ndarray) -> None:
    """1 where either pixel is not as the one on its left; nothing but this, so that it becomes vector instructions."""
    for pixel in range(len(pixels)):
        marks[pixel] = (left[pixel] != pixels[pixel]) | (other_left[pixel] != others[pixel])


@_compiled(_INT(_MAP, _MAP, _PLACES, _IDS, _IDS))
def find_changes(first: np.ndarray, second: np.ndarray, starts: np.ndarray, ids: np.ndarray, other_ids: np.ndarray) -> int:
    """The number of runs over which neither of two maps changes; their first pixels and ids are written.

    Args:
        first: (N,) ids in reading order, N > 0.
        second: (N,) those of the other map.
        starts: memory for (N + 8,).
        ids: memory for (N,).
        other_ids: memory for (N,).
    """
    marks = np.zeros(_PIECE, np.uint8)
    words = marks.view(np.uint64)
    starts[0], ids[0], other_ids[0], count = 0, first[0], second[0], 1
    for begin in range(1, len(first), _PIECE):
        end, before = min(begin + _PIECE, len(first)), count
        _mark(first[begin - 1 : end - 1], first[begin:end], second[begin - 1 : end - 1], second[begin:end], marks)
        marks[end - begin :] = 0
        for word in range((end - begin + 7) // 8):
            if words[word]:
                for place in range(8 * word, 8 * word + 8):
                    starts[count] = begin + place
                    count += marks[place]
        for run in range(before, count):
            ids[run], other_ids[run] = first[starts[run]], second[starts[run]]
    return count


_MARKS = nb.types.Array(nb.uint8, 1, "C", readonly=True)


@_compiled(nb.void(_MARKS, _MARKS, nb.types.Array(_INT, 1, "C", readonly=True), nb.int64[:, ::1]))
def count_marks(first: np.ndarray, second: np.ndarray, lengths: np.ndarray, counts: np.ndarray) -> None:
    """Write how many pixels of each run are marked in one map, in the other, and in both: (3, R)."""
    begin = 0
    for run in range(len(lengths)):
        end = begin + lengths[run]
        some, others, both = np.int64(0), np.int64(0), np.int64(0)
        marks, other_marks = first[begin:end], second[begin:end]
        for pixel in range(len(marks)):
            some += marks[pixel]
            others += other_marks[pixel]
            both += marks[pixel] & other_marks[pixel]
        counts[0, run], counts[1, run], counts[2, run] = some, others, both
        begin = end
