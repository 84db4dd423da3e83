"""Published checkpoints: their authors' names for the weights, translated to ours, strict both ways."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from panoptic_detr.errors import OfficialWeightsError
from panoptic_detr.weights.names.deformable import deformable_rules, is_deformable

DETR_RULES: tuple[tuple[str, str], ...] = (
    (r"^detr\.", "detector."),
    (r"^bbox_attention\.", "mask_head.attention."),
    (r"^mask_head\.out_lay\.", "mask_head.out."),
    (r"(^|\.)backbone\.0\.body\.", r"\1backbone.body."),
    (r"(^|\.)backbone\.1\.(row|col)_embed\.", r"\1position_encoding.\2_embed."),
    (r"(^|\.)transformer\.(encoder|decoder)\.", r"\1\2."),
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"\.layers\.(\d+)\.linear([12])\.", r".layers.\1.ffn.linear\2."),
)
MASK_HEAD_PART = re.compile(r"^mask_head\.(lay|gn|adapter)(\d)\.")
DERIVED = ("num_batches_tracked", "relative_position_index")  # entries that hold nothing learned
MASK_HEAD_NAMES = {"lay": "convs", "gn": "norms", "adapter": "adapters"}


def load_official(model: nn.Module, state_dict: Mapping[str, Any]) -> None:
    """Fill a model with a published checkpoint.

    Args:
        model: from `build_model`, with the published number of label slots.
        state_dict: what the authors published, bare or under "model".

    Raises:
        OfficialWeightsError: not a state dict; or names missing, left over or of another shape, all listed. Nothing is changed.
    """
    published = state_dict.get("model", state_dict) if isinstance(state_dict, Mapping) else state_dict
    if not isinstance(published, Mapping) or not all(isinstance(value, Tensor) for value in published.values()):
        hint = "; give its state_dict()" if isinstance(published, nn.Module) else ""
        raise OfficialWeightsError(
            f"expected a state dict (name to tensor), bare or under 'model', but got {_described(published)}{hint}"
        )
    named = translate(published)
    _check_fit(model.state_dict(), named)
    model.load_state_dict(named)


def translate(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename every entry of a published state dict to the name it has here.

    Raises:
        OfficialWeightsError: two names of one shared tensor that hold different values.
    """
    rules = deformable_rules(published) if is_deformable(published) else DETR_RULES
    named: dict[str, Tensor] = {}
    for name, value in published.items():
        if name.endswith(DERIVED):
            continue
        ours = _rename(name, rules)
        if ours in named and not torch.equal(named[ours], value):
            raise OfficialWeightsError(f"{name} and another entry both mean {ours} here, but hold different values")
        named[ours] = value
    return named


def _described(value: object) -> str:
    """Type of a value and, of a mapping, the first entry that is no tensor."""
    kind = type(value).__name__
    if not isinstance(value, Mapping):
        return kind
    name = next(name for name, entry in value.items() if not isinstance(entry, Tensor))
    return f"a {kind} with {type(value[name]).__name__} under {name!r}"


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    part = MASK_HEAD_PART.match(name)
    if part:
        return f"mask_head.{MASK_HEAD_NAMES[part[1]]}.{int(part[2]) - 1}.{name[part.end() :]}"
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    wanted = {name: value for name, value in wanted.items() if not name.endswith("num_batches_tracked")}
    missing, left_over = sorted(wanted.keys() - given.keys()), sorted(given.keys() - wanted.keys())
    reshaped = [
        f"{name}: {tuple(given[name].shape)} in the checkpoint, {tuple(wanted[name].shape)} in the model"
        for name in sorted(wanted.keys() & given.keys())
        if given[name].shape != wanted[name].shape
    ]
    if missing or left_over or reshaped:
        problems = (("missing", missing), ("unexpected", left_over), ("of another shape", reshaped))
        listed = "; ".join(f"{len(names)} {what}: {', '.join(names)}" for what, names in problems if names)
        raise OfficialWeightsError(f"the checkpoint does not belong to this model: {listed}")
