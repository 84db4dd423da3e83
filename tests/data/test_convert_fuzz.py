"""Whatever is broken in the input, check and convert end in the package's own errors, and write in their output only."""

import base64
import copy
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from data.fuzzing import DAMAGE, OWN_ERRORS, damaged, damaged_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from panoptic_detr.data.convert.formats import FORMATS
from panoptic_detr.data.doctor.examine import check_dataset, find_splits

fuzz = settings(max_examples=60, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fenced(root: Path, work: Any) -> bool:
    """Run `work(out)`; whether it ended well. Nothing but `out` may be new or different, and not even that after an error."""
    before, out = tree(root), root / "out" / "set"
    out.parent.mkdir()
    try:
        work(out)
        done = True
    except OWN_ERRORS:
        done = False
    try:
        assert done or list(out.parent.iterdir()) == []
        assert {entry.name for entry in out.parent.iterdir()} <= {"set"}
    finally:
        shutil.rmtree(out.parent)
    assert tree(root) == before
    return done


def examine(root: Path, out: Path) -> None:
    lines = []
    check_dataset(
        find_splits(root, "val"), lambda defect: lines.append(defect.line() + json.dumps(defect.as_dict())), fix=out, workers=0
    )
    again: list[Any] = []
    if (out / "annotations" / "panoptic_val.json").exists():
        check_dataset(find_splits(out, "val"), again.append, workers=0)
    assert [defect.line() for defect in again if defect.severity == "error"] == []


def converted(root: Path, work: Any) -> bool:
    """Run a converter to COCO panoptic, fenced; what it writes must be a set in which the check finds no error."""

    def work_and_check(out: Path) -> None:
        work(out)
        defects: list[Any] = []
        check_dataset(find_splits(out), defects.append, workers=0)
        assert [defect.line() for defect in defects if defect.severity == "error"] == []

    return fenced(root, work_and_check)


@given(data=st.data())
@fuzz
def test_check_and_fix_take_any_json(layout, data):
    original = copy.deepcopy(layout.content)
    layout.content = damaged(original, data)
    layout.save()
    layout.content = original
    assert fenced(layout.root, lambda out: examine(layout.root, out))


@pytest.mark.parametrize("attribute", ["json", "png", "jpg"])
@given(**DAMAGE)
@fuzz
def test_check_and_fix_take_any_file(layout, attribute, position, byte, cut):
    path = getattr(layout, attribute)
    original = path.read_bytes()
    path.write_bytes(damaged_bytes(original, position, byte, cut))
    try:
        assert fenced(layout.root, lambda out: examine(layout.root, out))
    finally:
        path.write_bytes(original)


@pytest.mark.parametrize("name", ["to-instances", "to-semantic"])
def test_converters_back_take_any_json(layout, name):
    original, outcomes = copy.deepcopy(layout.content), Counter()

    @fuzz
    @given(data=st.data())
    def change(data):
        layout.content = damaged(original, data)
        layout.save()
        outcomes[fenced(layout.root, lambda out: FORMATS[name](layout.json, layout.png.parent, out, workers=0))] += 1

    change()
    assert min(outcomes[True], outcomes[False]) >= 1  # a converter that refuses, or takes, everything is none


INSTANCES = {
    "images": [{"id": 1, "file_name": "1.png", "width": 6, "height": 4}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, "segmentation": [[0, 0, 3, 0, 3, 3, 0, 3]]},
        {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 1, "segmentation": {"size": [4, 6], "counts": [4, 8, 12]}},
        {"id": 3, "image_id": 1, "category_id": 3, "iscrowd": 1, "segmentation": {"size": [4, 6], "counts": "b0220"}},
    ],
    "categories": [{"id": 3, "name": "cat"}],
}
MASK = base64.b64encode(cv2.imencode(".png", np.ones((1, 2), np.uint8))[1].tobytes()).decode()
LABELME = {
    "imagePath": "1.png",
    "shapes": [
        {"label": "cat", "shape_type": "polygon", "points": [[0, 0], [3, 0], [3, 3]], "group_id": None},
        {"label": "cat", "shape_type": "rectangle", "points": [[0, 0], [3, 3]], "group_id": 3},
        {"label": "sky", "shape_type": "circle", "points": [[2, 2], [3, 2]]},
        {"label": "sky", "shape_type": "mask", "points": [[2, 2], [3, 2]], "mask": MASK},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    cv2.imwrite(str(tmp_path / "in" / "1.png"), np.zeros((4, 6, 3), np.uint8))
    return tmp_path


def test_what_is_not_damaged_is_converted(layout, folder):
    assert fenced(layout.root, lambda out: examine(layout.root, out))
    (folder / "a.json").write_text(json.dumps(INSTANCES))
    assert converted(folder, lambda out: FORMATS["coco-instances"](folder / "a.json", folder / "in", out, workers=0))
    (folder / "in" / "1.json").write_text(json.dumps(LABELME))
    assert converted(folder, lambda out: FORMATS["labelme"](folder / "in", out, rest="ground", workers=0))


def test_coco_instances_take_any_json(folder):
    outcomes = Counter()

    @fuzz
    @given(data=st.data())
    def change(data):
        (folder / "a.json").write_text(json.dumps(damaged(INSTANCES, data)))
        convert = FORMATS["coco-instances"]
        outcomes[converted(folder, lambda out: convert(folder / "a.json", folder / "in", out, workers=0))] += 1

    change()
    assert min(outcomes[True], outcomes[False]) >= 1


def test_labelme_takes_any_json(folder):
    outcomes = Counter()

    @fuzz
    @given(data=st.data())
    def change(data):
        (folder / "in" / "1.json").write_text(json.dumps(damaged(LABELME, data)))
        outcomes[converted(folder, lambda out: FORMATS["labelme"](folder / "in", out, rest="ground", workers=0))] += 1

    change()
    assert min(outcomes[True], outcomes[False]) >= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_take_any_file(folder, dtype):
    mask, outcomes = folder / "masks" / "1.png", Counter()
    mask.parent.mkdir()
    original = cv2.imencode(".png", np.arange(24).reshape(4, 6).astype(dtype))[1].tobytes()

    @fuzz
    @given(**DAMAGE)
    def change(position, byte, cut):
        mask.write_bytes(damaged_bytes(original, position, byte, cut))
        convert = FORMATS["instance-masks"]
        done = converted(folder, lambda out: convert(folder / "in", mask.parent, out, "cat", workers=0))
        assert not (done and cut and position < 0.5)  # what is missing cannot have been converted
        outcomes[done] += 1

    change()
    assert outcomes[False] >= 5
