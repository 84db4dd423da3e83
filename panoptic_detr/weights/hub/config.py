"""`config.json` of transformers' DETR and Deformable DETR, and our description of the same model; both ways.

Fields that change nothing at inference (costs, coefficients, initial deviations) are read over and written as the papers have
them. What would make another model than ours is refused by name.
"""

from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any

from panoptic_detr.config.types import fits_type
from panoptic_detr.errors import CheckpointError, InputError
from panoptic_detr.models.backbones import LAYOUT, Layout, read_layout
from panoptic_detr.zoo import BUILDERS, PANOPTIC, ModelSpec, override_types

ARCHITECTURES = {
    "DetrForObjectDetection": "detr",
    "DetrForSegmentation": "detr",
    "DeformableDetrForObjectDetection": "deformable_detr",
}
NO_OBJECT = 1  # rows of DETR's class head beyond the labels
Fields = tuple[tuple[str, str, Any], ...]  # ours, theirs, and what theirs is where it is not given
COMMON: Fields = (
    ("hidden_dim", "d_model", 256),
    ("num_heads", "encoder_attention_heads", 8),
    ("decoder_heads", "decoder_attention_heads", 8),
    ("encoder_layers", "encoder_layers", 6),
    ("decoder_layers", "decoder_layers", 6),
    ("dropout", "dropout", 0.1),
    ("position_encoding", "position_embedding_type", "sine"),
)
DETR: Fields = (
    *COMMON,
    ("num_queries", "num_queries", 100),
    ("ffn_dim", "encoder_ffn_dim", 2048),
    ("decoder_ffn_dim", "decoder_ffn_dim", 2048),
)
DEFORMABLE: Fields = (
    *COMMON,
    ("num_queries", "num_queries", 300),
    ("ffn_dim", "encoder_ffn_dim", 1024),
    ("decoder_ffn_dim", "decoder_ffn_dim", 1024),
    ("num_levels", "num_feature_levels", 4),
    ("num_points", "encoder_n_points", 4),
    ("decoder_points", "decoder_n_points", 4),
    ("box_refine", "with_box_refine", False),
    ("two_stage", "two_stage", False),
)
# Of the decoder, and what it is the same as where nobody says otherwise.
DECODER = {"decoder_heads": "num_heads", "decoder_ffn_dim": "ffn_dim", "decoder_points": "num_points"}
GROUPS = 32  # of transformers' projections, whatever the width
TABLE = 50  # rows and columns of its learned positions
OWN = ("detr_", "deformable_detr_")  # names of ours that transformers has
# What changes nothing at inference, or nothing of a detector without mask head.
TRAINING = ("pretrained_backbone", "backbone_norm", "drop_path", "mask_dropout", "mask_output_bias", "memory_level")
STAGES = ("stage1", "stage2", "stage3", "stage4")


def spec_of_config(config: Mapping[str, object]) -> ModelSpec:
    """What to build for a `config.json` of transformers.

    Raises:
        CheckpointError: an architecture that we do not have, or a field of another kind or value.
    """
    architecture = _architecture(config)
    kind = ARCHITECTURES[architecture]
    _refuse(config)
    fields = DETR if kind == "detr" else DEFORMABLE
    settings = {ours: _field(config, theirs, usual) for ours, theirs, usual in fields} | _backbone(config, kind)
    if settings.get("two_stage"):
        settings["num_queries"] = _field(config, "two_stage_num_proposals", 300)
    for decoder, encoder in DECODER.items():
        if decoder in settings and settings[decoder] == settings[encoder]:
            settings[decoder] = None
    if kind == "deformable_detr":
        settings["norm_groups"] = None if settings["hidden_dim"] % (4 * GROUPS) == 0 else GROUPS
    else:
        settings["renormalize"] = _field(config, "auxiliary_loss", False)
    panoptic = architecture == "DetrForSegmentation"
    if panoptic:
        settings["mask_num_heads"] = settings["num_heads"]
    return nearest_spec(kind, panoptic, num_labels(config), settings)


def nearest_spec(kind: str, panoptic: bool, labels: int, settings: Mapping[str, object]) -> ModelSpec:
    """The model name that differs from the settings in the fewest places, with these as its overrides."""
    ending = PANOPTIC if panoptic else ""
    specs = []
    for name in (name + ending for name in BUILDERS if name.startswith(f"{kind}_")):
        usual = ModelSpec(name, labels)
        differing = {key: value for key, value in settings.items() if usual.setting(key) != value}
        specs.append(ModelSpec(name, labels, differing))
    return min(specs, key=lambda spec: len(spec.overrides))


def num_labels(config: Mapping[str, object]) -> int:
    """Labels without no-object: as many as have names, or as the config says, or transformers' default."""
    names = config.get("id2label")
    count = len(names) if isinstance(names, Mapping) and names else config.get("num_labels", 2)
    if not isinstance(count, int) or count < 1:
        raise CheckpointError(f"config.json: num_labels must be a whole number from 1, but is {count!r}")
    return count


def _architecture(config: Mapping[str, object]) -> str:
    named, kind = config.get("architectures") or [], config.get("model_type")
    named = list(map(str, named if isinstance(named, list) else [named]))
    for architecture in named:
        if ARCHITECTURES.get(architecture) == kind:
            return architecture
    if not named and kind in ARCHITECTURES.values():
        return next(name for name, its in ARCHITECTURES.items() if its == kind)
    what = f"{', '.join(named) or 'no architecture'} of model type {kind!r}"
    raise CheckpointError(
        f"config.json describes {what}, which is not among what we have: {', '.join(ARCHITECTURES)} (model types detr and "
        "deformable_detr)"
    )


def _field(config: Mapping[str, object], name: str, usual: Any) -> Any:
    """A field of a config, or its usual value, which tells its type."""
    value = config.get(name, usual)
    wanted = (int, float) if isinstance(usual, float) else type(usual)
    if not isinstance(value, wanted) or isinstance(value, bool) != isinstance(usual, bool):
        raise CheckpointError(f"config.json: {name} must be a {type(usual).__name__}, but is {value!r}")
    if name == "position_embedding_type" and value not in ("sine", "learned"):
        raise CheckpointError(f"config.json: position_embedding_type must be sine or learned, but is {value!r}")
    return value


def _refuse(config: Mapping[str, object]) -> None:
    """Raise `CheckpointError` at a field with which transformers computes something that we do not."""
    for name, only in (("activation_function", "relu"), ("num_channels", 3), ("scale_embedding", False)):
        if config.get(name, only) != only:
            raise CheckpointError(f"config.json: {name} is {config[name]!r}; our models have {only!r} only")


def _backbone(config: Mapping[str, object], kind: str) -> dict[str, object]:
    """Backbone, dilation and levels of a config: through timm as fields of its own, or nested in `backbone_config`."""
    nested = config.get("backbone_config")
    nested = nested if isinstance(nested, Mapping) else {}
    through_timm = nested.get("model_type") == "timm_backbone" or (not nested and config.get("use_timm_backbone", True))
    if through_timm:
        dilated = 16 if config.get("dilation") else 32
        options = _field(config, "backbone_kwargs", {}) if config.get("backbone_kwargs") else {}
        name = nested.get("backbone") or config.get("backbone") or "resnet50"
        stride = nested.get("output_stride") or 32 if nested else options.get("output_stride") or dilated
        levels = nested.get("out_indices") or options.get("out_indices")
    elif not nested or nested.get("model_type") == "resnet":
        name, stride, levels = _own_resnet(nested), 32, nested.get("out_indices") or _indices(nested)
    else:
        raise CheckpointError(
            f"config.json: a backbone of model type {nested.get('model_type')!r} is none of ours; those of timm_backbone and "
            "resnet are"
        )
    if not isinstance(name, str) or stride not in (16, 32):
        raise CheckpointError(f"config.json: backbone {name!r} with output_stride {stride!r} cannot be built")
    return {"backbone": name, "dilation": stride == 16, **_levels(levels, config, kind)}


def _own_resnet(nested: Mapping[str, Any]) -> str:
    """Name of one of transformers' own ResNets."""
    depths, widths = nested.get("depths", [3, 4, 6, 3]), nested.get("hidden_sizes", [256, 512, 1024, 2048])
    for name, only in (
        ("hidden_act", "relu"),
        ("downsample_in_first_stage", False),
        ("downsample_in_bottleneck", False),
        ("num_channels", 3),
    ):
        if nested.get(name, only) != only:
            raise CheckpointError(f"config.json: {name} of the backbone is {nested[name]!r}; our ResNets have {only!r} only")
    layer = nested.get("layer_type", "bottleneck")
    sizes = fits_type(depths, Sequence[int]) and fits_type(widths, Sequence[int]) and len(depths) == len(widths) == 4
    if layer not in ("basic", "bottleneck") or not sizes:
        raise CheckpointError(
            f"config.json: a ResNet of {layer!r} layers with depths {depths} and hidden_sizes {widths} is none of ours; they "
            "have four stages of basic or bottleneck layers"
        )
    return Layout(layer == "basic", tuple(depths), tuple(widths), nested.get("embedding_size", 64)).name


def _indices(nested: Mapping[str, object]) -> list[int]:
    """Which stages of a nested backbone are used, by their names."""
    names = _field(nested, "out_features", []) if nested.get("out_features") else ["stage4"]
    return [STAGES.index(name) + 1 for name in names if name in STAGES]


def _levels(levels: Any, config: Mapping[str, object], kind: str) -> dict[str, object]:
    """Which levels a deformable detector computes and uses; DETR's mask head has all, whatever the config says."""
    if levels is not None and (not isinstance(levels, list | tuple) or not levels or levels[-1] not in (4, -1)):
        raise CheckpointError(f"config.json: the backbone's levels are {levels!r}; the last one must be the coarsest, 4")
    if kind == "detr":
        return {}
    single = config.get("num_feature_levels", 4) == 1
    used = [4 if level == -1 else level for level in levels or ([4] if single else [2, 3, 4])]
    if single and len(used) > 1:
        used = used[-1:]
    if used == list(range(5 - len(used), 5)):
        return {"num_backbone_levels": 3 if single else len(used)}
    return {"num_backbone_levels": len(used), "backbone_levels": used}


def config_of_spec(spec: ModelSpec) -> dict[str, object]:
    """The `config.json` with which transformers builds the same model, without labels.

    Raises:
        InputError: it has no such model; the message names what it lacks.
    """
    kind = "deformable_detr" if spec.name.startswith("deformable_detr_") else "detr"
    panoptic = spec.name.endswith(PANOPTIC)
    _check_parts(spec, panoptic)
    config = _fields(spec, kind) | _backbone_fields(spec, kind)
    architecture = {"detr": "DetrForObjectDetection", "deformable_detr": "DeformableDetrForObjectDetection"}[kind]
    config |= {"model_type": kind, "architectures": ["DetrForSegmentation" if panoptic else architecture]}
    read = spec_of_config({**config, "num_labels": spec.num_labels})  # what does not come back, it cannot say
    settings = (key for key in override_types(spec.name) if key not in TRAINING)
    lost = [f"{key} = {spec.setting(key)!r}" for key in settings if _meaning(spec, key) != _meaning(read, key)]
    if lost:
        raise _lacks(lost)
    return config


def _check_parts(spec: ModelSpec, panoptic: bool) -> None:
    """Raise `InputError` at a kind of model, or a part of one, that transformers has nowhere."""
    if not spec.name.startswith(OWN):
        raise _lacks([f"{spec.name} (of our models it has those whose names begin with {' or '.join(OWN)})"])
    if panoptic and spec.name.startswith("deformable"):
        raise _lacks(["a mask head for Deformable DETR"])
    if spec.setting("backbone") == "small" or spec.setting("backbone").startswith("swin_"):
        raise _lacks([f"the backbone {spec.setting('backbone')!r}"])
    if not spec.setting("ffn_dim") or _meaning(spec, "decoder_ffn_dim") == 0:
        raise _lacks(["layers without feed-forward block (ffn_dim 0)"])


def _lacks(what: list[str]) -> InputError:
    return InputError(
        f"transformers has no such model, because it lacks {', '.join(what)}; format='panoptic_detr' keeps everything"
    )


def _meaning(spec: ModelSpec, key: str) -> Any:
    """A setting, or what it stands for where it is not given."""
    value = spec.setting(key)
    if value is None and key in DECODER:
        return spec.setting(DECODER[key])
    if key in ("num_backbone_levels", "backbone_levels"):
        count = min(spec.setting("num_backbone_levels"), spec.setting("num_levels"), len(spec.setting("backbone_levels")))
        return count if key == "num_backbone_levels" else tuple(spec.setting("backbone_levels"))[-count:]
    if key == "norm_groups":
        return gcd(GROUPS, spec.setting("hidden_dim"), spec.setting("hidden_dim") // 4) if value is None else value
    return tuple(value) if isinstance(value, list) else value


def _fields(spec: ModelSpec, kind: str) -> dict[str, object]:
    fields = {theirs: _meaning(spec, ours) for ours, theirs, _ in (DETR if kind == "detr" else DEFORMABLE) if _has(spec, ours)}
    if kind == "detr":
        return fields | {"auxiliary_loss": spec.setting("renormalize") if _has(spec, "renormalize") else False}
    return fields | {"two_stage_num_proposals": spec.setting("num_queries")}


def _has(spec: ModelSpec, key: str) -> bool:
    return key in override_types(spec.name)


def _backbone_fields(spec: ModelSpec, kind: str) -> dict[str, object]:
    """Through timm as the published configs have it, or transformers' own network where the sizes are in the name."""
    name, dilation = spec.setting("backbone"), spec.setting("dilation") if _has(spec, "dilation") else False
    used = [1, 2, 3, 4]
    if kind == "deformable_detr":
        used = list(_meaning(spec, "backbone_levels"))
    usual = {"use_pretrained_backbone": False, "dilation": dilation}
    if not name.startswith(LAYOUT):
        published = used == ([1, 2, 3, 4] if kind == "detr" else [2, 3, 4] if spec.setting("num_levels") > 1 else [4])
        nested = {
            "model_type": "timm_backbone",
            "backbone": name,
            "out_indices": used,
            "num_channels": 3,
            "features_only": True,
        }
        nested |= {"use_pretrained_backbone": False, "output_stride": 16 if dilation else None}
        if published:
            return {**usual, "use_timm_backbone": True, "backbone": name, "backbone_config": None}
        return {**usual, "use_timm_backbone": False, "backbone": None, "backbone_config": nested}
    layout = read_layout(name)
    own = {
        "model_type": "resnet",
        "embedding_size": layout.stem,
        "hidden_sizes": list(layout.widths),
        "depths": list(layout.depths),
        "layer_type": "basic" if layout.basic else "bottleneck",
        "out_features": [STAGES[level - 1] for level in used],
        "out_indices": used,
    }
    return {**usual, "use_timm_backbone": False, "backbone": None, "backbone_config": own}
