"""Files and folders whole or not at all, and for one process at a time: locks end with their process, however it ends."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, BinaryIO

from filelock import FileLock, Timeout

from panoptic_detr.errors import DataError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}\.tmp", re.DOTALL)
STAGED, LOCK = ".staged", ".lock"


def write_whole(path: str | Path, content: bytes | Callable[[BinaryIO], object], *, to_disk: bool = False) -> None:
    """Write a file so that no reader ever sees half of it (`whole_file`).

    Args:
        path: the file.
        content: the bytes, or what fills the stream that it is given.
        to_disk: also flush file and rename to the disk, so that they survive a power failure; slow for many small files.

    Raises:
        DataError: it is a folder, or no path of this machine.
        OSError: it could not be written; nothing is left behind. The error names the file.
    """
    with whole_file(path, to_disk=to_disk) as stream:
        if isinstance(content, bytes):
            stream.write(content)
        else:
            content(stream)


@contextmanager
def whole_file(path: str | Path, *, to_disk: bool = False) -> Iterator[BinaryIO]:
    """A temporary file beside `path` that takes its place when the block ends well; an older file is untouched until then.

    A process that is killed meanwhile leaves the temporary file (training removes those of its folder,
    `remove_stale_temporaries`).

    Raises:
        DataError: it is a folder, or no path of this machine.
        OSError: it could not be written; nothing is left behind. The error names the file.
    """
    path = Path(path)
    check_path(path)
    if os.path.isdir(path):
        raise DataError(f"{path.resolve()} is a folder; name the file to be written in it")
    stream = _temporary_beside(path)
    try:
        with stream:
            yield stream
            stream.flush()
            if to_disk:
                os.fsync(stream.fileno())
            if fcntl is None:
                stream.close()  # Windows renames closed files only; elsewhere the lock lasts until the rename is done
            os.replace(stream.name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(stream.name)
        if isinstance(error, OSError) and error.filename is None and error.errno is not None:  # a full disk says only that
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    if to_disk:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush the renames in a folder to the disk; not every platform can open a folder."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged_file(target: str | Path) -> Iterator[IO[str]]:
    """A text file that gets its name when the block ends well (`whole_file`); its folder is made.

    Raises:
        DataError: the folder cannot be written.
    """
    make_folder(Path(target).parent)
    with whole_file(target) as stream:
        text = io.TextIOWrapper(stream, encoding="utf-8", errors="backslashreplace")
        yield text
        text.detach()  # flushed, and not closed: it is renamed first


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
            if _lock(stream, wait=False):
                path.unlink()
                removed.append(path)
    return removed


@contextmanager
def locked_folder(folder: Path, part: str = "") -> Iterator[None]:
    """Hold a folder's lock, a file beside it, inside the context; where there are no locks, nothing.

    Args:
        folder: by any of its names; `.` and links are followed.
        part: a word for what is locked, where several processes work in the folder.

    Raises:
        BlockingIOError: another process has it.
    """
    place = folder.resolve()
    with _locked(place.parent / f".{place.name}{part and '.'}{part}{LOCK}"):
        yield


@contextmanager
def staged_folder(target: str | Path, parts: Iterable[str]) -> Iterator[Path]:
    """A temporary folder beside `target` whose parts are moved into `target` when the block ends well.

    Those that killed processes have left there are removed first.

    Args:
        target: the output folder; it may exist already (with another split of the data set, say).
        parts: what will be written, relative to the folder; moved in this order, so name last what makes the rest count.

    Yields:
        The temporary folder. After an error it is removed and `target` is as it was.

    Raises:
        DataError: one of the parts is there already, or the folder cannot be written.
    """
    target, rows = Path(target), list(parts)
    check_path(target)
    for part in rows:
        if os.path.lexists(target / part):
            raise DataError(f"{target / part} is there already; choose another output folder or split, or remove it first")
    make_folder(target.parent)
    prefix = f".{target.name[:40]}."
    _remove_stale_folders(target.parent, prefix)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=prefix, suffix=STAGED))
    try:
        with _locked(temporary / LOCK):
            yield temporary
            make_folder(target)
            _move(temporary, target, [part for part in rows if os.path.lexists(temporary / part)])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


LONGEST_NAME = 240  # letters; file systems allow 255 bytes
LONGEST_PART = 255  # bytes
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


def safe_path(folder: str | Path, name: str, where: str, key: str = "file_name") -> Path:
    """Join a file name from a JSON to its folder; names from files are not trusted to stay inside it.

    A backslash separates folders as a slash does: JSONs that were written on Windows have them.

    Args:
        folder: where the file is.
        name: of the file.
        where: for messages: in whose entry it stands.
        key: for messages: of the JSON.

    Raises:
        DataError: an absolute name, one with `..`, or an empty one.
    """
    if _PLAIN_NAME.fullmatch(name):  # as most are, and quickly
        return (folder if isinstance(folder, Path) else Path(folder)) / name
    parts = PurePosixPath(name.replace("\\", "/")).parts
    absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).drive or name[:1] == "\\"
    if not parts or ".." in parts or absolute:
        raise DataError(f"{where}: {key} {name!r} leaves its folder; names must be relative to {folder}, without '..'")
    if "\0" in name or any("\ud800" <= letter <= "\udfff" for letter in name) or max(map(len, parts)) > LONGEST_NAME:
        raise DataError(f"{where}: {key} {name[:80]!r} is no name that a file can have; correct it in the JSON")
    return Path(folder).joinpath(*parts)


# A Path keeps one of the two slashes, so that only what is known for an address is one then.
ADDRESS = re.compile(r"((?:https?|ftps?|s3|gs|hf|file|ssh|az|abfss?|hdfs)(?=:/)|[A-Za-z][A-Za-z0-9+.-]+(?=://)):/+(?=[^/])")


def path_fault(path: str | Path) -> str | None:
    """What keeps a text from being the path of a file here: an address of the network, or no name at all; None if nothing."""
    if not isinstance(path, str | os.PathLike):
        return "no path of a file"
    name = os.fspath(path)
    with contextlib.suppress(UnicodeEncodeError):
        parts = os.fsencode(name).split(os.fsencode(os.sep))
        if "\0" not in name and max(map(len, parts)) <= LONGEST_PART:
            address = None if os.path.lexists(name) else ADDRESS.match(name)
            return address and f"an address ({address[1]}), and only files of this machine are read and written: fetch it first"
    return "no name that a file can have"


def check_path(path: str | Path) -> None:
    """Raise `DataError` if a path has a `path_fault`."""
    if fault := path_fault(path):
        name = ADDRESS.sub(r"\1://", str(path))
        raise DataError(f"{name[:80]!r} is {fault}")


def by_numbers(name: str) -> tuple[object, ...]:
    """A key that sorts names by the numbers in them: frame_2 comes before frame_10, whether or not zeros fill them up."""
    parts = re.split("([0-9]+)", name)  # text, number, text, ..., text
    digits = (part.lstrip("0") for part in parts[1::2])
    numbers = [(len(number), number) for number in digits]
    return (*(key for pair in zip(parts, numbers, strict=False) for key in pair), parts[-1], name)


def read_file(path: str | Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read; a link to nothing, a pipe or a device (which could wait for ever), each by its name.
    """
    if not os.path.isfile(path):
        if fault := path_fault(path):
            raise OSError(errno.EINVAL, f"it is {fault}", str(path))
        if os.path.islink(path) and not os.path.exists(path):
            raise OSError(errno.ENOLINK, f"it is a link to {os.readlink(path)!r}, where there is nothing", str(path))
        if os.path.exists(path) and not os.path.isdir(path):
            raise OSError(errno.EINVAL, "it is a pipe or a device, not a file", str(path))
    with open(path, "rb") as stream:
        return stream.read()


def make_folder(path: str | Path) -> Path:
    """Make an output folder, with its parents.

    Raises:
        DataError: it cannot be made or written to.
    """
    path = Path(path)
    check_path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: the folder cannot be made: {error.strerror}; choose another output folder") from None
    if not os.access(path, os.W_OK | os.X_OK):
        raise DataError(f"{path}: the folder is not writable; choose another output folder")
    return path


@contextmanager
def none_left_empty(path: Path) -> Iterator[None]:
    """Remove the folders that were made on the way to a path and in it, if this ends with an error while they are empty."""
    check_path(path)
    made = [place for place in (path, *path.parents) if not os.path.lexists(place)]
    try:
        yield
    except BaseException:
        inside = sorted(path.rglob("*"), reverse=True) if path in made and path.is_dir() else []
        for place in (*inside, *made):
            with contextlib.suppress(OSError):
                place.rmdir()
        raise


def write_json(file: IO[str], head: Mapping[str, object], lists: Mapping[str, Iterable[object]]) -> None:
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


def _temporary_beside(path: Path) -> BinaryIO:
    """A new file, locked by this process, with a name that no other process has."""
    while True:
        stream = open(path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.tmp"), "wb")
        _lock(stream, wait=True)
        if os.path.exists(stream.name):  # nobody cleaned up between the two lines above
            return stream
        stream.close()


def _lock(stream: BinaryIO, *, wait: bool) -> bool:
    """Lock a file until it is closed; False where the system or the file system has no locks, or another has it."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError:
        return False
    return True


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold the lock that a file stands for; False where the system or the file system has no locks, or the file cannot be made.

    Raises:
        BlockingIOError: another process has it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(errno.EAGAIN, "another process is at work there", str(path)) from None
    except (OSError, NotImplementedError):
        pass
    try:
        yield lock.is_locked
    finally:
        if lock.is_locked:
            with contextlib.suppress(OSError):
                path.unlink()  # while it is held: who comes next makes a file of its own
        lock.release()


def _remove_stale_folders(parent: Path, prefix: str) -> None:
    """Remove staged folders whose process is dead."""
    for folder in parent.iterdir():
        if folder.name.startswith(prefix) and folder.name.endswith(STAGED) and (folder / LOCK).exists():
            with contextlib.suppress(BlockingIOError), _locked(folder / LOCK) as dead:
                if dead:
                    shutil.rmtree(folder, ignore_errors=True)
