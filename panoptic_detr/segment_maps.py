"""Id maps: one integer per pixel, 0 for void. PNG files, areas, boxes and masks of a map, resizing.

COCO panoptic stores an id map as an RGB PNG with id = R + 256 G + 65536 B.
"""

import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from scipy import ndimage

from panoptic_detr.errors import SegmentMapError
from panoptic_detr.files import check_path, read_file, write_whole

fast_decoder: Callable[[bytes], np.ndarray] | None = None  # to (H, W, 3) uint8 RGB
with suppress(ImportError):
    import deflate  # noqa: F401, for `png_lines`
    from imgread import load_numpy_from_bytes  # the extra "fast-pq": half of OpenCV's time

    fast_decoder = load_numpy_from_bytes

MAX_ID = 256**3 - 1
_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_HARMLESS = {b"IDAT", b"pHYs", b"tIME", b"gAMA", b"sRGB", *_TEXTS}  # what may stand behind IHDR, for `png_lines`
_WINDOW = 1 << 15  # bytes that zlib looks back at most
_END = bytes(4) + b"IEND\xaeB`\x82"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGE = 2**26  # pixels, 8192 x 8192: what is larger is worked on by strips
_STRIP = 256  # rows
MOST_PIXELS = 1 << 28  # of a mask or an annotated picture that is taken to be meant
OTHER_ENDINGS = (".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def decode_ids(rgb: np.ndarray) -> np.ndarray:
    """Ids of an (H, W, 3) uint8 RGB picture as (H, W) int32."""
    values = rgb.astype(np.int32)
    return values[..., 0] + (values[..., 1] << 8) + (values[..., 2] << 16)


def encode_ids(segment_map: np.ndarray) -> np.ndarray:
    """The (H, W, 3) uint8 RGB picture of an (H, W) id map."""
    if segment_map.size and (segment_map.min() < 0 or segment_map.max() > MAX_ID):
        raise SegmentMapError(f"segment ids must be in [0, {MAX_ID}], but got {segment_map.min()}..{segment_map.max()}")
    ids = segment_map.astype(np.uint32)
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)


class IdBuffer:
    """Memory that one id map after the other is read into; fresh memory of that size costs as much time as decoding."""

    def __init__(self) -> None:
        self._ids = np.empty(0, np.int32)

    def map(self, size: tuple[int, int]) -> np.ndarray:
        """An (H, W) int32 map; it is the same memory every time, unless more is needed."""
        pixels = size[0] * size[1]
        if self._ids.size < pixels:
            self._ids = np.empty(pixels, np.int32)
        return self._ids[:pixels].reshape(size)


def read_id_png(path: str | Path, buffer: IdBuffer | None = None) -> np.ndarray:
    """Read a COCO-panoptic PNG.

    Args:
        path: the file.
        buffer: read into this memory, so that the map is valid until the next one is read into it.

    Returns:
        (H, W) int32 ids.

    Raises:
        SegmentMapError: missing, unreadable, or not an 8-bit RGB picture; the message names the file and the remedy.
    """
    data = read_bytes(path)
    order, picture = cv2.COLOR_RGB2RGBA, _decode_fast(data)
    if picture is None:
        order, picture = cv2.COLOR_BGR2RGBA, _decode_checked(path, data)
    ids = (buffer or IdBuffer()).map((picture.shape[0], picture.shape[1]))
    # One conversion and one mask instead of three channel copies: R, G, B, alpha are the bytes of a little-endian integer.
    cv2.cvtColor(picture, order, dst=ids.view(np.uint8).reshape(*ids.shape, 4))
    words = ids.view("<i4")
    words &= MAX_ID
    return words.astype(np.int32, copy=False)


def _decode_fast(data: bytes) -> np.ndarray | None:
    """The RGB picture (H, W, 3) of a sound 8-bit RGB PNG; None for OpenCV, and the user, to say what is wrong with it."""
    if fast_decoder is None or png_lines(data) is None:
        return None
    try:
        return fast_decoder(data)
    except (OSError, ValueError, RuntimeError, MemoryError):  # what is wrong is said by OpenCV, in the same words everywhere
        return None


def png_lines(data: bytes) -> tuple[np.ndarray, tuple[int, int]] | None:
    """The inflated lines (H * (1 + 3 W),) of an 8-bit RGB PNG that is whole and not interlaced, and (H, W); needs libdeflate.

    None for any other file, and for what is large: OpenCV, and the user, should look at it. Other decoders read over damage
    that OpenCV refuses, and what is read must not depend on what is installed. A window too small for its data is such damage.
    """
    import deflate

    head, packed = _png_contents(data)
    width, height, *kind = struct.unpack(">IIBBBBB", head) if len(head) == 13 else (0, 0)
    length = height * (1 + 3 * width)
    if kind != [8, 2, 0, 0, 0] or not 0 < width * height <= LARGE or len(packed) < 2:
        return None
    if 256 << (packed[0] >> 4) < min(length, _WINDOW):
        return None
    try:
        lines = np.frombuffer(deflate.zlib_decompress(packed, length), np.uint8)
    except deflate.DeflateError:
        return None
    return (lines, (height, width)) if len(lines) == length else None


def _png_contents(data: bytes) -> tuple[bytes, bytes]:
    """Contents of IHDR and of all IDAT of a PNG, in which there are, besides these, known chunks only; else nothing."""
    place, kind, kinds, head, parts = 8, b"", set[bytes](), b"", list[bytes]()
    while data[place : place + 12] != _END:
        last, kind = kind, data[place + 4 : place + 8]
        end = place + 8 + int.from_bytes(data[place : place + 4], "big")
        again = kind in kinds and kind not in _TEXTS and not kind == last == b"IDAT"
        known = kind in _HARMLESS if kinds else (data[:8], kind) == (SIGNATURE, b"IHDR")
        if again or not known or data[end : end + 4] != zlib.crc32(data[place + 4 : end]).to_bytes(4, "big"):
            return b"", b""
        if kind == b"IDAT":
            parts.append(data[place + 8 : end])
        elif kind == b"IHDR":
            head = data[place + 8 : end]
        kinds.add(kind)
        place = end + 4
    return head, b"".join(parts)


def _decode_checked(path: str | Path, data: bytes) -> np.ndarray:
    """The BGR picture (H, W, 3) of an 8-bit RGB PNG, by OpenCV."""
    picture = decode_picture(data)
    if picture is None:
        raise SegmentMapError(f"{path}: not a readable picture (truncated or not a PNG); write the annotation again")
    kind = png_kind(data)
    if kind != "RGB" or picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        channels = 1 if picture.ndim == 2 else picture.shape[2]
        found = kind if kind != "RGB" else f"{picture.dtype} with {channels} channel(s)"
        raise SegmentMapError(
            f"{path}: a panoptic annotation must be an 8-bit RGB PNG (id = R + 256 G + 65536 B), but this one is {found}; "
            "convert it with `panoptic-detr data convert`"
        )
    return picture


def decode_picture(data: bytes, flags: int = cv2.IMREAD_UNCHANGED) -> np.ndarray | None:
    """The picture in the bytes of a file.

    Args:
        data: of any format that OpenCV knows.
        flags: of OpenCV's `imdecode`; by default the stored channels and depth, colours as BGR.

    Returns:
        (H, W) or (H, W, C); None if the bytes are no readable picture.
    """
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None
    except cv2.error:  # a header that claims more pixels than any picture has
        return None


def png_kind(data: bytes) -> str:
    """Kind of pixels of a PNG, such as "RGB", "palette", "16-bit grey"; "no PNG" for other files."""
    if data[:8] != SIGNATURE or len(data) < 26:
        return "no PNG"
    depth, color = data[24], data[25]
    names = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGBA"}
    name = names.get(color, f"colour type {color}")
    return name if depth == 8 else f"{depth}-bit {name}"


def write_id_png(path: str | Path, segment_map: np.ndarray) -> None:
    """Write an (H, W) id map as a COCO-panoptic PNG; the file appears complete or not at all.

    Raises:
        SegmentMapError: ids out of range, or a name with the ending of another format.
    """
    check_path(path)
    if Path(path).suffix.lower() in OTHER_ENDINGS:
        raise SegmentMapError(f"{path}: an id map is written as PNG, which loses nothing; name the file {Path(path).stem}.png")
    if segment_map.size > LARGE:
        write_whole(path, lambda stream: _write_strips(stream, segment_map))
        return
    done, data = cv2.imencode(".png", encode_ids(segment_map)[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise SegmentMapError(f"{path}: the id map of shape {segment_map.shape} could not be encoded as PNG")
    write_whole(path, data.tobytes())


def _write_strips(stream: BinaryIO, segment_map: np.ndarray) -> None:
    """Write a PNG a strip of rows at a time (PNG specification, third edition), so that little of a large map is in memory."""

    def chunk(kind: bytes, data: bytes) -> None:
        stream.write(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))

    height, width = segment_map.shape
    stream.write(SIGNATURE)
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))  # 8 bits, RGB, not interlaced
    packer = zlib.compressobj(1)
    for top in range(0, height, _STRIP):
        rgb = encode_ids(segment_map[top : top + _STRIP])
        lines = np.zeros((len(rgb), 1 + 3 * width), np.uint8)  # each begins with the number of its filter: 0, none
        lines[:, 1:] = rgb.reshape(len(rgb), -1)
        chunk(b"IDAT", packer.compress(lines.tobytes()))
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def measure(segment_map: np.ndarray) -> dict[int, tuple[int, tuple[int, int, int, int]]]:
    """Area and tight (left, top, width, height) in pixels of every id but 0.

    Neighbouring pixels mostly have the same id, so runs of equal pixels are sorted instead of pixels: several times faster.
    """
    values, lengths = _runs(segment_map)
    ids, ranks = np.unique(values, return_inverse=True)
    counts = np.bincount(ranks, weights=lengths, minlength=len(ids)).astype(np.int64).tolist()
    compact = np.repeat(ranks + 1, lengths).astype(np.int32).reshape(segment_map.shape)
    extents = ndimage.find_objects(compact, max_label=len(ids)) if len(ids) else []
    return {
        value: (counts[i], (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start))
        for i, (value, (rows, columns)) in enumerate(zip(ids.tolist(), extents, strict=True))
        if value != 0
    }


def with_ids(segment_map: np.ndarray, ids: Mapping[int, int]) -> np.ndarray:
    """An id map (H, W) with another id in place of each that `ids` names, and 0 for all others: int32."""
    table = np.zeros(max(int(segment_map.max(initial=0)), *ids, 0) + 1, np.int32)
    table[list(ids.keys())] = list(ids.values())
    return table[segment_map]


def nearest_pixels(pixels: int, size: int) -> np.ndarray:
    """For each of `size` pixels along an axis, which of `pixels` source pixels its centre falls into: (size,) int64.

    Centres that fall between two pixels follow the rounding of Pillow's nearest resampling (the centre is reached by repeated
    addition), so that maps equal those of the published code to the last pixel.
    """
    step = pixels / size
    centres = np.full(size, step)
    centres[0] = 0.5 * step
    return np.minimum(centres.cumsum().astype(np.int64), pixels - 1)


def resize_ids(segment_map: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an id map to (height, width) by nearest pixel centre; no new id appears."""
    rows, columns = (nearest_pixels(segment_map.shape[axis], size[axis]) for axis in (0, 1))
    return np.ascontiguousarray(segment_map[rows[:, None], columns[None, :]])  # (height, width)


def _runs(segment_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Runs of equal pixels, row by row: (R,) their value and (R,) their length."""
    flat = segment_map.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if flat.size else np.zeros(0, np.int64)
    return flat[starts], np.diff(starts, append=len(flat))


def read_bytes(path: str | Path) -> bytes:
    """The bytes of an annotation PNG; `SegmentMapError` if there is none, or it cannot be read."""
    try:
        return read_file(path)
    except FileNotFoundError:
        raise SegmentMapError(
            f"{path}: the annotation PNG is missing; check the panoptic folder and the JSON's file_name"
        ) from None
    except OSError as error:
        raise SegmentMapError(f"{path}: the annotation PNG cannot be read: {error.strerror}") from None


def renumber(segment_map: np.ndarray, segment_ids: np.ndarray, where: str) -> np.ndarray:
    """Replace each id by 1 + its position in `segment_ids`; both sides must have the same ids.

    Neighbouring pixels mostly have the same id, so runs of equal pixels are looked up instead of pixels: ten times faster.
    """
    values, lengths = _runs(segment_map)
    order = np.argsort(segment_ids)
    table = np.concatenate([[0], segment_ids[order]]).astype(np.int32)
    ranks = np.minimum(np.searchsorted(table, values), len(table) - 1)
    unknown = table[ranks] != values
    if unknown.any():
        value = int(values[unknown][0])
        raise SegmentMapError(
            f"{where}: {int(lengths[values == value].sum())} pixels have segment id {value}, which the JSON's segments_info "
            "does not list; add it there, or make the pixels 0 (void): `panoptic-detr data check --fix` can"
        )
    absent = np.bincount(ranks, minlength=len(table))[1:] == 0
    if absent.any():
        raise SegmentMapError(
            f"{where}: segment {int(table[1:][absent][0])} of the JSON has no pixel in the PNG; remove it from segments_info "
            "(`panoptic-detr data check --fix` can) or write the PNG again"
        )
    small = np.uint8 if len(table) <= 256 else np.int16 if len(table) <= 32768 else np.int32
    positions = np.concatenate([[0], order + 1]).astype(small)
    return np.repeat(positions[ranks], lengths).reshape(segment_map.shape)
