"""`import panoptic_detr as pd`: every public name is there, is the real one, and costs nothing before it is used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import panoptic_detr as pd

SOURCE = ast.parse(Path(pd.__file__).read_text(encoding="utf-8"))


def imported_for_type_checkers():
    (block,) = [node for node in SOURCE.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    return {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}


PROMISED = {
    "list_models",
    "build_model",
    "load_official",
    "build_criterion",
    "load_model",
    "merge_panoptic",
    "evaluate_panoptic",
    "PanopticQuality",
    "overlay",
}


def test_the_promised_names_are_public():
    assert PROMISED - set(pd.__all__) == set()


@pytest.mark.parametrize("name", pd.__all__)
def test_a_name_is_what_type_checkers_are_told(name):
    assert getattr(pd, name) is getattr(import_module(imported_for_type_checkers()[name]), name)


def test_both_lists_name_the_same():
    assert set(imported_for_type_checkers()) == set(pd.__all__) <= set(dir(pd))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'build_models'"):
        pd.build_models  # noqa: B018


def test_the_import_and_the_help_do_not_wait_for_torch():
    program = "import sys; from panoptic_detr.commands.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60).returncode == 0
