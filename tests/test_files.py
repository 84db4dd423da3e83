"""Staged folders: whole or not at all, and what killed processes left is removed by the next one, a living one's never."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from panoptic_detr.errors import DataError
from panoptic_detr.files import (
    check_path,
    locked_folder,
    make_folder,
    none_left_empty,
    path_fault,
    read_file,
    staged_folder,
    write_whole,
)

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


@pytest.mark.parametrize("use", [check_path, make_folder, read_file, lambda path: write_whole(path, b"")])
@pytest.mark.parametrize(
    ("path", "fault"),
    [
        ("a\0b.png", "is no name that a file can have"),
        ("a/" + "b" * 256, "is no name that a file can have"),
        ("\ud800.png", "is no name that a file can have"),
        ("https://host/a.jpg", r"is an address .https., and only files of this machine are read and written: fetch it first"),
        (Path("s3://bucket/a.jpg"), r"is an address .s3."),
    ],
)
def test_what_is_no_path_is_refused_by_whoever_takes_one(tmp_path, monkeypatch, use, path, fault):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((DataError, OSError), match=fault):
        use(path)
    assert list(tmp_path.iterdir()) == []


def test_an_address_keeps_its_slashes_in_the_message():
    with pytest.raises(DataError, match=r"'https://host/a/b\.jpg' is an address"):
        check_path(Path("https://host/a/b.jpg"))


def test_odd_names_are_no_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert path_fault("exp:/a") is None
    assert path_fault(Path("exp:/a")) is None
    (tmp_path / "data:" / "x").mkdir(parents=True)
    for path in ("", ".", "C:/x", "a:b/c", "ü" * 100, "\udcff", "data://x", "x" * 255):
        assert path_fault(path) is None


def test_a_failure_leaves_no_empty_folders(tmp_path):
    def fail(made, *kept):
        make_folder(made / "c" / "d")
        for name in kept:
            write_whole(made / name, b"")
        raise ZeroDivisionError

    (tmp_path / "there").mkdir()
    for names in (["a/b"], ["there"], ["full", "kept"]):
        with pytest.raises(ZeroDivisionError), none_left_empty(tmp_path / names[0]):
            fail(tmp_path / names[0], *names[1:])
    left = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert left == ["full", "full/kept", "there", "there/c", "there/c/d"]
