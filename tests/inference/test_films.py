"""Films in and out, going on after a stop, and things that keep their ids."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest

from panoptic_detr.categories import CategoryTable
from panoptic_detr.data.scenes import make_film
from panoptic_detr.errors import DataError
from panoptic_detr.files import by_numbers
from panoptic_detr.inference import films as films_module
from panoptic_detr.inference.files import films_left_out
from panoptic_detr.inference.films import Film, open_films, predict_film, predict_films
from panoptic_detr.inference.stream import PredictionFolder
from panoptic_detr.inference.tracking import Tracker
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import measure

TABLE = CategoryTable.from_coco(
    [
        {"id": 1, "name": "round", "isthing": 1},
        {"id": 2, "name": "square", "isthing": 1},
        {"id": 9, "name": "sky", "isthing": 0},
    ]
)


def seen(*things, shape=(60, 80)):
    """A frame with boxes (category, left, top, right, bottom) on sky, numbered as they come."""
    segment_map = np.full(shape, 50, np.int32)
    kinds = {50: 9}
    for number, (category, left, top, right, bottom) in enumerate(things, start=1):
        segment_map[top:bottom, left:right] = number
        kinds[number] = category
    segments = [Segment(i, kinds[i], kinds[i] < 9, 0.9, area, box) for i, (area, box) in measure(segment_map).items()]
    return PanopticSegmentation(segment_map, segments, TABLE)


def ids(result):
    return {segment.id: segment.category_id for segment in result.segments}


def test_things_keep_their_ids_as_they_move_whatever_their_numbers():
    tracker = Tracker(TABLE)
    first = tracker.update(seen((1, 0, 0, 20, 20), (1, 40, 0, 60, 20), (2, 0, 30, 20, 50)))
    assert ids(first) == {1: 9, 2: 1, 3: 1, 4: 2}
    moved = tracker.update(seen((2, 8, 30, 28, 50), (1, 44, 0, 64, 20), (1, 6, 0, 26, 20), (1, 40, 35, 50, 45)))
    assert ids(moved) == {1: 9, 4: 2, 3: 1, 2: 1, 5: 1}
    assert [moved.segment_map[y, x] for y, x in ((10, 10), (10, 50), (40, 15), (40, 45))] == [2, 3, 4, 5]
    for segment in moved.segments:
        assert measure(moved.segment_map)[segment.id] == (segment.area, segment.box)


def test_the_class_counts_and_motion_goes_on_behind_what_hides_a_thing():
    tracker = Tracker(TABLE, patience=2)
    for left in (0, 6):
        tracker.update(seen((1, left, 0, left + 10, 10)))
    assert set(ids(tracker.update(seen((2, 12, 0, 22, 10))))) == {1, 3}  # a thing of another class
    tracker.update(seen())
    assert set(ids(tracker.update(seen((1, 24, 0, 34, 10))))) == {1, 2}
    for _ in range(3):
        tracker.update(seen())
    assert set(ids(tracker.update(seen((1, 48, 0, 58, 10))))) == {1, 4}  # forgotten


def test_a_tracker_that_recalls_goes_on_as_one_that_was_never_stopped():
    frames = [seen((1, 2 * i, 0, 2 * i + 12, 12), (1, 60 - 3 * i, 30, 75 - 3 * i, 45)) for i in range(6)]
    whole, after = Tracker(TABLE), Tracker(TABLE)
    expected = [whole.update(frame) for frame in frames]
    for frame in expected[:3]:
        after.recall(frame)
    for frame, result in zip(frames[3:], expected[3:], strict=True):
        assert np.array_equal(after.update(frame).segment_map, result.segment_map)


class Bright:
    """A model that takes what is bright for a thing."""

    categories, batch_size = TABLE, 2

    def __init__(self):
        self.frames = 0

    def __call__(self, pictures):
        self.frames += len(pictures)
        return [self.look(picture) for picture in pictures]

    def look(self, picture):
        count, labels = cv2.connectedComponents((picture[..., 0] > 128).astype(np.uint8))
        order = np.arange(count)
        order[1:] = order[1:][::-1] if self.frames % 4 else order[1:]  # numbers mean nothing
        segment_map = order[labels].astype(np.int32)
        found = measure(segment_map).items()
        return PanopticSegmentation(segment_map, [Segment(i, 1, True, 0.5, *row) for i, row in found], TABLE)


def write_frames(folder, count):
    folder.mkdir(parents=True)
    for i in range(count):
        picture = np.zeros((48, 64, 3), np.uint8)
        picture[5:20, 2 * i : 2 * i + 14] = picture[30:40, 40 - 2 * i : 55 - 2 * i] = 255
        cv2.imwrite(str(folder / f"{i}.png"), picture)
    return Film.open(folder, 10)


def run(film, folder, output, **options):
    model = Bright()
    with PredictionFolder(folder, TABLE, overlays=False) as results:
        predict_film(model, film, results, output, tracker=Tracker(TABLE), **options)
        return model.frames, [results.recall(file).segment_map for file, _ in film.frames() if file in results]


@pytest.mark.parametrize("ending", [".avi", ".mp4"])
def test_a_film_that_was_stopped_goes_on_and_is_the_same(tmp_path, monkeypatch, ending):
    film = write_frames(tmp_path / "frames", 7)
    frames, expected = run(film, tmp_path / "whole", tmp_path / f"whole{ending}")
    assert (frames, len(expected)) == (7, 7)
    assert all(result[10, 2 * i + 7] == expected[0][10, 7] > 0 for i, result in enumerate(expected))
    requests, hidden, out = [], [], tmp_path / f"out{ending}"

    writer, code = cv2.VideoWriter, cv2.VideoWriter.fourcc

    class Watched:
        fourcc = staticmethod(code)

        def __init__(self):
            self.inner = writer()
            self.write, self.release = self.inner.write, self.inner.release

        def open(self, name, *given):
            hidden.append(name)
            return self.inner.open(name, *given)

    monkeypatch.setattr(cv2, "VideoWriter", Watched)
    frames, _ = run(film, tmp_path / "out", out, requests=requests, watch=lambda _: requests.append(2))
    assert frames < 7
    assert not out.exists()
    rest, results = run(film, tmp_path / "out", out)
    assert frames + rest == 7
    assert (len(hidden), len(set(hidden))) == (2, 1)  # what a kill leaves is written over by the same command
    assert all(np.array_equal(*pair) for pair in zip(results, expected, strict=True))
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    again = Film.open(out)
    assert (again.count, again.frames_per_second) == (7, 10)
    numbers, pictures = zip(*((file.image_id, picture) for file, picture in again.frames()), strict=True)
    assert numbers == tuple(range(1, 8))
    assert pictures[0].shape == (384, 512, 3)  # enlarged, so that labels fit
    assert pictures[0][80, 50].astype(int).max() > 60  # a thing is drawn there


def run_all(places, folder, **options):
    films, failed = open_films(places)
    model = Bright()
    with PredictionFolder(folder, TABLE, overlays=False, made_by={}) as results:
        predict_films(model, films, results, lambda film: folder / f"{film.name}.avi", track=True, **options)
        if not options:
            results.finish(key=by_numbers)
    assert failed == []
    return model.frames


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_several_films_that_were_stopped_go_on_and_are_the_same(tmp_path):
    for name, count in (("a", 3), ("b", 5), ("c", 2)):
        write_frames(tmp_path / "films" / name, count)
    assert run_all([tmp_path / "films"], tmp_path / "whole") == 10
    assert {"a.avi", "c.avi", "panoptic/b/4.png", "predictions.json"} < tree(tmp_path / "whole").keys()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "b.avi").write_bytes(b"of other predictions")
    requests, seen = [], []
    watch = lambda result: (seen.append(result), len(seen) == 5 and requests.append(2))  # noqa: E731
    frames = run_all([tmp_path / "films"], tmp_path / "out", requests=requests, watch=watch)
    assert 5 <= frames < 8
    assert sorted(path.name for path in (tmp_path / "out").glob("*.avi")) == ["a.avi"]
    drawn = (tmp_path / "out" / "a.avi").stat().st_mtime_ns
    assert run_all([tmp_path / "films"], tmp_path / "out") == 10 - frames
    assert (tmp_path / "out" / "a.avi").stat().st_mtime_ns == drawn
    out, whole = tree(tmp_path / "out"), tree(tmp_path / "whole")
    rows, expected = (json.loads(files.pop("predictions.json"))["images"] for files in (out, whole))
    assert out == whole
    assert rows == expected
    assert [row["id"] for row in rows] == [1000001, 1000002, 1000003, *range(2000001, 2000006), 3000001, 3000002]


def test_frames_of_a_folder_follow_the_numbers_in_their_names(tmp_path):
    for number in (1, 2, 10, 100):
        cv2.imwrite(str(tmp_path / f"frame_{number}.png"), np.full((4, 6, 3), number, np.uint8))
    frames = [(file.name, file.image_id, picture[0, 0, 0]) for file, picture in Film.open(tmp_path).frames()]
    assert frames == [("frame_1", 1, 1), ("frame_2", 2, 2), ("frame_10", 3, 10), ("frame_100", 4, 100)]


def test_image_ids_of_several_films_stay_apart(tmp_path, monkeypatch):
    monkeypatch.setattr(films_module, "_MOST_FRAMES", 4)
    film = write_frames(tmp_path / "frames", 4)
    assert [file.image_id for file, _ in film.frames()] == [0, 1, 2, 3]  # alone: the numbers in their names
    frames = Film.open(film.path, number=1).frames()
    assert [next(frames)[0].image_id for _ in range(3)] == [5, 6, 7]
    with pytest.raises(DataError, match="frames: one of several films has at most 3 frames"):
        next(frames)


def test_broken_frames_are_named_and_the_others_are_predicted(tmp_path):
    film, out = write_frames(tmp_path / "frames", 5), tmp_path / "out"
    whole = cv2.imread(str(film.path / "2.png"))
    (film.path / "2.png").write_bytes(b"no frame")

    def told(film, target):
        with PredictionFolder(out, TABLE, overlays=False) as results:
            outcome = predict_films(Bright(), [film], results, lambda _: target)
            return len(results), [(failure.path, failure.image_id, failure.reason[:20]) for failure in outcome.failed]

    assert told(film, tmp_path / "film.avi") == (4, [(f"{film.path}/2.png", 2, "not a readable image")])
    assert Film.open(tmp_path / "film.avi").count == 4
    cv2.imwrite(str(film.path / "2.png"), whole)
    several = replace(film, number=3)
    assert told(several, tmp_path / "film.avi") == (9, [])  # of another film: its frames have other names
    (out / "panoptic" / "frames" / "2.png").unlink()
    assert told(several, tmp_path / "film.avi") == (9, [])  # drawn, but not whole
    assert (out / "panoptic" / "frames" / "2.png").exists()


def test_a_film_that_ends_early_is_named_with_the_frame(tmp_path):
    frames, avi, mkv = write_frames(tmp_path / "frames", 7), tmp_path / "whole.avi", tmp_path / "whole.mkv"
    run(frames, tmp_path / "one", avi)
    run(frames, tmp_path / "one", mkv)
    cut = tmp_path / "cut.avi"
    cut.write_bytes(avi.read_bytes()[: avi.stat().st_size * 2 // 3])

    def predicted(film):
        with PredictionFolder(tmp_path / film.path.suffixes[0] / film.path.stem, TABLE, overlays=False) as results:
            outcome = predict_film(Bright(), film, results, None)
            assert outcome.done == len(results)
            return outcome

    outcome = predicted(Film.open(cut, number=2))
    (failure,) = outcome.failed
    assert 2 < outcome.done < 7
    assert (failure.path, failure.image_id) == (f"{cut}/{outcome.done + 1:06d}", 2_000_001 + outcome.done)
    assert "the film ends before this frame, though it counts 7" in failure.reason
    assert predicted(Film.open(avi)).failed == []
    assert predicted(replace(Film.open(mkv), count=99)).failed == []  # guessed by a longer sound


def test_films_beside_pictures_are_told(tmp_path):
    write_frames(tmp_path / "frames", 1)
    (tmp_path / "frames" / "b.MP4").touch()
    (tmp_path / "frames" / "a.avi").touch()
    told = "left out: 2 film(s) in {}, such as a.avi; name films by themselves"
    assert films_left_out([tmp_path / "frames", tmp_path, tmp_path / "gone"]) == [told.format(tmp_path / "frames")]
    assert films_left_out([tmp_path], recursive=True) == [told.format(tmp_path)]


def test_films_that_cannot_be_used(tmp_path):
    (tmp_path / "no.mp4").write_bytes(b"no film")
    with pytest.raises(DataError, match="there is no such film"):
        Film.open(tmp_path / "gone.mp4")
    with pytest.raises(DataError, match="not a film that OpenCV can read"):
        Film.open(tmp_path / "no.mp4")
    film = write_frames(tmp_path / "frames", 2)
    with pytest.raises(DataError, match=r"films are written as \.mp4"):
        run(film, tmp_path / "out", tmp_path / "out.gif")
    cv2.imwrite(str(tmp_path / "frames" / "1.png"), np.zeros((20, 30, 3), np.uint8))
    with pytest.raises(DataError, match="the frames of a film have one size"):
        run(film, tmp_path / "out", tmp_path / "out.avi")


def test_drawn_things_move_and_keep_their_ids():
    frames = list(make_film(1, frames=6, size=64))
    rows = [{segment["id"]: segment["bbox"] for segment in frame.segments_info} for frame in frames]
    kept = set.intersection(*map(set, rows))
    assert any(len({tuple(row[i]) for row in rows}) > 3 for i in kept)
    for frame in frames:
        found = measure(frame.segment_map)
        assert {s["id"]: (s["area"], tuple(s["bbox"])) for s in frame.segments_info} == found
    again = list(make_film(1, frames=2, size=64))
    assert np.array_equal(again[1].image, frames[1].image)
    with pytest.raises(DataError, match="films need size >= 48"):
        next(make_film(0, frames=0))
