"""COCO-panoptic data: where it lies, what its JSON says, the data set that training reads.

The data set needs PyTorch, which takes seconds to import; it comes when it is asked for: checks and conversions do without.
"""

from typing import TYPE_CHECKING

from panoptic_detr.data.coco.entries import read_json
from panoptic_detr.data.coco.index import CocoIndex, read_index
from panoptic_detr.data.coco.layout import (
    IMAGE_ENDINGS,
    DataPaths,
    check_split_name,
    find_image,
    list_splits,
    make_split,
    resolve_paths,
    split_parts,
    with_ending,
)

if TYPE_CHECKING:
    from panoptic_detr.data.coco.dataset import CocoPanoptic, Others, retarget

__all__ = [
    "IMAGE_ENDINGS",
    "CocoIndex",
    "CocoPanoptic",
    "DataPaths",
    "Others",
    "check_split_name",
    "defects",
    "entries",
    "find_image",
    "list_splits",
    "make_split",
    "read_index",
    "read_json",
    "resolve_paths",
    "retarget",
    "split_parts",
    "with_ending",
]


def __getattr__(name: str) -> object:
    if name not in ("CocoPanoptic", "Others", "retarget"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from panoptic_detr.data.coco import dataset

    return getattr(dataset, name)
