"""Weights of a backbone from a file here or on the Hugging Face hub: a state dict of timm or torchvision."""

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from panoptic_detr.errors import BackboneWeightsError, WeightsUnavailableError
from panoptic_detr.models.backbones.hub import finder, hub_id

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class FoundWeights:
    """A file of weights.

    Attributes:
        path: the file.
        mean: of the images that the network was trained on, where it is known.
        std: their standard deviation, where it is known.
    """

    path: Path
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def check_statistics(self, name: str, mean: Sequence[float], std: Sequence[float]) -> None:
        """Refuse weights that want images of another normalisation than a backbone without `InputStatistics` gives them."""
        if self.mean is not None and self.std is not None and (self.mean, self.std) != (tuple(mean), tuple(std)):
            raise BackboneWeightsError(
                f"the weights in {str(self.path)!r} were trained on images with mean {list(self.mean)} and deviation "
                f"{list(self.std)}, and backbone {name!r} gets {list(mean)} and {list(std)}; take other weights of it"
            )


def find_weights(source: str, name: str) -> FoundWeights:
    """The file that a setting means: a path, or a repository of the hub ("timm/resnet50.a1_in1k", "hf-hub:" before it or not).

    Args:
        source: of the setting.
        name: of the backbone, for errors.

    Raises:
        InputError: huggingface_hub is not installed.
        BackboneWeightsError: the repository has no weights file.
        WeightsUnavailableError: it is neither in the cache nor to be had from the network.
    """
    repository = None if Path(source).exists() else hub_id(source.removeprefix("hf-hub:").removeprefix("hf_hub:"))
    if repository is None:
        return FoundWeights(Path(source))
    try:
        find = finder(repository)
        config = find("config.json")
        path = next(filter(None, map(find, HUB_FILES)), None)
    except WeightsUnavailableError as error:
        raise WeightsUnavailableError(f"backbone {name!r}: there is no file {source!r}, and on the hub: {error}") from None
    if path is None:
        raise BackboneWeightsError(f"the hub's repository {repository} has none of {', '.join(HUB_FILES)}; name one of timm's")
    about = json.loads(config.read_text(encoding="utf-8")) if config else {}
    known = about.get("pretrained_cfg", about)
    mean, std = (tuple(known[key]) if key in known else None for key in ("mean", "std"))
    return FoundWeights(path, mean, std)


def load_backbone_file(net: nn.Module, path: str | Path, name: str) -> None:
    """Fill a backbone from a file.

    Entries go by their names. A .pth file with other names (of another port of the network) goes by the order of its entries
    instead, if their shapes are those of the backbone one after the other; what follows (a classifier) is left.

    Args:
        net: the backbone, without classifier.
        path: a state dict, bare or under "state_dict" or "model".
        name: of the backbone, for errors.

    Raises:
        BackboneWeightsError: a missing or unreadable file, or weights of another network.
    """
    given = {key: value for key, value in read_state_dict(Path(path)).items() if value.is_floating_point()}
    wanted = {key: value for key, value in net.state_dict().items() if value.is_floating_point()}  # no counters of batches
    if wanted.keys() <= given.keys():
        found = {key: given[key] for key in wanted}
    elif Path(path).suffix != ".safetensors" and _same_shapes_in_order(wanted, given):
        found = dict(zip(wanted, given.values(), strict=False))
    else:
        missing = [key for key in wanted if key not in given]
        raise BackboneWeightsError(
            f"{str(path)!r} does not hold the weights of backbone {name!r}: {len(missing)} of its {len(wanted)} entries are "
            f"missing, such as {missing[0]!r}, and the shapes in their order are others too; name the backbone they belong to"
        )
    for key, value in wanted.items():
        if value.shape != found[key].shape:
            raise BackboneWeightsError(
                f"{str(path)!r}: entry {key!r} has shape {tuple(found[key].shape)}, but backbone {name!r} needs "
                f"{tuple(value.shape)}; name the backbone that the file belongs to"
            )
    net.load_state_dict({**net.state_dict(), **found})


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a weights file by name, in the file's order.

    Raises:
        BackboneWeightsError: the file is missing or no state dict.
    """
    if not path.is_file():
        raise BackboneWeightsError(f"there is no weights file {str(path)!r}; give true to fetch the weights, or another path")
    try:
        values = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as error:
        raise BackboneWeightsError(
            f"{str(path)!r} cannot be read as weights ({type(error).__name__}): it is damaged, or holds more than tensors"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(values, Mapping) and isinstance(values.get(key), Mapping):
            values = values[key]
    if not isinstance(values, Mapping) or not all(isinstance(value, Tensor) for value in values.values()):
        raise BackboneWeightsError(f"{str(path)!r} is not a state dict: it must map names to tensors")
    return dict(values)


def _same_shapes_in_order(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    if len(given) < len(wanted):
        return False
    return all(a.shape == b.shape for a, b in zip(wanted.values(), given.values(), strict=False))
