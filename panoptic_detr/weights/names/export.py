"""Our weights under the names that the authors' own code uses: the way back of `official_weights`.

Every name that the authors' code gives to one shared tensor is written, so that its strict loading accepts the file. What
comes out is translated back and compared before anybody gets it: a model that the published form cannot hold is refused.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from panoptic_detr.errors import OfficialWeightsError
from panoptic_detr.weights.names.detr import translate

Rules = tuple[tuple[str, str], ...]

_COMMON_RULES: Rules = (
    (r"^detector\.", "detr."),
    (r"^mask_head\.attention\.", "bbox_attention."),
    (r"^mask_head\.out\.", "mask_head.out_lay."),
    (r"(^|\.)backbone\.body\.", r"\1backbone.0.body."),
    (r"(^|\.)(encoder|decoder)\.", r"\1transformer.\2."),
    (r"\.ffn\.linear([12])\.", r".linear\1."),
)
_DETR_RULES: Rules = (
    (r"(^|\.)position_encoding\.(row|col)_embed\.", r"\1backbone.1.\2_embed."),
    (r"\.cross_attn\.", ".multihead_attn."),
)
_DEFORMABLE_RULES: Rules = (
    # Swin: timm's stages open with the downsampling that ends the authors' one before; the finest stage's goes first.
    *((rf"^backbone\.0\.body\.layers\.{i}\.downsample\.", f"backbone.0.body.layers.{i - 1}.downsample.") for i in (1, 2, 3)),
    (r"^backbone\.0\.body\.norms\.(\d)\.", r"backbone.0.body.norm\1."),
    (r"(^|\.)level_embed$", r"\1transformer.level_embed"),
    (r"(^|\.)input_proj\.levels\.", r"\1input_proj."),
    (r"(^|\.)queries\.query_embed\.", r"\1query_embed."),
    (r"(^|\.)queries\.", r"\1transformer."),
    (r"(^|\.)heads\.class_embed\.(\d+)\.linear\.", r"\1class_embed.\2."),
    (r"(^|\.)heads\.bbox_embed\.(\d+)\.mlp\.", r"\1bbox_embed.\2."),
)
_MASK_HEAD_PART = re.compile(r"^mask_head\.(convs|norms|adapters)\.(\d+)\.")
_MASK_HEAD_NAMES = {"convs": "lay", "norms": "gn", "adapters": "adapter"}
_KNOWN = re.compile(
    r"^(bbox_attention|mask_head|(detr\.)?(transformer|class_embed|bbox_embed|query_embed|input_proj|backbone\.[01]))\."
)
_HEAD = re.compile(r"^((?:detr\.)?)(class_embed|bbox_embed)\.(\d+)\.(.*)$")


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of one of our models to what the authors' code calls them.

    Args:
        state_dict: of a model from `build_model`.

    Returns:
        The state dict that belongs under "model" in a published file. Names of one shared tensor hold the same tensor. What
        follows from the sizes alone, Swin's `relative_position_index`, is left out; the authors' code builds it anew.

    Raises:
        OfficialWeightsError: the model has parts that do not exist in the authors' code; they are named.
    """
    weights = {name: value for name, value in state_dict.items() if not name.endswith("num_batches_tracked")}
    deformable = any(re.search(r"(^|\.)level_embed$", name) for name in weights)
    rules = (*_COMMON_RULES, *(_DEFORMABLE_RULES if deformable else _DETR_RULES))
    published = {_rename(name, rules): value for name, value in weights.items()}
    if deformable:
        published |= _shared_heads(published)
    _check_way_back(weights, published)
    return published


def _rename(name: str, rules: Rules) -> str:
    part = _MASK_HEAD_PART.match(name)
    if part:
        return f"mask_head.{_MASK_HEAD_NAMES[part[1]]}{int(part[2]) + 1}.{name[part.end() :]}"
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _shared_heads(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Further names of the prediction heads in the authors' deformable code.

    There a head that all layers share is written once per layer, and refining or two-stage decoders hold the heads a second
    time.
    """
    two_stage = any("transformer.enc_output." in name for name in published)
    heads = {name: match for name in published if (match := _HEAD.match(name))}
    shared = all(match[3] == "0" for match in heads.values())
    names = {}
    for name, (prefix, kind, index, rest) in ((name, match.groups()) for name, match in heads.items()):
        copies = range(_count_layers(published) + two_stage) if shared else [int(index)]
        held_twice = two_stage if kind == "class_embed" else not shared
        for copy in copies:
            names[f"{prefix}{kind}.{copy}.{rest}"] = published[name]
            if held_twice:
                names[f"{prefix}transformer.decoder.{kind}.{copy}.{rest}"] = published[name]
    return names


def _count_layers(names: Iterable[str]) -> int:
    layers = (re.search(r"transformer\.decoder\.layers\.(\d+)\.", name) for name in names)
    return 1 + max(int(match[1]) for match in layers if match)


def _check_way_back(weights: Mapping[str, Tensor], published: Mapping[str, Tensor]) -> None:
    back = translate({name: value for name, value in published.items() if _KNOWN.match(name)})
    lost = [name for name in weights if name not in back or not torch.equal(weights[name], back[name])]
    if lost:
        raise OfficialWeightsError(
            f"the authors' code has no such model: {len(lost)} weights have no published name, for example "
            f"{', '.join(lost[:4])}; keep it as a checkpoint of this project"
        )
