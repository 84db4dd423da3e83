"""One split becomes two: every class in its share, groups kept together, files in place, and the original untouched."""

import json

import numpy as np
import pytest
from data.planting import check, second_image

from panoptic_detr.commands.data import main
from panoptic_detr.data.coco import list_splits, resolve_paths
from panoptic_detr.data.coco.dataset import CocoPanoptic
from panoptic_detr.data.split import choose_groups, split_dataset
from panoptic_detr.errors import DataError


@pytest.fixture
def films(clean):
    """Ten images of five films."""
    clean.content["images"][0]["file_name"] = "film0_7.jpg"
    clean.jpg.rename(clean.jpg.with_name("film0_7.jpg"))
    for number in range(8, 17):
        second_image(clean, number)
        clean.content["images"][-1]["file_name"] = f"film{number % 5}_{number}.jpg"
        clean.jpg.with_name(f"{number}.jpg").rename(clean.jpg.with_name(f"film{number % 5}_{number}.jpg"))
    clean.save()
    return clean


def test_the_command_divides_the_only_split(films, capsys):
    assert main(["split", str(films.root), "--out", str(films.root / "out"), "--val", "0.3"]) == 0
    out = capsys.readouterr().out
    assert "train: 7 images (70.0%)" in out
    assert "val: 3 images (30.0%)" in out
    train, val = (CocoPanoptic.from_root(films.root / "out", name) for name in ("train", "val"))
    assert sorted([*train.image_ids, *val.image_ids]) == list(range(7, 17))
    assert len(val[0].target) == 3
    assert check(films.root / "out") == []
    with pytest.raises(DataError, match="is there already"):
        main(["split", str(films.root), "--out", str(films.root / "out")])


def test_groups_stay_on_one_side(films):
    split_dataset(resolve_paths(films.root), films.root / "out", val=0.4, group=r"film(\d)")
    sides = {}
    for name in ("train", "val"):
        content = json.loads((films.root / "out" / "annotations" / f"panoptic_{name}.json").read_text())
        for image in content["images"]:
            sides.setdefault(image["file_name"][4], set()).add(name)
    assert len(sides) == 5
    assert all(len(names) == 1 for names in sides.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"val": 1.0}, "must lie between 0 and 1"),
        ({"group": "("}, "is no regular expression"),
        ({"group": "film"}, r"10 image\(s\) in 1 group\(s\) cannot be divided; give a --group"),
        ({"group": ""}, "give a --group that finds different texts"),
    ],
)
def test_what_cannot_be_divided_is_refused(films, options, message):
    with pytest.raises(DataError, match=message):
        split_dataset(resolve_paths(films.root), films.root / "out", **options)
    assert not (films.root / "out").exists()


@pytest.mark.parametrize("seed", range(5))
def test_rare_classes_are_on_both_sides(seed):
    counts = np.zeros((40, 3), np.int64)
    counts[:, 2] = 1  # images
    counts[:36, 0] = 1  # a frequent class
    counts[36:, 1] = 1  # a rare one
    chosen = choose_groups(counts, 0.25, seed)
    assert counts[chosen].sum(0).tolist() == [9, 1, 10]


def test_one_group_is_left_on_each_side():
    counts = np.array([[1, 10], [1, 10]])
    for share in (0.01, 0.99):
        assert len(choose_groups(counts, share, 0)) == 1


def test_splits_that_exist_are_listed_and_the_only_one_needs_no_name(films):
    assert list_splits(films.root) == ["val"]
    assert resolve_paths(films.root).annotations == films.json
    with pytest.raises(DataError, match=r"\(the splits there are: val\)"):
        resolve_paths(films.root, "train")
    films.json.with_name("panoptic_other.json").write_text("{}")
    with pytest.raises(DataError, match="has the splits other, val; say which one"):
        resolve_paths(films.root)
    films.json.with_name("panoptic_val2017.json").write_text("{}")
    with pytest.raises(DataError, match=r"no image folder at .*val2017"):
        resolve_paths(films.root)
