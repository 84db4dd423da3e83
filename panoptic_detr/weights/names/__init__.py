"""The names of published weights and ours, both ways."""

from panoptic_detr.weights.names.hub import hub_weights, to_hub
from panoptic_detr.weights.names.official import load_official, official_weights, to_official

__all__ = ["hub_weights", "load_official", "official_weights", "to_hub", "to_official"]
