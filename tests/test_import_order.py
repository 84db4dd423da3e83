"""The house stands on itself: a room imports only from rooms below it, and no two modules import each other.

The order is read from the source, not from what happens to be loaded, so imports inside functions count as well.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GROUND = ("structures", "categories", "boxes", "segment_maps", "config", "locked_files", "checkpoints", "official_weights")
FLOORS = (
    GROUND,
    ("models", "visualization"),
    ("zoo", "data"),
    ("inference",),
    ("evaluation",),
    ("training",),
    ("tools",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module's full name and file; `tools` under the name that it is installed as."""
    found = {}
    for folder, prefix in (("panoptic_detr", "panoptic_detr"), ("tools", "panoptic_detr.tools")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((prefix, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def imports(source: str, module: str, is_package: bool, known: set[str]) -> set[str]:
    """Modules of this project that `source` imports: the exact module where one is named, else the package asked for names."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, is_package)
            found |= {name if (name := f"{base}.{alias.name}") in known else base for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return {name for name in found if name.split(".")[0] in ("panoptic_detr", "tools")}


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parents = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
    return ".".join([*parents, *([node.module] if node.module else [])])


def room(module: str) -> str:
    """`panoptic_detr.data.loading` lives in `data`, `config_reading` in `config`; the package's own `__init__` in no room."""
    parts = module.split(".")
    name = parts[1] if len(parts) > 1 and parts[0] == "panoptic_detr" else parts[0]
    return next((ground for ground in GROUND if name.startswith(f"{ground}_")), name)


def violations(graph: dict[str, set[str]]) -> list[str]:
    """One line for each import that goes up, sideways or through the front door."""
    lines = []
    for module, wanted in graph.items():
        lines += [f"{module} imports {other}: {reason}" for other in sorted(wanted) if (reason := objection(module, other))]
    return lines


def objection(module: str, other: str) -> str | None:
    here, there = room(module), room(other)
    if other.split(".")[0] == "tools":
        return "the folder is importable only in a checkout; everywhere else it is panoptic_detr.tools"
    if here == there:
        return None
    if there == "tools":
        return "nothing imports tools"
    if here in ("panoptic_detr", "tools"):  # the public names, and the scripts that use them, stand above everything
        return None
    if there == "panoptic_detr":
        return "a room imports from rooms, not from the public names"
    if there == "config" and here == "models":
        return "models take plain keyword arguments, never a config"
    homeless = [name for name in (here, there) if name not in FLOOR_OF]
    if homeless:
        return f"{homeless[0]} has no place in the order of rooms; give it one here and in docs/design.md"
    allowed = FLOOR_OF[there] < FLOOR_OF[here] or FLOOR_OF[here] == FLOOR_OF[there] == 0
    return None if allowed else f"{there} is not below {here}"


def graph_of_the_house() -> dict[str, set[str]]:
    files = modules()
    known = set(files)
    return {
        name: imports(path.read_text(encoding="utf-8"), name, path.name == "__init__.py", known) - {name}
        for name, path in files.items()
    }


def test_every_room_imports_only_from_rooms_below():
    graph = graph_of_the_house()
    assert len(graph) > 10
    assert violations(graph) == []


def test_no_circles():
    try:
        order = list(TopologicalSorter(graph_of_the_house()).static_order())
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' -> '.join(error.args[1])}")
    assert "panoptic_detr.structures" in order


def test_every_room_on_disk_has_a_place():
    rooms = {room(module) for module in modules()}
    assert rooms - {"panoptic_detr"} - set(FLOOR_OF) == set()


KNOWN = {"panoptic_detr", "panoptic_detr.data", "panoptic_detr.data.loading", "panoptic_detr.structures"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import panoptic_detr.data.loading as loading", {"panoptic_detr.data.loading"}),
        ("from panoptic_detr.data import loading", {"panoptic_detr.data.loading"}),
        ("from panoptic_detr.data import CocoPanoptic", {"panoptic_detr.data"}),
        ("from . import loading", {"panoptic_detr.data.loading"}),
        ("from .loading import collate", {"panoptic_detr.data.loading"}),
        ("from .. import structures", {"panoptic_detr.structures"}),
        ("from ..structures import Batch", {"panoptic_detr.structures"}),
        ("def f():\n    import panoptic_detr.structures", {"panoptic_detr.structures"}),
        ("import importlib\nimportlib.import_module('panoptic_detr.structures')", {"panoptic_detr.structures"}),
        ("import panoptic_detr as pd", {"panoptic_detr"}),
        ("import tools.data", {"tools.data"}),
        ("import numpy\nfrom os import path\nimport panoptic", set()),
    ],
)
def test_imports_are_read(source, expected):
    assert imports(source, "panoptic_detr.data.doctor.examine", False, KNOWN) == expected


def test_relative_imports_of_a_package_start_inside_it():
    assert imports("from .loading import collate", "panoptic_detr.data", True, KNOWN) == {"panoptic_detr.data.loading"}
    assert imports("from ..structures import Batch", "panoptic_detr.data", True, KNOWN) == {"panoptic_detr.structures"}


@pytest.mark.parametrize(
    ("module", "other", "reason"),
    [
        ("panoptic_detr.models.detr", "panoptic_detr.data.loading", "data is not below models"),
        ("panoptic_detr.visualization.draw.overlay", "panoptic_detr.models.detr", "models is not below visualization"),
        ("panoptic_detr.structures", "panoptic_detr.models.detr", "models is not below structures"),
        ("panoptic_detr.models.detr", "panoptic_detr.config.stages.reading", "never a config"),
        ("panoptic_detr.data.loading", "panoptic_detr", "not from the public names"),
        ("panoptic_detr.training.trainer", "panoptic_detr.commands.demo", "nothing imports tools"),
        ("panoptic_detr", "panoptic_detr.commands.demo", "nothing imports tools"),
        ("panoptic_detr.commands.demo", "tools.data", "everywhere else it is panoptic_detr.tools"),
        ("panoptic_detr.attic.old", "panoptic_detr.boxes", "attic has no place"),
    ],
)
def test_what_goes_the_wrong_way_is_named(module, other, reason):
    (line,) = violations({module: {other}})
    assert line.startswith(f"{module} imports {other}: ")
    assert reason in line


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("panoptic_detr.structures", "panoptic_detr.categories"),
        ("panoptic_detr.models.detr", "panoptic_detr.models.backbones.resnet"),
        ("panoptic_detr.zoo", "panoptic_detr.models.detr"),
        ("panoptic_detr.training.trainer", "panoptic_detr.evaluation.evaluate"),
        ("panoptic_detr.commands.demo", "panoptic_detr.commands.data"),
        ("panoptic_detr.commands.demo", "panoptic_detr"),
        ("panoptic_detr", "panoptic_detr.zoo"),
    ],
)
def test_what_goes_the_right_way_passes(module, other):
    assert violations({module: {other}}) == []
