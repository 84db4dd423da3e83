"""COCO-panoptic data: where it lies, what its JSON says, the data set that training reads."""

from panoptic_detr.data.coco.dataset import CocoPanoptic, renumber, retarget
from panoptic_detr.data.coco.index import CocoIndex, read_index, read_json
from panoptic_detr.data.coco.layout import IMAGE_ENDINGS, DataPaths, find_image, resolve_paths

__all__ = [
    "IMAGE_ENDINGS",
    "CocoIndex",
    "CocoPanoptic",
    "DataPaths",
    "find_image",
    "read_index",
    "read_json",
    "renumber",
    "resolve_paths",
    "retarget",
]
