"""Read settings from YAML files and the command line, strict about keys and types.

`read_config(DetectorStage, ["--config", "configs/scenes/detector.yaml", "--train.steps", "100"])` gives a `DetectorStage`.
Later files and later options win.
"""

import argparse
import difflib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, ArgumentParser

from panoptic_detr.config.types import CLASS_SETTINGS, CLASSES_FROM_DATA, type_name
from panoptic_detr.errors import ConfigError
from panoptic_detr.files import write_whole

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Stage = TypeVar("Stage")
PACKAGED = Path(str(files("panoptic_detr.configs")))  # in a checkout and in an installed package


def read_config(stage: type[Stage], argv: Sequence[str] | None = None, *, prog: str = "", description: str = "") -> Stage:
    """Read a stage's settings from `--config FILE` and `--key.name value` options.

    Args:
        stage: the dataclass to fill.
        argv: command-line arguments; those of the process by default.
        prog: name of the command in its help.
        description: what `--help` says first.

    Raises:
        ConfigError: an unreadable file, an unknown key (the message names the nearest one), a value of the wrong type (the
            message names key, expected and got), or a rule broken.
    """
    arguments = _found_configs(gather_lists(sys.argv[1:] if argv is None else argv, typed_keys(stage)))
    parser = ArgumentParser(prog=prog or None, description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; repeat it to add more")
    parser.add_class_arguments(stage, None)
    _check_arguments(stage, arguments)
    try:
        values = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        line = explain(typed_keys(stage), str(error))
        raise ConfigError(f"setting {line}" if line.startswith("'") else line) from None
    return _build(stage, values.as_dict())


def packaged_configs() -> dict[str, Path]:
    """The YAML files that come with the package by name, such as finetune/small_boxes."""
    return {path.relative_to(PACKAGED).with_suffix("").as_posix(): path for path in sorted(PACKAGED.rglob("*.yaml"))}


def _found_configs(arguments: list[str]) -> list[str]:
    """The command line with the packaged file where `--config` names one, and no such file lies here."""
    return [
        f"--config={_found_config(word.removeprefix('--config='))}"
        if word.startswith("--config=")
        else _found_config(word)
        if before == "--config"
        else word
        for before, word in zip(["", *arguments], arguments, strict=False)
    ]


def _found_config(name: str) -> str:
    packaged = name.removeprefix("configs/").removesuffix(".yaml")
    return name if Path(name).exists() else str(packaged_configs().get(packaged, name))


def read_config_or_exit(stage: type[Stage], argv: Sequence[str] | None = None, *, prog: str, description: str) -> Stage:
    """Do as `read_config` does; a wrong setting is one line on stderr and exit code 2."""
    try:
        return read_config(stage, argv, prog=prog, description=description)
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def plain(config: "DataclassInstance") -> dict[str, object]:
    """A config as nested dicts of plain values, for YAML and checkpoints."""
    return {key: _plain_value(value) for key, value in asdict(config).items()}


def save_config(config: "DataclassInstance", path: Path) -> None:
    """Write a config as YAML that `--config` reads back; whoever is killed here keeps the settings to resume with."""
    text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    write_whole(path, text.encode())


def typed_keys(stage: object, prefix: str = "") -> dict[str, object]:
    """Every dotted key of a stage, sections included, with its annotated type."""
    found: dict[str, object] = {}
    for name, kind in get_type_hints(stage).items():
        found |= {f"{prefix}{name}": kind, **(typed_keys(kind, f"{prefix}{name}.") if is_dataclass(kind) else {})}
    return found


def _check_arguments(stage: type, arguments: Sequence[str]) -> None:
    for position, argument in enumerate(arguments):
        if not argument.startswith("--") or argument in ("--help", "--"):
            continue
        name, _, value = argument[2:].partition("=")
        if name == "config":
            path = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            _check_file(stage, Path(path))
        else:
            _check_key(name, stage, "the command line")


def _check_file(stage: type, path: Path) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        _check_node(yaml.compose(text, Loader=yaml.SafeLoader), path, {})
        values = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"config file {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"config file {str(path)!r} must hold keys and values, but holds {type(values).__name__}")
    kinds = typed_keys(stage)
    for key, value in _entries(values, kinds):
        _check_key(key, stage, str(path))
        kind = kinds.get(key)
        if (is_dataclass(kind) or get_origin(kind) is dict) and not isinstance(value, Mapping):
            what = f"must hold keys and values, but holds {type(value).__name__}"
            empty = "is empty; give it settings, or leave it out"
            raise ConfigError(f"section {key!r} in {path} {empty if value is None else what}")


def _check_node(node: yaml.Node | None, path: Path, done: dict[int, bool]) -> None:
    """Refuse what YAML allows and nobody means: a key that stands twice, of which the last would win, and a part of itself."""
    if not isinstance(node, yaml.CollectionNode) or done.get(id(node)):
        return
    if id(node) in done:
        raise ConfigError(f"config file {str(path)!r}: what begins in line {_line(node)} holds itself (a YAML alias)")
    done[id(node)] = False
    pairs = node.value if isinstance(node, yaml.MappingNode) else [(None, item) for item in node.value]
    first: dict[str, int] = {}
    for key, value in pairs:
        if isinstance(key, yaml.ScalarNode) and key.value in first:
            raise ConfigError(
                f"config file {str(path)!r}: {key.value!r} stands twice, in line {first[key.value]} and in line {_line(key)}; "
                "join them, or remove one"
            )
        if isinstance(key, yaml.ScalarNode):
            first[key.value] = _line(key)
        _check_node(value, path, done)
    done[id(node)] = True


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1


def _entries(values: Mapping[object, object], kinds: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted key and value of everything in a file, sections included."""
    for name, value in values.items():
        yield f"{prefix}{name}", value
        if is_dataclass(kinds.get(f"{prefix}{name}")) and isinstance(value, Mapping):
            yield from _entries(value, kinds, f"{prefix}{name}.")


def _check_key(key: str, stage: type, where: str) -> None:
    kinds = typed_keys(stage)
    # Overrides, a dict, are checked by the builders that take them.
    if key in kinds or any(key.startswith(f"{free}.") for free, kind in kinds.items() if get_origin(kind) is dict):
        return
    name = key.rpartition(".")[2]
    if name in CLASS_SETTINGS:
        raise ConfigError(f"unknown setting {key!r} in {where}: {CLASSES_FROM_DATA}")
    if found := re.fullmatch(r"loss\.hybrid[._](weight|repeats|share|layers)", key):
        raise ConfigError(
            f"unknown setting {key!r}; did you mean 'loss.one_to_many_{found[1]}'? 'loss.hybrid' itself names a scheme: none, "
            "branch, epoch, layer or auto"
        )
    others: list[type] = stage.__subclasses__()
    for other in others:
        if key in typed_keys(other):
            job = getattr(other, "job", other.__name__)
            raise ConfigError(f"setting {key!r} in {where} belongs to {job}; run that command, or leave the setting out")
    nearest = sorted(known for known in kinds if known.rpartition(".")[2] == name) or _nearest(key, set(kinds))
    groups = "; what a model's builder takes goes under 'model.overrides', what the criterion takes under 'loss'"
    hint = f"; did you mean {nearest[0]!r}?" if nearest else f"{groups}."
    raise ConfigError(f"unknown setting {key!r} in {where}{hint} --help lists every setting")


def _nearest(key: str, keys: set[str]) -> list[str]:
    """What is meant, likeliest first: a name spelled alike in its section, an abbreviation of it, a key spelled alike."""
    section, _, name = key.rpartition(".")
    inside = {known.rpartition(".")[2]: known for known in sorted(keys) if not section or known.rpartition(".")[0] == section}
    initials = "".join(word[:1] for word in re.split("[-_]", name))
    close = [*difflib.get_close_matches(name, inside, n=1, cutoff=0.6 if section else 0.75), initials]
    dotted = sorted(known for known in keys if bool(section) == ("." in known))
    return [inside[found] for found in close if found in inside] or difflib.get_close_matches(key, dotted, n=1, cutoff=0.7)


def explain(kinds: Mapping[str, object], message: str) -> str:
    """One line for a value that the parser refused: key, what it takes, what it got; the message itself where it says else."""
    key = re.search(r'Parser key "([\w.]+)"', message)
    got = re.search(r"(?:Got value|Given value): (.*)", message)
    kind = kinds.get(key.group(1)) if key else None
    if key is not None and (is_dataclass(kind) or get_origin(kind) is dict):
        return f"section {key.group(1)!r} holds keys and values; give them one by one, as --{key.group(1)}.NAME VALUE"
    if key is None or got is None or kind is None:
        return " ".join(message.split())
    return f"{key.group(1)!r} must be {type_name(kind)}, but got {got.group(1).strip()!r}"


def _build(kind: type[Stage], values: Mapping[str, object]) -> Stage:
    built = {}
    for name, hint in get_type_hints(kind).items():
        value = values[name]
        built[name] = (
            _build(hint, value) if isinstance(hint, type) and isinstance(value, Mapping) and is_dataclass(hint) else value
        )
    return kind(**built)


def _plain_value(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(inner) for inner in value]
    return value


def gather_lists(arguments: Sequence[str], kinds: Mapping[str, object]) -> list[str]:
    """The command line with every list as one word that the parser reads, `--stuff=["sky", "road"]`.

    `--stuff sky,road`, `--stuff sky road` and `--stuff '[sky, road]'` mean the same. Words after an option that takes a list
    belong to it, up to the next option; but where the first of them has a comma or a bracket, it is the whole list.

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


def _item(kind: object) -> type | None:
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
