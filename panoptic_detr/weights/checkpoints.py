"""Checkpoints: everything that a model needs to be rebuilt, and everything that a run needs to go on, in one safe file.

A checkpoint is a plain dict of tensors and plain values, so `torch.load(path, weights_only=True)` opens it and no code in it
can run. It is written to a temporary file in the same folder, flushed to the disk and renamed: a crash at any moment leaves
the previous file or the new one, never half of one.
"""

import json
import platform
import re
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import CheckpointError
from panoptic_detr.files import write_whole

FORMAT = "panoptic_detr checkpoint"
VERSION = 1
SAFETENSORS = ".safetensors"
CUT_SHORT = "is cut short or damaged; copy it again or use an older one"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        model: `name`, `num_labels` and `overrides` for `build_model`.
        state_dict: the weights to use (with EMA: the averaged ones).
        categories: the class table that the labels mean; None if nobody knows.
        inference: keyword arguments of the merger that suit this model, for example thresholds.
        training: what a run needs to go on; None in a checkpoint made for use.
        versions: of Python and the packages that wrote the file.
        path: where it was read from, for messages.
    """

    model: dict[str, Any]
    state_dict: dict[str, Tensor]
    categories: CategoryTable | None = None
    inference: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    versions: dict[str, str] = field(
        default_factory=lambda: {"python": platform.python_version(), "torch": str(torch.__version__)}
    )
    path: Path | None = None

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into a model of the same architecture.

        Raises:
            CheckpointError: the model has other parameters; the message names the differences.
        """
        differences = state_dict_differences(self.state_dict, model.state_dict())
        if differences:
            raise CheckpointError(
                f"checkpoint {self._where} holds {self._model_name} and does not fit this model"
                f"{_spec_difference(self.model, getattr(model, 'spec', None))}: {_first(differences)}"
            )
        model.load_state_dict(self.state_dict)

    def check_categories(self, table: CategoryTable) -> None:
        """Raise `CheckpointError` if labels mean something else in `table` than in the checkpoint."""
        differences = [] if self.categories is None else self.categories.differences(table)
        if differences:
            raise CheckpointError(
                f"checkpoint {self._where} was trained on other classes than this data set (here = checkpoint, there = data "
                f"set): {_first(differences)}. Use the data set's own checkpoint, or train from this one by category name"
            )

    @property
    def _where(self) -> str:
        return repr(str(self.path)) if self.path else "in memory"

    @property
    def _model_name(self) -> str:
        return repr(self.model.get("name", "a model"))


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically.

    Args:
        path: the file; its folder is made if it is missing. A name ending in `.safetensors` writes that format, without the
            training part.
        checkpoint: what to write.

    Raises:
        CheckpointError: the file cannot be written (folder not writable, disk full); the previous file is untouched.
    """
    path = Path(path)
    if path.suffix == SAFETENSORS:
        data = _to_safetensors(checkpoint)
        return write_atomically(path, lambda stream: stream.write(data))
    content = {
        "format": FORMAT,
        "version": VERSION,
        "model": checkpoint.model,
        "state_dict": {name: value.detach() for name, value in checkpoint.state_dict.items()},
        **_description(checkpoint),
        "training": checkpoint.training,
    }
    return write_atomically(path, lambda stream: torch.save(content, stream))


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint to the CPU without running any code in it.

    Raises:
        CheckpointError: no such file, cut short, or not a checkpoint of this project.
    """
    path = Path(path)
    check_is_file(path)
    content = _read_safetensors(path) if path.suffix == SAFETENSORS else _read_torch(path)
    _check_format(content, path)
    table = content["categories"]
    return Checkpoint(
        model=content["model"],
        state_dict=content["state_dict"],
        categories=None if table is None else CategoryTable.from_dict(table),
        inference=content["inference"],
        training=content.get("training"),
        versions=content["versions"],
        path=path,
    )


def check_is_file(path: Path) -> None:
    """Raise `CheckpointError` unless there is a file; of a folder the message names the checkpoint in it."""
    if path.is_dir():
        inside = [name for name in ("best.pt", "last.pt") if (path / name).is_file()]
        hint = f"name the file: {path / inside[0]}" if inside else "it holds no best.pt; name the checkpoint's file"
        raise CheckpointError(f"no checkpoint at {str(path)!r}: that is a folder; {hint}")
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {str(path)!r}: there is no such file")


def check_source(name_or_path: str, names: Collection[str]) -> None:
    """Raise `CheckpointError` if a source of weights, none of `names`, is or looks like a path and there is no file."""
    path = Path(name_or_path)
    if name_or_path in names:
        return
    if path.is_dir() or path.name != name_or_path or path.suffix in (".pt", ".pth", SAFETENSORS):
        check_is_file(path)


def unreadable_weights(path: Path, error: Exception) -> str:
    """Why `torch.load` refused a file, in a sentence's second half and without its advice to open the file unsafely.

    Args:
        path: the file.
        error: what `torch.load(path, weights_only=True)` raised.
    """
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


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> Path:
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


def state_dict_differences(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> list[str]:
    """One sentence per parameter that only one of two state dicts has or that differs in shape."""
    lines = [f"{name} {tuple(value.shape)} is only in the checkpoint" for name, value in here.items() if name not in there]
    lines += [f"{name} {tuple(value.shape)} is only in the model" for name, value in there.items() if name not in here]
    lines += [
        f"{name} is {tuple(value.shape)} in the checkpoint, {tuple(there[name].shape)} in the model"
        for name, value in here.items()
        if name in there and there[name].shape != value.shape
    ]
    return lines


def _description(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "categories": None if checkpoint.categories is None else checkpoint.categories.to_dict(),
        "inference": checkpoint.inference,
        "versions": checkpoint.versions,
    }


def _to_safetensors(checkpoint: Checkpoint) -> bytes:
    about = {"format": FORMAT, "version": VERSION, "model": checkpoint.model, **_description(checkpoint)}
    # The format knows no shared storage; heads that decoder layers share are written once per name.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in checkpoint.state_dict.items()}
    return safetensors.torch.save(tensors, metadata={"panoptic_detr": json.dumps(about)})


def _read_safetensors(path: Path) -> Any:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("panoptic_detr", "null"))
            return about and {**about, "state_dict": {name: file.get_tensor(name) for name in file.keys()}}
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} is not a readable safetensors file: {_reason(error)}") from error


def _read_torch(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # an arbitrary file can make the unpickler raise anything
        reason = unreadable_weights(path, error)
        plain = isinstance(error, PermissionError) or reason == CUT_SHORT
        what = f"checkpoint {str(path)!r}" if plain else f"{str(path)!r} is not a checkpoint of this project: it"
        raise CheckpointError(f"{what} {reason}") from error


def _check_format(content: Any, path: Path) -> None:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{str(path)!r} holds {_kind(content)}, not a checkpoint of this project; "
            "published weights are converted with `panoptic-detr convert_checkpoint`"
        )
    if content["version"] > VERSION:
        raise CheckpointError(
            f"checkpoint {str(path)!r} has format version {content['version']}; "
            f"this installation reads up to {VERSION}; update it"
        )


def _kind(content: Any) -> str:
    if isinstance(content, dict):
        return f"a dict with keys {_first([str(key) for key in content])}"
    return "nothing of ours" if content is None else f"a {type(content).__name__}"


def _spec_difference(saved: Mapping[str, Any], built: Mapping[str, Any] | None) -> str:
    if built is None or dict(saved) == dict(built):
        return ""
    there, here = dict(_settings(saved)), dict(_settings(built))
    changed = [key for key in there | here if there.get(key) != here.get(key)]
    text = ", ".join(f"{key} {_given(there, key)} there, {_given(here, key)} here" for key in changed)
    return f" ({text})" if text else ""


def _given(settings: Mapping[str, Any], key: str) -> str:
    return repr(settings[key]) if key in settings else "the default"


def _settings(spec: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a model with its dotted key."""
    for key, value in spec.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _first(lines: list[str], count: int = 4) -> str:
    more = f"; and {len(lines) - count} more" if len(lines) > count else ""
    return "; ".join(lines[:count]) + more


def _room(error: Exception, folder: Path) -> str:
    """PyTorch reports a full disk as a RuntimeError about positions in the file: say how much room there is."""
    if not isinstance(error, RuntimeError) or not folder.exists():
        return ""
    return f" (probably no space left on device: {shutil.disk_usage(folder).free / 2**20:.0f} MiB are free there)"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
