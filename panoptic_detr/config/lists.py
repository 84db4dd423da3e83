"""Lists on the command line: `--stuff sky,road`, `--stuff sky road` and `--stuff '[sky, road]'` mean the same."""

import json
from collections.abc import Mapping, Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin


def gather_lists(arguments: Sequence[str], kinds: Mapping[str, object]) -> list[str]:
    """The command line with every list as one word that the parser reads, `--stuff=["sky", "road"]`.

    Words after an option that takes a list belong to it, up to the next option; but where the first of them has a comma or a
    bracket, it is the whole list.

    Args:
        arguments: the command line.
        kinds: annotated type of every option, without its dashes.
    """
    words, gathered = list(map(str, arguments)), []
    while words:
        word = words.pop(0)
        name, equals, value = word.removeprefix("--").partition("=")
        item = _item(kinds.get(name)) if word.startswith("--") else None
        if item is None:
            gathered.append(word)
            continue
        values = [value] if equals else [words.pop(0)] if words and not words[0].startswith("--") else []
        if not equals and not any("," in text or text[:1] == "[" or text == "null" for text in values):
            while words and not words[0].startswith("--"):
                values.append(words.pop(0))
        gathered.append(f"--{name}={_spelled(values, item)}" if values else word)
    return gathered


def _item(kind: Any) -> type | None:
    """The type of what a list holds, None for types that are no list: str of `list[str] | None`."""
    if get_origin(kind) in (Union, UnionType):
        return next((item for part in get_args(kind) if (item := _item(part)) is not None), None)
    return get_args(kind)[0] if get_origin(kind) is list and get_args(kind) else None


def _spelled(values: Sequence[str], item: type) -> str:
    """The list as YAML reads it; texts are quoted, so that `--stuff no,1` are words."""
    if len(values) == 1 and (values[0][:1] == "[" or values[0] == "null"):
        return values[0]
    parts = [part.strip() for text in values for part in text.split(",") if part.strip()]
    return json.dumps(parts) if item is str else f"[{', '.join(parts)}]"
