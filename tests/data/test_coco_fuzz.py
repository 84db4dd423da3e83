"""Whatever is broken in the files, reading ends in one of the package's own errors, or in a sample that fits together."""

import copy
from collections import Counter
from pathlib import Path

import pytest
from data.fuzzing import DAMAGE, OWN_ERRORS, damaged, damaged_bytes
from hypothesis import given, settings
from hypothesis import strategies as st

from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.structures import Sample

fuzz = settings(max_examples=60, derandomize=True, deadline=None)


def read_all(root: Path) -> bool:
    """Whether what there is can be read; if not, it is one of the package's own errors, which says where."""
    message = ""
    try:
        dataset = CocoPanoptic.from_root(root, "val")
        for i in range(len(dataset)):
            check(dataset[i], dataset.truth(i), dataset.categories.num_labels)
    except OWN_ERRORS as error:
        message = str(error)
    assert not message or ("val" in message or "image" in message)
    assert len(message) < 1000
    return not message


def check(sample: Sample, truth: PanopticSegmentation, num_labels: int) -> None:
    """A sample fits together, and its truth tells of the same pixels."""
    target = sample.target
    assert target.segment_map.shape == sample.image.shape[1:] == truth.segment_map.shape
    places = target.segment_map.unique().tolist()
    assert [place for place in places if place] == list(range(1, len(target) + 1))
    assert all(0 <= label < num_labels for label in target.labels.tolist())
    assert ((target.boxes >= 0) & (target.boxes <= 1)).all()
    assert all(segment.area == int((truth.segment_map == segment.id).sum()) > 0 for segment in truth.segments)


def test_what_is_not_damaged_is_read(layout):
    assert read_all(layout.root)


def test_any_change_of_the_json_is_read_or_refused(layout):
    original, outcomes = copy.deepcopy(layout.content), Counter()

    @fuzz
    @given(data=st.data())
    def change(data):
        layout.content = damaged(original, data)
        layout.save()
        outcomes[read_all(layout.root)] += 1

    change()
    assert min(outcomes[True], outcomes[False]) >= 10  # a reader that refuses, or takes, everything is none


@pytest.mark.parametrize("attribute", ["json", "png", "jpg"])
def test_any_damage_of_a_file_is_read_or_refused(layout, attribute):
    path, outcomes = getattr(layout, attribute), Counter()
    original = path.read_bytes()

    @fuzz
    @given(**DAMAGE)
    def change(position, byte, cut):
        path.write_bytes(damaged_bytes(original, position, byte, cut))
        done = read_all(layout.root)
        assert not (done and cut and (attribute == "json" or position < 0.5))  # what is missing cannot have been read
        outcomes[done] += 1

    change()
    assert outcomes[False] >= 10
