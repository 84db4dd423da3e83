"""Files and folders that belong to one process at a time; the system drops its locks with the process, however it ends."""

import contextlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, Any, BinaryIO

from panoptic_detr.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCKS = fcntl is not None
TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp", re.DOTALL)


def lock(file: BinaryIO | int, *, wait: bool) -> bool:
    """Lock a file for this process until it is closed.

    Args:
        file: open file, or descriptor of a file or folder.
        wait: until another process gives it up.

    Returns:
        False where the system or the file system has no locks.

    Raises:
        BlockingIOError: another process has it, and `wait` is off.
    """
    if fcntl is None:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold a folder's lock inside the context; where there are no locks, nothing.

    Raises:
        BlockingIOError: another process has it.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, wait=False)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def temporary_beside(path: Path) -> Iterator[BinaryIO]:
    """A new file, locked by this process, with a name that no other process has; it is removed if the block fails."""
    while True:
        temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.tmp")
        try:
            with open(temporary, "wb") as stream:
                lock(stream, wait=True)
                if temporary.exists():  # nobody cleaned up between the two lines above
                    yield stream
                    return
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise


def write_whole(path: Path, write: Callable[[BinaryIO], object], *, to_disk: bool = False) -> None:
    """Write a file through a temporary neighbour and a rename, so that no reader ever sees half of it.

    A process that is killed meanwhile leaves the temporary file (training removes those of its folder,
    `remove_stale_temporaries`); an older file at `path` is untouched until the rename.

    Args:
        path: the file.
        write: fills the stream that it is given.
        to_disk: also flush file and rename to the disk, so that they survive a power failure; slow for many small files.

    Raises:
        OSError: it could not be written; nothing is left behind. The error names the file.
    """
    try:
        with temporary_beside(path) as stream:
            write(stream)
            stream.flush()
            if to_disk:
                os.fsync(stream.fileno())
            if not LOCKS:
                stream.close()  # Windows renames closed files only; elsewhere the lock lasts until the rename is done
            os.replace(stream.name, path)
    except OSError as error:
        if error.filename is None and error.errno is not None:  # a full disk says only that it is full
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if to_disk:
        sync_folder(path.parent)


def remove_stale_temporaries(folder: Path) -> list[Path]:
    """Remove what writers that were killed have left in a folder, and nothing that a living process is writing.

    A writer holds a lock on its file until the rename, and the system drops the lock with the process, however it ends. Where
    the file system (or Windows) has no such locks, nothing can be told and nothing is removed.

    Returns:
        The files that were removed.
    """
    removed = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not TEMPORARY_NAME.fullmatch(path.name):
            continue
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            if lock(stream, wait=False):
                path.unlink()
                removed.append(path)
    return removed


def sync_folder(folder: Path) -> None:
    """Flush the rename itself; not every platform can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LONGEST_NAME = 240  # letters; file systems allow 255 bytes


def safe_path(folder: str | Path, name: str, where: str) -> Path:
    """Join a file name from a JSON to its folder; names from files are not trusted to stay inside it.

    Raises:
        DataError: an absolute name, one with `..`, or an empty one; `where` says in whose entry it stands.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name[:1] == "\\"
    if not parts or ".." in parts or absolute:
        raise DataError(f"{where}: file_name {name!r} leaves its folder; names must be relative to {folder}, without '..'")
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name) or max(map(len, parts)) > LONGEST_NAME:
        raise DataError(f"{where}: file_name {name[:80]!r} is no name that a file can have; correct it in the JSON")
    return Path(folder) / name


def make_folder(path: str | Path) -> Path:
    """Make an output folder, with its parents.

    Raises:
        DataError: it cannot be made or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: the folder cannot be made: {error.strerror}; choose another output folder") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataError(f"{path}: the folder is not writable; choose another output folder")
    return path


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
