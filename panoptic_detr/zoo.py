"""Model names, and how each is built from plain values."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import partial
from typing import Any

from torch import nn

from panoptic_detr.config.types import fits_type, keyword_types, type_name
from panoptic_detr.errors import InputError
from panoptic_detr.models import DETR, MaskHead, PanopticDETR, build_detr
from panoptic_detr.models.deformable import DeformableDETR, build_deformable_detr
from panoptic_detr.models.masks import MaskDETR, ProductMasks, build_mask_detr

PANOPTIC = "_panoptic"
MASK_OPTIONS: dict[str, type] = {
    "mask_dropout": float,
    "mask_scale_maps": bool,
    "mask_inside_boxes": bool,
    "mask_output_bias": float,
    "mask_num_heads": int,
}

_h_detr = partial(
    build_deformable_detr,
    two_stage=True,
    box_refine=True,
    mixed_selection=True,
    look_forward_twice=True,
    ffn_dim=2048,
    dropout=0.0,
    num_one_to_many=1500,
)

BUILDERS: dict[str, Callable[..., DETR | DeformableDETR | MaskDETR]] = {
    "detr_r50": build_detr,
    "detr_r101": partial(build_detr, backbone="resnet101"),
    "detr_r50_dc5": partial(build_detr, dilation=True),
    "detr_r101_dc5": partial(build_detr, backbone="resnet101", dilation=True),
    "deformable_detr_r50": build_deformable_detr,
    "deformable_detr_r50_refine": partial(build_deformable_detr, box_refine=True),
    "deformable_detr_r50_two_stage": partial(build_deformable_detr, box_refine=True, two_stage=True),
    "deformable_detr_r50_single_scale": partial(build_deformable_detr, num_levels=1),
    "deformable_detr_r50_single_scale_dc5": partial(build_deformable_detr, num_levels=1, dilation=True),
    "h_deformable_detr_r50": _h_detr,
    "h_deformable_detr_r101": partial(_h_detr, backbone="resnet101"),
    "h_deformable_detr_swin_t": partial(_h_detr, backbone="swin_t"),
    "h_deformable_detr_swin_l": partial(_h_detr, backbone="swin_l"),
    "mask_detr_r50": build_mask_detr,
}


@dataclass(frozen=True)
class ModelSpec:
    """What a model was built from; its weights apart, everything that is needed to build it again."""

    name: str  # one of `list_models()`
    num_labels: int  # label slots without no-object
    overrides: Mapping[str, object] = field(default_factory=dict)  # keyword arguments of the builder that are not its defaults

    def build(self) -> nn.Module:
        """Build such a model, with random weights."""
        return build_model(self.name, num_labels=self.num_labels, **self.overrides)

    def setting(self, override: str) -> Any:
        """The value of an override, of `override_types(name)`, that a model was built with: its own, or the name's default."""
        if override in self.overrides:
            return self.overrides[override]
        build = MaskHead if override in MASK_OPTIONS else BUILDERS[self.name.removesuffix(PANOPTIC)]
        return inspect.signature(build).parameters[override.removeprefix("mask_")].default

    def to_dict(self) -> dict[str, object]:
        """Plain values, for files; `ModelSpec(**values)` reads them back."""
        return {"name": self.name, "num_labels": self.num_labels, "overrides": dict(self.overrides)}


def spec_of(model: nn.Module) -> ModelSpec:
    """What `build_model` built a model from.

    Raises:
        InputError: it was made by something else.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, ModelSpec):
        raise InputError("the model was not made by build_model, so a checkpoint could not say how to rebuild it")
    return spec


def list_models() -> list[str]:
    """All model names: every detector, and each with a mask head."""
    return [*BUILDERS, *(name + PANOPTIC for name in BUILDERS)]


def check_name(name: str) -> None:
    """Raise `InputError` with the nearest names unless `name` is a model."""
    if not isinstance(name, str):
        raise InputError(f"the name of a model must be a text, but got {name!r} (all: panoptic_detr.list_models())")
    if name not in list_models():
        near = get_close_matches(name, list_models(), 3, 0.3)
        hint = f"; the nearest are {', '.join(near)}" if near else ", and no name is near to it"
        raise InputError(f"there is no model {name!r}{hint} (all: panoptic_detr.list_models())")


def default_num_labels(name: str) -> int:
    """Label slots of the published model: 91 for detection, 250 for panoptic (label index = COCO category id)."""
    return 250 if name.endswith(PANOPTIC) else 91


def build_model(name: str, *, num_labels: int | None = None, **overrides: object) -> nn.Module:
    """Build a model with random weights.

    Args:
        name: one of `list_models()`.
        num_labels: label slots without no-object; by default the published ones.
        **overrides: the builder's own keyword arguments (`build_detr`, `build_deformable_detr`); panoptic models also take
            `mask_dropout`, `mask_scale_maps`, `mask_inside_boxes`, `mask_output_bias` and `mask_num_heads` for the mask head
            (see `MaskHead`).

    Returns:
        A model whose call gives a `DetectorOutput`; `model.spec` is the `ModelSpec` that it was built from.

    Raises:
        InputError: an unknown name or override, named with the nearest valid one.
    """
    types = override_types(name)
    for key, value in overrides.items():
        _check_override(name, key, value, types)
    slots = default_num_labels(name) if num_labels is None else num_labels
    build = BUILDERS[name.removesuffix(PANOPTIC)]
    detector = build(num_labels=slots, **{key: value for key, value in overrides.items() if key not in MASK_OPTIONS})
    model: nn.Module = detector
    if name.endswith(PANOPTIC):
        options = {key.removeprefix("mask_"): value for key, value in overrides.items() if key in MASK_OPTIONS}
        model = PanopticDETR(detector, _mask_head(detector, options))
    model.spec = ModelSpec(name, slots, overrides)  # type: ignore[assignment]
    return model


def _mask_head(detector: DETR | DeformableDETR | MaskDETR, options: Mapping[str, Any]) -> nn.Module:
    """What makes the masks of a detector's queries."""
    if not isinstance(detector, MaskDETR):
        return MaskHead(dim=detector.hidden_dim, feature_channels=detector.mask_channels, **options)
    if options:
        raise InputError(f"this detector makes its masks itself; leave out {', '.join('mask_' + name for name in options)}")
    return ProductMasks()


def makes_maps(name: str) -> bool:
    """Whether a model of this name can make panoptic maps: it has a mask head, or is a detector that makes masks itself."""
    return name.endswith(PANOPTIC) or BUILDERS.get(name) is build_mask_detr


def with_own_masks(model: nn.Module) -> nn.Module:
    """The panoptic model of a detector that makes its masks itself, so that its first stage is enough; any other as it is."""
    if not isinstance(model, MaskDETR):
        return model
    panoptic, spec = PanopticDETR(model, ProductMasks()), spec_of(model)
    panoptic.training = model.training  # of itself alone: parts that are frozen stay in evaluation mode
    panoptic.spec = replace(spec, name=spec.name + PANOPTIC)  # type: ignore[assignment]
    return panoptic


def override_types(name: str) -> dict[str, object]:
    """The overrides that `build_model` takes for this model, with their annotated types."""
    check_name(name)
    build: Callable[..., nn.Module] = BUILDERS[name.removesuffix(PANOPTIC)]
    while isinstance(build, partial):
        build = build.func
    types = {key: kind for key, kind in keyword_types(build).items() if key != "num_labels"}
    return types | (MASK_OPTIONS if name.endswith(PANOPTIC) else {})


def _check_override(name: str, key: str, value: object, types: Mapping[str, object]) -> None:
    if key not in types:
        near = get_close_matches(key, types, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it takes {', '.join(types)}"
        if key in MASK_OPTIONS:
            hint = "that is a setting of the mask head, which stage 2 (train_masks) and panoptic models have"
        if key == "num_classes":
            hint = "the number of classes is 'num_labels', which the data's categories give"
        raise InputError(f"{name} has no override {key!r}; {hint}")
    if not fits_type(value, types[key]):
        raise InputError(f"{name}: override {key!r} must be {type_name(types[key])}, but got {value!r}")
