"""Which criterion belongs to a model, and its settings."""

from collections.abc import Collection, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

import torch
from torch import nn

from panoptic_detr.config.losses import MASK_DETR_ONLY, LossConfig
from panoptic_detr.config.types import check_values
from panoptic_detr.errors import ConfigError
from panoptic_detr.models import PanopticDETR
from panoptic_detr.models.masks import MaskDETR
from panoptic_detr.models.settings import check_counts
from panoptic_detr.training.losses.criterion import Criterion, LossWeights
from panoptic_detr.training.losses.mask_detr import COSTS, WEIGHTS, MaskCriterion
from panoptic_detr.training.losses.matcher import HungarianMatcher, HybridMatching
from panoptic_detr.zoo import BUILDERS, PANOPTIC, build_model, check_name, default_num_labels


def build_criterion(name: str, *, num_labels: int | None = None, **overrides: Any) -> Criterion | MaskCriterion:
    """Build the criterion that belongs to a model name, with the papers' weights as defaults.

    Args:
        name: a model name (`list_models()`).
        num_labels: label slots; by default the published ones.
        **overrides: settings of `LossConfig` that differ from the published ones.

    Raises:
        InputError: no such model, or a setting that does not exist or makes no sense.
    """
    check_values("loss", LossConfig, overrides)
    check_name(name)
    check_counts(1, **({} if num_labels is None else {"num_labels": num_labels}))
    model = _without_weights(name, BUILDERS.get(name.removesuffix(PANOPTIC)))
    return criterion_for(model, default_num_labels(name) if num_labels is None else num_labels, LossConfig(**overrides))


@cache
def _without_weights(name: str, builder: object) -> nn.Module:
    """The model of a name, to ask it about itself; the builder tells the cache whether the name still means the same."""
    with torch.device("meta"):
        return build_model(name)


def criterion_for(
    model: nn.Module, num_labels: int, loss: LossConfig, *, frozen_detector: bool = False
) -> Criterion | MaskCriterion:
    """Build the criterion of a model, which says itself what its classes are, and whether it has masks and other queries.

    Args:
        model: of `build_model`. Its detector's attributes `no_object` (without it: true, as in `DetectorOutput`) and
            `num_one_to_many` (without it: 0) decide; so nothing hangs on its name.
        num_labels: class slots without no-object.
        loss: settings.
        frozen_detector: only the mask losses train anything, so the others are left out where `loss` says nothing of them.
    """
    detector = model.detector if isinstance(model, PanopticDETR) else model
    if isinstance(detector, MaskDETR):
        return mask_criterion(loss, num_labels, detector.stuff_labels)
    _refuse_others(loss, MASK_DETR_ONLY, "models whose queries make their masks themselves (mask_detr_...)")
    softmax, queries = getattr(detector, "no_object", True), getattr(detector, "num_one_to_many", 0)
    scheme = ("branch" if queries else "none") if loss.hybrid == "auto" else loss.hybrid

    def weight(given: float | None, published: float) -> float:
        return given if given is not None else 0.0 if frozen_detector else published

    class_published = 1.0 if softmax else 2.0  # in the cost and in the total
    return Criterion(
        num_labels=num_labels,
        matcher=HungarianMatcher(
            "softmax" if softmax else "sigmoid",
            class_published if loss.cost_class is None else loss.cost_class,
            loss.cost_l1,
            loss.cost_giou,
        ),
        weights=LossWeights(
            weight(loss.class_weight, class_published),
            weight(loss.l1_weight, 5.0),
            weight(loss.giou_weight, 2.0),
            loss.mask_focal_weight,
            loss.mask_dice_weight,
            weight(loss.dense_weight, 5.0),
        ),
        no_object_weight=loss.no_object_weight,
        aux_loss=loss.aux_loss and not frozen_detector,
        masks=isinstance(model, PanopticDETR),
        mask_loss=loss.mask_loss,
        mask_points=loss.mask_points,
        masks_per_image=loss.masks_per_image,
        hybrid=HybridMatching(
            scheme, loss.one_to_many_repeats, loss.one_to_many_weight, loss.one_to_many_share, loss.one_to_many_layers
        ),
    )


def mask_criterion(loss: LossConfig, num_labels: int, stuff_labels: Sequence[int]) -> MaskCriterion:
    """Build the criterion of a Mask-DETR; each term's weight and cost is set by the name that `LossConfig` has for it."""
    weights = {term: f"{term.removeprefix('box_')}_weight" for term in WEIGHTS}
    costs = {term: f"cost_{term.removeprefix('box_')}" for term in COSTS}
    places = ("roi_side", "point_step", "contest_layers", "contest_balance")
    known = {*weights.values(), *costs.values(), *places}
    _refuse_others(loss, {field.name for field in fields(loss)} - known, "other detectors")
    given = {name: getattr(loss, name) for name in known if getattr(loss, name) is not None}
    return MaskCriterion(
        num_labels=num_labels,
        stuff_labels=stuff_labels,
        weights={term: given.get(name, WEIGHTS[term]) for term, name in weights.items()},
        costs={term: given.get(name, COSTS[term]) for term, name in costs.items()},
        **{name: given[name] for name in places if name in given},
    )


def _refuse_others(loss: LossConfig, names: Collection[str], whose: str) -> None:
    """Refuse settings of another criterion, which would change nothing."""
    for field in fields(loss):
        asks_nothing = (field.default, *(("none",) if field.name == "hybrid" else ()))
        if field.name in names and getattr(loss, field.name) not in asks_nothing:
            raise ConfigError(f"setting 'loss.{field.name}' is for {whose}; leave it out")
