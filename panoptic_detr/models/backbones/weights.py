"""Weights of a backbone from a file: a state dict of timm or torchvision, as .pth or .safetensors."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from panoptic_detr.errors import BackboneWeightsError


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
