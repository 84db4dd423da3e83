"""Id maps: one integer per pixel, 0 for void. PNG files, areas, boxes and masks of a map, resizing.

COCO panoptic stores an id map as an RGB PNG with id = R + 256 G + 65536 B.
"""

import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import cv2
import numpy as np
from scipy import ndimage

from panoptic_detr.errors import SegmentMapError
from panoptic_detr.files import read_file, write_whole

MAX_ID = 256**3 - 1
LARGE = 2**26  # pixels, 8192 x 8192: what is larger is worked on by strips
_STRIP = 256  # rows
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


def read_id_png(path: str | Path) -> np.ndarray:
    """Read a COCO-panoptic PNG.

    Returns:
        (H, W) int32 ids.

    Raises:
        SegmentMapError: missing, unreadable, or not an 8-bit RGB picture; the message names the file and the remedy.
    """
    data = _read_bytes(path)
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
    # One conversion and one mask instead of three channel copies: R, G, B, alpha are the bytes of a little-endian integer.
    words = cv2.cvtColor(picture, cv2.COLOR_BGR2RGBA).view("<i4")[..., 0]  # (H, W)
    return (words & MAX_ID).astype(np.int32, copy=False)


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
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 26:
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
    stream.write(b"\x89PNG\r\n\x1a\n")
    chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))  # 8 bits, RGB, not interlaced
    packer = zlib.compressobj(1)
    for top in range(0, height, _STRIP):
        rgb = encode_ids(segment_map[top : top + _STRIP])
        lines = np.zeros((len(rgb), 1 + 3 * width), np.uint8)  # each begins with the number of its filter: 0, none
        lines[:, 1:] = rgb.reshape(len(rgb), -1)
        chunk(b"IDAT", packer.compress(lines.tobytes()))
    chunk(b"IDAT", packer.flush())
    chunk(b"IEND", b"")


def areas(segment_map: np.ndarray) -> dict[int, int]:
    """Pixels of every id in the map, 0 included if it occurs."""
    ids, counts = np.unique(segment_map, return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def boxes_of(segment_map: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
    """Tight (left, top, width, height) in pixels of every id but 0, in one pass over the map."""
    ids, compact = np.unique(segment_map, return_inverse=True)
    compact = compact.reshape(segment_map.shape)
    rows, columns = _extents(compact, len(ids)), _extents(compact.T, len(ids))
    return {
        int(ids[i]): (
            int(columns[0, i]),
            int(rows[0, i]),
            int(columns[1, i] - columns[0, i]) + 1,
            int(rows[1, i] - rows[0, i]) + 1,
        )
        for i in range(len(ids))
        if ids[i] != 0
    }


def measure(segment_map: np.ndarray) -> dict[int, tuple[int, tuple[int, int, int, int]]]:
    """Area and tight (left, top, width, height) in pixels of every id but 0.

    Several times faster than `areas` and `boxes_of` together: neighbouring pixels mostly have the same id, so runs of equal
    pixels are sorted instead of pixels.
    """
    flat = segment_map.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]])) if flat.size else np.zeros(0, np.int64)
    lengths = np.diff(starts, append=len(flat))
    ids, ranks = np.unique(flat[starts], return_inverse=True)
    counts = np.bincount(ranks, weights=lengths, minlength=len(ids)).astype(np.int64).tolist()
    compact = np.repeat(ranks + 1, lengths).astype(np.int32).reshape(segment_map.shape)
    extents = ndimage.find_objects(compact, max_label=len(ids)) if len(ids) else []
    return {
        value: (counts[i], (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start))
        for i, (value, (rows, columns)) in enumerate(zip(ids.tolist(), extents, strict=True))
        if value != 0
    }


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


def _extents(compact: np.ndarray, count: int) -> np.ndarray:
    """First and last row of each compact id: (2, count)."""
    height, width = compact.shape
    present = np.zeros((height, count), dtype=bool)
    present[np.repeat(np.arange(height), width), compact.ravel()] = True
    return np.stack([present.argmax(0), height - 1 - present[::-1].argmax(0)])


def _read_bytes(path: str | Path) -> bytes:
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
    flat = segment_map.ravel()
    starts = np.flatnonzero(np.concatenate([[True], flat[1:] != flat[:-1]]))
    lengths, values = np.diff(starts, append=len(flat)), flat[starts]
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
