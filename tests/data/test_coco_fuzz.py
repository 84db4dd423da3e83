"""Whatever is broken in the files, reading ends in one of the package's own errors, or in a sample that fits together."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panoptic_detr.categories import CategoryError
from panoptic_detr.data.coco_files import DataError
from panoptic_detr.data.coco_panoptic import CocoPanoptic
from panoptic_detr.segment_maps import SegmentMapError

OWN_ERRORS = (DataError, SegmentMapError, CategoryError)
fuzz = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(["../x", 2, 5, 7, 300])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=4
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


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
    path = data.draw(st.sampled_from(places(original)[1:]))
    content = copy.deepcopy(original)
    place = content
    for key in path[:-1]:
        place = place[key]
    if data.draw(st.booleans()):
        place[path[-1]] = data.draw(VALUES)
    else:
        del place[path[-1]]
    layout.content = content
    layout.save()
    layout.content = original
    read_all(layout.root)


@pytest.mark.parametrize("attribute", ["json", "png", "jpg"])
@given(position=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255), cut=st.booleans())
@fuzz
def test_any_damage_of_a_file_is_read_or_refused(layout, attribute, position, byte, cut):
    path = getattr(layout, attribute)
    original = path.read_bytes()
    damaged = bytearray(original)
    damaged[int(position * len(original))] = byte
    path.write_bytes(damaged[: int(position * len(original))] if cut else damaged)
    try:
        read_all(layout.root)
    finally:
        path.write_bytes(original)
