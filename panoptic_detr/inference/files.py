"""Which pictures and films are predicted, under which ids and names: files, folders, patterns, lists, shards."""

import glob
import hashlib
import os
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath

import numpy as np

from panoptic_detr.errors import DataError, PictureError
from panoptic_detr.files import by_numbers, check_path, safe_path
from panoptic_detr.images import CODECS, decode_image, upright_rgb

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
FILM_ENDINGS = (*CODECS, ".mpg", ".mpeg", ".wmv")
SHARD_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")  # packed ones are told so
WRITTEN = ("panoptic", "overlays", "tiff")  # folders of the pictures that are written
STANDARD_INPUT = "-"


@dataclass(frozen=True)
class Extent:
    """Where a picture lies in a tar file: `offset` and `size` in bytes. Shards are not packed, so it is read from there."""

    shard: Path
    offset: int
    size: int


@dataclass(frozen=True)
class PictureFile:
    """A picture to predict.

    Attributes:
        path: where it lies; for a member of a shard, `<shard>/<member>`.
        image_id: its number; that of its name where all names are different numbers, as COCO's are.
        name: name without ending for what is written about it, unique; with folders where folders are searched through.
        file_name: what the JSON calls it; the file's name by default.
        source: the path as it was given or found, which the JSON keeps beside the name; nothing by default.
        extent: for a member of a shard, where it lies there.
        film: for a frame of one of several films, what tells the film's state: size and time of change, or number of frames.
    """

    path: Path
    image_id: int | str
    name: str
    file_name: str = ""
    source: str = ""
    extent: Extent | None = None
    film: tuple[int, ...] = ()

    def read(self) -> np.ndarray:
        """The upright picture: (H, W, 3) uint8 RGB.

        Raises:
            PictureError: missing, truncated or not a picture.
        """
        if self.extent is None:
            return upright_rgb(self.path)
        try:
            with open(self.extent.shard, "rb") as stream:
                stream.seek(self.extent.offset)
                data = stream.read(self.extent.size)
        except OSError as error:
            raise PictureError(f"{self.path}: the shard cannot be read: {error.strerror}") from None
        return decode_image(data, str(self.path), upright=True)


@dataclass(frozen=True)
class _Found:
    """A picture that was found; `name` has no ending, and the folders between it and the place that was given."""

    path: Path
    name: PurePosixPath
    extent: Extent | None = None


def find_pictures(places: Sequence[str | Path], *, recursive: bool = False, without: Sequence[Path] = ()) -> list[PictureFile]:
    """List pictures in the order given, those of a folder or pattern by name, those of a shard as they lie there.

    A path that does not exist is listed too: reading it says what is wrong. What is in a folder but no regular file is not.

    Args:
        places: pictures; folders; patterns such as `photos/**/*.jpg`, where no file has that name; `.txt` files with a place on
            each line; `.tar` files with pictures in them (WebDataset's shards); `-` for a place on each line of the standard
            input.
        recursive: search the folders in a folder too; names then keep their folders.
        without: folders whose pictures are not found by searching around them, such as those of an output inside a folder of
            pictures.

    Raises:
        DataError: a folder, pattern, list or shard without pictures, or one that cannot be read; an address of the network.
    """
    return _numbered([entry for place in places for entry in _pictures_in(place, recursive, without)])


def find_frames(folder: Path) -> list[PictureFile]:
    """The pictures of a folder as frames of a film: by the numbers in their names.

    Raises:
        DataError: no pictures in it.
    """
    return _numbered(sorted(_in_folder(folder, recursive=False, left_out=()), key=lambda entry: by_numbers(entry.path.name)))


def holds_pictures(folder: Path) -> bool:
    """Whether pictures lie in a folder itself."""
    return any(is_picture_name(path.name) for path in folder.iterdir())


def _numbered(found: Sequence[_Found]) -> list[PictureFile]:
    numbers = {int(entry.path.stem) for entry in found if entry.path.stem.isdecimal()}
    numbered = len(numbers) == len(found)
    taken: set[str] = set()
    return [
        PictureFile(
            entry.path,
            int(entry.path.stem) if numbered else index,
            unique_name(str(entry.name), taken),
            str(entry.name) + entry.path.suffix,
            str(entry.path),
            entry.extent,
        )
        for index, entry in enumerate(found, start=1)
    ]


def unique_name(stem: str, taken: set[str]) -> str:
    """A file name that no other picture has, not even on file systems that ignore case."""
    name, count = stem, 1
    while name.lower() in taken:
        count += 1
        name = f"{stem}_{count}"
    taken.add(name.lower())
    return name


def _pictures_in(place: str | Path, recursive: bool, left_out: Sequence[Path]) -> Iterable[_Found]:
    path = Path(place)
    check_path(place)
    if str(place) == STANDARD_INPUT:
        return _in_lines(sys.stdin, "the standard input", recursive, left_out)
    if path.is_dir():
        return _in_folder(path, recursive, left_out)
    if path.suffix.lower() == ".txt":
        return _in_list(path, recursive, left_out)
    if path.name.lower().endswith(SHARD_ENDINGS):
        return _in_shard(path)
    if glob.has_magic(str(place)) and not os.path.lexists(path):
        return _matching(str(place), left_out)
    return [_Found(path, PurePosixPath(path.stem))]


def _in_folder(folder: Path, recursive: bool, left_out: Sequence[Path]) -> list[_Found]:
    inside = (path for path in (folder.rglob("*") if recursive else folder.iterdir()) if is_picture_name(path.name))
    found = sorted(path for path in inside if path.is_file() or (path.is_symlink() and not path.exists()))
    kept, but = _kept(found, folder, left_out)
    if not kept:
        inner = [] if recursive else sorted(path.name for path in folder.iterdir() if path.is_dir() and holds_pictures(path))
        ways = "name such a folder; predict takes all with --recursive, and each for a film with --track"
        hint = f"; there are some in its {' and '.join(inner[:3])}: {ways}" if inner else ""
        raise DataError(f"{folder}: no pictures in this folder (looked for {', '.join(PICTURE_ENDINGS)}){but}{hint}")
    return [_Found(path, _without_ending(path.relative_to(folder))) for path in kept]


def _kept(paths: list[Path], place: Path, left_out: Sequence[Path]) -> tuple[list[Path], str]:
    """The paths that searching a place finds, without those in folders to leave out, and a word about these.

    A folder to leave out in which the place itself lies was named, and is searched.
    """
    met = [folder for folder in left_out if not any(those_within([place / "x"], [folder]))]
    gone = {*those_within(paths, met)} if met else set()
    but = f" but {len(gone)} that lie where predictions are written, as {min(gone)}" if gone else ""
    return [path for path in paths if path not in gone], but


def those_within(paths: Iterable[Path], folders: Sequence[Path]) -> Iterator[Path]:
    """The paths in one of the folders, through whatever links these, or those, are named."""
    for folder in folders:
        check_path(folder)
    starts = tuple(os.path.join(os.path.realpath(folder), "") for folder in folders)
    real = cache(os.path.realpath)  # of a million pictures in a few folders
    for path in paths:
        place = os.path.join(real(path.parent), path.name)
        if place.startswith(starts) or (os.path.islink(place) and os.path.realpath(place).startswith(starts)):
            yield path


def _matching(pattern: str, left_out: Sequence[Path]) -> list[_Found]:
    """Files that fit a pattern; names keep the folders below those that the pattern names in full."""
    found = sorted(Path(text) for text in glob.glob(pattern, recursive=True) if os.path.isfile(text))
    fixed = next(i for i, part in enumerate(Path(pattern).parts) if glob.has_magic(part))
    found, but = _kept(found, Path(*Path(pattern).parts[:fixed]), left_out)
    if not found:
        raise DataError(f"{pattern}: no file has such a name{but}; quote patterns, or correct this one")
    return [_Found(path, _without_ending(Path(*path.parts[fixed:]))) for path in found]


def _in_list(path: Path, recursive: bool, left_out: Sequence[Path]) -> list[_Found]:
    try:
        with open(path, encoding="utf-8-sig") as lines:  # some editors put a mark at the beginning
            return _in_lines(lines, str(path), recursive, left_out)
    except UnicodeDecodeError:
        raise DataError(f"{path}: a list of pictures must be text in UTF-8, with a path on each line") from None
    except OSError as error:
        raise DataError(f"{path}: the list of pictures cannot be read: {error.strerror}") from None


def _in_lines(lines: Iterable[str], where: str, recursive: bool, left_out: Sequence[Path]) -> list[_Found]:
    """What the lines name; a list does not name further lists. Spaces around a name count only where a file has them."""
    texts = [text for line in lines if (text := line.strip("\r\n")).strip()]
    places = [text if text == text.strip() or os.path.lexists(text) else text.strip() for text in texts]
    if nested := [place for place in places if place == STANDARD_INPUT or place.endswith(".txt")]:
        raise DataError(f"{where}: a list names pictures, folders or shards, but {nested[0]!r} is another list")
    if not places:
        raise DataError(f"{where}: no line names a picture")
    return [entry for place in places for entry in _pictures_in(place, recursive, left_out)]


def _in_shard(path: Path) -> Iterator[_Found]:
    """The pictures in a tar file, without reading them. They are named `<shard>/<member>`, so that shards do not mix."""
    count = 0
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                if member.isreg() and is_picture_name(member.name):
                    count += 1
                    inside = safe_path(path, member.name, str(path), "member")
                    name = _without_ending(Path(path.stem) / inside.relative_to(path))
                    yield _Found(inside, name, Extent(path, member.offset_data, member.size))
    except tarfile.TarError as error:
        raise DataError(f"{path}: not a readable tar file ({error}); shards must be whole and not compressed") from None
    except OSError as error:
        raise DataError(f"{path}: the shard cannot be read: {error.strerror}") from None
    if not count:
        raise DataError(f"{path}: no pictures in this shard (looked for {', '.join(PICTURE_ENDINGS)})")


def check_apart(files: Iterable[PictureFile], folder: Path) -> None:
    """Raise `DataError` if a picture lies where predictions of the folder are written, so that it could be written over."""
    for path in those_within((file.path for file in files), [folder / part for part in WRITTEN]):
        raise DataError(f"{path}: predictions are written there; choose another output folder than {folder}")


def list_digest(files: Iterable[PictureFile]) -> str:
    """What tells one list of pictures with their ids from another."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(repr((str(file.path), file.image_id, file.name)).encode())
    return digest.hexdigest()[:16]


def is_film(path: Path) -> bool:
    """Whether a path has the ending of a film."""
    return path.suffix.lower() in FILM_ENDINGS


def holds_films(path: Path) -> bool:
    """Whether a path is a folder with films and without pictures."""
    check_path(path)
    return path.is_dir() and not holds_pictures(path) and any(map(is_film, path.iterdir()))


def films_left_out(places: Sequence[Path], *, recursive: bool = False) -> list[str]:
    """A line for each folder whose pictures are predicted, about the films that lie in it and are not."""
    lines = []
    for place in places:
        check_path(place)
        if place.is_dir() and (recursive or holds_pictures(place)):
            films = sorted(path for path in (place.rglob("*") if recursive else place.iterdir()) if is_film(path))
            if films:
                lines.append(f"left out: {len(films)} film(s) in {place}, such as {films[0].name}; name films by themselves")
    return lines


def find_films(places: Sequence[Path]) -> list[Path]:
    """Where films lie.

    Args:
        places: films; folders of frames; patterns of either; folders of films and of folders of frames, in the order of the
            numbers in their names.

    Raises:
        DataError: a folder or pattern without films.
    """
    return [film for place in places for film in _films_at(place)]


def _films_at(place: Path) -> list[Path]:
    check_path(place)
    if glob.has_magic(str(place)) and not os.path.lexists(place):
        found = [Path(text) for text in sorted(glob.glob(str(place), recursive=True), key=by_numbers)]
        if not found:
            raise DataError(f"{place}: no film has such a name; quote patterns, or correct this one")
        return [film for path in found for film in _films_at(path)]
    if place.is_file() and is_picture_name(place.name):
        raise DataError(f"{place}: a picture among films; predict pictures by themselves, or name a folder of frames")
    if not place.is_dir() or holds_pictures(place):
        return [place]
    if films := _films_in(place):
        return films
    deeper = [path.name for path in sorted(place.iterdir()) if path.is_dir() and _films_in(path)]
    hint = f"; there are some in its {' and '.join(deeper[:3])}: name such a folder" if deeper else ""
    raise DataError(
        f"{place}: no film in this folder: neither pictures, which would be its frames, nor films ({', '.join(FILM_ENDINGS)}), "
        f"nor folders of frames, each of them a film{hint}"
    )


def _films_in(folder: Path) -> list[Path]:
    """Films and folders of frames in a folder, in the order of the numbers in their names."""
    inside = sorted(folder.iterdir(), key=lambda path: by_numbers(path.name))
    return [path for path in inside if (holds_pictures(path) if path.is_dir() else is_film(path))]


def is_picture_name(name: str) -> bool:
    """Whether a name has the ending of a picture."""
    return name.lower().endswith(PICTURE_ENDINGS)


def _without_ending(path: Path) -> PurePosixPath:
    return PurePosixPath(path.with_suffix("").as_posix())
