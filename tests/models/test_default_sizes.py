"""Every model with its defaults: it builds, and docs/detectors.md says how large it is."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from panoptic_detr import build_model, list_models
from panoptic_detr.zoo import BUILDERS, ModelSpec

PAGE = Path(__file__).resolve().parents[2] / "docs" / "detectors.md"


class Uninitialised(TorchDispatchMode):
    """Leaves out every operation that fills a tensor: most of the time that a model without memory takes to build."""

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        in_place = operation._schema.name.endswith("_")
        return arguments[0] if in_place else operation(*arguments, **(options or {}))


def build(name):
    if "swin" in name:
        pytest.importorskip("timm")
    with torch.device("meta"), Uninitialised():
        return build_model(name)


def sizes_of_the_page():
    """Name to parameters in millions, as the table of families says them."""
    sizes = {}
    for row in re.findall(r"^\| (`.+?) \| .+? \| (.*?) \| .+? \|$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE):
        names, millions = re.findall(r"`(\S+)`", row[0]), re.findall(r"([\d.]+)M", row[1])
        family = "h_deformable_detr" if names[0].startswith("h_") else "deformable_detr_r50"
        if millions:
            full = [family + name.removeprefix("...") if name.startswith(("_", "...")) else name for name in names]
            sizes.update(zip(full, map(float, millions), strict=True))
    return sizes


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_with_its_defaults(name):
    model = build(name)
    assert model.spec == ModelSpec(name, 250 if name.endswith("_panoptic") else 91)


def test_the_page_names_every_detector():
    assert sizes_of_the_page().keys() == BUILDERS.keys()


@pytest.mark.parametrize("name", BUILDERS)
def test_the_page_says_how_large_a_detector_is(name):
    millions = sum(parameter.numel() for parameter in build(name).parameters()) / 1e6
    assert sizes_of_the_page()[name] == round(millions, 1)


def test_the_page_says_what_the_one_to_many_queries_take():
    content = build("h_deformable_detr_r50").queries.query_embed.weight[300:]  # (1500, D)
    assert f"hold {content.numel() / 1e6:.1f}M for the" in PAGE.read_text(encoding="utf-8")
