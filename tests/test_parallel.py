"""Work in threads: order, errors, and a bar only where somebody looks."""

import threading

import pytest

from panoptic_detr.parallel import map_in_threads, progress_bar


@pytest.mark.parametrize("workers", [None, 1, 2, 7])
def test_results_come_in_the_order_of_the_items(workers):
    assert list(map_in_threads(lambda value: value * value, range(30), workers)) == [value * value for value in range(30)]
    assert list(map_in_threads(lambda value: value, [], workers)) == []


def test_threads_really_run_together():
    meeting = threading.Barrier(3, timeout=30)
    assert len(set(map_in_threads(lambda _: (meeting.wait(), threading.get_ident())[1], range(3), 3))) == 3


def test_one_worker_is_the_caller():
    assert set(map_in_threads(lambda _: threading.get_ident(), range(3), 1)) == {threading.get_ident()}


def test_the_first_failure_is_raised_and_the_rest_is_dropped():
    started = []

    def work(value):
        started.append(value)
        if value in (1, 4):
            raise ValueError(f"item {value}")
        return value

    results = map_in_threads(work, range(10_000), 2)
    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        list(results)
    assert len(started) < 10_000


def test_the_bar_is_silent_without_a_terminal(capsys):
    with progress_bar() as bar:
        bar.advance(bar.add_task("scoring", total=2))
    assert capsys.readouterr() == ("", "")


def test_the_bar_shows_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar() as bar:
        bar.advance(bar.add_task("scoring", total=2))
    out, err = capsys.readouterr()
    assert out == ""
    assert "scoring" in err
    with progress_bar(shown=False) as bar:
        bar.add_task("scoring", total=2)
    assert capsys.readouterr().err == ""
