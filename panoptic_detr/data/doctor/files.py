"""What the bytes of a mask or annotation file say: raw values, and other readings of a wrong kind."""

import io
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from panoptic_detr.errors import DataError
from panoptic_detr.images import PILLOW_ERRORS
from panoptic_detr.segment_maps import decode_ids, decode_picture, png_kind

_MOST_PIXELS = 1 << 28


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
    except PILLOW_ERRORS:
        return None
