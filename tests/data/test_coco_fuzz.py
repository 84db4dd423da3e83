"""Whatever is broken in the files, reading ends in one of the package's own errors, or in a sample that fits together."""

import copy
from pathlib import Path

import pytest
import torch
from data.fuzzing import DAMAGE, OWN_ERRORS, damaged, damaged_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panoptic_detr.data.coco_panoptic import CocoPanoptic

fuzz = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def read_all(root: Path) -> None:
    """Read what there is; only the package's own errors may come out."""
    try:
        dataset = CocoPanoptic.from_root(root, "val")
        for i in range(len(dataset)):
            target, truth = dataset[i].target, dataset.truth(i)
            assert int(target.segment_map.max()) == len(target)
            assert all(segment.area > 0 for segment in truth.segments)
            assert torch.isfinite(target.boxes).all()
    except OWN_ERRORS:
        return


@given(data=st.data())
@fuzz
def test_any_change_of_the_json_is_read_or_refused(layout, data):
    original = copy.deepcopy(layout.content)
    layout.content = damaged(original, data)
    layout.save()
    layout.content = original
    read_all(layout.root)


@pytest.mark.parametrize("attribute", ["json", "png", "jpg"])
@given(**DAMAGE)
@fuzz
def test_any_damage_of_a_file_is_read_or_refused(layout, attribute, position, byte, cut):
    path = getattr(layout, attribute)
    original = path.read_bytes()
    path.write_bytes(damaged_bytes(original, position, byte, cut))
    try:
        read_all(layout.root)
    finally:
        path.write_bytes(original)
