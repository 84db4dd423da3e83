"""What the documents say is so: links, pictures, settings files, jobs, the drawn house, public names, who is to be cited."""

import importlib.util
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from test_import_order import FLOORS

import panoptic_detr as pd
from panoptic_detr.commands.cli import JOBS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = sorted((ROOT / "tools").glob("*.py"))
SETTINGS = sorted((ROOT / "configs").rglob("*.yaml"))
FILE = re.compile(r"\b((?:configs|tools|panoptic_detr|tests)/[\w/]+\.(?:yaml|py))")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)#\s]*)(#[^)\s]*)?\)")


def by_name(path):
    return path.name


def heading_anchors(text):
    titles = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {"#" + re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_there_are_documents():
    assert {"README.md", "design.md"} <= {path.name for path in DOCUMENTS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_links_and_pictures_exist(document):
    text = document.read_text(encoding="utf-8")
    missing = []
    for target, anchor in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path = (document.parent / target) if target else document
        if not path.exists() or (anchor and anchor not in heading_anchors(path.read_text(encoding="utf-8"))):
            missing.append(target + anchor)
    assert missing == []


@pytest.mark.parametrize("document", [*DOCUMENTS, *SCRIPTS, *SETTINGS], ids=by_name)
def test_settings_files_and_scripts_exist(document):
    named = set(FILE.findall(document.read_text(encoding="utf-8")))
    assert {name for name in named if not (ROOT / name).is_file()} == set()


@pytest.mark.parametrize("document", [*DOCUMENTS, *SETTINGS], ids=by_name)
def test_commands_are_jobs(document):
    called = re.findall(r"panoptic-detr ([a-z][\w-]*)", document.read_text(encoding="utf-8"))
    assert {job for job in called if job.replace("-", "_") not in JOBS} == set()


@pytest.mark.parametrize("document", DOCUMENTS, ids=by_name)
def test_checkpoints_have_the_ending_that_training_writes(document):
    assert re.findall(r"runs/\S+\.pth", document.read_text(encoding="utf-8")) == []


def drawn_tree(document):
    """Every path in the tree that a document draws: folders end with a slash, two spaces end the names of a line."""
    (tree,) = re.findall(r"```\n(panoptic_detr/\n.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    paths, parents = set(), {}
    for line in tree.splitlines():
        depth = len(line) - len(line.lstrip())
        name = line.strip().split("  ")[0]
        parents = {at: parent for at, parent in parents.items() if at < depth}
        paths.add("".join(parents.values()) + name)
        if name.endswith("/"):
            parents[depth] = name
    return paths


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "docs" / "design.md"], ids=by_name)
def test_what_a_tree_draws_is_there(document):
    paths = drawn_tree(document)
    assert {"panoptic_detr/models/", "tools/", "configs/", "tests/"} <= paths
    assert {path for path in paths if not (ROOT / path).exists()} == set()


def test_the_tree_of_the_design_draws_every_room():
    package = ROOT / "panoptic_detr"
    rooms = {path for path in package.iterdir() if path.suffix in ("", ".py") and path.name != "__pycache__"}
    rooms |= {path.parent for path in package.rglob("*/__init__.py")}
    names = {path.relative_to(ROOT).as_posix() + "/" * path.is_dir() for path in rooms}
    assert "panoptic_detr/training/losses/" in names
    assert names - drawn_tree(ROOT / "docs" / "design.md") == set()


def test_the_floors_of_the_design_are_those_that_imports_keep():
    (drawing,) = re.findall(r"```\n([^`]*\n +▲\n[^`]*)```", (ROOT / "docs" / "design.md").read_text(encoding="utf-8"))
    floors = [line.replace("·", " ").split() for line in drawing.splitlines() if line.strip(" ▲")]
    assert [set(floor) for floor in floors] == [set(floor) for floor in FLOORS]


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_public_names_has_each_once():
    headings = re.findall(r"^### `(\w+)`$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(headings) == sorted(pd.__all__)


def test_the_page_of_public_names_says_what_the_docstrings_say(generator):
    written = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert written == generator.api_page(), "docstrings have changed: run `python docs/build.py`"


def test_the_citation_names_this_version_and_the_papers_of_the_readme():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version("panoptic-detr")
    titles = re.findall(r"title     = \{(.*)\},", (ROOT / "README.md").read_text(encoding="utf-8"))
    cited = {paper["title"] for paper in citation["references"]}
    assert len(cited) == 3
    assert cited <= {re.sub("[{}]", "", title) for title in titles}


def test_the_changelog_opens_with_what_comes_and_has_this_version():
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert titles[0] == "Unreleased"
    assert version("panoptic-detr") in titles
