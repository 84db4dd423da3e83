"""How predictions become maps; one class for the `inference` section of a training and for prediction (`config_inference`)."""

from panoptic_detr.config_inference import InferenceSettings

__all__ = ["InferenceSettings"]
