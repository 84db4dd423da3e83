"""The names of published weights and ours, both ways."""

from panoptic_detr.weights.names.detr import load_official
from panoptic_detr.weights.names.export import to_official

__all__ = ["load_official", "to_official"]
