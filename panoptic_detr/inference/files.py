"""Which pictures on disk are predicted, under which ids and names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from panoptic_detr.errors import DataError

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


@dataclass(frozen=True)
class PictureFile:
    """A picture to predict.

    Attributes:
        path: where it lies.
        image_id: its number; that of its name where all names are different numbers, as COCO's are.
        name: name without ending for what is written about it, unique; with folders where folders are searched through.
        file_name: what the JSON calls it; the file's name by default.
    """

    path: Path
    image_id: int | str
    name: str
    file_name: str = ""


def find_pictures(places: Sequence[str | Path], *, recursive: bool = False) -> list[PictureFile]:
    """List pictures in the order given, those of a folder by name.

    A path that does not exist is listed too: reading it says what is wrong. What is in a folder but no regular file is not.

    Args:
        places: pictures and folders.
        recursive: search the folders in a folder too; names then keep their folders.

    Raises:
        DataError: a folder without pictures.
    """
    found = [entry for place in places for entry in _pictures_in(Path(place), recursive)]
    numbers = {int(path.stem) for path, _ in found if path.stem.isdecimal()}
    numbered = len(numbers) == len(found)
    taken: set[str] = set()
    return [
        PictureFile(
            path, int(path.stem) if numbered else index, unique_name(name.as_posix(), taken), name.as_posix() + path.suffix
        )
        for index, (path, name) in enumerate(found, start=1)
    ]


def _pictures_in(place: Path, recursive: bool) -> list[tuple[Path, Path]]:
    """Pictures, each with its name: without ending, with the folders between it and `place`."""
    if not place.is_dir():
        return [(place, Path(place.stem))]
    inside = (path for path in (place.rglob("*") if recursive else place.iterdir()) if path.suffix.lower() in PICTURE_ENDINGS)
    found = sorted(path for path in inside if path.is_file() or (path.is_symlink() and not path.exists()))
    if not found:
        hint = "" if recursive else "; --recursive searches the folders in it too"
        raise DataError(f"{place}: no pictures in this folder (looked for {', '.join(PICTURE_ENDINGS)}){hint}")
    return [(path, path.relative_to(place).with_suffix("")) for path in found]


def unique_name(stem: str, taken: set[str]) -> str:
    """A file name that no other picture has, not even on file systems that ignore case."""
    name, count = stem, 1
    while name.lower() in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name.lower())
    return name
