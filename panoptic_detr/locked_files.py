"""Files and folders that belong to one process at a time; the system drops its locks with the process, however it ends."""

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

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
