"""Model names: how each is built, where its authors publish weights, and what they report for them."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import partial
from typing import Any, Literal, get_args, get_origin, get_type_hints

from torch import nn

from panoptic_detr.config.types import fits_type
from panoptic_detr.errors import InputError
from panoptic_detr.models import MaskHead, PanopticDETR, build_detr
from panoptic_detr.models.deformable import build_deformable_detr

PANOPTIC = "_panoptic"
MASK_OPTIONS: dict[str, Any] = {
    "mask_dropout": float,
    "mask_scale_maps": bool,
    "mask_inside_boxes": bool,
    "mask_output_bias": float,
}

_H_DETR: dict[str, Any] = {
    "two_stage": True,
    "box_refine": True,
    "mixed_selection": True,
    "look_forward_twice": True,
    "ffn_dim": 2048,
    "dropout": 0.0,
    "num_one_to_many": 1500,
}

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "detr_r50": build_detr,
    "detr_r101": partial(build_detr, backbone="resnet101"),
    "detr_r50_dc5": partial(build_detr, dilation=True),
    "detr_r101_dc5": partial(build_detr, backbone="resnet101", dilation=True),
    "deformable_detr_r50": build_deformable_detr,
    "deformable_detr_r50_refine": partial(build_deformable_detr, box_refine=True),
    "deformable_detr_r50_two_stage": partial(build_deformable_detr, box_refine=True, two_stage=True),
    "deformable_detr_r50_single_scale": partial(build_deformable_detr, num_levels=1),
    "deformable_detr_r50_single_scale_dc5": partial(build_deformable_detr, num_levels=1, dilation=True),
    "h_deformable_detr_r50": partial(build_deformable_detr, **_H_DETR),
    "h_deformable_detr_r101": partial(build_deformable_detr, **_H_DETR, backbone="resnet101"),
    "h_deformable_detr_swin_t": partial(build_deformable_detr, **_H_DETR, backbone="swin_t"),
    "h_deformable_detr_swin_l": partial(build_deformable_detr, **_H_DETR, backbone="swin_l"),
}


def list_models() -> list[str]:
    """All model names: every detector, and each with a mask head."""
    return [*BUILDERS, *(name + PANOPTIC for name in BUILDERS)]


def check_name(name: str) -> None:
    """Raise `InputError` with the nearest names unless `name` is a model."""
    if name not in list_models():
        near = get_close_matches(name, list_models(), 3, 0.3)
        hint = f"; the nearest are {', '.join(near)}" if near else ", and no name is near to it"
        raise InputError(f"there is no model {name!r}{hint} (all: panoptic_detr.list_models())")


def default_num_labels(name: str) -> int:
    """Label slots of the published model: 91 for detection, 250 for panoptic (label index = COCO category id)."""
    return 250 if name.endswith(PANOPTIC) else 91


def build_model(name: str, *, num_labels: int | None = None, **overrides: Any) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: one of `list_models()`.
        num_labels: label slots without no-object; by default the published ones.
        **overrides: the builder's own keyword arguments (`build_detr`, `build_deformable_detr`); panoptic models also take
            `mask_dropout`, `mask_scale_maps`, `mask_inside_boxes` and `mask_output_bias` for the mask head (see `MaskHead`).

    Returns:
        A model whose call gives a `DetectorOutput`; `model.spec` holds what it was built from, as plain values.

    Raises:
        InputError: an unknown name or override, named with the nearest valid one.
    """
    check_name(name)
    build = BUILDERS[name.removesuffix(PANOPTIC)]
    slots = default_num_labels(name) if num_labels is None else num_labels
    for key, value in overrides.items():
        _check_override(name, key, value)
    mask_options = {key.removeprefix("mask_"): value for key, value in overrides.items() if key in MASK_OPTIONS}
    model: Any = build(num_labels=slots, **{key: value for key, value in overrides.items() if key not in MASK_OPTIONS})
    if name.endswith(PANOPTIC):
        head = MaskHead(dim=model.hidden_dim, feature_channels=model.mask_channels, **mask_options)
        model = PanopticDETR(model, head)
    model.spec = {"name": name, "num_labels": slots, "overrides": dict(overrides)}
    return model


def override_names(name: str) -> list[str]:
    """The overrides that `build_model` takes for this model."""
    return list(_override_types(name))


def built_with(spec: Mapping[str, Any], override: str) -> Any:
    """The value of an override that a model was built with: its own, or the default of the model's name.

    Args:
        spec: `spec` of a model, or the same from a checkpoint.
        override: one of `override_names`.
    """
    if override in spec["overrides"]:
        return spec["overrides"][override]
    build = MaskHead if override in MASK_OPTIONS else BUILDERS[spec["name"].removesuffix(PANOPTIC)]
    return inspect.signature(build).parameters[override.removeprefix("mask_")].default


def _override_types(name: str) -> dict[str, Any]:
    """Override to annotated type."""
    check_name(name)
    build = BUILDERS[name.removesuffix(PANOPTIC)]
    while isinstance(build, partial):
        build = build.func
    types = {key: hint for key, hint in get_type_hints(build).items() if key not in ("num_labels", "return")}
    return {**types, **(MASK_OPTIONS if name.endswith(PANOPTIC) else {})}


def _check_override(name: str, key: str, value: Any) -> None:
    types = _override_types(name)
    if key not in types:
        near = get_close_matches(key, types, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(types)}"
        if key in MASK_OPTIONS:
            hint = "that is a setting of the mask head, which stage 2 (train_masks) and panoptic models have"
        if key == "num_classes":
            hint = "the number of classes is 'num_labels', which the data's categories give"
        raise InputError(f"{name} has no override {key!r}; {hint}")
    if not fits_type(value, types[key]):
        wanted = get_args(types[key]) if get_origin(types[key]) is Literal else getattr(types[key], "__name__", types[key])
        expected = f"one of {', '.join(map(repr, wanted))}" if isinstance(wanted, tuple) else str(wanted)
        raise InputError(f"{name}: override {key!r} must be {expected}, but got {value!r}")
