"""Files of weights as such: opened without running any code in them, written whole or not at all."""

import argparse
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import safetensors
import torch
from torch import Tensor

from panoptic_detr.errors import CheckpointError
from panoptic_detr.files import write_whole

SAFETENSORS = ".safetensors"
CUT_SHORT = "is cut short or damaged; copy it again or use an older one"


def check_is_file(path: Path) -> None:
    """Raise `CheckpointError` unless there is a file; of a folder the message names the checkpoint in it."""
    if path.is_dir():
        inside = [name for name in ("best.pt", "last.pt") if (path / name).is_file()]
        hint = f"name the file: {path / inside[0]}" if inside else "it holds no best.pt; name the checkpoint's file"
        raise CheckpointError(f"no checkpoint at {str(path)!r}: that is a folder; {hint}")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {str(path)!r}: there is no such file")


def read_torch(path: Path) -> object:
    """What `torch.save` wrote: tensors, plain values, and the options that the authors' training saves with its weights.

    Raises:
        CheckpointError: no such file, or it cannot be opened without running code in it.
    """
    check_is_file(path)
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an arbitrary file can make the unpickler raise anything
        reason = _unreadable(path, error)
        plain = isinstance(error, PermissionError) or reason == CUT_SHORT
        what = f"checkpoint {str(path)!r}" if plain else f"{str(path)!r} is not a checkpoint of this project or of another: it"
        raise CheckpointError(f"{what} {reason}") from error


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Notes and tensors of a safetensors file.

    Raises:
        CheckpointError: it cannot be read.
    """
    check_is_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} is not a readable safetensors file: {_reason(error)}") from error


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Give `write` a temporary file beside `path`, flush it to the disk and rename it to `path`.

    Raises:
        CheckpointError: it could not be written; nothing is left behind and an older file at `path` is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write, to_disk=True)
    except (OSError, RuntimeError) as error:
        kept = "; the previous file is kept" if path.exists() else ""
        raise CheckpointError(f"cannot write {str(path)!r}: {_reason(error)}{_room(error, path.parent)}{kept}") from error
    return path


def _unreadable(path: Path, error: Exception) -> str:
    """Why `torch.load` refused a file, in a sentence's second half and without its advice to open the file unsafely."""
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    with open(path, "rb") as stream:
        start = stream.read(2)
    if not start:
        return "is empty; copy or download it again"
    if start != b"PK" and start[:1] != b"\x80":  # an archive, or a pickle of protocol 2 and later
        return "is neither a PyTorch archive nor a pickle; check which file it is, or download it again"
    if start == b"PK" and not zipfile.is_zipfile(path):
        return CUT_SHORT
    if "weights_only" not in str(error):
        return f"is damaged, or memory is short: {_reason(error)}"
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    named = f" (it names {found[1]})" if found else ""
    return f"is not opened, because it could run code{named}; a file of weights holds tensors and plain values only"


def _room(error: Exception, folder: Path) -> str:
    """PyTorch reports a full disk as a RuntimeError about positions in the file: say how much room there is."""
    if not isinstance(error, RuntimeError) or not folder.exists():
        return ""
    return f" (probably no space left on device: {shutil.disk_usage(folder).free / 2**20:.0f} MiB are free there)"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
