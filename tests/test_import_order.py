"""The house stands on itself: a room imports only from rooms below, through their doors; no two modules import each other.

The order is read from the source, not from what happens to be loaded, so imports inside functions count as well. A room is a
folder with an `__init__.py`, whose `__all__` names its doors: names that it hands on, or modules and rooms inside it that are
open to others. Everything else in it is its own business.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

GROUND = (
    "errors",
    "shapes",
    "boxes",
    "categories",
    "coco_classes",
    "files",
    "signals",
    "parallel",
    "segment_maps",
    "id_runs",
    "images",
    "interop",
    "panoptic",
)
FLOORS = (
    (*GROUND, "query_masks", "structures", "config"),
    ("data", "models", "quality"),
    ("visualization",),
    ("zoo",),
    ("weights",),
    ("inference",),
    ("evaluation",),
    ("exported",),
    ("training",),
    ("commands",),
    ("benchmarks",),
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def modules() -> dict[str, Path]:
    """Every module's full name and file; scripts and benchmarks stand in `tools`."""
    found = {}
    for folder in ("panoptic_detr", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


def imports(source: str, module: str, is_package: bool, known: set[str]) -> set[str]:
    """What `source` imports from this project, as far as it is named: `package.module.name`, or `package.module` alone."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, is_package)
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")) and node.args:
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
    return {name for name in found if name.split(".")[0] in ("panoptic_detr", "tools")}


def absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parents = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
    return ".".join([*parents, *([node.module] if node.module else [])])


def module_of(name: str, known: set[str]) -> str:
    """The module that an imported name comes from."""
    while name not in known and "." in name:
        name = name.rpartition(".")[0]
    return name


def room(module: str) -> str:
    """`panoptic_detr.data.loading` lives in `data`; the package's own `__init__` and the scripts in no room."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def doors(path: Path) -> set[str]:
    """What the `__all__` of an `__init__.py` names."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()


def objection(module: str, other: str) -> str | None:
    """Why `module` may not import from `other`, by the order of the rooms."""
    here, there = room(module), room(other)
    if other.split(".")[0] == "tools" and module.split(".")[0] != "tools":
        return "scripts and benchmarks exist in a checkout only"
    if here == there or module.split(".")[0] == "tools" or module == "panoptic_detr":
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


def closed_door(module: str, name: str, open_names: dict[str, set[str]]) -> str | None:
    """The first room on the way to an imported name that `module` stands outside of and that does not name the next step."""
    parts = name.split(".")
    for length in range(2, len(parts)):
        inside = ".".join(parts[:length])
        if inside in open_names and not f"{module}.".startswith(f"{inside}.") and parts[length] not in open_names[inside]:
            return f"{parts[length]!r} is not in the __all__ of {inside}"
    return None


def wanted_names() -> dict[str, set[str]]:
    """Every module with all that it imports from this project."""
    files = modules()
    return {
        name: imports(path.read_text(encoding="utf-8"), name, path.name == "__init__.py", set(files))
        for name, path in files.items()
    }


def graph_of(wanted: dict[str, set[str]]) -> dict[str, set[str]]:
    return {module: {module_of(name, set(wanted)) for name in names} - {module} for module, names in wanted.items()}


def violations(graph: dict[str, set[str]]) -> list[str]:
    """One line for each import that goes up or sideways."""
    lines = []
    for module, wanted in graph.items():
        lines += [f"{module} imports {other}: {reason}" for other in sorted(wanted) if (reason := objection(module, other))]
    return lines


def test_every_room_imports_only_from_rooms_below():
    graph = graph_of(wanted_names())
    assert len(graph) > 10
    assert violations(graph) == []


def test_other_rooms_are_entered_through_their_doors():
    open_names = {
        name: doors(path)
        for name, path in modules().items()
        if path.name == "__init__.py" and name.startswith("panoptic_detr.")
    }
    assert all(open_names.values()), "a room without an __all__"
    wanted = wanted_names()
    lines = [
        f"{module} imports {name}: {reason}"
        for module, names in wanted.items()
        for name in sorted(names)
        if (reason := closed_door(module, name, open_names))
    ]
    assert lines == []


def test_doors_lead_somewhere():
    files = modules()
    for name, path in files.items():
        if path.name != "__init__.py" or name == "panoptic_detr":
            continue
        handed_on = {
            alias.name
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.ImportFrom)
            for alias in node.names
        }
        assert {door for door in doors(path) if door not in handed_on and f"{name}.{door}" not in files} == set(), name


def test_no_circles():
    try:
        order = list(TopologicalSorter(graph_of(wanted_names())).static_order())
    except CycleError as error:
        pytest.fail(f"these modules import each other: {' -> '.join(error.args[1])}")
    assert "panoptic_detr.structures" in order


def test_every_room_on_disk_has_a_place():
    rooms = {room(module) for module in modules() if module.startswith("panoptic_detr.")}
    assert rooms - set(FLOOR_OF) == set()


def test_no_room_is_crowded_and_no_prefix_stands_for_a_folder():
    inside: dict[Path, list[str]] = {}
    for path in modules().values():
        inside.setdefault(path.parent, []).append(path.stem)
    for folder, names in inside.items():
        assert len(names) <= 16, f"{folder} shows {len(names)} files"
        words = [name.split("_")[0] for name in names if "_" in name.strip("_")]
        assert [word for word in words if words.count(word) > 2] == [], f"a prefix in {folder} wants to be a folder"
        stutters = [name for name in names if name == folder.name or name.startswith(f"{folder.name}_")]
        assert stutters == [], f"{folder} says its name twice"


KNOWN = {"panoptic_detr", "panoptic_detr.data", "panoptic_detr.data.loading", "panoptic_detr.structures"}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from panoptic_detr.structures import Batch", {"panoptic_detr.structures"}),
        ("from panoptic_detr.data import loading", {"panoptic_detr.data.loading"}),
        ("from panoptic_detr import data", {"panoptic_detr.data"}),
        ("import panoptic_detr.data.loading", {"panoptic_detr.data.loading"}),
        ("from . import loading", {"panoptic_detr.data.loading"}),
        ("from .loading import collate", {"panoptic_detr.data.loading"}),
        ("from .. import structures", {"panoptic_detr.structures"}),
        ("from ..structures import Batch", {"panoptic_detr.structures"}),
        ("def f():\n    from panoptic_detr.structures import Batch", {"panoptic_detr.structures"}),
        ("importlib.import_module('panoptic_detr.structures')", {"panoptic_detr.structures"}),
        ("import panoptic_detr as pd", {"panoptic_detr"}),
        ("import numpy\nfrom os import path\nimport panoptic", set()),
    ],
)
def test_imports_are_read(source, expected):
    assert {module_of(name, KNOWN) for name in imports(source, "panoptic_detr.data.doctor", False, KNOWN)} == expected


def test_relative_imports_of_a_package_start_inside_it():
    assert imports("from .loading import collate", "panoptic_detr.data", True, KNOWN) == {"panoptic_detr.data.loading.collate"}
    assert imports("from ..structures import Batch", "panoptic_detr.data", True, KNOWN) == {"panoptic_detr.structures.Batch"}


@pytest.mark.parametrize(
    ("module", "other", "reason"),
    [
        ("panoptic_detr.models.detr", "panoptic_detr.data.loading", "data is not below models"),
        ("panoptic_detr.quality.matching", "panoptic_detr.models.detr", "models is not below quality"),
        ("panoptic_detr.structures", "panoptic_detr.models.detr", "models is not below structures"),
        ("panoptic_detr.models.detr", "panoptic_detr.config.reading", "never a config"),
        ("panoptic_detr.data.loading", "panoptic_detr", "not from the public names"),
        ("panoptic_detr.training.trainer", "panoptic_detr.commands.demo", "commands is not below training"),
        ("panoptic_detr.commands.demo", "tools.data", "in a checkout only"),
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
        ("panoptic_detr.models.detr", "panoptic_detr.models.backbones"),
        ("panoptic_detr.zoo", "panoptic_detr.models"),
        ("panoptic_detr.training.trainer", "panoptic_detr.evaluation"),
        ("panoptic_detr.commands.demo", "panoptic_detr.commands.data"),
        ("tools.benchmarks.pq", "panoptic_detr"),
        ("panoptic_detr", "panoptic_detr.zoo"),
    ],
)
def test_what_goes_the_right_way_passes(module, other):
    assert violations({module: {other}}) == []


@pytest.mark.parametrize(
    ("module", "name", "closed"),
    [
        ("panoptic_detr.zoo", "panoptic_detr.data.collate", False),
        ("panoptic_detr.zoo", "panoptic_detr.data._pad", True),
        ("panoptic_detr.zoo", "panoptic_detr.data.inner.hidden.f", True),
        ("panoptic_detr.data.loading", "panoptic_detr.data._pad", False),
        ("panoptic_detr.data.loading", "panoptic_detr.data.inner.shown", False),
        ("panoptic_detr.data.loading", "panoptic_detr.data.inner.hidden", True),
        ("panoptic_detr.data.inner.hidden", "panoptic_detr.data.inner.hidden", False),
    ],
)
def test_doors_hold(module, name, closed):
    open_names = {"panoptic_detr.data": {"collate", "inner"}, "panoptic_detr.data.inner": {"shown"}}
    assert (closed_door(module, name, open_names) is not None) == closed
