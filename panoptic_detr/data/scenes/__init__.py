"""The embedded data set of drawn scenes."""

from panoptic_detr.data.scenes.dataset import make_scene, scene_categories, write_scenes

__all__ = ["make_scene", "scene_categories", "write_scenes"]
