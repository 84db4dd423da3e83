"""Work in threads and processes: order, errors, no locks of other threads, no orphans, and a bar only where somebody looks."""

import math
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from panoptic_detr import parallel
from panoptic_detr.errors import InputError
from panoptic_detr.parallel import FEW, bounded, parallel_map, progress_bar

map_in_threads = partial(parallel_map, threads=True)


@pytest.mark.parametrize("workers", [None, 1, 2, 7])
def test_results_come_in_the_order_of_the_items(workers):
    squares = map_in_threads(lambda value: value * value, range(30), workers=workers)
    assert list(squares) == [value * value for value in range(30)]
    assert list(map_in_threads(lambda value: value, [], workers=workers)) == []


def test_threads_really_run_together():
    meeting = threading.Barrier(3, timeout=30)
    assert len(set(map_in_threads(lambda _: (meeting.wait(), threading.get_ident())[1], range(3), workers=3))) == 3


def test_one_worker_is_the_caller():
    assert set(map_in_threads(lambda _: threading.get_ident(), range(3), workers=1)) == {threading.get_ident()}


def test_the_first_failure_is_raised_and_the_rest_is_dropped():
    started = []

    def work(value):
        started.append(value)
        if value in (1, 4):
            raise ValueError(f"item {value}")
        time.sleep(0.01 * (value > 4))
        return value

    results = map_in_threads(work, range(10_000), workers=2)
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


# --- processes ---

LIMIT = 120.0


@pytest.fixture
def held_lock():
    """A lock that another thread holds, which a fork of this process would find held for ever and wait for."""
    lock, held, over = threading.Lock(), threading.Event(), threading.Event()

    def hold():
        with lock:
            held.set()
            over.wait(LIMIT)

    threading.Thread(target=hold).start()
    assert held.wait(LIMIT)
    os.register_at_fork(after_in_child=lambda: over.is_set() or lock.acquire())
    yield lock
    over.set()


@pytest.mark.usefixtures("held_lock")
def test_a_lock_that_another_thread_holds_does_not_reach_the_processes():
    assert list(parallel_map(abs, [-3, -2, 5], workers=2)) == [3, 2, 5]


def test_processes_keep_order_and_errors():
    assert list(parallel_map(math.sqrt, range(20), workers=2, chunk=3)) == [math.sqrt(value) for value in range(20)]
    with pytest.raises(ValueError, match=r"math domain error|expected a nonnegative input"):
        list(parallel_map(math.sqrt, [1, -1, 1], workers=2))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no forks that are to be trusted")
def test_forks_hold_what_the_process_holds():
    there = {"lock": threading.Lock(), "number": 5}  # cannot be sent
    forked = partial(parallel_map, lambda value: (there["number"] // value, os.getpid()), forks=True, chunk=1)
    results = list(forked([1, 2, 5] * 9, workers=2))
    assert [value for value, _ in results] == [5, 2, 1] * 9
    assert os.getpid() not in {process for _, process in results}
    with pytest.raises(ZeroDivisionError):
        list(forked([1, 0, 1], workers=2))


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no forks that are to be trusted")
def test_a_fork_that_is_ended_from_outside_is_said():
    with pytest.raises(ChildProcessError, match="ended from outside"):
        list(parallel_map(end_this, [1, 2], forks=True, workers=2))


def end_this(_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_may_have_no_children_has_no_forks(monkeypatch):
    assert parallel.can_fork() == (sys.platform == "linux")
    monkeypatch.setitem(parallel.multiprocessing.current_process()._config, "daemon", True)
    assert not parallel.can_fork()


def test_nobody_gets_thousands_of_workers(monkeypatch):
    monkeypatch.setattr(parallel, "usable_cores", lambda: 2)
    assert [bounded(workers) for workers in (0, 1, 64, 65, 9_999_999)] == [0, 1, 64, 64, 64]
    monkeypatch.setattr(parallel, "usable_cores", lambda: 128)
    assert bounded(9_999_999) == 512
    assert len(set(map_in_threads(lambda _: threading.get_ident(), range(2000), workers=9_999_999))) <= 512


def test_few_items_are_done_here_unless_processes_are_asked_for():
    assert set(parallel_map(process_id, range(FEW))) == {os.getpid()}
    assert os.getpid() not in set(parallel_map(process_id, range(FEW), workers=2))


def process_id(_):
    return os.getpid()


def tell_and_stay(path):
    """Work that never ends, and says whose it is."""
    Path(path).write_text(str(os.getpid()))
    time.sleep(1000)


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc who is alive")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_processes_die_with_their_parent_however_it_ends(tmp_path, number):
    files = [str(tmp_path / name) for name in "ab"]
    code = (
        "import sys; sys.path[:0] = sys.argv[3:]\n"
        "from panoptic_detr.parallel import parallel_map\nfrom test_parallel import tell_and_stay\n"
        "list(parallel_map(tell_and_stay, sys.argv[1:3], workers=2))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code, *files, str(Path(__file__).parent)])
    eventually(lambda: all(os.path.exists(file) and Path(file).read_text() for file in files))
    workers = [int(Path(file).read_text()) for file in files]
    assert all(map(is_alive, workers))
    parent.send_signal(number)
    parent.wait(LIMIT)
    eventually(lambda: not any(map(is_alive, workers)))


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def eventually(condition):
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_fewer_workers_than_none_are_refused():
    with pytest.raises(InputError, match="workers must be 0 or more, but got -1"):
        list(parallel_map(str, [1], workers=-1))
