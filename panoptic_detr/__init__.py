"""Panoptic segmentation with DETR, Deformable DETR and H-DETR.

The public names are imported on first use, so that `panoptic-detr --help` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from panoptic_detr.categories import Category, CategoryTable
    from panoptic_detr.config.inference import InferenceSettings
    from panoptic_detr.config.losses import LossConfig
    from panoptic_detr.config.stages import (
        AugmentationConfig,
        DataConfig,
        DetectorStage,
        MaskStage,
        ModelConfig,
        OptimizerConfig,
        TrainConfig,
    )
    from panoptic_detr.evaluation import evaluate_films, evaluate_panoptic, read_panoptic
    from panoptic_detr.exported.open import load_model
    from panoptic_detr.exported.runtime import ExportedPredictor
    from panoptic_detr.exported.write import ExportReport, export
    from panoptic_detr.inference import Predictor, merge_panoptic
    from panoptic_detr.models.cpu.optimize import optimize_for_inference
    from panoptic_detr.panoptic import Dropped, PanopticSegmentation, Segment
    from panoptic_detr.quality import PanopticQuality, PanopticQualityResult
    from panoptic_detr.structures import Batch, DetectorOutput, FeatureLevel, Predictions, Sample, Target
    from panoptic_detr.training.losses import Losses, build_criterion
    from panoptic_detr.training.stages import train_detector, train_masks
    from panoptic_detr.visualization.draw import overlay
    from panoptic_detr.weights import ModelNotes, load_official, load_pretrained, push_to_hub, save_pretrained
    from panoptic_detr.zoo import build_model, list_models

_HOMES = {
    "categories": ("Category", "CategoryTable"),
    "config.inference": ("InferenceSettings",),
    "config.losses": ("LossConfig",),
    "config.stages": (
        "AugmentationConfig",
        "DataConfig",
        "DetectorStage",
        "MaskStage",
        "ModelConfig",
        "OptimizerConfig",
        "TrainConfig",
    ),
    "evaluation": ("evaluate_films", "evaluate_panoptic", "read_panoptic"),
    "exported.open": ("load_model",),
    "exported.runtime": ("ExportedPredictor",),
    "exported.write": ("ExportReport", "export"),
    "inference": ("Predictor", "merge_panoptic"),
    "models.cpu.optimize": ("optimize_for_inference",),
    "panoptic": ("Dropped", "PanopticSegmentation", "Segment"),
    "quality": ("PanopticQuality", "PanopticQualityResult"),
    "structures": ("Batch", "DetectorOutput", "FeatureLevel", "Predictions", "Sample", "Target"),
    "training.losses": ("Losses", "build_criterion"),
    "training.stages": ("train_detector", "train_masks"),
    "visualization.draw": ("overlay",),
    "weights": ("ModelNotes", "load_official", "load_pretrained", "push_to_hub", "save_pretrained"),
    "zoo": ("build_model", "list_models"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AugmentationConfig",
    "Batch",
    "Category",
    "CategoryTable",
    "DataConfig",
    "DetectorOutput",
    "DetectorStage",
    "Dropped",
    "ExportReport",
    "ExportedPredictor",
    "FeatureLevel",
    "InferenceSettings",
    "LossConfig",
    "Losses",
    "MaskStage",
    "ModelConfig",
    "ModelNotes",
    "OptimizerConfig",
    "PanopticQuality",
    "PanopticQualityResult",
    "PanopticSegmentation",
    "Predictions",
    "Predictor",
    "Sample",
    "Segment",
    "Target",
    "TrainConfig",
    "build_criterion",
    "build_model",
    "evaluate_films",
    "evaluate_panoptic",
    "export",
    "list_models",
    "load_model",
    "load_official",
    "load_pretrained",
    "merge_panoptic",
    "optimize_for_inference",
    "overlay",
    "push_to_hub",
    "read_panoptic",
    "save_pretrained",
    "train_detector",
    "train_masks",
]


def __getattr__(name: str) -> object:
    if name == "__version__":
        return import_module("importlib.metadata").version("panoptic-detr")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'panoptic_detr' has no attribute {name!r}")
    return getattr(import_module(f"panoptic_detr.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
