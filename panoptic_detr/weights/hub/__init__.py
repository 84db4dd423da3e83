"""Models on the Hugging Face hub, and folders in its form: in, out, model card."""

from panoptic_detr.weights.hub.fetch import HubId, finder, hub_id, push_folder
from panoptic_detr.weights.hub.folder import is_hub_folder, read_files, read_folder

__all__ = ["HubId", "card", "finder", "hub_id", "is_hub_folder", "push_folder", "read_files", "read_folder", "save"]
