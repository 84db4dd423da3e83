"""What tests of the converters share: tiny inputs, and a look at what was written."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.doctor.examine import check_dataset, find_splits
from panoptic_detr.panoptic import PanopticSegmentation


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), pixels)
    return path


def picture(path: Path, height: int = 4, width: int = 6) -> Path:
    return write(path, np.full((height, width, 3), 99, np.uint8))


def truths(root: Path, split: str = "train") -> list[PanopticSegmentation]:
    """Every annotation of a converted set, after the doctor has found no error in it."""
    defects: list[Any] = []
    check_dataset(find_splits(root, split), defects.append, workers=0)
    assert [defect.line() for defect in defects if defect.severity == "error"] == []
    dataset = CocoPanoptic.from_root(root, split)
    assert all(dataset.image(i) is not None for i in range(len(dataset)))
    return [dataset.truth(i) for i in range(len(dataset))]


def meanings(truth: PanopticSegmentation) -> np.ndarray:
    """The map with category ids in place of segment ids."""
    table = {0: 0, **{segment.id: segment.category_id for segment in truth.segments}}
    return np.vectorize(table.get)(truth.segment_map)
