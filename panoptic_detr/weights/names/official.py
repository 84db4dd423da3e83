"""The authors' names of weights and ours, both ways, strict both ways.

A name is translated by rules, which are tried one after the other. The authors' deformable code has its heads once per decoder
layer even where all layers share one, and once more below the decoder where boxes are refined: equal entries become one here,
and on the way back every name is written, so that their strict loading accepts the file. What comes out is translated back and
compared before anybody gets it: a model that the published form cannot hold is refused.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from panoptic_detr.errors import OfficialWeightsError

Rules = tuple[tuple[str, str], ...]

DETR_RULES: Rules = (
    (r"^detr\.", "detector."),
    (r"^bbox_attention\.", "mask_head.attention."),
    (r"^mask_head\.out_lay\.", "mask_head.out."),
    (r"(^|\.)backbone\.0\.body\.", r"\1backbone.body."),
    (r"(^|\.)backbone\.1\.(row|col)_embed\.", r"\1position_encoding.\2_embed."),
    (r"(^|\.)transformer\.(encoder|decoder)\.", r"\1\2."),
    (r"\.multihead_attn\.", ".cross_attn."),
    (r"\.layers\.(\d+)\.linear([12])\.", r".layers.\1.ffn.linear\2."),
)
DEFORMABLE_RULES: Rules = (
    # Swin: the authors' stages end in the downsampling that opens timm's next one; the last stage's goes first.
    *((rf"^backbone\.0\.body\.layers\.{i}\.downsample\.", f"backbone.0.body.layers.{i + 1}.downsample.") for i in (2, 1, 0)),
    (r"^backbone\.0\.body\.norm(\d)\.", r"backbone.0.body.norms.\1."),
    (r"^backbone\.0\.body\.", "backbone.body."),
    (r"^transformer\.decoder\.(class_embed|bbox_embed)\.", r"\1."),
    (r"^transformer\.(encoder|decoder)\.", r"\1."),
    (r"^transformer\.level_embed$", "level_embed"),
    (r"^transformer\.(reference_points|enc_output|enc_output_norm|pos_trans|pos_trans_norm)\.", r"queries.\1."),
    (r"^query_embed\.", "queries.query_embed."),
    (r"^class_embed\.(\d+)\.", r"heads.class_embed.\1.linear."),
    (r"^bbox_embed\.(\d+)\.", r"heads.bbox_embed.\1.mlp."),
    (r"^input_proj\.", "input_proj.levels."),
    (r"\.layers\.(\d+)\.linear([12])\.", r".layers.\1.ffn.linear\2."),
)
SHARED_HEADS: Rules = ((r"^(class_embed|bbox_embed)\.\d+\.", r"\1.0."),)
MASK_HEAD_PARTS = [
    (f"mask_head.{theirs}{index + 1}.", f"mask_head.{ours}.{index}.")
    for theirs, ours in (("lay", "convs"), ("gn", "norms"), ("adapter", "adapters"))
    for index in range(9)
]
MASK_HEAD_RULES: Rules = tuple((f"^{re.escape(theirs)}", ours) for theirs, ours in MASK_HEAD_PARTS)
DERIVED = ("num_batches_tracked", "relative_position_index")  # entries that hold nothing learned
SHOWN = 4  # names in a message; a list of hundreds helps nobody

BACK_RULES: Rules = (
    *((f"^{re.escape(ours)}", theirs) for theirs, ours in MASK_HEAD_PARTS),
    (r"^detector\.", "detr."),
    (r"^mask_head\.attention\.", "bbox_attention."),
    (r"^mask_head\.out\.", "mask_head.out_lay."),
    (r"(^|\.)backbone\.body\.", r"\1backbone.0.body."),
    (r"(^|\.)(encoder|decoder)\.", r"\1transformer.\2."),
    (r"\.ffn\.linear([12])\.", r".linear\1."),
)
BACK_DETR_RULES: Rules = (
    (r"(^|\.)position_encoding\.(row|col)_embed\.", r"\1backbone.1.\2_embed."),
    (r"\.cross_attn\.", ".multihead_attn."),
)
BACK_DEFORMABLE_RULES: Rules = (
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
_KNOWN = re.compile(
    r"^(bbox_attention|mask_head|(detr\.)?(transformer|class_embed|bbox_embed|query_embed|input_proj|backbone\.[01]))\."
)
_HEAD = re.compile(r"^((?:detr\.)?)(class_embed|bbox_embed)\.(\d+)\.(.*)$")


def load_official(model: nn.Module, state_dict: Mapping[str, object]) -> None:
    """Fill a model with a published checkpoint.

    Args:
        model: from `build_model`, with the published number of label slots.
        state_dict: what the authors published, bare or under "model".

    Raises:
        OfficialWeightsError: not a state dict; or names missing, left over or of another shape. Nothing is changed.
    """
    model.load_state_dict(official_weights(model, state_dict))


def official_weights(model: nn.Module, state_dict: Mapping[str, object]) -> dict[str, Tensor]:
    """The weights of a published checkpoint under our names, all that `model` has and no other; raises as `load_official`."""
    published = state_dict.get("model", state_dict) if isinstance(state_dict, Mapping) else state_dict
    if not isinstance(published, Mapping) or not all(isinstance(value, Tensor) for value in published.values()):
        hint = "; give its state_dict()" if isinstance(published, nn.Module) else ""
        raise OfficialWeightsError(
            f"expected a state dict (name to tensor), bare or under 'model', but got {_described(published)}{hint}"
        )
    named = translate(published)
    _check_fit(model.state_dict(), named)
    return named


def translate(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename every entry of a published state dict to the name it has here.

    Raises:
        OfficialWeightsError: two names of one shared tensor that hold different values.
    """
    rules = DETR_RULES
    if "transformer.level_embed" in published:
        refines = any(name.startswith("transformer.decoder.bbox_embed.") for name in published)
        rules = DEFORMABLE_RULES if refines else SHARED_HEADS + DEFORMABLE_RULES
    named: dict[str, Tensor] = {}
    for name, value in published.items():
        if name.endswith(DERIVED):
            continue
        ours = _rename(name, MASK_HEAD_RULES + rules)
        if ours in named and not torch.equal(named[ours], value):
            raise OfficialWeightsError(f"{name} and another entry both mean {ours} here, but hold different values")
        named[ours] = value
    return named


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
    rules = BACK_RULES + (BACK_DEFORMABLE_RULES if deformable else BACK_DETR_RULES)
    published = {_rename(name, rules): value for name, value in weights.items()}
    if deformable:
        published |= _shared_heads(published)
    _check_way_back(weights, published)
    return published


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


def _rename(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _described(value: object) -> str:
    """Type of a value and, of a mapping, the first entry that is no tensor."""
    kind = type(value).__name__
    if not isinstance(value, Mapping):
        return kind
    name = next(name for name, entry in value.items() if not isinstance(entry, Tensor))
    return f"a {kind} with {type(value[name]).__name__} under {name!r}"


def _check_fit(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
    wanted = {name: value for name, value in wanted.items() if not name.endswith("num_batches_tracked")}
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name}: {tuple(given[name].shape)} in the checkpoint, {tuple(wanted[name].shape)} in the model"
            for name in sorted(wanted.keys() & given.keys())
            if given[name].shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in problems.items() if names)
        raise OfficialWeightsError(f"the checkpoint does not belong to this model: {listed}{_recognised(given)}")


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and so on" if len(names) > SHOWN else "")


def _recognised(names: Iterable[str]) -> str:
    """Whose names these are, where they are not the authors'."""
    transformers = re.compile(r"(^|\.)(conv_encoder\.model|class_labels_classifier|bbox_predictor|encoder_attn)\.")
    if any(transformers.search(name) for name in names):
        return ". These are the names of the transformers library, not those of the authors' files"
    return ""
