"""The predict job on films and on folders of frames."""

import json
import multiprocessing
import os
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands.prediction_helpers import predictions, run_share, times, tree
from training.process_helpers import in_processes

from panoptic_detr.commands import evaluate, predict
from panoptic_detr.data.scenes import write_films
from panoptic_detr.errors import ConfigError, DataError, PictureError


def test_a_folder_of_frames_as_a_film(checkpoint, tmp_path, capsys):
    write_films(tmp_path / "films", 1, frames=3, size=48, workers=1)
    frames = str(tmp_path / "films" / "train" / "0000")
    arguments = [str(checkpoint), frames, "--device", "cpu", "--output", str(tmp_path / "out.mp4"), "--track", "--fps", "5"]
    assert predict.main(arguments) == 0
    assert "frames: 3, " in capsys.readouterr().out
    content, _ = predictions(tmp_path / "out")
    assert [i["file_name"] for i in content["images"]] == ["0000/000000.png", "0000/000001.png", "0000/000002.png"]
    assert (tmp_path / "out.mp4").stat().st_size > 500
    assert (
        predict.main([str(checkpoint), str(tmp_path / "out.mp4"), "--device", "cpu", "--output", str(tmp_path / "again")]) == 0
    )
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["overlays.mp4", "panoptic", "predictions.json"]
    with pytest.raises(ConfigError, match="films are predicted without --like, --recursive and --explain"):
        predict.main([*arguments, "--explain"])
    before = times(tmp_path)
    assert predict.main(arguments) == 0
    assert "nothing to do: all 3 predictions" in capsys.readouterr().out
    with pytest.raises(DataError, match="finished with other track"):
        predict.main([argument for argument in arguments if argument != "--track"])
    with pytest.raises(DataError, match="finished with other fps: 5 then, 6 now"):
        predict.main([*arguments, "--fps", "6"])
    with pytest.raises(ConfigError, match=r"out\.mp4 would be written over a film that is read"):
        predict.main([str(checkpoint), str(tmp_path / "out.mp4"), "--output", str(tmp_path / "out.mp4")])
    assert times(tmp_path) == before
    (tmp_path / "mine.mp4").write_bytes(b"of a camera")
    with pytest.raises(ConfigError, match=r"mine\.mp4 is there, and not of these predictions"):
        predict.main([str(checkpoint), str(tmp_path / "out.mp4"), "--output", str(tmp_path / "mine.mp4")])
    assert (tmp_path / "mine.mp4").read_bytes() == b"of a camera"
    (tmp_path / "out.mp4").unlink()
    assert predict.main(arguments) == 0
    assert (tmp_path / "out.mp4").stat().st_size > 500


@pytest.fixture
def films(tmp_path):
    """Two drawn films as folders of frames, two broken ones, and something else."""
    write_films(tmp_path / "set", 2, frames=3, size=48, split="val", workers=1)
    (tmp_path / "set" / "val" / "0010.mp4").write_bytes(b"no film")
    (tmp_path / "set" / "val" / "notes").mkdir()
    (tmp_path / "set" / "val" / "0002").mkdir()
    (tmp_path / "set" / "val" / "0002" / "000000.png").write_bytes(b"no frame")
    return tmp_path / "set"


def test_films_of_a_folder_are_predicted_and_scored_in_one_call(checkpoint, films, tmp_path, capsys):
    arguments = [str(checkpoint), str(films / "val"), "--device", "cpu", "--track", "--output"]
    assert predict.main([*arguments, str(tmp_path / "out")]) == 1
    told = capsys.readouterr()
    assert "frames: 6, " in told.out
    assert f"{films}/val/0010.mp4: not a film that OpenCV can read" in told.err
    assert f"{films}/val/0002/000000.png: not a readable image" in told.err
    failures = json.loads((tmp_path / "out" / "failures.json").read_text())
    assert [(failure["path"], failure["image_id"]) for failure in failures] == [
        (f"{films}/val/0010.mp4", 4),
        (f"{films}/val/0002/000000.png", 3000001),
    ]
    assert sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir()) == ["0000.mp4", "0001.mp4"]
    content, entries = predictions(tmp_path / "out")
    assert [(i["id"], i["file_name"]) for i in content["images"]][::3] == [
        (1000001, "0000/000000.png"),
        (2000001, "0001/000000.png"),
    ]
    assert entries[2000003]["file_name"] == "0001/000002.png"
    truth = ["--gt-json", str(films / "annotations" / "panoptic_val.json"), "--gt-folder", str(films / "panoptic_val")]
    results = ["--pred-json", str(tmp_path / "out" / "predictions.json"), "--pred-folder", str(tmp_path / "out" / "panoptic")]
    assert evaluate.main([*truth, *results, "--films", "--windows", "1", "3"]) == 0
    assert "2 films, 6 frames" in capsys.readouterr().out
    for frame in ("000000", "000001"):
        shutil.copy(films / "val" / "0001" / f"{frame}.png", films / "val" / "0002" / f"{frame}.png")
    drawn = times(tmp_path / "out" / "overlays")
    assert predict.main([*arguments, str(tmp_path / "out")]) == 1  # the mended one, and nothing else
    content, _ = predictions(tmp_path / "out")
    assert [i["id"] for i in content["images"]] == [1000001, 1000002, 1000003, 2000001, 2000002, 2000003, 3000001, 3000002]
    assert times(tmp_path / "out" / "overlays").items() > drawn.items()
    with pytest.raises(ConfigError, match=r"these are 3 \(each folder of frames is one\); name a folder"):
        predict.main([*arguments, str(tmp_path / "all.mp4")])
    deeper = r"no film in this folder: .*, each of them a film; there are some in its panoptic_val and val: name such a folder$"
    with pytest.raises(DataError, match=deeper):
        predict.main([str(checkpoint), str(films), "--track", "--output", str(tmp_path / "none")])
    for missing, says in ((films / "val" / "notes", "no film in this folder"), (films / "*.avi", "no film has such a name")):
        with pytest.raises(DataError, match=says):
            predict.main([str(checkpoint), str(missing), "--track", "--output", str(tmp_path / "none")])
    with pytest.raises(PictureError, match=r"none of the films could be read:\n  .*a\.mp4: there is no such film"):
        predict.main([str(checkpoint), "a.mp4", "b.mp4", "--output", str(tmp_path / "none")])
    assert not (tmp_path / "none").exists()


def write_film(path, frames):
    film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 5, (48, 48))
    for number in range(frames):
        film.write(np.full((48, 48, 3), 40 * number, np.uint8))
    film.release()


def test_finished_films_that_have_changed_are_told(checkpoint, tmp_path, capsys):
    write_films(tmp_path / "set", 2, frames=2, size=48, split="val", workers=1)
    val, film = tmp_path / "set" / "val", tmp_path / "set" / "val" / "0002.avi"
    write_film(film, 2)
    arguments = [str(checkpoint), str(val), "--device", "cpu", "--track", "--output", str(tmp_path / "out")]

    def told(status):
        assert predict.main(arguments) == status
        said = capsys.readouterr()
        return said.out + said.err

    assert "frames: 6" in told(0)
    assert "nothing to do: all 6" in told(0)
    before = times(tmp_path / "out" / "overlays")
    more = Path(shutil.copy(val / "0001" / "000001.png", val / "0001" / "000002.png"))
    assert re.search(
        r"/val/0001: this film has changed since it was predicted; choose another output folder than .*out\n", told(1)
    )
    more.unlink()
    assert "frames: 6" in told(0)
    assert "nothing to do: all 6" in told(0)
    film.write_bytes(b"x")
    assert "/val/0002.avi: not a film that OpenCV can read" in told(1)
    write_film(film, 3)
    assert "/val/0002.avi: this film has changed since it was predicted" in told(1)
    assert times(tmp_path / "out" / "overlays") == before


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that start as copies")
def test_two_processes_share_films(checkpoint, films, tmp_path):
    arguments = [str(checkpoint), str(films / "val"), "--device", "cpu", "--track", "--no-overlays", "--output"]
    statuses = multiprocessing.get_context("fork").Array("i", 2)
    in_processes(2, run_share, [*arguments, str(tmp_path / "two")], statuses)
    assert list(statuses) == [1, 0]
    assert predict.main([*arguments, str(tmp_path / "one")]) == 1
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
