"""The cells of docs/tutorial.md, one after the other as in a notebook, with fewer pictures and steps."""

import os
import re
import subprocess
import sys
from pathlib import Path

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
SHORT = "PICTURES, BOX_STEPS, MASK_STEPS, THREADS = 16, 2, 2, 1"


def cells():
    return re.findall(r"```python\n(.*?)```", TUTORIAL.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_the_tutorial_runs_from_an_export_to_a_prediction(tmp_path):
    program, shortened = re.subn(r"^PICTURES, .*$", SHORT, "\n".join(cells()), flags=re.MULTILINE)
    assert shortened == 1
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=os.environ.copy(), capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name for path in (tmp_path / "tutorial").iterdir()}
    assert made == {"photos", "set", "boxes", "masks", "scores", "pictures", "report.html", "overlay.png"}
    assert len(list((tmp_path / "tutorial" / "set" / "val").iterdir())) == 2
    assert "18 images: no defect found" in done.stdout
    assert re.search(r"^Counter\(\{.+\}\)$", done.stdout, flags=re.MULTILINE)


def test_it_has_about_a_dozen_cells():
    assert 10 <= len(cells()) <= 15
