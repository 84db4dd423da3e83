"""Reading, model and writing at the same time: order, bounds, ends and errors."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from panoptic_detr.inference import flow
from panoptic_detr.inference.files import PictureFile
from panoptic_detr.inference.flow import predict_files
from panoptic_detr.inference.stream import PredictionFolder
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.parallel import map_ahead


class Even:
    """A model that sees nothing, in so many pictures at a time."""

    def __init__(self, table, batch_size=1):
        self.categories, self.batch_size, self.calls = table, batch_size, []

    def __call__(self, pictures):
        self.calls.append(len(pictures))
        return [PanopticSegmentation(np.zeros(picture.shape[:2], np.int32), [], self.categories) for picture in pictures]


class Drawn(PictureFile):
    """A picture that needs no file."""

    def read(self):
        return np.zeros((4, 5, 3), np.uint8)


def files(count):
    return [Drawn(Path(f"{i}.png"), i, str(i)) for i in range(count)]


def test_a_map_ahead_keeps_order_and_bound():
    begun, lock = [], threading.Lock()

    def work(item):
        with lock:
            begun.append(item)
        return -item

    results = map_ahead(work, iter(range(30)), threads=3, ahead=4)
    first = next(results)
    time.sleep(0.05)
    assert first == 0
    assert len(begun) <= 5
    assert list(results) == [-i for i in range(1, 30)]


def test_a_map_ahead_that_is_left_drops_what_has_not_begun():
    begun = []
    results = map_ahead(begun.append, iter(range(1000)), threads=1, ahead=2)
    next(results)
    results.close()
    assert len(begun) <= 4


def test_a_map_ahead_raises_at_the_item():
    results = map_ahead(lambda item: 1 // item, [2, 1, 0, 1], threads=2, ahead=8)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_windows_of_batches_and_what_is_there_already(tmp_path, table):
    model, seen = Even(table, batch_size=2), []
    with PredictionFolder(tmp_path, table, overlays=False) as folder:
        assert predict_files(model, files(3), folder).done == 3
        outcome = predict_files(model, files(14), folder, watch=lambda file, _: seen.append(file.image_id))
        assert (outcome.done, outcome.failed, len(folder)) == (11, [], 14)
    assert model.calls == [3, 8, 3]
    assert seen == list(range(3, 14))
    assert 0 <= outcome.waiting <= outcome.seconds
    assert 0 <= outcome.wait_share <= 1


def test_a_writer_that_fails_ends_the_run(tmp_path, table, monkeypatch):
    model = Even(table)

    def full(*_):
        raise OSError(28, "No space left on device")

    with PredictionFolder(tmp_path, table, overlays=False) as folder:
        monkeypatch.setattr(PredictionFolder, "add", full)
        with pytest.raises(OSError, match="No space left"):
            predict_files(model, files(100), folder, threads=2)
    assert len(model.calls) < 10


def test_no_more_pictures_are_held_than_is_said(tmp_path, table, monkeypatch):
    held, most, lock = [0], [0], threading.Lock()

    def count(change):
        with lock:
            held[0] += change
            most[0] = max(most[0], held[0])

    class Counted(Drawn):
        def read(self):
            count(1)
            return super().read()

    def slow(*_):
        time.sleep(0.002)
        count(-1)

    monkeypatch.setattr(PredictionFolder, "add", slow)
    pictures = [Counted(Path(f"{i}.png"), i, str(i)) for i in range(60)]
    with PredictionFolder(tmp_path, table, overlays=False) as folder:
        predict_files(Even(table), pictures, folder, threads=2)
    assert 1 < most[0] <= 2 * (1 + 2) + 3


def test_out_of_memory_is_known_by_its_words():
    assert flow.is_out_of_memory(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate"))
    assert not flow.is_out_of_memory(RuntimeError("shapes differ"))
