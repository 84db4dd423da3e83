"""Predictions of another split or class table: ids may agree by chance, names then do not."""

import json

import numpy as np
import pytest

from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation.panoptic import evaluate_panoptic
from panoptic_detr.segment_maps import write_id_png

CATEGORIES = [{"id": 1, "name": "cat", "isthing": 1}]


def write_side(folder, images):
    """One side of a comparison; `images` by id: (name of the image or None for no `images`, name of the PNG)."""
    folder.mkdir(parents=True)
    info = {"id": 1, "category_id": 1, "iscrowd": 0, "area": 16, "bbox": [0, 0, 4, 4]}
    rows = [{"image_id": i, "file_name": png, "segments_info": [info]} for i, (_, png) in images.items()]
    for _, png in images.values():
        (folder / png).parent.mkdir(parents=True, exist_ok=True)
        write_id_png(folder / png, np.ones((4, 4), np.int32))
    content = {"annotations": rows, "categories": CATEGORIES}
    listed = [{"id": i, "file_name": name} for i, (name, _) in images.items() if name is not None]
    (folder / "side.json").write_text(json.dumps({**content, **({"images": listed} if listed else {})}))
    return folder / "side.json", folder


def score(folder, truth, prediction):
    sides = (*write_side(folder / "truth", truth), *write_side(folder / "prediction", prediction))
    return evaluate_panoptic(*sides, workers=1, progress=False)


@pytest.mark.parametrize(
    ("truth", "prediction", "named"),
    [
        ({1: ("paris.jpg", "paris.png")}, {1: ("oslo.jpg", "oslo.png")}, "'oslo.jpg'"),
        # The names of PNGs say nothing where both sides list the images.
        ({1: ("paris.jpg", "1.png")}, {1: ("oslo.jpg", "1.png")}, "'oslo.jpg'"),
        ({12: ("000099.png", "12.png")}, {12: ("000990.png", "12.png")}, "'000990.png'"),
        ({7: ("img1.png", "7.png")}, {7: ("img12.png", "7.png")}, "'img12.png'"),
    ],
)
def test_predictions_of_other_images_are_refused(tmp_path, truth, prediction, named):
    first = next(iter(truth))
    with pytest.raises(EvaluationError, match=f"image {first} is {named} there but '.*' in .*truth/side.json") as caught:
        score(tmp_path, truth, prediction)
    assert "predict the images of this ground truth (its split)" in str(caught.value)


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [
        ({139: ("000000000139.jpg", "000000000139.png")}, {139: (None, "000000000139.png")}),
        ({139: ("000000000139.jpg", "000000000139.png")}, {139: ("000000000139.jpg", "any.png")}),
        ({139: ("val/000000000139.jpg", "000000000139.png")}, {139: ("000000000139.JPEG", "any.png")}),
        ({139: (None, "000000000139.png")}, {139: (None, "000000000139")}),
        ({139: (None, "000000000139.png")}, {139: (None, "139.png")}),
        ({139: (None, "000000000139.png")}, {139: (None, "pred_000000000139_panoptic.png")}),
        ({4: (None, "paris.png")}, {4: (None, "pred_4.png")}),
        ({4: (None, "paris.png")}, {4: (None, "paris_labels.tif.png")}),
        ({4: ("Paris.jpg", "Paris.png")}, {4: ("paris.png", "1.png")}),
        ({139: (None, "img139_x.png")}, {139: (None, "pred_000139.png")}),
        ({4: ("frankfurt_1_leftImg8bit.png", "a.png")}, {4: ("frankfurt_1.png", "b.png")}),
    ],
)
def test_legitimate_names_are_scored(tmp_path, truth, prediction):
    result = score(tmp_path, truth, prediction)
    assert result.all.pq == 1.0
    assert result.notes == ()


@pytest.mark.parametrize("png", ["0.png", "0010cbc5-ab.png"])
def test_names_of_pngs_alone_are_free_but_noted(tmp_path, png):
    result = score(tmp_path, {139: (None, "000000000139.png")}, {139: (None, png)})
    assert result.all.pq == 1.0
    assert len(result.notes) == 1
    assert f"image 139: '{png}', truth '000000000139.png'" in result.notes[0]


def test_one_equal_name_is_enough_and_the_others_are_noted(tmp_path):
    truth = {1: ("a.jpg", "1.png"), 2: ("b.jpg", "2.png")}
    result = score(tmp_path, truth, {1: ("a.jpg", "1.png"), 2: ("new.jpg", "2.png")})
    assert result.all.pq == 1.0
    assert len(result.notes) == 1
    assert "file names differ from the truth's" in result.notes[0]
    assert "image 2: 'new.jpg', truth 'b.jpg'" in result.notes[0]


def scored(folder, truth, prediction):
    """PQ where the image of each name has a size of its own, so that only the right match can be scored at all."""
    sizes = {}
    sides = []
    for side, images in (("truth", truth), ("prediction", prediction)):
        path, place = write_side(folder / side, {i: (name, f"{n}.png") for n, (i, name) in enumerate(images.items())})
        for n, name in enumerate(images.values()):
            side_length = sizes.setdefault(name.replace("\\", "/").rpartition("/")[2].rpartition(".")[0], 4 + len(sizes))
            write_id_png(place / f"{n}.png", np.ones((side_length, 4), np.int32))
        sides += [path, place]
    return evaluate_panoptic(*sides, workers=1, progress=False)


@pytest.mark.parametrize(
    ("truth", "prediction"),
    [
        # A folder with one picture more: predict numbers them 1..n.
        ({1: "b.jpg", 2: "c.jpg"}, {1: "a.jpg", 2: "b.jpg", 3: "c.jpg"}),
        ({0: "a.jpg", 1: "b.jpg"}, {1: "a.jpg", 2: "b.jpg"}),
        ({5: "z.jpg", 6: "a.jpg"}, {1: "a.png", 2: "z.png"}),
        ({5: "val/z.jpg", 6: "val/a.jpg"}, {1: "a.jpg", 2: "z.jpg"}),
        ({5: "z.jpg", 6: "a.jpg"}, {1: "photos\\a.jpg", 2: "photos\\z.jpg"}),
        ({"139": "139.jpg", "285": "285.jpg"}, {139: "139.jpg", 285: "285.jpg"}),
    ],
)
def test_images_are_matched_by_their_file_names(tmp_path, truth, prediction):
    result = scored(tmp_path, truth, prediction)
    assert (result.all.pq, result.images) == (1.0, 2)
    assert "images with other ids than the truth's; matched by their file names: 2" in "".join(result.notes)


def test_folders_keep_images_of_one_name_apart(tmp_path):
    truth = {1: ("x/a.jpg", "1.png"), 2: ("y/a.jpg", "2.png")}
    assert score(tmp_path / "1", truth, {7: ("y/a.jpg", "1.png"), 8: ("x/a.png", "2.png")}).all.pq == 1.0
    with pytest.raises(EvaluationError, match=r"'x/a\.jpg' \(image 1\) and 'y/a\.jpg' \(image 2\) both fit 'a\.jpg'"):
        score(tmp_path / "2", truth, {7: ("a.jpg", "1.png")})
    assert score(tmp_path / "3", truth, {1: ("a.jpg", "1.png"), 2: ("a.jpg", "2.png")}).all.pq == 1.0


def test_text_and_number_are_told_where_no_image_is_in_both(tmp_path):
    with pytest.raises(EvaluationError, match=r"image ids are text \('139'\), those of .*side\.json are numbers \(139\)"):
        score(tmp_path / "1", {139: ("139.jpg", "139.png")}, {"139": (None, "139.png")})
    with pytest.raises(EvaluationError, match=r"none of its 1 images \(first: 4\) is in .*side\.json \(first: 139\)"):
        score(tmp_path / "2", {139: (None, "a.png")}, {4: (None, "a.png")})


@pytest.mark.parametrize("images", [5, [3], [{"id": [], "file_name": "a"}], [{"id": 1, "file_name": 2}]])
def test_an_odd_list_of_images_does_not_stop_the_scoring(tmp_path, images):
    truth = write_side(tmp_path / "truth", {1: ("a.jpg", "1.png")})
    path, folder = write_side(tmp_path / "prediction", {1: (None, "1.png")})
    path.write_text(json.dumps({**json.loads(path.read_text()), "images": images}))
    assert evaluate_panoptic(*truth, path, folder, workers=1, progress=False).all.pq == 1.0


def renamed(folder, names, isthing=1):
    """Scores of predictions whose JSON calls the categories 1, 2, ... so; None for no `categories`."""
    sides = []
    for side, called in (("truth", ["cat", "dog"]), ("prediction", names)):
        path, place = write_side(folder / side, {1: ("a.png", "a.png")})
        content = json.loads(path.read_text())
        kind = isthing if side == "prediction" else 1
        content["categories"] = called and [{"id": i, "name": name, "isthing": kind} for i, name in enumerate(called, start=1)]
        path.write_text(json.dumps(content))
        sides += [path, place]
    return evaluate_panoptic(*sides, workers=1, progress=False)


def test_predictions_of_other_categories_are_refused(tmp_path):
    told = r"prediction/side\.json: these are predictions of other categories: 1 is 'oak' there but 'cat' in the truth"
    with pytest.raises(EvaluationError, match=told):
        renamed(tmp_path, ["oak", "elm"])


@pytest.mark.parametrize(
    ("names", "noted"),
    [
        (None, []),
        (["cat", "dog"], []),
        (["cat"], []),
        (["cat", "hound"], ["category 2: 'hound', truth 'dog'"]),
        (["kitty"], ["category 1: 'kitty', truth 'cat'"]),
    ],
)
def test_some_other_names_of_categories_are_noted(tmp_path, names, noted):
    result = renamed(tmp_path, names)
    assert result.all.pq == 1.0
    assert [line for line in result.notes if "category" in line or "categories" in line] == [
        f"categories with other names than the truth's; matched by their ids: {len(noted)} ({line})" for line in noted
    ]


def test_categories_that_are_no_proper_entries_are_not_compared(tmp_path):
    truth, prediction = (write_side(tmp_path / side, {1: ("a.png", "a.png")}) for side in ("truth", "prediction"))
    content = json.loads(prediction[0].read_text())
    for broken in ([1, None, {"id": [1], "name": "x"}, {"id": 1}], {"id": 1}, "cat"):
        prediction[0].write_text(json.dumps({**content, "categories": broken}))
        assert evaluate_panoptic(*truth, *prediction, workers=1, progress=False).all.pq == 1.0


def test_other_kinds_of_categories_are_noted(tmp_path):
    kind = "categories that are things on one side and stuff on the other; the truth's kind counts"
    assert f"{kind}: 1 (category 1: thing in the truth)" in renamed(tmp_path / "a", ["cat"], isthing=0).notes
    for place, odd in enumerate((1, True, None, "yes", [])):
        assert not any(kind in note for note in renamed(tmp_path / str(place), ["cat"], isthing=odd).notes)
