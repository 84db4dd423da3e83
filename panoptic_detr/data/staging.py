"""Output that appears complete or not at all: written to a temporary folder beside the target, then renamed into place."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from panoptic_detr.data.coco_files import DataError, make_folder, safe_path


@contextmanager
def staged_folder(target: str | Path, parts: Iterable[str]) -> Iterator[Path]:
    """A temporary folder beside `target` whose parts are moved into `target` when the block ends well.

    Args:
        target: the output folder; it may exist already (with another split of the data set, say).
        parts: what will be written, relative to the folder; moved in this order, so name last what makes the rest count.

    Yields:
        The temporary folder. After an error it is removed and `target` is as it was.

    Raises:
        DataError: one of the parts is there already, or the folder cannot be written.
    """
    target, rows = Path(target), list(parts)
    for part in rows:
        if os.path.lexists(target / part):
            raise DataError(f"{target / part} is there already; choose another output folder or split, or remove it first")
    make_folder(target.parent)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name[:40]}."))
    try:
        yield temporary
        make_folder(target)
        _move(temporary, target, [part for part in rows if os.path.lexists(temporary / part)])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def staged_path(target: str | Path) -> Iterator[Path]:
    """Name of a temporary file beside `target`, with its ending, that takes its place when the block ends well.

    Raises:
        DataError: the folder cannot be written.
    """
    target = Path(target)
    folder = make_folder(target.parent)
    handle, name = tempfile.mkstemp(dir=folder, prefix=f".{target.stem[:40]}.", suffix=target.suffix)
    os.close(handle)
    try:
        yield Path(name)
        os.chmod(name, 0o644)
        os.replace(name, target)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror}; choose another place") from None
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def staged_file(target: str | Path) -> Iterator[IO[str]]:
    """A text file that gets its name when the block ends well; after an error nothing is left of it.

    Raises:
        DataError: the folder cannot be written.
    """
    with staged_path(target) as temporary, open(temporary, "w", encoding="utf-8", errors="backslashreplace") as file:
        yield file


def write_json(file: IO[str], head: Mapping[str, Any], lists: Mapping[str, Iterable[Any]]) -> None:
    """Write a JSON object whose lists are consumed entry by entry, so that they never lie in memory as text.

    Args:
        file: open for writing.
        head: plain keys and values, written first.
        lists: keys whose values are long lists.
    """
    separator = "{\n"
    for key, value in head.items():
        file.write(f"{separator}{json.dumps(key)}: {json.dumps(value)}")
        separator = ",\n"
    for key, entries in lists.items():
        file.write(f"{separator}{json.dumps(key)}: [")
        separator = ",\n"
        for number, entry in enumerate(entries):
            file.write(f"{',' if number else ''}\n{json.dumps(entry)}")
        file.write("\n]")
    file.write("\n}\n")


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
        if not copy:
            path.symlink_to(Path(source).resolve())
            return
    except FileExistsError:
        raise DataError(f"two images want the name {name!r} in the output; rename one of them ({source} is one)") from None
    except OSError:  # a file system without links
        pass
    shutil.copyfile(source, path)


def _move(source: Path, target: Path, parts: list[str]) -> None:
    """Move the parts one by one; if one cannot be moved, the others go back."""
    moved: list[str] = []
    try:
        for part in parts:
            make_folder((target / part).parent)
            os.rename(source / part, target / part)
            moved.append(part)
    except OSError as error:
        for part in moved:
            os.rename(target / part, source / part)
        raise DataError(f"{target}: the finished output cannot be moved into place: {error.strerror}") from None
