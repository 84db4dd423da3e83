"""The door `panoptic-detr <job>`: its help, its exit codes, and what it hands on."""

import ast
import importlib
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

from panoptic_detr.commands import cli
from panoptic_detr.errors import InputError

TOOLS = Path(cli.__file__).parent


def install(monkeypatch, job, main):
    """Put a job with this `main` behind the door."""
    module = types.ModuleType(f"panoptic_detr.commands.{job}")
    module.main = main
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "why_not", lambda name: None)


@pytest.mark.parametrize("flag", ["-h", "--help", "help"])
def test_help_lists_every_job_on_standard_output(flag, capsys):
    assert cli.main([flag]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    listed = [line.split()[0] for line in out.splitlines() if line.startswith("  ")]
    assert listed == list(cli.JOBS)


def test_no_job_is_a_usage_error_that_shows_the_help(capsys):
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: panoptic-detr <job>" in err


def test_version_is_the_installed_one(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"panoptic-detr {importlib.metadata.version('panoptic-detr')}\n"


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("train-detectors", "did you mean 'train_detector'?"),
        ("pedict", "did you mean 'predict'?"),
        ("eval", "did you mean 'evaluate'?"),
        ("frobnicate", "the jobs are train_detector, train_masks"),
        ("cli", "the jobs are"),
    ],
)
def test_an_unknown_job_names_the_nearest(typed, hint, capsys):
    assert cli.main([typed]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert hint in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("typed", ["train_detector", "train-detector"])
def test_dashes_and_underscores_mean_the_same(typed, monkeypatch):
    seen = []
    install(monkeypatch, "train_detector", lambda argv: seen.append(list(argv)))
    assert cli.main([typed, "--config", "a.yaml", "--data.root=x"]) == 0
    assert seen == [["--config", "a.yaml", "--data.root=x"]]


@pytest.mark.parametrize(("returned", "status"), [(None, 0), (0, 0), (1, 1), (3, 3)])
def test_a_jobs_status_is_the_commands_status(returned, status, monkeypatch):
    install(monkeypatch, "data", lambda argv: returned)
    assert cli.main(["data"]) == status


def raising(error):
    def main(argv):
        raise error

    return main


@pytest.mark.parametrize("error", [InputError("a.json: image 7 is broken"), FileNotFoundError("a.json: image 7 is broken")])
def test_bad_input_is_one_message_and_status_1(error, monkeypatch, capsys):
    install(monkeypatch, "evaluate", raising(error))
    assert cli.main(["evaluate"]) == 1
    assert capsys.readouterr().err == "panoptic-detr evaluate: a.json: image 7 is broken\n"


def test_the_traceback_is_there_for_those_who_ask(monkeypatch):
    install(monkeypatch, "evaluate", raising(InputError("broken")))
    monkeypatch.setenv("PANOPTIC_DETR_TRACEBACK", "1")
    with pytest.raises(InputError, match="broken"):
        cli.main(["evaluate"])


@pytest.mark.parametrize("error", [KeyError("image_id"), ValueError("expected a 4D tensor")])
def test_defects_of_the_program_keep_their_traceback(error, monkeypatch):
    install(monkeypatch, "evaluate", raising(error))
    with pytest.raises(type(error)):
        cli.main(["evaluate"])


def test_an_interrupt_has_its_own_status(monkeypatch, capsys):
    install(monkeypatch, "train_detector", raising(KeyboardInterrupt()))
    assert cli.main(["train_detector"]) == 130
    assert "interrupted" in capsys.readouterr().err


INTERRUPTED_IMPORT = """
import importlib, os, signal, sys
from panoptic_detr.tools import cli
signal.signal(signal.SIGINT, signal.default_int_handler)

def import_module(name):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(10**6): pass
    except KeyboardInterrupt:
        raise ImportError("cannot load module more than once per process")  # what NumPy's C code makes of it

importlib.import_module = import_module
sys.exit(cli.main(["train_detector"]))
"""


def test_an_interrupt_while_libraries_are_imported_is_one_line():
    done = subprocess.run([sys.executable, "-c", INTERRUPTED_IMPORT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "panoptic-detr train_detector: interrupted\n"


def test_interrupts_are_as_before_once_a_job_runs(monkeypatch):
    seen = []
    install(monkeypatch, "data", lambda argv: seen.append(signal.getsignal(signal.SIGINT)))
    before = signal.getsignal(signal.SIGINT)
    assert cli.main(["data"]) == 0
    assert seen == [before]


def test_a_parsers_exit_passes_through(monkeypatch):
    install(monkeypatch, "evaluate", raising(SystemExit(2)))
    with pytest.raises(SystemExit) as stopped:
        cli.main(["evaluate"])
    assert stopped.value.code == 2


def test_a_job_that_is_not_installed_is_said_and_does_not_break_the_help(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(cli, "_script", lambda job: tmp_path / f"{job}.py")
    (tmp_path / "data.py").write_text('"""Make, check and convert data sets.\n\nMore.\n"""\nimport does_not_exist\n')
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "Make, check and convert data sets.\n" in out
    assert "(not in this installation)" in out
    assert cli.main(["demo"]) == 2
    assert f"{tmp_path / 'demo.py'} is missing" in capsys.readouterr().err


def test_every_script_is_a_job_of_the_command_and_says_what_it_does():
    parts = tuple(f"{job}_" for job in cli.JOBS)  # benchmark_data.py is a part of benchmark.py
    paths = [path for path in TOOLS.glob("*.py") if path.stem not in ("__init__", "arguments", "cli")]
    scripts = {path.stem: path for path in paths if not path.stem.startswith(parts)}
    assert set(scripts) <= set(cli.JOBS)
    for job, path in scripts.items():
        assert cli.summary(path).endswith("."), f"{path}: the first line of the docstring must be one sentence"
        names = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
        assert "main" in names, f"{job} has no main(argv=None)"
