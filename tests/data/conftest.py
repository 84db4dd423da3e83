"""A tiny COCO-panoptic data set on disk that tests may damage."""

import copy
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

pytest.register_assert_rewrite("data.conversions")  # its assertions tell what they found, as in a test file

# One thing of two parts, one thing, a crowd, stuff, and a column of void on the right. 24-bit ids in no order.
IDS = {"ball": 70_000, "cube": 300, "crowd": 9, "lawn": 1_000_000}
MAP = np.array(
    [
        [IDS["ball"], IDS["ball"], IDS["lawn"], IDS["lawn"], IDS["lawn"], 0],
        [IDS["ball"], IDS["cube"], IDS["cube"], IDS["lawn"], IDS["ball"], 0],
        [IDS["lawn"], IDS["cube"], IDS["cube"], IDS["lawn"], IDS["lawn"], 0],
        [IDS["lawn"], IDS["lawn"], IDS["lawn"], IDS["crowd"], IDS["crowd"], 0],
    ],
    np.int32,
)
# Areas and boxes of the map, counted by hand.
MEASURES = {
    IDS["ball"]: (4, [0, 0, 5, 2]),
    IDS["cube"]: (4, [1, 1, 2, 2]),
    IDS["crowd"]: (2, [3, 3, 2, 1]),
    IDS["lawn"]: (10, [0, 0, 5, 4]),
}
CATEGORIES = [
    {"id": 2, "name": "ball", "isthing": 1, "color": [200, 30, 30]},
    {"id": 5, "name": "cube", "isthing": 1, "color": [30, 30, 200]},
    {"id": 9, "name": "lawn", "isthing": 0, "color": [30, 200, 30]},
]


class Layout:
    """COCO's own folder layout with one image in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.json = root / "annotations" / "panoptic_val.json"
        self.png = root / "panoptic_val" / "7.png"
        self.jpg = root / "val" / "7.jpg"
        for path in (self.json, self.png, self.jpg):
            path.parent.mkdir(parents=True)
        self.content: dict[str, Any] = {
            "images": [{"id": 7, "file_name": "7.jpg", "width": 6, "height": 4}],
            "annotations": [
                {
                    "image_id": 7,
                    "file_name": "7.png",
                    "segments_info": [
                        # Areas and boxes are wrong on purpose: they must come from the pixels.
                        {"id": IDS["ball"], "category_id": 2, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]},
                        {"id": IDS["crowd"], "category_id": 5, "iscrowd": 1},
                        {"id": IDS["lawn"], "category_id": 9},
                        {"id": IDS["cube"], "category_id": 5, "iscrowd": 0},
                    ],
                }
            ],
            "categories": copy.deepcopy(CATEGORIES),
        }
        self.save()
        self.save_map(MAP)
        rgb = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
        self.save_image(rgb)

    @property
    def segments(self) -> list[dict[str, Any]]:
        return self.content["annotations"][0]["segments_info"]

    def save(self) -> None:
        self.json.write_text(json.dumps(self.content))

    def save_map(self, ids: np.ndarray) -> None:
        bgr = np.stack([ids >> 16, (ids >> 8) & 255, ids & 255], axis=-1).astype(np.uint8)
        assert cv2.imwrite(str(self.png), bgr)

    def save_image(self, rgb: np.ndarray, name: str = "7.jpg") -> None:
        """Lossless whatever the ending: the bytes are PNG, and readers go by the bytes."""
        pixels = rgb[..., ::-1] if rgb.ndim == 3 and rgb.shape[2] == 3 else rgb
        data = cv2.imencode(".png", pixels)[1].tobytes()
        (self.root / "val" / name).write_bytes(data)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path)


@pytest.fixture
def clean(layout: Layout) -> Layout:
    """The tiny data set without a defect."""
    for segment in layout.segments:
        segment["area"], segment["bbox"] = MEASURES[segment["id"]]
        segment.setdefault("iscrowd", 0)
    layout.save()
    return layout
