"""What the bytes of an image or annotation file say: EXIF orientation, and other readings of a wrong kind."""

import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from panoptic_detr.errors import DataError
from panoptic_detr.segment_maps import decode_ids, decode_picture, png_kind

_PNG = b"\x89PNG\r\n\x1a\n"
_ORIENTATION = 0x0112  # EXIF tag
_MOST_PIXELS = 1 << 28


def orientation(data: bytes) -> int:
    """EXIF orientation 1..8 of a JPEG or PNG; 1 (upright) where there is none or it makes no sense."""
    for block in _exif_blocks(data):
        value = _tiff_orientation(block)
        if 1 <= value <= 8:
            return value
    return 1


def read_values(path: str | Path) -> np.ndarray:
    """Read a mask file by its raw values: palette indices, grey levels of 8 or 16 bits, or 24-bit ids of a coloured one.

    Args:
        path: PNG, TIFF, BMP, GIF or whatever OpenCV reads.

    Returns:
        (H, W) int32.

    Raises:
        DataError: missing, or no picture.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: the mask cannot be read: {error.strerror}") from None
    values = raw_values(data)
    if values is None:
        raise DataError(f"{path}: not a readable mask (truncated, or not a picture); copy or write it again")
    return values


def raw_values(data: bytes) -> np.ndarray | None:
    """What `read_values` says, of the bytes of a file; None if they are no picture."""
    if png_kind(data).endswith("palette") or data[:4] == b"GIF8":
        return _palette_indices(data)
    picture = decode_picture(data)
    if picture is None or picture.dtype not in (np.uint8, np.uint16):
        return None
    if picture.ndim == 2 or picture.shape[2] <= 2:
        return picture.reshape(*picture.shape[:2], -1)[..., 0].astype(np.int32)
    blue, green, red = (picture[..., channel] for channel in range(3))
    if np.array_equal(blue, green) and np.array_equal(green, red):  # a grey picture saved in colour
        return red.astype(np.int32)
    return decode_ids(picture[..., 2::-1]) if picture.dtype == np.uint8 else None


def readings(data: bytes) -> list[np.ndarray]:
    """The id maps (H, W) int32 that an annotation of the wrong kind may mean: its colours as 24-bit ids, its raw values."""
    picture, found = decode_picture(data), []
    if picture is not None and picture.dtype == np.uint8:
        color = picture if picture.ndim == 3 else picture[..., None]
        rgb = color[..., 2::-1] if color.shape[2] >= 3 else np.repeat(color[..., :1], 3, axis=2)
        found.append(decode_ids(rgb))
    values = raw_values(data)
    return found if values is None else [*found, values]


def _palette_indices(data: bytes) -> np.ndarray | None:
    """OpenCV resolves palettes to colours; the indices are wanted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about the file is reported as a defect, not as a warning
            with Image.open(io.BytesIO(data)) as picture:
                if picture.mode not in ("P", "L", "1") or picture.width * picture.height > _MOST_PIXELS:
                    return None
                return np.asarray(picture).astype(np.int32)
    except (OSError, SyntaxError, ValueError, struct.error, EOFError, IndexError, Image.DecompressionBombError):
        return None


def _exif_blocks(data: bytes) -> Iterator[bytes]:
    """The TIFF structures inside a JPEG's APP1 segments or a PNG's eXIf chunks."""
    if data[:2] == b"\xff\xd8":
        for marker, block in _jpeg_segments(data):
            if marker == 0xE1 and block[:6] == b"Exif\0\0":
                yield block[6:]
    elif data[:8] == _PNG:
        for name, block in _png_chunks(data):
            if name == b"eXIf":
                yield block


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of the segments before the picture."""
    place = 2
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] != 0xDA:
        length = int.from_bytes(data[place + 2 : place + 4], "big")
        yield data[place + 1], data[place + 4 : place + 2 + length]
        place += 2 + max(2, length)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and content of the chunks."""
    place = 8
    while place + 8 <= len(data):
        length = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        place += 12 + length


def _tiff_orientation(block: bytes) -> int:
    """Tag 0x0112 of the first directory; 0 if it is not there."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None or len(block) < 8:
        return 0
    start = struct.unpack_from(f"{order}I", block, 4)[0]
    if start + 2 > len(block):
        return 0
    for number in range(struct.unpack_from(f"{order}H", block, start)[0]):
        entry = start + 2 + 12 * number
        if entry + 12 > len(block):
            return 0
        tag, _, _, value = struct.unpack_from(f"{order}HHIH", block, entry)
        if tag == _ORIENTATION:
            return int(value)
    return 0
