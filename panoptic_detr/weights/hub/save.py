"""A model as a folder in the hub's form, of this project (which loses nothing) or of transformers; and its way to the hub."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.errors import InputError
from panoptic_detr.models.backbones import check_repository, push_folder
from panoptic_detr.weights.archives import write_atomically, write_safetensors
from panoptic_detr.weights.checkpoints import Checkpoint, about_checkpoint, save_checkpoint
from panoptic_detr.weights.hub.card import PICTURE, ModelNotes, write_card
from panoptic_detr.weights.hub.config import config_of_spec
from panoptic_detr.weights.hub.folder import CONFIG, OURS, PROCESSOR, WEIGHTS
from panoptic_detr.weights.hub.settings import labels_of_categories, processor_of_settings
from panoptic_detr.weights.names import to_hub
from panoptic_detr.zoo import PANOPTIC, spec_of

Format = Literal["panoptic_detr", "transformers"]


@runtime_checkable
class Used(Protocol):
    """A model in use, as `Predictor` is one."""

    model: nn.Module
    categories: CategoryTable
    settings: InferenceSettings


Savable = nn.Module | Used | Checkpoint


def save_pretrained(
    model: Savable, folder: str | Path, *, format: Format = "panoptic_detr", notes: ModelNotes | None = None
) -> Path:
    """Write a model as a folder in the hub's form: `config.json`, `model.safetensors`, and a model card, `README.md`.

    Args:
        model: from `build_model` or `load_pretrained`, or a `Predictor` with its classes and settings.
        folder: made if it is missing; files of these names in it are replaced.
        format: "panoptic_detr" loses nothing: `load_model` and `load_pretrained` read the same numbers, classes and settings.
            "transformers" is for `from_pretrained` and `pipeline` of that library (DETR and Deformable DETR only), and is read
            back here just as exactly.
        notes: what the card says besides.

    Returns:
        The folder.

    Raises:
        InputError: the model was not made by `build_model`, or transformers has no such model; the message names what it lacks.
        CheckpointError: the folder cannot be written.
    """
    checkpoint, target = _checkpoint(model), Path(folder)
    notes = _checked(notes)
    if format not in ("panoptic_detr", "transformers"):
        raise InputError(f"format must be 'panoptic_detr' or 'transformers', but got {format!r}")
    files = transformers_files(checkpoint) if format == "transformers" else {CONFIG: about_checkpoint(checkpoint)}
    if format == "transformers":
        write_safetensors(target / WEIGHTS[0], {"format": "pt"}, to_hub(checkpoint.state_dict, checkpoint.model))
    else:
        save_checkpoint(target / WEIGHTS[0], checkpoint)
    if notes.picture is not None:
        picture = notes.picture
        write_atomically(target / PICTURE, lambda stream: stream.write(picture))
    _write_text(target / "README.md", write_card(checkpoint, format, notes))
    for name, content in files.items():  # config.json last: it makes the folder one
        _write_text(target / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return target


def push_to_hub(
    model: Savable,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    format: Format = "panoptic_detr",
    notes: ModelNotes | None = None,
    message: str = "Upload a model of panoptic-detr",
) -> str:
    """Write a model as `save_pretrained` does and commit it to a repository of the Hugging Face hub.

    The token is that of `hf auth login` or of the variable HF_TOKEN.

    Args:
        model: see `save_pretrained`.
        repo_id: `organisation/name`; made if it does not exist.
        private: of a new repository: visible to its owners only; None for the organisation's own rule.
        revision: branch; None for the main one.
        format: see `save_pretrained`.
        notes: see `save_pretrained`; the card's name is the repository's where it has none.
        message: of the commit.

    Returns:
        Address of the repository.

    Raises:
        InputError: see `save_pretrained`; an id that is none; huggingface_hub is not installed.
        WeightsUnavailableError: no token that may write there, or the hub cannot be reached.
    """
    check_repository(repo_id)
    notes = _checked(notes)
    notes = notes if notes.name else replace(notes, name=repo_id)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, format=format, notes=notes)
        return push_folder(Path(folder), repo_id, private=private, revision=revision, message=message)


def _checked(notes: ModelNotes | None) -> ModelNotes:
    """The notes; `InputError` for something else, before anything is written."""
    if notes is not None and not isinstance(notes, ModelNotes):
        raise InputError(
            f"notes must be ModelNotes(...), but got a {type(notes).__name__}; its fields are ModelNotes' arguments"
        )
    return notes or ModelNotes()


def transformers_files(checkpoint: Checkpoint) -> dict[str, dict[str, object]]:
    """`preprocessor_config.json` and `config.json` with which transformers builds and feeds the same model.

    Raises:
        InputError: transformers has no such model; the message names what it lacks.
    """
    spec, settings = checkpoint.model, InferenceSettings.from_dict(checkpoint.inference)
    config = config_of_spec(spec)
    labels = labels_of_categories(checkpoint.categories, spec.num_labels)
    categories = None if checkpoint.categories is None else checkpoint.categories.to_dict()
    own = {"categories": categories, "inference": dict(checkpoint.inference)}
    config |= {"id2label": labels, "label2id": {name: int(label) for label, name in labels.items()}, OURS: own}
    return {
        PROCESSOR: processor_of_settings(settings, str(config["model_type"]), panoptic=spec.name.endswith(PANOPTIC)),
        CONFIG: config,
    }


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda stream: stream.write(text.encode()))


def _checkpoint(model: Savable) -> Checkpoint:
    """What to write of a model, in whatever form it is."""
    if isinstance(model, Checkpoint):
        return model
    if isinstance(model, nn.Module):
        inference = getattr(model, "inference", None)
        settings = inference.to_dict() if isinstance(inference, InferenceSettings) else {}
        return Checkpoint(spec_of(model), model.state_dict(), getattr(model, "categories", None), settings)
    if isinstance(model, Used):
        return Checkpoint(spec_of(model.model), model.model.state_dict(), model.categories, model.settings.to_dict())
    raise InputError(
        f"save_pretrained takes a model or a Predictor, but got {type(model).__name__}; open a file with load_pretrained"
    )
