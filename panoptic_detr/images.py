"""Reading, checking and writing pictures: anything an image may be becomes (H, W, 3) uint8 RGB. Films too."""

import hashlib
import io
import shutil
import struct
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from PIL import ExifTags, Image, ImageOps

from panoptic_detr.errors import DataError, PictureError
from panoptic_detr.files import make_folder, read_file, safe_path, write_whole
from panoptic_detr.segment_maps import decode_picture

Picture: TypeAlias = str | Path | np.ndarray | Image.Image

# By the ending of a film that is written: what its pictures are coded with.
CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG", ".webm": "VP80"}

# What Pillow raises for damaged files.
PILLOW_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, EOFError, OverflowError, struct.error),
    Image.DecompressionBombError,
)


def as_rgb(image: Picture) -> np.ndarray:
    """An image as RGB.

    Args:
        image: a path, a PIL image, or an array (H, W), (H, W, 1), (H, W, 3) RGB or (H, W, 4) RGBA; uint8, uint16, or float in
            0..1. Files and PIL images are turned upright by their EXIF orientation.

    Returns:
        (H, W, 3) uint8; a new array unless the input is already that.

    Raises:
        PictureError: unreadable file, other shape or other type.
    """
    if isinstance(image, str | Path):
        return read_image(image, upright=True)
    array = _upright(image) if isinstance(image, Image.Image) else np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise PictureError(
            f"an image must be (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), but got {array.shape}; "
            "move the channels of a tensor last: image.permute(1, 2, 0).numpy()"
        )
    array = _as_bytes(array)
    return np.repeat(array, 3, axis=2) if array.shape[2] == 1 else np.ascontiguousarray(array[..., :3])


def check_is_picture(thing: object) -> None:
    """Raise `PictureError`, with the way out, for what is mistaken for a picture most often."""
    no_pictures = bytes | bytearray | Mapping | Iterator | list | tuple | set | int | float
    if thing is not None and not isinstance(thing, no_pictures):
        return
    way_out = "give a path, an array, a PIL image, or a list of these"
    if isinstance(thing, bytes | bytearray):
        way_out = "decode the bytes first: PIL.Image.open(io.BytesIO(data))"
    elif isinstance(thing, Iterator):
        way_out = "predictor.stream(...) takes pictures one after the other, or make a list of them"
    raise PictureError(f"{type(thing).__name__} is no picture: {way_out}")


def one_by_one(images: Iterable[Picture]) -> Iterator[Picture]:
    """An iterator of pictures; `PictureError` for one picture, whose letters or rows are none, and for what has no order."""
    one = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)
    if one or not isinstance(images, Iterable):
        what = "one picture" if one else f"{type(images).__name__}, which is no list of pictures"
        raise PictureError(
            f"stream takes pictures one after the other, but got {what}; for one picture call predictor(picture)"
        )
    return iter(images)


def save_picture(path: str | Path, picture: np.ndarray, *, quality: int = 92) -> None:
    """Write an RGB picture as PNG or JPEG, by the file's ending; it appears complete or not at all.

    Args:
        path: ends in .png, .jpg or .jpeg.
        picture: (H, W, 3) uint8 RGB.
        quality: of a JPEG, 0..100.

    Raises:
        PictureError: another ending, or a folder that is missing or cannot be written.
    """
    path = Path(path)
    ending = picture_ending(path)
    try:
        write_whole(path, encode_picture(picture, ending, quality=quality))
    except OSError as error:
        raise PictureError(f"{path}: cannot be written ({error.strerror}); choose an output folder you may write to") from None


def picture_ending(path: Path) -> str:
    """The ending of a picture to be written, in small letters; `PictureError` unless it is .png, .jpg or .jpeg."""
    ending = path.suffix.lower()
    if ending not in (".png", ".jpg", ".jpeg"):
        raise PictureError(f"{path}: pictures are written as .png, .jpg or .jpeg, not {ending or 'without an ending'}")
    return ending


def encode_picture(picture: np.ndarray, ending: str = ".png", *, quality: int = 92, compression: int = 3) -> bytes:
    """The bytes of a PNG (".png") or JPEG (".jpg") file of an (H, W, 3) RGB or (H, W) grey uint8 picture."""
    options = [cv2.IMWRITE_PNG_COMPRESSION, compression] if ending == ".png" else [cv2.IMWRITE_JPEG_QUALITY, quality]
    done, data = cv2.imencode(ending, picture[..., ::-1] if picture.ndim == 3 else picture, options)
    if not done:
        raise PictureError(f"a picture of shape {picture.shape} and type {picture.dtype} could not be encoded as {ending}")
    return data.tobytes()


def fit(picture: np.ndarray, long_side: int) -> np.ndarray:
    """Shrink a picture so that neither side is longer than `long_side`; smaller ones stay as they are."""
    height, width = picture.shape[:2]
    factor = long_side / max(height, width)
    if factor >= 1:
        return picture
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _as_bytes(array: np.ndarray) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return (array >> 8).astype(np.uint8)
    if array.dtype == bool:
        return array.astype(np.uint8) * 255
    if not np.issubdtype(array.dtype, np.floating):
        raise PictureError(f"an image must be uint8, uint16 or float in 0..1, but got {array.dtype}")
    if not np.isfinite(array).all():
        raise PictureError("a float image must be in 0..1, but this one has NaN or infinity; np.nan_to_num replaces them")
    low, high = float(array.min()), float(array.max())
    if low < -1e-3 or high > 1.001:
        raise PictureError(
            f"a float image must be in 0..1, but its values are {low:.3g}..{high:.3g}; "
            "undo the normalisation (image * std + mean) or pass uint8"
        )
    return np.round(array.clip(0, 1) * 255).astype(np.uint8)


def read_image(path: str | Path, *, upright: bool = False) -> np.ndarray:
    """Read a picture as (H, W, 3) uint8 RGB; grey, palette, transparent and 16-bit ones are converted.

    Args:
        path: the file.
        upright: turn it by its EXIF orientation. COCO annotates the pixels as they are stored.

    Raises:
        PictureError: missing, truncated or not a picture.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        raise PictureError(f"{path}: there is no such image; check the folder and the file's ending") from None
    except OSError as error:
        raise PictureError(f"{path}: the image cannot be read: {error.strerror}") from None
    return decode_image(data, str(path), upright=upright)


def decode_image(data: bytes, where: str, *, upright: bool = False) -> np.ndarray:
    """The bytes of a picture as (H, W, 3) uint8 RGB, as `read_image`; `where` names them in messages."""
    # Older OpenCV fills the rest of a truncated JPEG with grey without a word.
    cut = data.startswith(b"\xff\xd8") and data.rfind(b"\xff\xd9") < 0
    flags = cv2.IMREAD_COLOR_RGB | (0 if upright else cv2.IMREAD_IGNORE_ORIENTATION)
    picture = None if cut else decode_picture(data, flags)
    if picture is None:
        raise PictureError(
            f"{where}: not a readable image (truncated, too large, or of a format that OpenCV does not know); copy or download "
            "it again, or remove it"
        )
    return picture


def exif_orientation(data: bytes) -> int:
    """How EXIF asks to turn the picture in the bytes of a file: 1..8; 1 (upright) where there is none or it makes no sense."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd about a file is reported elsewhere
            with Image.open(io.BytesIO(data)) as picture:
                turned = picture.getexif().get(ExifTags.Base.Orientation, 1)
    except PILLOW_ERRORS:
        return 1
    return turned if isinstance(turned, int) and 1 <= turned <= 8 else 1


def turned_back(array: np.ndarray, orientation: int) -> np.ndarray:
    """An (H, W, ...) array of the upright picture as the file stores it, whose EXIF has this orientation (1..8)."""
    if orientation in (5, 7):
        array = array.swapaxes(0, 1)
    quarters = {3: 2, 4: 2, 6: 1, 7: 2, 8: 3}.get(orientation, 0)
    array = np.rot90(array, quarters)
    return array[:, ::-1] if orientation in (2, 4) else array


def upright_rgb(picture: Picture) -> np.ndarray:
    """As `as_rgb`, but writable and in one piece, as torch wants it."""
    return np.require(as_rgb(picture), requirements=["C", "W"])


def _upright(picture: Image.Image) -> np.ndarray:
    turned = ImageOps.exif_transpose(picture)
    if turned.mode == "I":  # 32 bits that hold 16, or 8
        values = np.asarray(turned)
        if values.min() < 0 or values.max() > 65535:
            raise PictureError(f"an image of mode I must be in 0..65535, but its values are {values.min()}..{values.max()}")
        return values.astype(np.uint16 if values.max() > 255 else np.uint8)
    plain = turned.mode.startswith("I;16") or turned.mode in ("L", "RGB", "F")
    return np.asarray(turned if plain else turned.convert("RGB"))


@contextmanager
def open_film(path: Path) -> Iterator[cv2.VideoCapture]:
    """A film to read frames from; `DataError` for none."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such film; check the folder and the file's ending")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise DataError(f"{path}: not a film that OpenCV can read; convert it to .mp4 first")
        yield capture
    finally:
        capture.release()


@contextmanager
def film_writer(
    output: Path | None, frames_per_second: float, requests: Sequence[int]
) -> Iterator[Callable[[np.ndarray], None] | None]:
    """What takes the pictures of a film; the film gets its name when the block ends well and no end was asked for.

    Raises:
        DataError: OpenCV cannot write such a film, or a picture has another size than the first.
    """
    if output is None:
        yield None
        return
    make_folder(output.parent)
    codec = CODECS.get(output.suffix.lower())
    if codec is None:
        raise DataError(f"{output}: films are written as {', '.join(CODECS)}; give one of these endings")
    mark = hashlib.sha256(output.name.encode(errors="surrogateescape")).hexdigest()[:12]  # what a kill leaves is written over
    temporary = output.with_name(f".{output.stem[:40]}.{mark}{output.suffix}")
    writer = cv2.VideoWriter()
    first: list[tuple[int, ...]] = []

    def show(picture: np.ndarray) -> None:
        """Add a frame."""
        height, width = (side // 2 * 2 for side in picture.shape[:2])  # codecs want even sides
        if not first:
            first.append(picture.shape)
            if not writer.open(str(temporary), cv2.VideoWriter.fourcc(*codec), frames_per_second, (width, height)):
                raise DataError(f"{output}: this OpenCV cannot write such a film; give another ending, .avi say")
        if picture.shape != first[0]:
            raise DataError(
                f"{output}: the frames of a film have one size, but got {picture.shape[:2]} after {first[0][:2]}; give frames "
                "of one size, or predict them without overlays (--no-overlays)"
            )
        writer.write(np.ascontiguousarray(picture[:height, :width, ::-1]))

    try:
        yield show
        writer.release()
        if first and not requests:
            temporary.replace(output)
    finally:
        writer.release()
        temporary.unlink(missing_ok=True)


def place_image(source: str | Path, folder: Path, name: str, *, copy: bool) -> None:
    """Put an image into a folder, as a copy or as a link to the original (a copy where links cannot be made).

    Args:
        source: the original.
        folder: where it goes; `name` may have folders of its own.
        name: its name there.
        copy: copy the file instead of linking to it.

    Raises:
        DataError: a name that leaves the folder, or the file cannot be written.
    """
    path = safe_path(folder, name, "output")
    make_folder(path.parent)
    try:
        if copy or not _linked(Path(source), path):
            with open(source, "rb") as original, open(path, "xb") as copied:
                shutil.copyfileobj(original, copied)
    except FileExistsError:
        raise DataError(f"two images want the name {name!r} in the output; rename one of them ({source} is one)") from None


def _linked(source: Path, path: Path) -> bool:
    """Make a link, unless the file system has none."""
    try:
        path.symlink_to(source.resolve())
    except FileExistsError:
        raise
    except OSError:
        return False
    return True
