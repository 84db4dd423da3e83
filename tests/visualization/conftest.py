"""A small data set of scenes, predictions made from its truth, and an untrained model, for the tests of the visualize job."""

import json

import cv2
import numpy as np
import pytest
from visualization.visualize_helpers import SIDE, altered, save_model

from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.scenes.dataset import write_scenes
from panoptic_detr.inference import PictureFile, PredictionFolder
from panoptic_detr.segment_maps import write_id_png


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, 3, size=SIDE, seed=0, split="val", workers=1)
    return folder


@pytest.fixture(scope="module")
def data(root):
    return CocoPanoptic.from_root(root, "val")


@pytest.fixture(scope="module")
def results(root, data, tmp_path_factory):
    """Predictions: the truth, except that the first image lost its first thing."""
    folder = PredictionFolder(tmp_path_factory.mktemp("results"), data.categories, overlays=False)
    for i, image_id in enumerate(data.image_ids):
        folder.add(
            PictureFile(data.image_path(i), image_id, f"p{i}"),
            data.image(i),
            altered(data.truth(i)) if i == 0 else data.truth(i),
        )
    return folder.finish()


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    return save_model(data.categories, tmp_path_factory.mktemp("model") / "best.pt")


@pytest.fixture
def twins(tmp_path):
    """A data set whose images have one name in two folders, and one that differs in its ending only."""
    names = ["cam1/0.png", "cam2/0.png", "cam2/0.jpg", "CAM2/0.bmp"]
    entries, images = [], []
    for number, name in enumerate(names):
        segment_map = np.full((16, 16), number + 1, np.int32)
        (tmp_path / "val" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "val" / name), np.full((16, 16, 3), 50 * number, np.uint8))
        (tmp_path / "panoptic_val").mkdir(exist_ok=True)
        write_id_png(tmp_path / "panoptic_val" / f"{number}.png", segment_map)
        images.append({"id": number, "file_name": name, "height": 16, "width": 16})
        info = {"id": number + 1, "category_id": 1, "area": 256, "bbox": [0, 0, 16, 16], "iscrowd": 0}
        entries.append({"image_id": number, "file_name": f"{number}.png", "segments_info": [info]})
    content = {"images": images, "annotations": entries, "categories": [{"id": 1, "name": "cat", "isthing": 1}]}
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "panoptic_val.json").write_text(json.dumps(content))
    return tmp_path
