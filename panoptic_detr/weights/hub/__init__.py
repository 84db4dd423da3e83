"""Models on the Hugging Face hub, and folders in its form: in, out, model card."""

from panoptic_detr.weights.hub.folder import is_hub_folder, read_files, read_folder

__all__ = ["card", "is_hub_folder", "read_files", "read_folder", "save"]
