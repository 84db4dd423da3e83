"""The authors' names of weights and ours, both ways, strict both ways.

A table of pairs translates, read from the top towards our names and from the bottom back. The authors' deformable code has its
heads once per decoder layer even where all layers share one, and once more below the decoder where boxes are refined: equal
entries become one here, and on the way back every name is written, so that their strict loading accepts the file. What comes
out is translated back and compared before anybody gets it: a model that the published form cannot hold is refused.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from panoptic_detr.errors import OfficialWeightsError
from panoptic_detr.weights.archives import fault_of

# Theirs and ours, each from the beginning of a part of the name; # is a number.
Pairs = tuple[tuple[str, str], ...]

MASK_HEAD: Pairs = (
    *((f"mask_head.lay{i + 1}.", f"mask_head.convs.{i}.") for i in range(9)),
    *((f"mask_head.gn{i + 1}.", f"mask_head.norms.{i}.") for i in range(9)),
    *((f"mask_head.adapter{i + 1}.", f"mask_head.adapters.{i}.") for i in range(9)),
    ("mask_head.out_lay.", "mask_head.out."),
    ("bbox_attention.", "mask_head.attention."),
    ("detr.", "detector."),
)
POSITIONS: Pairs = tuple((f"backbone.1.{axis}_embed.", f"position_encoding.{axis}_embed.") for axis in ("row", "col"))
DETR: Pairs = (
    *MASK_HEAD,
    ("backbone.0.body.", "backbone.body."),
    *POSITIONS,
    ("transformer.encoder.", "encoder."),
    ("transformer.decoder.", "decoder."),
    ("multihead_attn.", "cross_attn."),
    ("layers.#.linear1.", "layers.#.ffn.linear1."),
    ("layers.#.linear2.", "layers.#.ffn.linear2."),
)
DEFORMABLE: Pairs = (
    *MASK_HEAD,
    # Swin: the authors' stages end in the downsampling that opens timm's next one; the last stage's goes first.
    *((f"backbone.0.body.layers.{i}.downsample.", f"backbone.0.body.layers.{i + 1}.downsample.") for i in (2, 1, 0)),
    ("backbone.0.body.norm#.", "backbone.0.body.norms.#."),
    ("backbone.0.body.", "backbone.body."),
    *POSITIONS,
    ("transformer.encoder.", "encoder."),
    ("transformer.decoder.", "decoder."),
    ("transformer.level_embed", "level_embed"),
    *((f"transformer.{part}.", f"queries.{part}.") for part in ("reference_points", "enc_output", "enc_output_norm")),
    *((f"transformer.{part}.", f"queries.{part}.") for part in ("pos_trans", "pos_trans_norm")),
    ("query_embed.", "queries.query_embed."),
    ("class_embed.#.", "heads.class_embed.#.linear."),
    ("bbox_embed.#.", "heads.bbox_embed.#.mlp."),
    ("input_proj.#.", "input_proj.levels.#."),
    ("layers.#.linear1.", "layers.#.ffn.linear1."),
    ("layers.#.linear2.", "layers.#.ffn.linear2."),
)
HELD_TWICE: Pairs = tuple((f"transformer.decoder.{head}.", f"{head}.") for head in ("class_embed", "bbox_embed"))
DERIVED = ("num_batches_tracked", "relative_position_index")  # entries that hold nothing learned
SHOWN = 4  # names in a message; a list of hundreds helps nobody

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
    check_fit(model.state_dict(), named, "the checkpoint does not belong to this model", ("checkpoint", "model"), _whose(named))
    check_usable(named)
    return named


def translate(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename every entry of a published state dict to the name it has here.

    Raises:
        OfficialWeightsError: two names of one shared tensor that hold different values.
    """
    deformable = "transformer.level_embed" in published
    refines = any(name.startswith("transformer.decoder.bbox_embed.") for name in published)
    named: dict[str, Tensor] = {}
    for name, value in published.items():
        if name.endswith(DERIVED):
            continue
        ours = rename(name, HELD_TWICE)
        if deformable and not refines:
            ours = re.sub(r"^(class_embed|bbox_embed)\.\d+\.", r"\1.0.", ours)
        ours = rename(ours, DEFORMABLE if deformable else DETR)
        if ours in named and not torch.equal(named[ours], value):
            raise OfficialWeightsError(f"{name} and another entry both mean {ours} here, but hold different values")
        named[ours] = value
    return named


def rename(name: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Replace the first of each pair by the second, one pair after the other."""
    for old, new in pairs:
        if old.partition("#")[0] in name:
            pattern = r"(^|\.)" + re.escape(old).replace(r"\#", r"(\d+)")
            name = re.sub(pattern, r"\1" + new.replace("#", r"\2"), name)
    return name


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
    published = published_names(weights)
    _check_way_back(weights, published)
    return published


def published_names(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `to_official` does, without a look at the values."""
    deformable = any(re.search(r"(^|\.)level_embed$", name) for name in weights)
    back = [(ours, theirs) for theirs, ours in reversed(DEFORMABLE if deformable else DETR)]
    published = {rename(name, back): value for name, value in weights.items() if not name.endswith("num_batches_tracked")}
    return published | _shared_heads(published) if deformable else published


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


def _described(value: object) -> str:
    """Type of a value and, of a mapping, the first entry that is no tensor."""
    kind = type(value).__name__
    if not isinstance(value, Mapping):
        return kind
    name = next(name for name, entry in value.items() if not isinstance(entry, Tensor))
    return f"a {kind} with {type(value[name]).__name__} under {name!r}"


def check_fit(
    wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], problem: str, sides: tuple[str, str], hint: str = ""
) -> None:
    """Raise `OfficialWeightsError` unless two state dicts have the same names and shapes.

    Args:
        wanted: of the model.
        given: of the file.
        problem: the beginning of the message.
        sides: what to call `given` and `wanted`.
        hint: the end of the message.
    """
    wanted = {name: value for name, value in wanted.items() if not name.endswith("num_batches_tracked")}
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name}: {tuple(given[name].shape)} in the {sides[0]}, {tuple(wanted[name].shape)} in the {sides[1]}"
            for name in sorted(wanted.keys() & given.keys())
            if given[name].shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        listed = "; ".join(f"{len(names)} {what}: {_first(names)}" for what, names in problems.items() if names)
        raise OfficialWeightsError(f"{problem}: {listed}{hint}")


def check_usable(weights: Mapping[str, Tensor]) -> None:
    """Raise `OfficialWeightsError` if some tensor cannot be a weight."""
    if fault := fault_of(weights):
        raise OfficialWeightsError(f"the checkpoint's weights are not usable: {fault}; fetch it again")


def _first(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" and so on" if len(names) > SHOWN else "")


def _whose(names: Iterable[str]) -> str:
    """Whose names these are, where they are not the authors'."""
    transformers = re.compile(r"(^|\.)(conv_encoder\.model|class_labels_classifier|bbox_predictor|encoder_attn)\.")
    if any(transformers.search(name) for name in names):
        return (
            ". These are the names of the transformers library, not those of the authors' files: name the folder of the file, "
            "with its config.json, to load_model or load_pretrained"
        )
    return ""
