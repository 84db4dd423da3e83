import csv
import errno
import math

import pytest

from panoptic_detr.training.run.log import Averages, CsvLog, draw_curves, open_board, write_board


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_new_names_become_columns(tmp_path):
    log = CsvLog(tmp_path / "log.csv")
    log.write({"step": 1, "loss": 0.5})
    log.write({"step": 2, "loss": 0.25, "dense": 1.0})
    assert rows(tmp_path / "log.csv") == [
        {"step": "1", "loss": "0.5", "dense": ""},
        {"step": "2", "loss": "0.25", "dense": "1"},
    ]


def test_resume_removes_steps_that_are_done_again_and_half_a_line(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss,lr\n1,0.5,1\n2,0.4,1\n3,0.3,1\n4,0.")
    log = CsvLog(path, resume_step=2)
    log.write({"step": 3, "loss": 0.35, "lr": 1.0})
    assert [(row["step"], row["loss"]) for row in rows(path)] == [("1", "0.5"), ("2", "0.4"), ("3", "0.35")]


def test_resume_with_a_file_that_was_cut_to_nothing(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("")
    CsvLog(path, resume_step=5).write({"step": 6, "loss": 1.0})
    assert len(rows(path)) == 1


def test_a_new_run_starts_a_new_file(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n1,0.5\n")
    CsvLog(path).write({"step": 1, "loss": 2.0})
    assert [row["loss"] for row in rows(path)] == ["2"]


def test_half_a_row_is_taken_back(tmp_path, monkeypatch):
    log = CsvLog(tmp_path / "log.csv")
    log.write({"step": 1, "loss": 0.5})

    class Full:
        def __init__(self, stream):
            self.stream = stream

        def writerow(self, row):
            self.stream.write("2,0.")
            self.stream.flush()
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(csv, "writer", Full)
        for row in ({"step": 2, "loss": 0.25}, {"step": 2, "loss": 0.25, "dense": 1.0}):
            with pytest.raises(OSError, match="No space left"):
                log.write(row)
    log.write({"step": 3, "loss": 0.125, "dense": 1.0})
    assert [(row["step"], row["loss"]) for row in rows(tmp_path / "log.csv")] == [("1", "0.5"), ("3", "0.125")]


def test_averages_are_means_since_the_last_take():
    averages = Averages()
    averages.add({"loss": 1.0, "mask": 5.0})
    averages.add({"loss": 3.0})
    assert averages.take() == {"loss": 2.0, "mask": 5.0}
    averages.add({"loss": 7.0})
    assert averages.take() == {"loss": 7.0}


def test_tensorboard_gets_the_rows(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = open_board(tmp_path, 0)
    write_board(board, "scores", {"step": 3, "PQ things": 0.5})
    board.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("scores/PQ_things")] == [(3, 0.5)]


def test_losses_that_are_all_zero_are_drawn_without_a_warning(tmp_path):
    log = CsvLog(tmp_path / "log.csv")
    for step in (1, 2):
        log.write({"step": step, "lr": 0.1, "loss": 0.0, "mask_dice": math.nan})
    assert draw_curves(tmp_path).stat().st_size > 1000
