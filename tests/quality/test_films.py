"""VPQ and STQ of films, on frames of a few pixels whose scores are worked out in the comments."""

import numpy as np
import pytest

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import FilmQuality, PanopticQuality, Regions

COCO = [{"id": i, "name": name, "isthing": int(i < 5)} for i, name in ((1, "cat"), (2, "dog"), (5, "sky"))]


def regions(row, segments):
    """One line of digits as a map; `segments` is {id: category}, a negative category is a crowd."""
    ids = np.array([[int(digit) for digit in row]])
    return Regions.from_rows(ids, [(i, abs(c), c < 0) for i, c in segments.items() if str(i) in row], "map")


def score(films, segments, windows=(1, 2)):
    """`films` is a list of films, each a list of (predicted line, true line)."""
    quality = FilmQuality(COCO, windows=windows)
    for number, frames in enumerate(films):
        for prediction, truth in frames:
            quality.update_regions(f"film {number}", regions(prediction, segments), regions(truth, segments))
    return quality.compute()


CATS = {1: 1, 2: 1, 3: 1, 9: 5}


def test_an_id_that_changes_costs_tubes_and_association():
    # A cat of 2 pixels over two frames, under another id in the second; the sky is right.
    result = score([[("1199", "1199"), ("2299", "1199")]], CATS)
    assert result.windows[1].all.pq == 1.0
    # Over both frames: tubes of 2 pixels in a true one of 4: IoU 1/2 each, which is no match. Cat 0, sky 1.
    assert result.windows[2].per_class[1].pq == 0.0
    assert (result.windows[2].per_class[1].fp, result.windows[2].per_class[1].fn) == (2, 1)
    assert result.windows[2].all.pq == 0.5
    assert result.vpq == 0.75
    # AQ: (2/4) * (2/4) for each of the two; classes are right everywhere, so SQ is 1.
    assert result.aq == 0.5
    assert result.sq == 1.0
    assert result.stq == pytest.approx(0.5**0.5)


def test_windows_slide_over_each_film_alone():
    # Films of 3 and of 2 frames: 5 windows of one frame, 2 + 1 of two, 1 of three.
    frame = ("1199", "1199")
    result = score([[frame] * 3, [frame] * 2], CATS, windows=(1, 2, 3, 4))
    assert {count: scores.images for count, scores in result.windows.items()} == {1: 5, 2: 3, 3: 1, 4: 0}
    assert (result.vpq, result.stq, result.films) == (1.0, 1.0, 2)


def test_association_of_part_of_a_thing_of_another_class():
    # The true cat has 3 + 3 pixels, the predicted dog 2 + 2 of them: AQ = 4/6 * 4/6, whatever the class.
    # Cat: 0 of 6; dog: 0 of 4; sky: 2 of 4 (2 true ones + 2 more predicted).
    segments = {1: 1, 4: 2, 9: 5}
    result = score([[("4499", "1119")] * 2], segments)
    assert result.aq == pytest.approx(16 / 36)
    assert result.sq == pytest.approx((0 + 0 + 2 / 4) / 3)
    assert result.windows[1].per_class[1].fn == 2


def test_crowds_do_not_count_for_association_and_void_does():
    # Of the predicted cat's 4 pixels one lies on a crowd of dogs and one on void: |p| = 3, TPA = 2, |g| = 2.
    result = score([[("1111", "1130")]], {1: 1, 3: -2}, windows=(1,))
    assert result.aq == pytest.approx(2 / 2 * 2 / 3)
    assert score([[("9999", "9990")]], CATS).aq is None  # no thing


def plain_vpq(films, window):
    """Frames of a window set below each other as one picture, by `PanopticQuality`."""
    quality = PanopticQuality(COCO)
    for frames in films:
        for first in range(len(frames) - window + 1):
            sides = [np.concatenate([frame[side][0] for frame in frames[first : first + window]]) for side in (0, 1)]
            rows = [{i: row for frame in frames for i, row in frame[side][1].items()} for side in (0, 1)]
            pair = [
                Regions.from_rows(ids, [(i, *kinds[i]) for i in np.unique(ids).tolist() if i], "window")
                for ids, kinds in zip(sides, rows, strict=True)
            ]
            quality.update_regions(*pair)
    return quality.compute()


@pytest.mark.parametrize("seed", range(3))
def test_vpq_is_pq_of_frames_set_below_each_other(seed):
    generator = np.random.default_rng(seed)
    kinds = {i: (int(c), False) for i, c in zip(range(1, 7), generator.choice([1, 1, 2, 5], 6), strict=True)}
    true_kinds = {**kinds, 6: (1, True)}
    films = []
    for length in (5, 3):
        frames, ids = [], generator.integers(0, 7, (4, 5)).repeat(3, 0).repeat(3, 1)
        for _ in range(length):
            ids = np.where(generator.random(ids.shape) < 0.1, generator.integers(0, 7, ids.shape), ids)
            guess = np.where(generator.random(ids.shape) < 0.15, generator.integers(1, 7, ids.shape), ids)
            frames.append(((guess, kinds), (ids, true_kinds)))
        films.append(frames)
    quality = FilmQuality(COCO, windows=(1, 2, 4))
    parts = [FilmQuality(COCO, windows=(1, 2, 4)) for _ in films]
    for number, frames in enumerate(films):
        for sides in frames:
            pair = [Regions.from_rows(ids, [(i, *rows[i]) for i in np.unique(ids).tolist() if i], "map") for ids, rows in sides]
            quality.update_regions(str(number), *pair)
            parts[number].update_regions(str(number), *pair)
    result = quality.compute()
    for window, scores in result.windows.items():
        assert scores.per_class == plain_vpq(films, window).per_class
    assert 0.2 < result.vpq < 0.95
    parts[0].merge(parts[1])
    assert parts[0].compute() == result


def test_films_in_memory_and_refusals():
    table = CategoryTable.of(COCO)
    frame = PanopticSegmentation(np.ones((2, 3), np.int32), [Segment(1, 1, True, 1.0, 6, (0, 0, 3, 2))], table)
    quality = FilmQuality(table)
    quality.update("a", frame, frame)
    assert quality.compute().vpq == 1.0
    small = PanopticSegmentation(np.ones((2, 2), np.int32), frame.segments, table)
    with pytest.raises(EvaluationError, match="film a, frame 1, prediction is 2 x 2"):
        quality.update("a", small, frame)
    for windows in ((0, 5), (), [1.5], [True], ["5"], 5, "5", None):
        with pytest.raises(EvaluationError, match="windows must be a list of numbers of frames, whole and 1 or more, but are"):
            FilmQuality(table, windows=windows)
    assert FilmQuality(table, windows=list(np.array([5, 2]))).windows == (2, 5)
    with pytest.raises(EvaluationError, match="only another FilmQuality can be added, but got 3"):
        quality.merge(3)
    with pytest.raises(EvaluationError, match="prediction must be a PanopticSegmentation, but got array"):
        quality.update("a", frame.segment_map, frame)
    with pytest.raises(EvaluationError, match="cannot be added"):
        quality.merge(FilmQuality(table, windows=(2,)))


def test_messages_count_every_frame_of_a_film():
    table = CategoryTable.of(COCO)
    frame = PanopticSegmentation(np.ones((2, 3), np.int32), [Segment(1, 1, True, 1.0, 6, (0, 0, 3, 2))], table)
    small = PanopticSegmentation(np.ones((2, 2), np.int32), frame.segments, table)
    quality = FilmQuality(table, windows=(1,))
    for _ in range(4):
        quality.update("a", frame, frame)
    with pytest.raises(EvaluationError, match="film a, frame 5, prediction is 2 x 2"):
        quality.update("a", small, frame)
