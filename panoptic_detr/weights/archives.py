"""Files of weights as such: opened without running any code in them, written whole or not at all."""

import argparse
import json
import re
import shutil
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from panoptic_detr.errors import CheckpointError, DataError
from panoptic_detr.files import check_path, write_whole

SAFETENSORS = ".safetensors"
CHECKSUM = "crc32"
EXPORTED = (".onnx", ".xml", ".pt2")
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
        _verify_archive(path)
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about sparse tensors, which are refused afterwards
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # an arbitrary file can make the unpickler raise anything
        reason = _unreadable(path, error)
        plain = isinstance(error, PermissionError) or reason == CUT_SHORT
        what = f"checkpoint {str(path)!r}"
        what += "" if plain else " cannot be opened as a file of weights, so it is not a checkpoint of this project: it"
        raise CheckpointError(f"{what} {reason}") from error


def read_weights(path: Path) -> Mapping[str, object]:
    """What a file of weights from anywhere holds: PyTorch's or safetensors.

    Raises:
        CheckpointError: it cannot be opened safely, or holds something else.
    """
    content = read_safetensors(path)[1] if path.suffix == SAFETENSORS else read_torch(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{str(path)!r} holds a {type(content).__name__}, not a state dict")
    return content


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Notes and tensors of a safetensors file; the format has no checksum, so `write_safetensors` adds one to the notes.

    Raises:
        CheckpointError: it cannot be read, or the checksum is wrong.
    """
    check_is_file(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            notes, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} is not a readable safetensors file: {_reason(error)}") from error
    saved = notes.pop(CHECKSUM, None)  # files of the first release have none
    if saved is not None and saved != _checksum(notes, tensors):
        raise CheckpointError(f"checkpoint {str(path)!r} {CUT_SHORT} (its checksum is wrong)")
    return notes, tensors


def write_safetensors(path: Path, notes: dict[str, str], tensors: Mapping[str, Tensor]) -> Path:
    """Write notes and tensors atomically; names of one shared tensor, which the format does not know, get a copy each."""
    apart = {name: value.cpu().contiguous().clone() for name, value in tensors.items()}
    data = safetensors.torch.save(apart, metadata=notes | {CHECKSUM: _checksum(notes, apart)})
    return write_atomically(path, lambda stream: stream.write(data))


def _checksum(notes: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of notes, names, kinds and values."""
    total = zlib.crc32(json.dumps(sorted(notes.items())).encode())
    for name, value in sorted(tensors.items()):
        total = zlib.crc32(f"{name} {value.dtype} {tuple(value.shape)}".encode(), total)
        total = zlib.crc32(value.contiguous().view(-1).view(torch.uint8).numpy().data, total) if value.numel() else total
    return f"{total:08x}"


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> Path:
    """Give `write` a temporary file beside `path`, flush it to the disk and rename it to `path`.

    Raises:
        CheckpointError: it could not be written; nothing is left behind and an older file at `path` is untouched.
    """
    try:
        check_path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, write, to_disk=True)
    except (OSError, RuntimeError, DataError) as error:
        kept = "; the previous file is kept" if path.is_file() else ""
        raise CheckpointError(f"cannot write {str(path)!r}: {_reason(error)}{_room(error, path.parent)}{kept}") from error
    return path


def fault_of(tensors: Mapping[str, Tensor]) -> str | None:
    """Why the first tensor that cannot be a weight cannot: its name, and what it is instead."""
    return next((f"{name} {fault}" for name, value in tensors.items() if (fault := _fault(value))), None)


def _fault(value: Tensor) -> str | None:
    if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
        return "is sparse, quantized or of another special kind"
    if value.device.type == "meta":
        return "is a meta tensor, which has a shape and no values"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"has {value.numel()} entries, more than the values that are stored for it"
    if value.is_floating_point() and not bool(value.isfinite().all()):
        return f"has {int((~value.isfinite()).sum())} of {value.numel()} values that are NaN or infinite"
    return None


def _verify_archive(path: Path) -> None:
    """Compare the checksums of an archive, which `torch.load` does not do, and bound what it unpacks to."""
    if not zipfile.is_zipfile(path):  # a pickle of old, which has no checksums
        return
    with zipfile.ZipFile(path) as archive:
        size, unpacked = path.stat().st_size, sum(member.file_size for member in archive.infolist())
        if unpacked > size:  # PyTorch stores without compression
            raise CheckpointError(
                f"checkpoint {str(path)!r} would unpack to {unpacked / 2**20:.0f} MiB, but the file has {size / 2**20:.1f}; "
                "PyTorch does not write such files, so it is not opened"
            )
        if (damaged := archive.testzip()) is not None:
            raise CheckpointError(
                f"checkpoint {str(path)!r} {CUT_SHORT} (the checksum of {damaged.rpartition('/')[2]!r} in it is wrong)"
            )


def _unreadable(path: Path, error: Exception) -> str:
    """Why `torch.load` refused a file, in a sentence's second half and without its advice to open the file unsafely."""
    if isinstance(error, PermissionError):
        return f"cannot be read: {error.strerror}"
    if path.suffix.lower() in EXPORTED:
        return "is an exported file, which is run as it is; give the checkpoint that it was made from"
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
