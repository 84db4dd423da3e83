"""The embedded data set of drawn scenes, still and moving."""

from panoptic_detr.data.scenes.dataset import make_scene, scene_categories, write_scenes
from panoptic_detr.data.scenes.films import make_film, write_films

__all__ = ["make_film", "make_scene", "scene_categories", "write_films", "write_scenes"]
