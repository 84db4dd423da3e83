"""Panoptic segmentation with DETR, Deformable DETR and H-DETR.

The public names are imported on first use, so that `panoptic-detr --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from panoptic_detr.categories import Category, CategoryTable
    from panoptic_detr.evaluation.panoptic import evaluate_panoptic
    from panoptic_detr.inference.merge import merge_panoptic
    from panoptic_detr.inference.predictor import Predictor, load_model
    from panoptic_detr.quality.panoptic_quality import PanopticQuality
    from panoptic_detr.quality.result import PanopticQualityResult
    from panoptic_detr.structures import (
        Batch,
        DetectorOutput,
        Dropped,
        FeatureLevel,
        PanopticSegmentation,
        Predictions,
        Sample,
        Segment,
        Target,
    )
    from panoptic_detr.training.losses.criterion import Losses, build_criterion
    from panoptic_detr.visualization.draw.overlay import overlay
    from panoptic_detr.weights.names.detr import load_official
    from panoptic_detr.zoo import build_model, list_models

_HOMES = {
    "categories": ("Category", "CategoryTable"),
    "evaluation.panoptic": ("evaluate_panoptic",),
    "quality.panoptic_quality": ("PanopticQuality",),
    "quality.result": ("PanopticQualityResult",),
    "inference.merge": ("merge_panoptic",),
    "inference.predictor": ("Predictor", "load_model"),
    "weights.names.detr": ("load_official",),
    "structures": (
        "Batch",
        "DetectorOutput",
        "Dropped",
        "FeatureLevel",
        "PanopticSegmentation",
        "Predictions",
        "Sample",
        "Segment",
        "Target",
    ),
    "training.losses.criterion": ("Losses", "build_criterion"),
    "visualization.draw.overlay": ("overlay",),
    "zoo": ("build_model", "list_models"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022 - grouped by room
    "Category",
    "CategoryTable",
    "PanopticQuality",
    "PanopticQualityResult",
    "evaluate_panoptic",
    "merge_panoptic",
    "Predictor",
    "load_model",
    "load_official",
    "Batch",
    "DetectorOutput",
    "Dropped",
    "FeatureLevel",
    "PanopticSegmentation",
    "Predictions",
    "Sample",
    "Segment",
    "Target",
    "Losses",
    "build_criterion",
    "overlay",
    "build_model",
    "list_models",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'panoptic_detr' has no attribute {name!r}")
    return getattr(import_module(f"panoptic_detr.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
