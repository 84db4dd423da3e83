"""Pictures that do not fit the memory, read by windows; id maps that do not, kept in a file.

A TIFF is read as it lies in its file: what is stored plainly through a memory map, tiles and strips (as slide scanners write
them) one by one as a window needs them. That takes tifffile (`pip install 'panoptic-detr[large]'`), for JPEG and LZW also
imagecodecs. Other formats are decoded whole.
"""

import mmap
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import cv2
import numpy as np

from panoptic_detr.errors import InputError, PictureError
from panoptic_detr.files import write_whole
from panoptic_detr.images import as_rgb
from panoptic_detr.inference.files import PictureFile
from panoptic_detr.segment_maps import LARGE

if TYPE_CHECKING:
    from tifffile import TiffPage

STRIP = 256  # rows worked on at a time
TILE = 256  # side of the tiles of id maps
_OVERLAY_SIDE = 4096  # pixels, of an overlay that is drawn smaller


@dataclass(frozen=True)
class Raster:
    """A picture that is read by windows.

    Attributes:
        shape: height and width.
        read: a window, given its rows and columns, in any form that `as_rgb` takes.
    """

    shape: tuple[int, int]
    read: Callable[[slice, slice], np.ndarray]

    @classmethod
    def of(cls, picture: "np.ndarray | Raster") -> "Raster":
        """A raster over an array, or itself."""
        if isinstance(picture, Raster):
            return picture
        return cls((picture.shape[0], picture.shape[1]), lambda rows, columns: picture[rows, columns])

    def window(self, rows: slice, columns: slice) -> np.ndarray:
        """A part of the picture: (h, w, 3) uint8 RGB."""
        return as_rgb(np.asarray(self.read(rows, columns)))


def read_by_windows(file: PictureFile) -> np.ndarray | Raster:
    """A picture for `Tiled`: a large TIFF by windows where tifffile is installed, all others whole.

    Raises:
        PictureError: missing, truncated or not a picture.
    """
    if file.extent is None and file.path.suffix.lower() in (".tif", ".tiff") and find_spec("tifffile") and file.path.is_file():
        raster = open_tiff(file.path)
        if raster.shape[0] * raster.shape[1] > LARGE:
            return raster
    return file.read()


def open_tiff(path: Path) -> Raster:
    """A TIFF of any size, by windows. Its orientation tag is not looked at.

    Raises:
        PictureError: the file cannot be read by windows.
    """
    import tifffile

    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            if page.planarconfig != 1 or page.imagedepth != 1 or page.samplesperpixel not in (1, 3, 4):
                raise PictureError(f"{path}: only TIFFs whose pixels lie together (grey, RGB or RGBA) are read by windows")
            shape = (page.imagelength, page.imagewidth)
            plain = page.is_memmappable
    except (tifffile.TiffFileError, IndexError, ValueError, struct.error) as error:
        raise PictureError(f"{path}: not a readable TIFF: {error}") from None
    if plain:
        return Raster(shape, lambda rows, columns: np.array(tifffile.memmap(path, page=0, mode="r")[rows, columns]))
    return Raster(shape, lambda rows, columns: _decode_window(path, rows, columns))


def _decode_window(path: Path, rows: slice, columns: slice) -> np.ndarray:
    """Decode the tiles or strips that a window touches."""
    from tifffile import TiffFile, TiffFileError

    with TiffFile(path) as tiff:
        page = tiff.pages.first
        window = np.zeros((rows.stop - rows.start, columns.stop - columns.start, page.samplesperpixel), page.dtype)
        for index, top, left in _segments(page, rows, columns):
            tiff.filehandle.seek(page.dataoffsets[index])
            data = tiff.filehandle.read(page.databytecounts[index])
            try:
                segment = page.decode(data, index, jpegtables=page.jpegtables)[0] if data else None
            except (TiffFileError, ValueError, RuntimeError, ImportError) as error:
                raise PictureError(f"{path}: part {index} of the TIFF cannot be decoded: {error}") from None
            if segment is not None:
                _paste(window, segment[0], top - rows.start, left - columns.start)
    return window


def _segments(page: "TiffPage", rows: slice, columns: slice) -> Iterator[tuple[int, int, int]]:
    """Number, top and left of every tile or strip that a window touches."""
    height = page.tilelength if page.is_tiled else min(page.rowsperstrip, page.imagelength)
    width = page.tilewidth if page.is_tiled else page.imagewidth
    across = -(-page.imagewidth // width)
    for row in range(rows.start // height, -(-rows.stop // height)):
        for column in range(columns.start // width, -(-columns.stop // width)):
            yield row * across + column, row * height, column * width


def _paste(window: np.ndarray, segment: np.ndarray, top: int, left: int) -> None:
    """Copy what lies inside the window, whose corner is (0, 0)."""
    bottom, right = min(top + segment.shape[0], window.shape[0]), min(left + segment.shape[1], window.shape[1])
    inside = segment[max(0, -top) : bottom - top, max(0, -left) : right - left]
    window[max(0, top) : bottom, max(0, left) : right] = inside


def check_tifffile() -> None:
    """Raise `InputError` unless tifffile is installed, which id maps as TIFF need."""
    if not find_spec("tifffile"):
        raise InputError("id maps as TIFF (--tiff) need tifffile; install it: pip install 'panoptic-detr[large]'")


def write_id_tiff(path: str | Path, segment_map: np.ndarray) -> None:
    """Write an (H, W) map of ids as a tiled TIFF of one 32-bit number a pixel, which is read by windows; whole or not at all.

    Raises:
        InputError: tifffile is not installed.
    """
    check_tifffile()
    import tifffile

    height, width = segment_map.shape

    def tiles() -> Iterator[np.ndarray]:
        for top in range(0, height, TILE):
            row = np.array(segment_map[top : top + TILE])
            yield from (row[:, left : left + TILE].astype(np.uint32) for left in range(0, width, TILE))

    def write(stream: BinaryIO) -> None:
        """Tile by tile: the map is never in memory as a whole."""
        tifffile.imwrite(
            stream,
            tiles(),
            shape=(height, width),
            dtype=np.uint32,
            tile=(TILE, TILE),
            photometric="minisblack",
            compression="zlib",
            bigtiff=segment_map.size > 2**29,
            metadata=None,
        )

    write_whole(path, write)


def id_store(shape: tuple[int, int], folder: Path | None) -> np.ndarray:
    """An (H, W) int32 map of zeros: in memory, or where it is large in a file without a name, which ends with the process."""
    if shape[0] * shape[1] <= LARGE:
        return np.zeros(shape, np.int32)
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(4 * shape[0] * shape[1])
        return np.memmap(file, np.int32, "r+", shape=shape)


def release(store: np.ndarray) -> None:
    """Let the system take back the memory of a map that lies in a file; what was written stays."""
    pages = getattr(store, "_mmap", None)
    if pages is not None and hasattr(mmap, "MADV_DONTNEED"):
        pages.flush()
        pages.madvise(mmap.MADV_DONTNEED)


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of a map, a strip at a time."""
    return (slice(top, min(top + STRIP, shape[0])) for top in range(0, shape[0], STRIP))


def reduced(picture: np.ndarray | Raster, segment_map: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture and map as large as an overlay of them is drawn: themselves, unless they are large."""
    height, width = segment_map.shape
    if isinstance(picture, np.ndarray) and height * width <= LARGE:
        return picture, segment_map
    factor = max(1, -(-max(height, width) // _OVERLAY_SIDE))
    rows, columns = height // factor, width // factor
    small, raster = np.empty((rows, columns, 3), np.uint8), Raster.of(picture)
    for part in strips((rows,)):
        window = raster.window(slice(part.start * factor, part.stop * factor), slice(0, columns * factor))
        small[part] = cv2.resize(window, (columns, part.stop - part.start), interpolation=cv2.INTER_AREA)
    centre = factor // 2
    return small, np.array(segment_map[centre::factor, centre::factor][:rows, :columns])
