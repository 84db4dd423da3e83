"""A ground truth and its predictions on disk that tests may damage."""

import copy
import json
from contextlib import contextmanager

import numpy as np
import pytest

from panoptic_detr import segment_maps
from panoptic_detr.evaluation import panoptic
from panoptic_detr.evaluation.panoptic import evaluate_panoptic
from panoptic_detr.id_runs import can_read_runs
from panoptic_detr.segment_maps import write_id_png

CATEGORIES = [
    {"id": 1, "name": "cat", "isthing": 1},
    {"id": 2, "name": "dog", "isthing": 1},
    {"id": 5, "name": "sky", "isthing": 0},
]


# How id PNGs are read: as maps by OpenCV or the extra's decoder, or as runs.
DECODERS = ["OpenCV", *["fast"] * (segment_maps.fast_decoder is not None), *["runs"] * can_read_runs()]


@contextmanager
def reading(decoder):
    """Read id PNGs in this way, however many there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(panoptic, "MANY", 0 if decoder == "runs" else 10**9)
        if decoder == "OpenCV":
            patch.setattr(segment_maps, "fast_decoder", None)
        yield


class Files:
    """A ground truth and its predictions on disk; tests change `gt`, `pred` or the PNGs and call `evaluate`."""

    def __init__(self, root):
        self.root = root
        self.gt = {"images": [], "annotations": [], "categories": copy.deepcopy(CATEGORIES)}
        self.pred = {"annotations": []}
        for side in ("gt", "pred"):
            (root / side).mkdir()
        for image_id in (1, 2):
            segment_map = np.full((4, 6), 70000 * image_id, np.int32)
            segment_map[:2] = 300
            self.add("gt", image_id, segment_map, {70000 * image_id: 5, 300: 1})
            self.add("pred", image_id, segment_map, {70000 * image_id: 5, 300: 1})

    def add(self, side, image_id, segment_map, segments):
        write_id_png(self.root / side / f"{image_id}.png", segment_map)
        rows = [
            {"id": i, "category_id": c, "area": int((segment_map == i).sum()), "iscrowd": 0, "bbox": [0, 0, 1, 1]}
            for i, c in segments.items()
        ]
        annotations = getattr(self, side)["annotations"]
        annotations.append({"image_id": image_id, "file_name": f"{image_id}.png", "segments_info": rows})

    def evaluate(self, **options):
        for side in ("gt", "pred"):
            (self.root / f"{side}.json").write_text(json.dumps(getattr(self, side)))
        return self.evaluate_as_is(**options)

    def evaluate_as_is(self, **options):
        paths = (self.root / name for name in ("gt.json", "gt", "pred.json", "pred"))
        return evaluate_panoptic(*paths, workers=1, **options)


@pytest.fixture(params=DECODERS)
def files(tmp_path, request):
    """Read in every way."""
    with reading(request.param):
        yield Files(tmp_path)


@pytest.fixture
def plain_files(tmp_path):
    """For tests that choose how to read."""
    return Files(tmp_path)
