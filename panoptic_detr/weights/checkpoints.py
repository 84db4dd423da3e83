"""Checkpoints: everything that a model needs to be rebuilt, and everything that a run needs to go on, in one safe file.

A checkpoint is a plain dict of tensors and plain values, so `torch.load(path, weights_only=True)` opens it and no code in it
can run. It is written to a temporary file in the same folder, flushed to the disk and renamed: a crash at any moment leaves
the previous file or the new one, never half of one.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.config.types import fits_type, type_name
from panoptic_detr.errors import CheckpointError, ConfigError, InputError
from panoptic_detr.weights.archives import (
    SAFETENSORS,
    fault_of,
    read_safetensors,
    read_torch,
    write_atomically,
    write_safetensors,
)
from panoptic_detr.zoo import ModelSpec, build_model

FORMAT = "panoptic_detr checkpoint"
VERSION = 1
SCHEMA: dict[str, object] = {  # of a file's fields; what may be None may also be missing
    "version": int,
    "model": Mapping[str, object],
    "model.name": str,
    "model.num_labels": int,
    "model.overrides": Mapping[str, object],
    "state_dict": Mapping[str, Tensor],
    "categories": Mapping[str, object] | None,
    "categories.labels": Literal["contiguous", "id"],
    "categories.num_labels": int,
    "categories.categories": Sequence[Mapping[str, object]],
    "inference": Mapping[str, object],
    "training": Mapping[str, object] | None,
    "versions": Mapping[str, object],
}
NOTES = "panoptic_detr"  # in a safetensors file: everything but the weights, as JSON


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds.

    Attributes:
        model: what to build.
        state_dict: the weights to use (with EMA: the averaged ones).
        categories: the class table that the labels mean; None if nobody knows.
        inference: keyword arguments of the merger that suit this model, for example thresholds.
        training: what a run needs to go on, as plain values and tensors; None in a checkpoint made for use.
        versions: of Python and the packages that wrote the file.
        path: where it was read from, for messages.
    """

    model: ModelSpec
    state_dict: Mapping[str, Tensor]
    categories: CategoryTable | None = None
    inference: Mapping[str, object] = field(default_factory=dict)
    training: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(
        default_factory=lambda: {"python": platform.python_version(), "torch": str(torch.__version__)}
    )
    path: Path | None = None

    def build(self) -> nn.Module:
        """Build the model with these weights.

        Raises:
            CheckpointError: there is no such model, or it has other parameters.
        """
        overrides = {**self.model.overrides, "pretrained_backbone": False}  # the checkpoint brings all weights
        try:
            model = build_model(self.model.name, num_labels=self.model.num_labels, **overrides)
        except InputError as error:
            raise CheckpointError(f"the model of checkpoint {self._where} cannot be built: {error}") from None
        model.spec = self.model  # type: ignore[assignment]
        self.load_into(model)
        return model

    def load_into(self, model: nn.Module) -> None:
        """Copy the weights into a model of the same architecture.

        Raises:
            CheckpointError: the model has other parameters; the message names the differences.
        """
        differences = _differences(self.state_dict, model.state_dict())
        if differences:
            raise CheckpointError(
                f"checkpoint {self._where} holds {self.model.name!r} and does not fit this model"
                f"{_other_settings(self.model, getattr(model, 'spec', None))}: {_first(differences)}"
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


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically.

    Args:
        path: the file; its folder is made if it is missing. A name ending in `.safetensors` writes that format, without the
            training part.
        checkpoint: what to write.

    Raises:
        CheckpointError: the file cannot be written (folder not writable, disk full); the previous file is untouched.
    """
    path, about = Path(path), about_checkpoint(checkpoint)
    tensors = {name: value.detach() for name, value in checkpoint.state_dict.items()}
    if path.suffix != SAFETENSORS:
        content = about | {"state_dict": tensors, "training": checkpoint.training}
        return write_atomically(path, lambda stream: torch.save(content, stream))
    return write_safetensors(path, {NOTES: json.dumps(about)}, tensors)


def about_checkpoint(checkpoint: Checkpoint) -> dict[str, object]:
    """Everything in a checkpoint that is neither weights nor training, as plain values."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": checkpoint.model.to_dict(),
        "categories": None if checkpoint.categories is None else checkpoint.categories.to_dict(),
        "inference": dict(checkpoint.inference),
        "versions": dict(checkpoint.versions),
    }


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint to the CPU without running any code in it.

    Raises:
        CheckpointError: no such file, cut short, or not a checkpoint of this project.
    """
    path = Path(path)
    content = _read_safetensors(path) if path.suffix == SAFETENSORS else read_torch(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(
            f"{str(path)!r} holds {_kind(content)}, not a checkpoint of this project; "
            "published weights are converted with `panoptic-detr convert_checkpoint`"
        )
    return checkpoint_of(content, path)


def checkpoint_of(content: Mapping[str, object], path: Path) -> Checkpoint:
    """A checkpoint of the fields that `save_checkpoint` writes, wherever they were read.

    Raises:
        CheckpointError: of a later version, or a field that cannot be used.
    """
    where = f"checkpoint {str(path)!r}"
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise CheckpointError(f"{where} has format version {version}; this installation reads up to {VERSION}; update it")
    try:
        return _checked(content, path)
    except InputError as error:
        raise CheckpointError(f"{where} cannot be used: {error}") from None


def _checked(content: Mapping[str, Any], path: Path) -> Checkpoint:
    """What a file holds, every field as `SCHEMA` has it.

    Raises:
        InputError: a field is missing or of another type, breaks a rule, or holds unusable weights.
    """
    for key, kind in SCHEMA.items():
        *outer, name = key.split(".")
        section = content.get(outer[0]) if outer else content
        if section is not None and (name in section or not fits_type(None, kind)):
            _check_field(section, name, kind, key)
    if fault := fault_of(content["state_dict"]):
        raise CheckpointError(f"{fault}; take an older file, or copy it again")
    try:
        InferenceSettings.from_dict(content["inference"])
    except ConfigError as error:
        raise CheckpointError(f"it has unusable inference settings: {error}") from None
    spec = ModelSpec(**{name: content["model"][name] for name in ("name", "num_labels", "overrides")})
    classes, training = content.get("categories"), content.get("training")
    table = None if classes is None else CategoryTable.from_dict(classes)
    if table is not None and table.num_labels != spec.num_labels:
        raise CheckpointError(f"its class table has {table.num_labels} label slots, its model {spec.num_labels}")
    return Checkpoint(spec, content["state_dict"], table, content["inference"], training, content["versions"], path)


def _check_field(section: Mapping[str, object], name: str, kind: object, key: str) -> None:
    if name not in section:
        raise CheckpointError(f"its field {key!r} is missing")
    if not fits_type(section[name], kind):
        raise CheckpointError(f"its field {key!r} must be {type_name(kind)}, but is {_short(section[name])}")


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
    return text if len(text) < 60 else f"{text[:50]}..."


def _read_safetensors(path: Path) -> object:
    notes, tensors = read_safetensors(path)
    try:
        about = json.loads(notes.get(NOTES, "null"))
    except ValueError as error:
        raise CheckpointError(f"{str(path)!r} is not a readable safetensors file: its notes are damaged ({error})") from None
    return {**about, "state_dict": tensors} if isinstance(about, dict) else None


def _differences(here: Mapping[str, Tensor], there: Mapping[str, Tensor]) -> list[str]:
    """One sentence per parameter that only the checkpoint or only the model has, or that differs in shape."""
    lines = [f"{name} {tuple(value.shape)} is only in the checkpoint" for name, value in here.items() if name not in there]
    lines += [f"{name} {tuple(value.shape)} is only in the model" for name, value in there.items() if name not in here]
    lines += [
        f"{name} is {tuple(value.shape)} in the checkpoint, {tuple(there[name].shape)} in the model"
        for name, value in here.items()
        if name in there and there[name].shape != value.shape
    ]
    lines += [
        f"{name} is of type {value.dtype} in the checkpoint, {there[name].dtype} in the model"
        for name, value in here.items()
        if name in there and there[name].is_floating_point() != value.is_floating_point()
    ]
    return lines


def _other_settings(saved: ModelSpec, built: ModelSpec | None) -> str:
    """The settings in which two models differ, in brackets."""
    if built is None or saved == built:
        return ""
    there, here = (
        {
            "name": spec.name,
            "num_labels": spec.num_labels,
            **{f"overrides.{key}": spec.overrides[key] for key in spec.overrides},
        }
        for spec in (saved, built)
    )
    changed = [key for key in there | here if there.get(key) != here.get(key)]
    both = [(key, *(repr(side[key]) if key in side else "the default" for side in (there, here))) for key in changed]
    return f" ({', '.join(f'{key} {old} there, {new} here' for key, old, new in both)})" if both else ""


def _kind(content: object) -> str:
    if isinstance(content, dict):
        return f"a dict with keys {_first([str(key) for key in content])}"
    return "nothing of ours" if content is None else f"a {type(content).__name__}"


def _first(lines: list[str], count: int = 4) -> str:
    more = f"; and {len(lines) - count} more" if len(lines) > count else ""
    return "; ".join(lines[:count]) + more
