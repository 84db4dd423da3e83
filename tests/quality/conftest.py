"""Scores are counted with NumPy, and by what is compiled where it is there."""

import pytest

from panoptic_detr.id_runs import can_read_runs
from panoptic_detr.quality import boundaries, overlaps


@pytest.fixture(autouse=True, params=["NumPy", *["compiled"] * can_read_runs()])
def _counted(request, monkeypatch):
    """In both ways."""
    for module in (boundaries, overlaps):
        monkeypatch.setattr(module, "are_kernels_loaded", lambda: request.param == "compiled")
