"""The names of published weights and ours, both ways."""

from panoptic_detr.weights.names.official import load_official, official_weights, to_official

__all__ = ["load_official", "official_weights", "to_official"]
