"""A folder in the hub's form: `config.json`, `preprocessor_config.json`, and weights in one file or several.

Transformers writes such folders of DETR and Deformable DETR, `save_pretrained` of every model here; both are read.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.types import fits_type
from panoptic_detr.data.coco import read_json
from panoptic_detr.errors import CategoryError, CheckpointError, InputError, OfficialWeightsError
from panoptic_detr.files import safe_path
from panoptic_detr.weights.archives import read_weights
from panoptic_detr.weights.checkpoints import FORMAT, Checkpoint, checkpoint_of
from panoptic_detr.weights.hub.config import spec_of_config
from panoptic_detr.weights.hub.settings import categories_of_labels, settings_of_processor
from panoptic_detr.weights.names import hub_weights
from panoptic_detr.zoo import PANOPTIC

CONFIG, PROCESSOR = "config.json", "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # each whole, or as parts that NAME.index.json lists
INDEX = ".index.json"
OURS = "panoptic_detr"  # in a config of transformers: what it has no field for

Find = Callable[[str], Path | None]  # a file of the folder by its name


def is_hub_folder(path: Path) -> bool:
    """Whether this is a folder with a `config.json`."""
    return (path / CONFIG).is_file()


def read_folder(folder: Path) -> Checkpoint:
    """Read a folder in the hub's form.

    Raises:
        CheckpointError: a file is missing or damaged, or describes a model that we do not have.
        OfficialWeightsError: weights that do not belong to the model of `config.json`.
    """

    def find(name: str) -> Path | None:
        path = folder / name
        return path if path.is_file() else None

    return read_files(find, str(folder))


def read_files(find: Find, where: str) -> Checkpoint:
    """Read a model from the files of a folder or of a repository; raises as `read_folder`.

    Args:
        find: gives a file by its name, None where there is none; asked only for what is needed.
        where: what to call the folder in errors.
    """
    path = find(CONFIG)
    if path is None:
        raise CheckpointError(f"{where}: there is no {CONFIG}, so this is no model in the hub's form")
    try:
        config = _read_json(path)
        if config.get("format") == FORMAT:
            return checkpoint_of({**config, "state_dict": read_tensors(find), "training": None}, Path(where))
        return _read_transformers(config, find, Path(where))
    except (CheckpointError, OfficialWeightsError, CategoryError) as error:
        raise type(error)(f"{where}: {error}") from None


def read_tensors(find: Find) -> dict[str, Tensor]:
    """The weights, from one file or from all its parts.

    Raises:
        CheckpointError: there are none, a part is missing, or a file holds other things than tensors.
    """
    paths = weight_files(find)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        for name, value in read_weights(path).items():
            if not isinstance(value, Tensor):
                raise CheckpointError(f"{path.name} holds a {type(value).__name__} under {name!r}, not a tensor")
            tensors[name] = value
    return tensors


def weight_files(find: Find) -> list[Path]:
    """The files with weights: safetensors where there are both."""
    for name in WEIGHTS:
        if path := find(name):
            return [path]
        if index := find(name + INDEX):
            return _parts(index, find)
    raise CheckpointError(f"there are no weights: none of {', '.join(WEIGHTS)}, nor an index of their parts")


def _parts(index: Path, find: Find) -> list[Path]:
    """The files that an index lists, each once."""
    parts: Any = _read_json(index).get("weight_map")
    if not fits_type(parts, Mapping[str, str]) or not parts:
        raise CheckpointError(f"{index.name} has no weight_map of names and files")
    paths = []
    for name in sorted(set(parts.values())):
        safe_path(index.parent, name, index.name, "weight_map")
        if (path := find(name)) is None:
            raise CheckpointError(f"{name}, which {index.name} lists, is missing")
        paths.append(path)
    return paths


def _read_json(path: Path) -> dict[str, object]:
    return read_json(path, error=CheckpointError, what="an object of names and values")


def _read_transformers(config: Mapping[str, object], find: Find, where: Path) -> Checkpoint:
    own = config.get(OURS)  # of a folder that we wrote: what has no field in transformers
    own = own if isinstance(own, Mapping) else {}
    spec = spec_of_config(config)
    panoptic = spec.name.endswith(PANOPTIC)
    processor = find(PROCESSOR)
    settings = {} if processor is None else settings_of_processor(_read_json(processor))
    labels = config.get("id2label")
    table = categories_of_labels(labels if isinstance(labels, Mapping) else None, spec.num_labels, panoptic)
    try:
        weights = hub_weights(spec, read_tensors(find))
    except InputError as error:
        raise error if isinstance(error, OfficialWeightsError | CheckpointError) else CheckpointError(str(error)) from None
    table = CategoryTable.from_dict(own["categories"]) if own.get("categories") else table
    inference = own.get("inference") if isinstance(own.get("inference"), Mapping) else {}
    plain = {"model": spec.to_dict(), "categories": table.to_dict(), "inference": {**settings, **(inference or {})}}
    return checkpoint_of({**plain, "state_dict": weights, "training": None, "version": 1, "versions": {}}, where)
