"""The names of weights on the Hugging Face hub (transformers' DETR and Deformable DETR) and ours, both ways.

They were made from the authors' files, so the way goes through the authors' names: what `official.py` knows about shared and
doubled heads, and its strictness, serve here too. Two spellings exist: that of transformers 4, which the hub's files have and
transformers 5 still writes, and the one that transformers 5 uses inside; both are read, the first is written.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from panoptic_detr.models.backbones import LAYOUT, RESNETS
from panoptic_detr.weights.names.official import (
    DERIVED,
    Pairs,
    check_fit,
    check_usable,
    published_names,
    rename,
    to_official,
    translate,
)
from panoptic_detr.zoo import ModelSpec

# The spelling of transformers 5, and that of 4.
POSITIONS: Pairs = (("model.backbone.position_embedding.", "model.position_embedding."),)
FIVE: Pairs = (
    ("backbone.model.", "backbone.conv_encoder.model."),
    ("model.position_embedding.", "model.backbone.position_embedding."),
    ("self_attn.o_proj.", "self_attn.out_proj."),
    ("encoder_attn.o_proj.", "encoder_attn.out_proj."),
    ("layers.#.mlp.fc", "layers.#.fc"),
    ("bbox_attention.q_proj.", "bbox_attention.q_linear."),
    ("bbox_attention.k_proj.", "bbox_attention.k_linear."),
    *(
        (f"mask_head.conv{i}.{part}.", f"mask_head.{short}{i}.")
        for i in (1, 2)
        for part, short in (("conv", "lay"), ("norm", "gn"))
    ),
    *((f"mask_head.fpn_stages.{i}.fpn_adapter.", f"mask_head.adapter{i + 1}.") for i in range(3)),
    *((f"mask_head.fpn_stages.{i}.refine.conv.", f"mask_head.lay{i + 3}.") for i in range(3)),
    *((f"mask_head.fpn_stages.{i}.refine.norm.", f"mask_head.gn{i + 3}.") for i in range(3)),
    ("mask_head.output_conv.", "mask_head.out_lay."),
)
BODY = "model.backbone.conv_encoder.model."
RESNET: Pairs = (  # transformers' own network, and torchvision's names
    (f"{BODY}embedder.embedder.convolution.", f"{BODY}conv1."),
    (f"{BODY}embedder.embedder.normalization.", f"{BODY}bn1."),
    *((f"{BODY}encoder.stages.{i}.layers.#.shortcut.convolution.", f"{BODY}layer{i + 1}.#.downsample.0.") for i in range(4)),
    *((f"{BODY}encoder.stages.{i}.layers.#.shortcut.normalization.", f"{BODY}layer{i + 1}.#.downsample.1.") for i in range(4)),
    *(
        (f"{BODY}encoder.stages.{i}.layers.#.layer.{j}.{part}.", f"{BODY}layer{i + 1}.#.{short}{j + 1}.")
        for i in range(4)
        for j in range(3)
        for part, short in (("convolution", "conv"), ("normalization", "bn"))
    ),
)
# What comes next: the hub's names, and the authors'.
BOTH: Pairs = (
    ("model.backbone.position_embedding.row_embeddings.", "backbone.1.row_embed."),
    ("model.backbone.position_embedding.column_embeddings.", "backbone.1.col_embed."),
    ("model.encoder.", "transformer.encoder."),
    ("model.decoder.", "transformer.decoder."),
    ("encoder.layers.#.self_attn_layer_norm.", "encoder.layers.#.norm1."),
    ("encoder.layers.#.final_layer_norm.", "encoder.layers.#.norm2."),
    ("decoder.layers.#.final_layer_norm.", "decoder.layers.#.norm3."),
    ("layers.#.fc1.", "layers.#.linear1."),
    ("layers.#.fc2.", "layers.#.linear2."),
)
DETR: Pairs = (
    *BOTH,
    ("decoder.layernorm.", "decoder.norm."),
    ("decoder.layers.#.self_attn_layer_norm.", "decoder.layers.#.norm1."),
    ("decoder.layers.#.encoder_attn_layer_norm.", "decoder.layers.#.norm2."),
    ("decoder.layers.#.encoder_attn.", "decoder.layers.#.multihead_attn."),
    ("class_labels_classifier.", "class_embed."),
    ("bbox_predictor.", "bbox_embed."),
    ("model.input_projection.", "input_proj."),
    ("model.query_position_embeddings.", "query_embed."),
)
DEFORMABLE: Pairs = (
    *BOTH,
    ("decoder.layers.#.self_attn_layer_norm.", "decoder.layers.#.norm2."),
    ("decoder.layers.#.encoder_attn_layer_norm.", "decoder.layers.#.norm1."),
    ("decoder.layers.#.encoder_attn.", "decoder.layers.#.cross_attn."),
    ("model.input_proj.", "input_proj."),
    ("model.level_embed", "transformer.level_embed"),
    ("model.query_position_embeddings.", "query_embed."),
    *((f"model.{part}.", f"transformer.{part}.") for part in ("reference_points", "enc_output", "enc_output_norm")),
    *((f"model.{part}.", f"transformer.{part}.") for part in ("pos_trans", "pos_trans_norm")),
)
_PART = re.compile(r"^(.*(?:self_attn|encoder_attn))\.([qkv])_proj\.(weight|bias)$")
_WHOLE = re.compile(r"^(.*(?:self_attn|multihead_attn))\.in_proj_(weight|bias)$")
_HEAD = re.compile(r"^(model\.decoder\.|)(class_embed|bbox_embed)\.(\d+)\.(.*)$")


def hub_weights(spec: ModelSpec, given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a folder of the hub under our names.

    Args:
        spec: what the folder's config describes.
        given: name to tensor, in either spelling.

    Raises:
        OfficialWeightsError: names missing, left over or of another shape, in the hub's spelling; values that are none; heads
            that should be one and differ.
    """
    named = {rename(name, (*FIVE, *RESNET)): value for name, value in given.items() if not name.endswith(DERIVED)}
    with torch.device("meta"):
        wanted = {name: value for name, value in spec.build().state_dict().items() if not name.endswith(DERIVED)}
    needed = _hub_names(wanted, spec)
    if spec.name.startswith("deformable"):
        named = _every_head(named, needed)
    check_fit(needed, named, "the weights are not those of the model in config.json", ("file", "config"))
    check_usable(named)
    return translate(_authors_names(named, spec))


def to_hub(state_dict: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """The weights of one of our models under the hub's names, in the spelling that every version of transformers reads.

    Raises:
        OfficialWeightsError: the model has parts that have no published name.
    """
    to_official(state_dict)  # which says what has no name
    named = _hub_names(state_dict, spec)
    # Transformers 5 has learned positions elsewhere and does not find them under the old name: they get both.
    named |= {moved: value for name, value in named.items() if (moved := rename(name, POSITIONS)) != name}
    if not spec.setting("backbone").startswith(LAYOUT):
        return named
    return {rename(name, [(ours, theirs) for theirs, ours in reversed(RESNET)]): value for name, value in named.items()}


def _hub_names(state_dict: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Ours to the hub's, with every name that a shared head has there."""
    back = [(theirs, hub) for hub, theirs in reversed(_pairs(spec))]
    return {rename(name, back): value for name, value in _split(published_names(state_dict)).items()}


def _authors_names(named: Mapping[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    return {rename(name, _pairs(spec)): value for name, value in _joined(named).items()}


def _pairs(spec: ModelSpec) -> Pairs:
    """The hub's names of a model's kind and backbone, and the authors'."""
    backbone = spec.setting("backbone")
    resnet = backbone in RESNETS or backbone.startswith(LAYOUT)
    body: Pairs = ((BODY, "backbone.0.body." if resnet else "backbone.0.body.net."),)
    return (*body, *(DEFORMABLE if spec.name.startswith("deformable") else DETR))


def _joined(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Projections to queries, keys and values as the one that the authors have; checked to be complete before."""
    whole: dict[str, Tensor] = {}
    for name, value in named.items():
        if not (match := _PART.match(name)):
            whole[name] = value
        elif match[2] == "q":
            parts = [named[f"{match[1]}.{letter}_proj.{match[3]}"] for letter in "qkv"]
            whole[f"{match[1]}.in_proj_{match[3]}"] = torch.cat(parts)
    return whole


def _split(published: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of `_joined`."""
    parts: dict[str, Tensor] = {}
    for name, value in published.items():
        if match := _WHOLE.match(name):
            parts |= {f"{match[1]}.{letter}_proj.{match[2]}": part for letter, part in zip("qkv", value.chunk(3), strict=True)}
        else:
            parts[name] = value
    return parts


def _every_head(named: Mapping[str, Tensor], needed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Write a head under every name that it has: files hold a tensor of two names once, and a head of all layers once."""
    several = {match[2] for name in named if (match := _HEAD.match(name)) and match[3] != "0"}
    filled = dict(named)
    for name in needed.keys() - named.keys():
        if not (match := _HEAD.match(name)):
            continue
        _, kind, number, rest = match.groups()
        numbers = (number,) if kind in several else (number, "0")
        copies = [f"{place}{kind}.{n}.{rest}" for n in numbers for place in ("", "model.decoder.")]
        if found := [named[copy] for copy in copies if copy in named]:
            filled[name] = found[0]
    return filled
