"""The gallery's commands can be run as they stand, and make the pictures that it shows."""

import re
import shlex
from pathlib import Path

import cv2
import pytest

from panoptic_detr.commands import visualize

DOCS = Path(__file__).resolve().parents[2] / "docs"
TEXT = (DOCS / "gallery.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^panoptic-detr visualize (.+)$", TEXT, flags=re.MULTILINE)
PICTURES = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", TEXT)


def test_every_job_has_a_figure():
    assert {command.split()[0] for command in COMMANDS} == set(visualize.JOBS) - {"fiftyone"}  # whose pictures are its own
    assert len(PICTURES) >= 14


@pytest.mark.parametrize("command", COMMANDS, ids=[" ".join(command.split()[:2]) for command in COMMANDS])
def test_a_command_parses_and_draws_with_the_demos_model(command):
    options = visualize.parse(shlex.split(command))
    root = getattr(options, "root", None)
    assert root is None or root == Path("demo/scenes")
    assert getattr(options, "model", "demo/masks/best.pt") == "demo/masks/best.pt"


@pytest.mark.parametrize("picture", PICTURES)
def test_a_picture_opens_and_is_made_by_a_command(picture):
    path = DOCS / picture
    if path.suffix == ".svg":
        assert path.read_text(encoding="utf-8").startswith("<svg")
    else:
        image = cv2.imread(str(path))
        assert image is not None, f"{path} is missing"
        assert image.std() > 5, "it shows something"
    outputs = re.findall(r"(?:--output |--screenshot=)docs/(\S+)", TEXT)
    assert any(picture == output or picture.startswith(f"{output}/") for output in outputs)


def test_the_pictures_are_small():
    total = sum(path.stat().st_size for path in (DOCS / "images").rglob("*.*"))
    assert total < 3_000_000


def test_the_line_that_remakes_all_finds_every_command():
    pattern = re.search(r"grep -E '(.+)' docs/gallery.md", TEXT)
    assert pattern is not None
    found = [line for line in TEXT.splitlines() if re.match(pattern.group(1), line)]
    in_blocks = re.findall(r"```bash\n(.*?)```", TEXT, flags=re.DOTALL)
    assert found == [line for block in in_blocks for line in block.strip().splitlines()]
