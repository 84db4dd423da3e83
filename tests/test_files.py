"""Staged folders: whole or not at all, and what killed processes left is removed by the next one, a living one's never."""

import os
import signal
import subprocess
import sys

import pytest

from panoptic_detr.errors import DataError
from panoptic_detr.files import locked_folder, staged_folder, write_whole

STALL = """
import signal, sys
from pathlib import Path
from panoptic_detr.files import staged_folder
with staged_folder(sys.argv[1], ["train"]) as staged:
    (staged / "train").mkdir()
    (staged / "train" / "half").write_text("half")
    print("ready", flush=True)
    signal.pause()
"""


@pytest.fixture
def writer(tmp_path):
    """A process that writes a folder and never ends."""
    with subprocess.Popen([sys.executable, "-c", STALL, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_what_a_killed_process_staged_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path, writer):
    with staged_folder(tmp_path / "out", ["val"]) as staged:
        (staged / "val").mkdir()
    assert len(list(tmp_path.glob(".out.*"))) == 1  # it is still at work
    writer.send_signal(signal.SIGKILL)
    writer.wait(60)
    with staged_folder(tmp_path / "out", ["test"]) as staged:
        (staged / "test").mkdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(os.listdir(tmp_path / "out")) == ["test", "val"]


def test_nothing_is_left_of_a_folder_that_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), staged_folder(tmp_path / "out", ["a"]) as staged:
        (staged / "a").write_text(str(1 / 0))
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("")
    with pytest.raises(DataError, match="is there already"), staged_folder(tmp_path / "out", ["a"]):
        raise AssertionError("nobody may come here")


def test_a_folder_is_no_file_to_write(tmp_path):
    for path in (tmp_path, str(tmp_path), ""):
        with pytest.raises(DataError, match="is a folder; name the file"):
            write_whole(path, b"")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_one_processes_at_a_time(tmp_path):
    with locked_folder(tmp_path / "run"):
        code = "import sys; from pathlib import Path; from panoptic_detr.files import locked_folder\n"
        code += "with locked_folder(Path(sys.argv[1])): pass"
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path / "run")], capture_output=True, text=True)
        assert "BlockingIOError" in other.stderr
    assert list(tmp_path.iterdir()) == []
