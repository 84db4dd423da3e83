"""Read settings from YAML files and the command line, strict about keys and types.

`read_config(DetectorStage, ["--config", "configs/scenes/detector.yaml", "--train.steps", "100"])` gives a `DetectorStage`.
Later files and later options win.
"""

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, ArgumentParser

from panoptic_detr.config.checks import CLASS_SETTINGS, CLASSES_FROM_DATA
from panoptic_detr.config.types import type_name
from panoptic_detr.errors import ConfigError
from panoptic_detr.files import write_whole

Stage = TypeVar("Stage")


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
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = ArgumentParser(prog=prog or None, description=description, exit_on_error=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; repeat it to add more")
    parser.add_class_arguments(stage, None)
    _check_arguments(stage, arguments)
    try:
        values = parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise ConfigError(_explain(stage, str(error))) from None
    values.pop("config", None)
    return _build(stage, values.as_dict())


def read_config_or_exit(stage: type[Stage], argv: Sequence[str] | None = None, *, prog: str, description: str) -> Stage:
    """Do as `read_config` does; a wrong setting is one line on stderr and exit code 2."""
    try:
        return read_config(stage, argv, prog=prog, description=description)
    except ConfigError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def plain(config: Any) -> dict[str, Any]:
    """A config as nested dicts of plain values, for YAML and checkpoints."""
    return {key: _plain_value(value) for key, value in asdict(config).items()}


def save_config(config: Any, path: Path) -> None:
    """Write a config as YAML that `--config` reads back; whoever is killed here keeps the settings to resume with."""
    text = yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)
    write_whole(path, text.encode())


def known_keys(stage: type) -> Iterator[str]:
    """Every dotted key of a stage, sections included."""
    for name, kind in get_type_hints(stage).items():
        yield name
        if is_dataclass(kind):
            yield from (f"{name}.{inner}" for inner in known_keys(kind))  # type: ignore[arg-type]


def _check_arguments(stage: type, arguments: Sequence[str]) -> None:
    keys = set(known_keys(stage))
    for position, argument in enumerate(arguments):
        if not argument.startswith("--") or argument in ("--help", "--"):
            continue
        name, _, value = argument[2:].partition("=")
        if name == "config":
            path = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            _check_file(stage, Path(path))
        else:
            _check_key(name, keys, "the command line", stage)


def _check_file(stage: type, path: Path) -> None:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config file {str(path)!r} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"config file {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, Mapping):
        raise ConfigError(f"config file {str(path)!r} must hold keys and values, but holds {type(values).__name__}")
    keys = set(known_keys(stage))
    for key, kind, value in _entries(stage, values):
        _check_key(key, keys, str(path), stage)
        if (is_dataclass(kind) or getattr(kind, "__origin__", None) is dict) and not isinstance(value, Mapping):
            what = f"must hold keys and values, but holds {type(value).__name__}"
            empty = "is empty; give it settings, or leave it out"
            raise ConfigError(f"section {key!r} in {path} {empty if value is None else what}")


def _entries(kind: type, values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted key, annotated type (None for an unknown key) and value of everything in a file, sections included."""
    hints = get_type_hints(kind)
    for name, value in values.items():
        inner = hints.get(str(name))
        yield f"{prefix}{name}", inner, value
        if inner is not None and is_dataclass(inner) and isinstance(value, Mapping):
            yield from _entries(inner, value, f"{prefix}{name}.")  # type: ignore[arg-type]


def _check_key(key: str, keys: set[str], where: str, stage: type) -> None:
    if key in keys or any(key.startswith(f"{free}.") for free in _free_keys(stage)):
        return
    name = key.rpartition(".")[2]
    if name in CLASS_SETTINGS:
        raise ConfigError(f"unknown setting {key!r} in {where}: {CLASSES_FROM_DATA}")
    others: list[Any] = stage.__subclasses__()
    for other in others:
        if key in known_keys(other):
            job = getattr(other, "job", other.__name__)
            raise ConfigError(f"setting {key!r} in {where} belongs to {job}; run that command, or leave the setting out")
    same_name = sorted(known for known in keys if known.rpartition(".")[2] == name)
    nearest = same_name or _nearest(key, keys)
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


def _free_keys(stage: type) -> Iterator[str]:
    """Keys that hold a dict of anything: overrides are checked by the builders that take them."""
    hints = {key: kind for key, kind in _typed_keys(stage)}
    return (key for key, kind in hints.items() if getattr(kind, "__origin__", None) is dict)


def _typed_keys(stage: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, kind in get_type_hints(stage).items():
        yield f"{prefix}{name}", kind
        if is_dataclass(kind):
            yield from _typed_keys(kind, f"{prefix}{name}.")  # type: ignore[arg-type]


def _explain(stage: type, message: str) -> str:
    """One line for a value that the parser refused: key, what it takes, what it got."""
    key = re.search(r'Parser key "([\w.]+)"', message)
    got = re.search(r"(?:Got value|Given value): (.*)", message)
    kind = dict(_typed_keys(stage)).get(key.group(1)) if key else None
    if key is None or got is None or kind is None:
        return " ".join(message.split())
    return f"setting {key.group(1)!r} must be {type_name(kind)}, but got {got.group(1).strip()!r}"


def _build(kind: type[Stage], values: Mapping[str, Any]) -> Stage:
    hints = get_type_hints(kind)
    built = {
        name: _build(hint, values[name]) if isinstance(hint, type) and is_dataclass(hint) else values[name]
        for name, hint in hints.items()
    }
    return kind(**built)


def _plain_value(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_value(inner) for inner in value]
    return value
