"""Films of COCO files are found, ordered, scored and shown."""

import json
import shutil

import numpy as np
import pytest

from panoptic_detr.commands.evaluate import main
from panoptic_detr.data.scenes import write_films
from panoptic_detr.errors import EvaluationError
from panoptic_detr.evaluation import evaluate_films
from panoptic_detr.segment_maps import read_id_png, write_id_png


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Drawn films, and predictions in which the first frame of each has other ids, and the order of the JSON is another."""
    root = tmp_path_factory.mktemp("films")
    truth = write_films(root, 2, frames=3, size=48, split="val", workers=1)
    content = json.loads(truth.read_text())
    shutil.copytree(root / "panoptic_val", root / "predicted")
    for row in content["annotations"]:
        if row["file_name"].endswith("000000.png"):
            path = root / "predicted" / row["file_name"]
            write_id_png(path, np.where(ids := read_id_png(path), ids + 1000, 0))
            for segment in row["segments_info"]:
                segment["id"] += 1000
    content["annotations"].reverse()
    content["images"].reverse()
    (root / "predictions.json").write_text(json.dumps(content))
    return {
        "gt_json": truth,
        "gt_folder": root / "panoptic_val",
        "pred_json": root / "predictions.json",
        "pred_folder": root / "predicted",
    }


def test_films_are_folders_and_frames_follow_their_names(films):
    result = evaluate_films(**films, windows=(1, 2, 3))
    assert (result.films, result.frames.images) == (2, 6)
    assert result.windows[1].all.pq == 1.0
    assert {count: scores.images for count, scores in result.windows.items()} == {1: 6, 2: 4, 3: 2}
    # Over 3 frames a tube has its id in 2 of them, IoU 2/3 about, and a wrong one in the other: RQ = 1 / (1 + 1/2).
    assert result.windows[3].all.sq == pytest.approx(2 / 3, abs=0.01)
    assert result.windows[3].all.rq == pytest.approx(2 / 3)
    assert result.sq == 1.0
    assert result.aq == pytest.approx((2 / 3) ** 2 + (1 / 3) ** 2, abs=0.01)
    one = evaluate_films(**films, films=["0001"], windows=(1,))
    assert (one.films, one.frames.images) == (1, 3)
    with pytest.raises(EvaluationError, match=r"no film '2'; there are '0000', '0001'"):
        evaluate_films(**films, films=["2"])
    for workers in (1.5, 0, "2"):
        with pytest.raises(EvaluationError, match="workers must be at least 1, a whole number, but is"):
            evaluate_films(**films, workers=workers)


def copied(films, root, change):
    """The same with another truth: `change` gets its content and its folder."""
    content = json.loads(films["gt_json"].read_text())
    shutil.copytree(films["gt_folder"], root / "truth")
    change(content, root / "truth")
    (root / "truth.json").write_text(json.dumps(content))
    return {**films, "gt_json": root / "truth.json", "gt_folder": root / "truth"}


def rename(content, folder, name):
    for row in content["annotations"]:
        film, frame = row["file_name"].split("/")
        target = name(film, int(frame.removesuffix(".png")))
        (folder / row["file_name"]).rename(folder / target)
        row["file_name"] = target


def test_frames_follow_the_numbers_in_their_names(films, tmp_path):
    numbers = {0: 1, 1: 2, 2: 10}
    others = copied(films, tmp_path, lambda *place: rename(*place, lambda film, frame: f"{film}/frame_{numbers[frame]}.png"))
    assert evaluate_films(**others, windows=(2,)).vpq == evaluate_films(**films, windows=(2,)).vpq


def test_films_in_one_folder_are_told_apart_by_their_video_id(films, tmp_path):
    def flat(content, folder):
        rename(content, folder, lambda film, frame: f"{film}{9 - frame}.png")
        for row in content["images"]:
            row |= {"video_id": row["id"] // 3, "frame_id": row["id"] % 3}

    others = copied(films, tmp_path, flat)
    assert evaluate_films(**others) == evaluate_films(**films)
    assert evaluate_films(**others, films=["1"]) == evaluate_films(**films, films=["0001"])
    content = json.loads(others["gt_json"].read_text())
    for row in content["images"]:
        del row["video_id"]
    others["gt_json"].write_text(json.dumps(content))
    one = evaluate_films(**others)
    assert one.films == 1
    assert "all frames lie in one folder and count as one film; where" in one.frames.notes[0]


def test_films_have_the_notes_of_images_and_no_false_ones(films, tmp_path):
    def wrong(content, _):
        content["annotations"][-1]["segments_info"][0]["area"] = 1

    others = copied(films, tmp_path, wrong)
    (note,) = evaluate_films(**others, films=["0001"]).frames.notes
    assert note.startswith("segments whose area in the JSON is wrong; their pixels count: 1 (truth.json image ")
    assert evaluate_films(**films, films=["0001"]).frames.notes == ()
    content = json.loads(films["pred_json"].read_text())
    content["annotations"] = [row for row in content["annotations"] if row["file_name"].startswith("0001")]
    (tmp_path / "part.json").write_text(json.dumps(content))
    assert evaluate_films(**{**films, "pred_json": tmp_path / "part.json"}, films=["0001"]).frames.notes == ()


def predicted_as(films, place, name, keep=""):
    """The predictions of the films whose names begin so, their frames under other file names and ids from 0."""
    content = json.loads(films["pred_json"].read_text())
    content["images"] = [row for row in reversed(content["images"]) if row["file_name"].startswith(keep)]
    content["annotations"] = [row for row in reversed(content["annotations"]) if row["file_name"].startswith(keep)]
    for number, (image, annotation) in enumerate(zip(content["images"], content["annotations"], strict=True)):
        film, frame = image["file_name"].split("/")
        image["file_name"] = name(film, frame)
        image["id"] = annotation["image_id"] = number
    place.write_text(json.dumps(content))
    return {**films, "pred_json": place}


def test_a_film_is_not_scored_against_the_truth_of_another(films, tmp_path):
    def one_film(content, _):
        for key in ("images", "annotations"):
            content[key] = [row for row in content[key] if row["file_name"].startswith("0000")]

    only = copied(films, tmp_path, one_film)
    second = predicted_as(only, tmp_path / "a.json", lambda film, frame: f"films/{film}/{frame}", "0001")
    told = (
        r"a\.json: these are predictions of another film: image 0 is 'films/0001/000000\.png' there but '0000/000000\.png' "
        r"in .*truth\.json, and no frame of film '0000' has the same folder on both sides; predict this film from a file"
    )
    with pytest.raises(EvaluationError, match=told):
        evaluate_films(**second)
    both = predicted_as(films, tmp_path / "b.json", lambda film, frame: f"films/{film}/{frame}", "0001")
    (note, *_) = evaluate_films(**both).frames.notes  # its names tell which frames these are, whatever their ids
    assert note.startswith("images with other ids than the truth's; matched by their file names: 3 (image 3: 0 there")
    assert evaluate_films(**both, films=["0001"]).vpq == evaluate_films(**films, films=["0001"]).vpq


@pytest.mark.parametrize("by", [1, -1])
def test_frames_that_are_numbered_from_another_number_are_refused(films, tmp_path, by):
    place = tmp_path / "a.json"
    move = lambda film, frame: f"{film}/{int(frame[:6]) + by + (by < 0) * 5:06d}.png"  # noqa: E731
    shifted = predicted_as(films, place, move)
    if by < 0:  # the truth begins at 5, the predictions at 4
        content = json.loads(films["gt_json"].read_text())
        for image in content["images"]:
            image["file_name"] = f"{image['file_name'][:5]}{int(image['file_name'][5:11]) + 5:06d}.png"
        (tmp_path / "truth.json").write_text(json.dumps(content))
        shifted["gt_json"] = tmp_path / "truth.json"
    told = (
        r"a\.json: the frames of film '0000' are numbered otherwise there: the truth's are '0000/00000\d\.png' to .*, so each"
    )
    with pytest.raises(EvaluationError, match=told):
        evaluate_films(**shifted)


def test_a_film_under_a_longer_name_is_scored_and_noted(films, tmp_path):
    longer = predicted_as(films, tmp_path / "a.json", lambda film, frame: f"clip_{film}/{frame}")
    result = evaluate_films(**longer)
    assert result.vpq == evaluate_films(**films).vpq
    assert result.frames.notes == (
        "frames in another folder than the truth's; matched by their ids: 6 "
        "(image 0: 'clip_0000/000000.png', truth '0000/000000.png', image 1: 'clip_0000/000001.png', truth '0000/000001.png', "
        "image 2: 'clip_0000/000002.png', truth '0000/000002.png', ...)",
    )
    shifted = predicted_as(films, tmp_path / "b.json", lambda film, frame: f"clip_{film}/{int(frame[:6]) + 1}.png")
    with pytest.raises(EvaluationError, match="these are predictions of other images"):
        evaluate_films(**shifted)


def test_frames_whose_names_do_not_say_of_which_film_they_are_are_noted(films, tmp_path):
    same = predicted_as(films, tmp_path / "a.json", lambda film, frame: frame if film == "0000" else f"{film}/{frame}")
    result = evaluate_films(**same)
    assert result.vpq == evaluate_films(**films).vpq
    assert result.frames.notes == (
        "frames whose file names fit several films; matched by their ids: 3 "
        "(image 0: '000000.png', image 1: '000001.png', image 2: '000002.png')",
    )
    moved = predicted_as(films, tmp_path / "b.json", lambda film, frame: f"{film if frame[5] == '1' else 'x'}/{frame}")
    (note,) = evaluate_films(**moved).frames.notes
    assert note.startswith(
        "frames in another folder than the truth's; matched by their ids: 4 (image 0: 'x/000000.png', truth '0000/"
    )


def test_predictions_of_other_films_only_are_refused(films, tmp_path):
    second = predicted_as(films, tmp_path / "a.json", lambda film, frame: f"{film}/{frame}", "0001")
    told = r"a\.json: no frame of film '0000' has a prediction; .* of other films \(first: '0001/000000\.png'\); predict these"
    with pytest.raises(EvaluationError, match=told):
        evaluate_films(**second, films=["0000"])
    assert evaluate_films(**second, films=["0000", "0001"]).films == 2  # one is there, the other was missed
    second["pred_json"].write_text('{"annotations": [], "images": []}')
    with pytest.raises(EvaluationError, match="no frame of film '0000' or '0001' has a prediction; there are none at all"):
        evaluate_films(**second)


def test_the_command_shows_and_writes_them(films, tmp_path, capsys):
    places = [part for name, path in films.items() for part in (f"--{name.replace('_', '-')}", str(path))]
    assert main([*places, "--films", "--windows", "1", "3", "15", "--output", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "2 films, 6 frames" in shown
    assert "STQ" in shown
    content = json.loads((tmp_path / "out" / "films.json").read_text())
    assert set(content["windows"]) == {"1", "3"}  # no film has 15 frames
    assert content["windows"]["1"]["All"]["pq"] == 1.0
    assert content["VPQ"] == pytest.approx((1 + content["windows"]["3"]["All"]["pq"]) / 2)
    for more in (["--boundary"], ["--per-class"], ["--intervals"], ["--compare", "a.json", "b.json"]):
        with pytest.raises(SystemExit):
            main([*places, "--films", *more])
        assert "--films scores files of predictions" in capsys.readouterr().err
    assert set(content) == {"VPQ", "STQ", "AQ", "SQ", "films", "frames", "notes", "windows"}  # as docs/scores.md says
    with pytest.raises(SystemExit):
        main([*places, "--windows", "7"])
    assert "--windows are of films: give --films too" in capsys.readouterr().err
