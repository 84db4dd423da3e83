"""Model names: how each is built, where its authors publish weights, and what they report for them."""

import argparse
import inspect
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import nn

from panoptic_detr.models.deformable_detr import build_deformable_detr
from panoptic_detr.models.detr import build_detr
from panoptic_detr.models.mask_head import MaskHead
from panoptic_detr.models.panoptic_detr import PanopticDETR
from panoptic_detr.official_weights import WeightsUnavailableError, load_official

PANOPTIC = "_panoptic"
MASK_OPTIONS: dict[str, Any] = {
    "mask_dropout": float,
    "mask_scale_maps": bool,
    "mask_inside_boxes": bool,
    "mask_output_bias": float,
}
DETR_FILES = "https://dl.fbaipublicfiles.com/detr/"
DRIVE = "https://drive.google.com/file/d/"
H_DETR_FILES = "https://github.com/HDETR/H-Deformable-DETR/releases/download/v0.1/"
H_DETR_NAME = (
    "hybrid_branch_lambda1_group6_t1500_dp0_mqs_lft_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage"
)

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
    """Raise `ValueError` with the nearest names unless `name` is a model."""
    if name not in list_models():
        near = get_close_matches(name, list_models(), 3, 0.3)
        hint = f"; the nearest are {', '.join(near)}" if near else ", and no name is near to it"
        raise ValueError(f"there is no model {name!r}{hint} (all: panoptic_detr.list_models())")


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
        ValueError: an unknown name or override, named with the nearest valid one.
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


def fits_type(value: Any, wanted: Any) -> bool:
    """Whether a plain value (from YAML, say) is of an annotated type: int, float, bool, str, Literal, Sequence, or a union."""
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin is Literal:
        return value in parts
    if origin in (Union, UnionType):
        return any(fits_type(value, part) for part in parts)
    if origin is Sequence:
        return isinstance(value, list | tuple) and all(fits_type(item, parts[0]) for item in value)
    if wanted in (int, float):
        return isinstance(value, int if wanted is int else int | float) and not isinstance(value, bool)
    return isinstance(value, wanted)


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
        raise ValueError(f"{name} has no override {key!r}; {hint}")
    if not fits_type(value, types[key]):
        wanted = get_args(types[key]) if get_origin(types[key]) is Literal else getattr(types[key], "__name__", types[key])
        expected = f"one of {', '.join(map(repr, wanted))}" if isinstance(wanted, tuple) else str(wanted)
        raise ValueError(f"{name}: override {key!r} must be {expected}, but got {value!r}")


@dataclass(frozen=True)
class Published:
    """Weights that the authors of a model publish.

    Attributes:
        source: address of the file, or of the page where a person can download it.
        direct: `source` is the file itself, so that it can be fetched.
        scores: what the authors report on COCO val2017, in percent.
        page_file: name of the file that the page gives, where `source` is not the file itself.
    """

    source: str
    direct: bool
    scores: dict[str, float]
    page_file: str = ""

    @property
    def file_name(self) -> str:
        """Name of the file, under which it lies in the cache."""
        return self.source.rsplit("/", 1)[-1] if self.direct else self.page_file


PUBLISHED: dict[str, Published] = {
    "detr_r50": Published(DETR_FILES + "detr-r50-e632da11.pth", True, {"AP": 42.0}),
    "detr_r50_dc5": Published(DETR_FILES + "detr-r50-dc5-f0fb7ef5.pth", True, {"AP": 43.3}),
    "detr_r101": Published(DETR_FILES + "detr-r101-2c7b67e5.pth", True, {"AP": 43.5}),
    "detr_r101_dc5": Published(DETR_FILES + "detr-r101-dc5-a2e86def.pth", True, {"AP": 44.9}),
    "detr_r50_panoptic": Published(
        DETR_FILES + "detr-r50-panoptic-00ce5173.pth", True, {"PQ": 43.4, "SQ": 79.3, "RQ": 53.8, "PQth": 48.2, "PQst": 36.3}
    ),
    "detr_r50_dc5_panoptic": Published(
        DETR_FILES + "detr-r50-dc5-panoptic-da08f1b1.pth",
        True,
        {"PQ": 44.6, "SQ": 79.8, "RQ": 55.0, "PQth": 49.4, "PQst": 37.3},
    ),
    "detr_r101_panoptic": Published(
        DETR_FILES + "detr-r101-panoptic-40021d53.pth", True, {"PQ": 45.1, "SQ": 79.9, "RQ": 55.5, "PQth": 50.5, "PQst": 37.0}
    ),
    # Deformable DETR: the authors link to Google Drive, which asks a browser before it hands out large files.
    "deformable_detr_r50": Published(
        DRIVE + "1nDWZWHuRwtwGden77NLM9JoWe-YisJnA/view", False, {"AP": 44.5}, "r50_deformable_detr-checkpoint.pth"
    ),
    "deformable_detr_r50_refine": Published(
        DRIVE + "1JYKyRYzUH7uo9eVfDaVCiaIGZb5YTCuI/view",
        False,
        {"AP": 46.2},
        "r50_deformable_detr_plus_iterative_bbox_refinement-checkpoint.pth",
    ),
    "deformable_detr_r50_two_stage": Published(
        DRIVE + "15I03A7hNTpwuLNdfuEmW9_taZMNVssEp/view",
        False,
        {"AP": 46.9},
        "r50_deformable_detr_plus_iterative_bbox_refinement_plus_plus_two_stage-checkpoint.pth",
    ),
    "deformable_detr_r50_single_scale": Published(
        DRIVE + "1WEjQ9_FgfI5sw5OZZ4ix-OKk-IJ_-SDU/view",
        False,
        {"AP": 39.4},
        "r50_deformable_detr_single_scale-checkpoint.pth",
    ),
    "deformable_detr_r50_single_scale_dc5": Published(
        DRIVE + "1m_TgMjzH7D44fbA-c_jiBZ-xf-odxGdk/view",
        False,
        {"AP": 41.5},
        "r50_deformable_detr_single_scale_dc5-checkpoint.pth",
    ),
    # H-DETR: 300 queries, 36 epochs. The releases have 12 epochs and 900 queries too (docs/detectors.md).
    "h_deformable_detr_r50": Published(f"{H_DETR_FILES}r50_{H_DETR_NAME}_36eps.pth", True, {"AP": 50.0}),
    "h_deformable_detr_swin_t": Published(f"{H_DETR_FILES}swin_tiny_{H_DETR_NAME}_36eps.pth", True, {"AP": 53.2}),
    "h_deformable_detr_swin_l": Published(f"{H_DETR_FILES}drop_path0.5_swin_large_{H_DETR_NAME}_36eps.pth", True, {"AP": 57.1}),
}


def load_published(name: str) -> nn.Module:
    """Build a model and fill it with the weights that its authors publish, through torch.hub's cache.

    The file is opened with `weights_only=True`, and its hash is compared with the one in its name if there is one.

    Raises:
        ValueError: nobody publishes weights for this model.
        WeightsUnavailableError: the file is not in the cache and cannot be fetched; the message says which file to put where.
    """
    check_name(name)
    if name not in PUBLISHED:
        raise ValueError(f"no weights are published for {name!r}; those with weights: {', '.join(PUBLISHED)}")
    model = build_model(name)
    load_official(model, _fetch(name, PUBLISHED[name]))
    return model


def _fetch(name: str, published: Published) -> dict[str, Any]:
    path = Path(torch.hub.get_dir()) / "checkpoints" / published.file_name
    place = f"download {published.source} with a browser and put it at {path}"
    try:
        # The files of the deformable detectors also hold the options of their training.
        with torch.serialization.safe_globals([argparse.Namespace]):
            if not published.direct:
                return torch.load(path, map_location="cpu", weights_only=True)
            return torch.hub.load_state_dict_from_url(
                published.source,
                model_dir=str(path.parent),
                map_location="cpu",
                check_hash=True,
                weights_only=True,
                progress=False,
            )
    except OSError as error:
        reason = (
            f" and could not be fetched ({error})" if published.direct else "; its authors publish it on a page for browsers"
        )
        raise WeightsUnavailableError(
            f"{name}: {path.name} is not cached{reason}; {place}, or bring the file into this project from wherever it lies: "
            f"panoptic-detr convert_checkpoint FILE {name}.pth --model {name}"
        ) from None
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise WeightsUnavailableError(f"{name}: the downloaded {path.name} is damaged ({error}); {place}") from None
