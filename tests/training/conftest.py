"""Data for the tests of training."""

import pytest

from panoptic_detr.data.scenes.dataset import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, 8, size=48, workers=1)
    return root
