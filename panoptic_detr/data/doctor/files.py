"""What the bytes of a mask or annotation file say: raw values, and other readings of a wrong kind."""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from panoptic_detr.errors import DataError
from panoptic_detr.files import read_file
from panoptic_detr.images import PILLOW_ERRORS
from panoptic_detr.segment_maps import MOST_PIXELS, decode_ids, decode_picture, png_kind


def read_values(path: str | Path) -> np.ndarray:
    """Read a mask file by its raw values: palette indices, grey levels or labels up to 32 bits, 24-bit ids of a coloured one.

    It may be a PNG, TIFF, BMP, GIF or whatever OpenCV reads; the values are (H, W) int32.

    Raises:
        DataError: missing, no picture, or one whose values are not those that were drawn.
    """
    try:
        data = read_file(path)
    except OSError as error:
        raise DataError(f"{path}: the mask cannot be read: {error.strerror}") from None
    if problem := _why_not_a_mask(data):
        raise DataError(f"{path}: {problem}")
    values = raw_values(data)
    if values is None:
        raise DataError(f"{path}: not a readable mask (truncated, or not a picture of whole numbers); copy or write it again")
    if values.size and values.min() < 0:
        raise DataError(f"{path}: the mask has the value {values.min()}; numbers must be from 0 to {2**31 - 1}")
    return values


def raw_values(data: bytes) -> np.ndarray | None:
    """What `read_values` says, of the bytes of a file; None if they are no picture of whole numbers."""
    values = _plain_values(data)
    if values is not None:
        return values
    picture = decode_picture(data)
    if picture is None:
        return None
    if picture.ndim == 2 or picture.shape[2] <= 2:
        return _whole(picture.reshape(*picture.shape[:2], -1)[..., 0])
    blue, green, red = (picture[..., channel] for channel in range(3))
    if np.array_equal(blue, green) and np.array_equal(green, red):  # a grey picture saved in colour
        return _whole(red)
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


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """A picture as Pillow sees it; what is odd about the file is reported as a defect, not as a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(data)) as picture:
            yield picture


def _plain_values(data: bytes) -> np.ndarray | None:
    """Values of a picture of one channel as they are stored: OpenCV resolves palettes to colours and stretches 1 bit to 255."""
    try:
        with _opened(data) as picture:
            plain = picture.mode in ("1", "L", "P", "I", "F") or picture.mode.startswith("I;16")
            if not plain or picture.width * picture.height > MOST_PIXELS:
                return None
            values = np.asarray(picture)
    except PILLOW_ERRORS:
        return None
    if png_kind(data) in ("2-bit grey", "4-bit grey"):  # which Pillow stretches as well
        values = values // (255 // (2 ** int(png_kind(data)[0]) - 1))
    return _whole(values)


def _whole(values: np.ndarray) -> np.ndarray | None:
    """Whole numbers of any type as int32; None if some are none."""
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int32)
    return whole if np.array_equal(whole, values) else None


def _why_not_a_mask(data: bytes) -> str:
    """What keeps the numbers of a picture from being those that were drawn; empty if nothing."""
    try:
        with _opened(data) as picture:
            kind = f"{picture.format} {picture.info.get('compression', '')}".upper()
            pages = getattr(picture, "n_frames", 1)
    except PILLOW_ERRORS:
        return ""
    if "JPEG" in kind or kind.startswith(("MPO", "AVIF")) or (kind.startswith("WEBP") and b"VP8 " in data[:4096]):
        return f"{kind.strip()} changes values a little, so its numbers are not those that were drawn; export the masks as PNG"
    if pages > 1:
        return (
            f"{pages} pages in one file, but an image has one mask; write the one that is meant, or all of them into one page"
        )
    return ""
