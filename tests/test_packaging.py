"""`pip install .` alone gives the command with every job and the settings: the wheel is built, installed and used elsewhere."""

import ast
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from panoptic_detr.commands.cli import JOBS

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    """Standard output of a command; the test fails with everything that the command said if its status is not 0."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of what is packed, so that building leaves nothing behind in the checkout."""
    folder = tmp_path_factory.mktemp("source")
    junk = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("panoptic_detr", "tools", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=junk)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def build(kind: str, source: Path, out: Path) -> Path:
    """Build a "wheel" or an "sdist" with the build backend itself: no isolation, so nothing is downloaded."""
    run(sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_{kind}({str(out)!r})", cwd=source)
    (built,) = out.glob({"wheel": "*.whl", "sdist": "*.tar.gz"}[kind])
    return built


@pytest.fixture(scope="module")
def archive(source, tmp_path_factory) -> Path:
    return build("sdist", source, tmp_path_factory.mktemp("archive"))


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The scripts folder of a new environment with the wheel in it.

    The dependencies are this environment's own, put on the path by a .pth file. Its editable install stays inactive, because
    Python does not read the .pth files of a folder that comes from a .pth file.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder, cwd=folder)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    run(scripts / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=folder)
    packages = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    (Path(packages) / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n{sysconfig.get_path('platlib')}\n")
    return scripts


def files(*folders: str) -> set[str]:
    """Every file of the checkout under these folders but Python's caches, with "/" between folders."""
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    return {path.relative_to(ROOT).as_posix() for path in paths if "__pycache__" not in path.parts}


def test_the_wheel_holds_package_tools_and_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = files("panoptic_detr")
    expected |= {f"panoptic_detr/{name}" for name in files("tools", "configs") if not name.startswith("tools/benchmarks/")}
    assert {"panoptic_detr/py.typed", "panoptic_detr/tools/cli.py", "panoptic_detr/configs/__init__.py"} <= expected
    assert expected - names == set()
    assert not any("benchmarks" in name for name in names)
    top_level = {name.split("/")[0] for name in names}
    assert {name for name in top_level if not name.endswith(".dist-info")} == {"panoptic_detr"}
    assert any(name.endswith("dist-info/licenses/LICENSE") for name in names)


def test_the_source_archive_holds_what_the_wheel_needs(archive):
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    expected = {name for name in files("panoptic_detr", "tools", "configs") if not name.startswith("tools/benchmarks/")}
    assert expected | {"setup.py", "pyproject.toml", "LICENSE"} <= names


def test_the_package_index_would_take_both(wheel, archive):
    said = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", wheel, archive, cwd=wheel.parent)
    assert said.count("PASSED") == 2


def requirements() -> dict[str, str]:
    """Declared dependencies: name to version specifier."""
    tomllib = pytest.importorskip("tomllib")
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    parsed = [Requirement(line) for line in declared]
    return {requirement.name: str(requirement.specifier) for requirement in parsed}


def imported_at_once(path: Path) -> set[str]:
    """Packages that a module imports when it is imported itself (what functions import later may be optional)."""
    body = ast.parse(path.read_text()).body
    plain = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
    return {name.split(".")[0] for name in plain | {node.module for node in body if isinstance(node, ast.ImportFrom)}}


def test_every_package_that_is_imported_is_declared():
    paths = [path for folder in ("panoptic_detr", "tools") for path in (ROOT / folder).rglob("*.py")]
    imported = set().union(*map(imported_at_once, paths)) - set(sys.stdlib_module_names) - {"panoptic_detr", "tools"}
    assert {"torch", "cv2", "PIL", "yaml"} <= imported
    imported -= {"triton", "onnx", "openvino", "numba"}  # of modules that are imported where Triton and the extras are
    names = {package: {name.lower() for name in found} for package, found in packages_distributions().items()}
    names |= {"cv2": {"opencv-python-headless"}}
    declared = {name.lower() for name in requirements()}
    assert {package for package in imported if not names[package] & declared} == set()


@pytest.mark.parametrize(
    ("use", "name", "first"),
    [
        ("torch.serialization.safe_globals", "torch", "2.5"),
        ("cv2.IMREAD_COLOR_RGB", "opencv-python-headless", "4.11"),
    ],
)
def test_lower_bounds_have_what_is_used(use, name, first):
    assert any(use in path.read_text() for path in (ROOT / "panoptic_detr").rglob("*.py"))
    assert f">={first}" in requirements()[name]


def test_the_command_works_from_any_folder(installed, tmp_path):
    text = run(installed / "panoptic-detr", "--help", cwd=tmp_path)
    assert [line.split()[0] for line in text.splitlines() if line.startswith("  ")] == list(JOBS)


def test_the_installed_copy_is_used_with_its_configs(installed, tmp_path):
    program = (
        "import json, panoptic_detr, importlib.resources as r; top = r.files('panoptic_detr.configs');"
        "print(json.dumps([panoptic_detr.__file__, str(top),"
        " sorted(f'{d.name}/{f.name}' for d in top.iterdir() if d.is_dir() for f in d.iterdir() if f.name.endswith('.yaml'))]))"
    )
    package, configs, found = json.loads(run(installed / "python", "-c", program, cwd=tmp_path))
    assert str(installed.parent) in package
    assert str(installed.parent) in configs
    assert found == sorted(f"{path.parent.name}/{path.name}" for path in (ROOT / "configs").glob("*/*.yaml"))


def test_a_job_runs_from_another_folder(installed, tmp_path):
    run(
        installed / "panoptic-detr",
        "data",
        "scenes",
        "here",
        "--count=3",
        "--size=48",
        "--split=val",
        "--workers=1",
        cwd=tmp_path,
    )
    annotations = json.loads((tmp_path / "here" / "annotations" / "panoptic_val.json").read_text())
    assert len(annotations["images"]) == len(annotations["annotations"]) == 3
    for image in annotations["images"]:
        assert (tmp_path / "here" / "val" / image["file_name"]).is_file()
        assert (image["height"], image["width"]) == (48, 48)
    maps = {annotation["file_name"] for annotation in annotations["annotations"]}
    assert maps == {path.name for path in (tmp_path / "here").rglob("panoptic_val/*.png")}
