"""What the documents name exists: links, pictures, settings files, jobs, and the modules in the drawn trees."""

import re
from pathlib import Path

import pytest

from panoptic_detr.commands.cli import JOBS

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
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
