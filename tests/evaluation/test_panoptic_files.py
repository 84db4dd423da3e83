"""Scoring folders: what may be odd, what is refused and how it is said."""

import os
import sys

import cv2
import numpy as np
import pytest

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation import panoptic
from panoptic_detr.evaluation.panoptic import evaluate_panoptic
from panoptic_detr.id_runs import can_read_runs
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.parallel import can_fork
from panoptic_detr.segment_maps import write_id_png


def test_perfect(files):
    result = files.evaluate()
    assert result.all == (1.0, 1.0, 1.0, 2)
    assert (result.images, result.notes) == (2, ())


def test_bare_predictions_count_the_same(files):
    for annotation in files.pred["annotations"]:
        annotation["segments_info"] = [{"id": i["id"], "category_id": i["category_id"]} for i in annotation["segments_info"]]
    result = files.evaluate()
    assert (result.all.pq, result.notes) == (1.0, ())


def test_wrong_areas_change_nothing_and_are_reported(files):
    files.gt["annotations"][0]["segments_info"][0]["area"] = 3
    files.pred["annotations"][1]["segments_info"][1]["area"] = None
    result = files.evaluate()
    assert result.all == (1.0, 1.0, 1.0, 2)
    assert result.notes == (
        "segments whose area in the JSON is wrong; their pixels count: 2 "
        "(gt.json image 1 segment 70000: area 3, 12 pixels, pred.json image 2 segment 300: area None, 12 pixels)",
    )


def test_a_missing_prediction_is_all_missed_and_said(files):
    del files.pred["annotations"][1]
    result = files.evaluate()
    assert result.per_class[1][3:] == (1, 0, 1)
    assert result.per_class[5][3:] == (1, 0, 1)
    assert result.lost[1].missed == 1
    assert result.notes == ("images without a prediction, all their segments counted as missed: 1 (image 2)",)


def test_predictions_of_unknown_images_are_said(files):
    files.add("pred", "other", np.full((2, 2), 300), {300: 1})
    result = files.evaluate()
    assert result.all.pq == 1.0
    assert result.notes == ("predictions for images that the ground truth does not have, not scored: 1 (image other)",)


def test_no_segments_at_all(files):
    for side in (files.gt, files.pred):
        for annotation in side["annotations"]:
            annotation["segments_info"] = []
            write_id_png(
                files.root / ("gt" if side is files.gt else "pred") / annotation["file_name"], np.zeros((4, 6), np.int32)
            )
    assert files.evaluate().all == (0.0, 0.0, 0.0, 0)


def test_a_ground_truth_without_images_is_nothing_to_score(files):
    files.gt["annotations"] = []
    with pytest.raises(EvaluationError, match=r"gt\.json: there is no annotation in it, so nothing to score"):
        files.evaluate()


def test_an_empty_prediction(files):
    write_id_png(files.root / "pred" / "1.png", np.zeros((4, 6), np.int32))
    files.pred["annotations"][0]["segments_info"] = []
    assert files.evaluate().per_class[1][3:] == (1, 0, 1)


def test_tools_that_number_segments_from_zero(files):
    segment_map = np.zeros((4, 6), np.int32)
    segment_map[:2] = 1
    files.pred["annotations"] = files.pred["annotations"][1:]
    files.add("pred", 1, segment_map, {0: 5, 1: 1})
    result = files.evaluate()
    assert result.all == (1.0, 1.0, 1.0, 2)
    (note,) = result.notes
    assert note.startswith("segments with id 0, which usually means void; counted like any other: 1 (")
    assert "pred.json, image 1" in note


def test_no_stuff_category(files):
    files.gt["categories"] = files.gt["categories"][:2]
    for side in (files.gt, files.pred):
        for annotation in side["annotations"]:
            for info in annotation["segments_info"]:
                info["category_id"] = 1
    result = files.evaluate()
    assert result.stuff == (0.0, 0.0, 0.0, 0)
    assert result.all == result.things == (1.0, 1.0, 1.0, 1)


def test_crowds_need_no_flag_on_other_segments(files):
    infos = files.gt["annotations"][0]["segments_info"]
    infos[1]["iscrowd"] = 1
    del infos[0]["iscrowd"]
    assert files.evaluate().per_class[1][3:] == (1, 0, 0)


def test_what_this_project_writes_scores_unchanged(files):
    truth = PanopticSegmentation(
        np.repeat(np.arange(4, dtype=np.int32), 6).reshape(4, 6),
        [Segment(i, c, c < 5, 0.9, 6, (0, i, 6, 1)) for i, c in ((1, 1), (2, 1), (3, 5))],
        CategoryTable.from_coco(files.gt["categories"]),
        image_id=3,
    )
    for side in (files.gt, files.pred):
        side["annotations"] = [truth.to_coco()]
    for side in ("gt", "pred"):
        truth.save(files.root / side / "3.png")
    result = files.evaluate()
    assert result.all == (1.0, 1.0, 1.0, 2)
    assert result.per_class[1].tp == 2
    assert result.notes == ()


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_workers_do_not_change_the_result(files, workers):
    generator = np.random.default_rng(0)
    for image_id in range(10, 60):
        segment_map = generator.integers(1, 4, (3, 5)).repeat(4, 0).repeat(4, 1)
        guess = np.where(generator.random(segment_map.shape) < 0.2, 3, segment_map)
        files.add("gt", image_id, segment_map, {int(i): 1 for i in np.unique(segment_map)})
        files.add("pred", image_id, guess, {int(i): 1 for i in np.unique(guess)})
    del files.pred["annotations"][20]
    files.gt["annotations"][30]["segments_info"][0]["area"] += 1
    asked = {"per_image": True, "boundary": True}
    alone = files.evaluate(**asked)
    paths = [files.root / name for name in ("gt.json", "gt", "pred.json", "pred")]
    assert repr(evaluate_panoptic(*paths, workers=workers, **asked)) == repr(alone)
    assert 0 < alone.all.pq < 1
    assert len(alone.notes) == 2


@pytest.mark.skipif(not can_fork(), reason="no forks here")
@pytest.mark.parametrize("many", [0, 10**9])
def test_many_images_are_scored_by_other_processes(files, monkeypatch, many):
    here, counted = os.getpid(), panoptic.score_image

    def count(quality, *rest):
        quality.note(f"by this process: {os.getpid() == here}", [str(rest[2])])
        counted(quality, *rest)

    files.evaluate()
    monkeypatch.setattr(panoptic, "MANY", many)
    monkeypatch.setattr(panoptic, "score_image", count)
    paths = [files.root / name for name in ("gt.json", "gt", "pred.json", "pred")]
    assert evaluate_panoptic(*paths, workers=2).notes == (f"by this process: {many > 2}: 2 (1, 2)",)


def test_workers_must_be_positive(files):
    files.evaluate()
    for place in (None, "a\0b"):
        with pytest.raises(EvaluationError, match=r"is no (path of a file|name that a file can have)"):
            evaluate_panoptic(place, place, place, place)
    for workers in (0, "x"):
        with pytest.raises(EvaluationError, match=f"workers must be at least 1, a whole number, but is {workers!r}"):
            evaluate_panoptic(*(files.root / name for name in ("gt.json", "gt", "pred.json", "pred")), workers=workers)


def info(files, side="pred"):
    return getattr(files, side)["annotations"][0]["segments_info"][0]


def entry(files, side="pred"):
    return getattr(files, side)["annotations"][0]


REFUSED = {
    "no file_name": (lambda f: entry(f).pop("file_name"), r"pred\.json, image 1: file_name must be the name .* but is None"),
    "parent": (
        lambda f: entry(f).update(file_name="../gt/1.png"),
        r"image 1: file_name '\.\./gt/1\.png' leaves its folder; names must be relative to .*pred",
    ),
    "absolute": (lambda f: entry(f).update(file_name="/etc/passwd"), r"file_name '/etc/passwd' leaves its folder"),
    "drive": (lambda f: entry(f, "gt").update(file_name="C:\\1.png"), r"gt\.json, image 1: file_name .* leaves its folder"),
    "backslash": (lambda f: entry(f).update(file_name="a\\..\\..\\1.png"), r"leaves its folder"),
    "zero byte": (lambda f: entry(f).update(file_name="a\0.png"), r"is no name that a file can have"),
    "surrogate": (lambda f: entry(f).update(file_name="a\ud800.png"), r"is no name that a file can have"),
    "no PNG": (lambda f: (f.root / "pred" / "1.png").unlink(), r"image 1: .*pred/1\.png: the annotation PNG is missing; check"),
    "long name": (lambda f: entry(f).update(file_name="a" * 9999), r"image 1: file_name 'a+' is no name that a file can have"),
    "empty PNG": (lambda f: (f.root / "gt" / "1.png").write_bytes(b""), r"image 1: .*gt/1\.png: not a readable picture"),
    "no segments_info": (
        lambda f: entry(f).pop("segments_info"),
        r"pred\.json, image 1: segments_info must be a list with one object",
    ),
    "segments_info of numbers": (lambda f: entry(f).update(segments_info=[1]), r"segments_info must be a list with one object"),
    "id as text": (
        lambda f: info(f).update(id="7"),
        r"pred\.json, image 1: segment id '7' must be an integer from 0 to 16777215",
    ),
    "id of 25 bits": (lambda f: info(f).update(id=2**24), r"segment id 16777216 must be an integer from 0 to 16777215"),
    "no id": (lambda f: info(f).pop("id"), r"segment id None must be an integer"),
    "no category": (lambda f: info(f).pop("category_id"), r"image 1, segment 70000: category_id None must be the integer id"),
    "huge category": (lambda f: info(f).update(category_id=10**30), r"segment 70000: category_id 10+ must be the integer id"),
    "unknown category": (
        lambda f: info(f).update(category_id=3),
        r"image 1 \(1\.png\): segment 70000 has category 3, which the ground",
    ),
    "crowd of 2": (
        lambda f: info(f, "gt").update(iscrowd=2),
        r"gt\.json, image 1, segment 70000: iscrowd must be 0 or 1, but is 2",
    ),
    "id twice": (lambda f: info(f).update(id=300), r"pred\.json, image 1 \(1\.png\): segment id 300 is listed twice"),
    "id not in the PNG": (lambda f: info(f).update(id=12), r"the map has pixels of id 70000, but no such segment is listed"),
    "truth not in the PNG": (
        lambda f: entry(f, "gt")["segments_info"].append({"id": 8, "category_id": 1}),
        r"gt\.json, image 1 \(1\.png\): segment 8 is listed but has no pixel in the map; leave it out",
    ),
    "annotation is text": (
        lambda f: f.pred["annotations"].append("x"),
        r"pred\.json, annotation 2: must be an object with image_id",
    ),
    "no image_id": (
        lambda f: entry(f).pop("image_id"),
        r"pred\.json, annotation 0: image_id must be a number or a name, but is None",
    ),
    "image twice": (lambda f: entry(f).update(image_id=2), r"pred\.json: image 2 has more than one annotation"),
    "no annotations": (
        lambda f: f.pred.pop("annotations"),
        r"pred\.json: not a COCO-panoptic JSON: no list of 'annotations' in it",
    ),
    "no categories": (
        lambda f: f.gt.pop("categories"),
        r"gt\.json: 'categories' must be a list of objects with id, name and isthing",
    ),
    "no isthing": (lambda f: f.gt["categories"][0].pop("isthing"), r"gt\.json: category .* has no isthing"),
    "huge category id": (
        lambda f: f.gt["categories"][0].update(id=2**40),
        r"gt\.json: category id 1099511627776 does not fit into 32",
    ),
    "another size": (
        lambda f: write_id_png(f.root / "pred" / "1.png", np.full((4, 7), 300)),
        r"pred\.json, image 1 \(1\.png\) is 7 x 4, but .*gt\.json, image 1 \(1\.png\) is 6 x 4; predict at the size",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_scored_is_named(files, case):
    spoil, message = REFUSED[case]
    spoil(files)
    with pytest.raises(EvaluationError, match=message):
        files.evaluate()


@pytest.mark.parametrize(
    ("picture", "kind"),
    [
        (np.zeros((4, 6), np.uint8), "grey"),
        (np.zeros((4, 6, 4), np.uint8), "RGBA"),
        (np.zeros((4, 6, 3), np.uint16), "16-bit RGB"),
    ],
)
def test_pictures_that_are_no_id_maps(files, picture, kind):
    cv2.imwrite(str(files.root / "pred" / "2.png"), picture)
    with pytest.raises(
        EvaluationError, match=rf"image 2: .*2\.png: a panoptic annotation must be an 8-bit RGB PNG .* is {kind}"
    ):
        files.evaluate()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gt.json", b'{"annotations": [', r"gt\.json: not valid JSON \(.*\); it may be truncated"),
        ("gt.json", b"\xff\xfe\x00", r"gt\.json: not valid JSON"),
        ("pred.json", b"[" * 100_000, r"pred\.json: not valid JSON"),
        ("pred.json", b"[1, 2]", r"pred\.json: not a COCO-panoptic JSON"),
        ("pred.json", b'{"annotations": ' + b"9" * 5000 + b"}", r"pred\.json: not valid JSON"),
    ],
)
def test_broken_json(files, name, content, message):
    files.evaluate()
    (files.root / name).write_bytes(content)
    with pytest.raises(EvaluationError, match=message):
        files.evaluate_as_is()


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("gt.json", r"gt\.json: no such file; give a COCO-panoptic JSON"),
        ("pred", r"pred: no such folder; it should hold the PNGs"),
    ],
)
def test_missing_files(files, missing, message):
    files.evaluate()
    (files.root / missing).rename(files.root / "elsewhere")
    with pytest.raises(EvaluationError, match=message):
        files.evaluate_as_is()


def test_a_folder_is_no_json(files):
    files.evaluate()
    with pytest.raises(EvaluationError, match=r"gt: this is a folder; name the JSON itself; there is none in it"):
        evaluate_panoptic(files.root / "gt", files.root / "gt", files.root / "pred.json", files.root / "pred")


def test_a_numba_that_cannot_be_imported_is_as_none(plain_files, tmp_path, monkeypatch):
    (tmp_path / "numba.py").write_text('raise ImportError("Numba needs NumPy 2.x or less")')
    for name in ("numba", "panoptic_detr.id_runs.kernels"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(panoptic, "MANY", 0)
    monkeypatch.setattr(panoptic, "can_read_runs", can_read_runs.__wrapped__)
    assert plain_files.evaluate().all.pq == 1.0
