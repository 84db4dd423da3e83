"""The documentation site, and the page of public names.

    make docs                                 # the site, from these pages and the docstrings
    .venv/bin/python docs/build.py            # writes api.md anew from the docstrings

MkDocs calls the functions `on_...` (mkdocs.yml names this file). They let the pages of this folder link to files outside of it,
as they do on a code host: the README becomes the first page, settings files and the licence are copied along.
"""

import ast
import inspect
import re
import textwrap
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

import docstring_parser

import panoptic_detr as pd

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LINK_OUTSIDE = re.compile(r"\]\(\.\./([^)#\s]+)")
NAME = re.compile(r"^### `(\w+)`\n.*?(?=^##|\Z)", flags=re.MULTILINE | re.DOTALL)


def api_page() -> str:
    """The text of api.md: every public name by room, with its signature and its docstring."""
    rooms: dict[str, list[str]] = {}
    for name in pd.__all__:
        rooms.setdefault(room_of(name), []).append(name)
    lines = [
        "# Public names",
        "",
        "What `import panoptic_detr as pd` offers, as `pd.<name>`. Written by docs/build.py from the docstrings.",
        "",
    ]
    for room in sorted(rooms):
        module = import_module(f"panoptic_detr.{room}")
        lines += [f"## {room}", "", summary(module), ""]
        for name in sorted(rooms[room], key=str.lower):
            lines += [f"### `{name}`", "", *entry(name, getattr(pd, name)), ""]
    return "\n".join(lines).rstrip() + "\n"


def room_of(name: str) -> str:
    """The room that gives a public name to users: `weights` for `pd.load_official`."""
    return pd._HOME_OF[name]


def entry(name: str, thing: Any) -> Iterator[str]:
    """One public name: signature, docstring, and the methods of a class."""
    yield from ("```python", signature(name, thing), "```", "", *markdown(inspect.getdoc(thing) or ""))
    if inspect.isclass(thing):
        methods = [f"- `{line}`: {text}" for line, text in members(thing)]
        yield from ("", *methods) if methods else ()


def signature(name: str, thing: Any) -> str:
    """How a function is called, or a class is made, with types and defaults as the source has them."""
    node: Any = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    if isinstance(node, ast.FunctionDef):
        return wrapped(name, ast.unparse(node.args), f" -> {ast.unparse(node.returns)}" if node.returns else "")
    made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
    if made:
        return wrapped(name, ast.unparse(made[0].args).removeprefix("self").removeprefix(", "), "")
    fields = [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]
    return wrapped(name, ", ".join(fields), "")


def wrapped(name: str, arguments: str, result: str) -> str:
    """A call on one line, or with one argument on each line where that is too long."""
    line = f"{name}({arguments}){result}"
    if len(line) <= 100:
        return line
    inner = ast.parse(f"def f({arguments}): ...").body[0].args  # type: ignore[attr-defined]
    parts = re.split(r", (?=(?:\*{0,2}\w+(?::|=|$|,))|\*,|/)", ast.unparse(inner))
    return f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){result}"


def members(thing: type) -> Iterator[tuple[str, str]]:
    """Public methods and properties of a class and its parents of this project: how each is called, and its first sentence."""
    ours = [parent for parent in thing.__mro__ if parent.__module__.startswith("panoptic_detr.")]
    for name, member in {name: member for parent in reversed(ours) for name, member in vars(parent).items()}.items():
        if name.startswith("_") and name != "__call__":
            continue
        if isinstance(member, (property, cached_property)):
            yield name, summary(member)
        elif isinstance(member, (classmethod, staticmethod)) or inspect.isfunction(member):
            function = inspect.unwrap(getattr(member, "__func__", member))
            node: Any = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
            arguments = re.sub(r"^(self|cls)(, |$)", "", ast.unparse(node.args))
            yield f"{name}({arguments})" + (f" -> {ast.unparse(node.returns)}" if node.returns else ""), summary(function)


def summary(thing: Any) -> str:
    """The first paragraph of a docstring, on one line."""
    return " ".join((inspect.getdoc(thing) or "").partition("\n\n")[0].split())


def markdown(docstring: str) -> Iterator[str]:
    """A docstring in Google's style as Markdown: text, then a list for each section."""
    parsed = docstring_parser.parse(docstring, docstring_parser.DocstringStyle.GOOGLE)
    yield "\n\n".join(filter(None, (parsed.short_description, parsed.long_description)))
    kinds = {"param": "Args", "attribute": "Attributes"}
    for kind, title in kinds.items():
        items = [item for item in parsed.params if item.args[0] == kind]
        yield from section(title, [(item.arg_name, item.description) for item in items])
    if parsed.returns:
        yield from section("Returns", [("", parsed.returns.description)])
    yield from section("Raises", [(item.type_name or "", item.description) for item in parsed.raises])


def section(title: str, items: list[tuple[str, str | None]]) -> Iterator[str]:
    """A titled list of names and what they mean; nothing for no items."""
    if items:
        yield from ("", f"**{title}**", "")
    for name, text in items:
        yield "- " + (f"`{name}`: " if name else "") + " ".join((text or "").split())


def on_files(files: Any, config: Any) -> Any:
    """Add what lies outside of this folder: the README as the first page, and every file that a page links to."""
    from mkdocs.structure.files import File

    readme = (
        ROOT.joinpath("README.md").read_text(encoding="utf-8").replace("](docs/", "](").replace("](LICENSE", "](../LICENSE")
    )
    files.append(File.generated(config, "index.md", content=readme))
    linked = {target for page in files.documentation_pages() for target in LINK_OUTSIDE.findall(page.content_string)}
    for target in sorted(linked - {"README.md"}):
        if (ROOT / target).is_file():  # otherwise MkDocs names the page with the dead link
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
    for room in rooms():
        files.append(File.generated(config, f"rooms/{room}.md", content=f"::: panoptic_detr.{room}\n"))
    return files


def on_config(config: Any) -> Any:
    """List the rooms' pages beside the others."""
    config.nav.append({"Rooms": [f"rooms/{room}.md" for room in rooms()]})
    return config


def rooms() -> list[str]:
    """The rooms of the package, by name."""
    inside = (ROOT / "panoptic_detr").iterdir()
    return sorted(path.stem for path in inside if path.suffix in ("", ".py") and not path.name.startswith("_"))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to outside of this folder point at the copies, and let mkdocstrings show the public names."""
    if page.file.src_uri == "api.md":
        markdown = NAME.sub(r"::: panoptic_detr.\1\n\n", markdown)
    return LINK_OUTSIDE.sub(lambda link: "](" + link[1].replace("README.md", "index.md"), markdown)


if __name__ == "__main__":
    DOCS.joinpath("api.md").write_text(api_page(), encoding="utf-8")
