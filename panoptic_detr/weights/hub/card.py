"""The model card: `README.md` of a repository, written from what is known notes a model and its run."""

import csv
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any

import yaml  # type: ignore[import-untyped]

from panoptic_detr.errors import InputError
from panoptic_detr.weights.checkpoints import Checkpoint
from panoptic_detr.zoo import makes_maps

Known = dict[str, Any]  # fields of `ModelNotes`
PICTURE = "prediction.jpg"
LICENSES = frozenset(  # identifiers of https://huggingface.co/docs/hub/repositories-licenses; of single models' there are more
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0 bigscience-openrail-m bsd "
    "bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 "
    "cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 "
    "cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 "
    "epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr lppl-1.3c mit "
    "mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 other pddl postgresql unknown unlicense wtfpl "
    "zlib".split()
)
GROUPS = ("All", "Things", "Stuff")
SHOWN = 30  # classes that a card lists
NAMES = {"pq": "PQ", "sq": "SQ", "rq": "RQ", "ap": "box AP"}


@dataclass(frozen=True)
class ModelNotes:
    """What a card says besides the model.

    Attributes:
        name: of the model, as people write it; a repository's `organisation/name` where it has one.
        license: an identifier of the hub, such as "apache-2.0"; None writes "unknown", and the owner fills it in.
        data: what it was trained on.
        command: what trained it.
        settings: of its training, by name.
        quality: percent by group ("All", "Things", "Stuff") and score ("pq", "sq", "rq").
        box_ap: percent; None if it was not measured.
        picture: a JPEG of a prediction; None for none.
        license_name: of a licence that the hub does not know, for which `license` is "other": an id such as "my-license-1.0".
        license_link: to its text: the address, or "LICENSE" or "LICENSE.md" for a file of the repository.

    Raises:
        InputError: a licence that the hub does not know, or only a part of one.
    """

    name: str = ""
    license: str | None = None
    data: str = ""
    command: str = ""
    settings: Mapping[str, object] = field(default_factory=dict)
    quality: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    box_ap: float | None = None
    picture: bytes | None = None
    license_name: str | None = None
    license_link: str | None = None

    def __post_init__(self) -> None:
        if self.license is not None and str(self.license) not in LICENSES:
            near = get_close_matches(str(self.license).lower(), LICENSES, 1)
            meant = f"perhaps {near[0]}; " if near else ""
            raise InputError(
                f"license {self.license!r} is no identifier of a licence that is known here; {meant}give one of "
                "https://huggingface.co/docs/hub/repositories-licenses, or other with a license name (and link)"
            )
        if (self.license == "other") != (self.license_name is not None) or (self.license_link and not self.license_name):
            raise InputError(
                f"license {self.license!r} with license name {self.license_name!r}: a licence that the hub does not know is "
                "other and has a name such as my-license-1.0, and perhaps a link; one that it knows has neither"
            )
        if self.license_name is not None and not re.fullmatch(r"[A-Za-z0-9][\w.+-]*", self.license_name):
            raise InputError(f"license name {self.license_name!r} must be one word such as my-license-1.0")
        if self.license_link and not re.fullmatch(r"LICENSE(\.md)?|https?://\S+", self.license_link):
            raise InputError(
                f"license link {self.license_link!r} must be an address (https://...), or LICENSE(.md) of the repository"
            )


def read_run(folder: str | Path) -> Known:
    """Fields of `ModelNotes` that a run's folder tells: data, command, settings, and the scores of its best validation.

    Raises:
        InputError: it is no run's folder.
    """
    folder = Path(folder)
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        parts = json.loads((folder / "run.json").read_text(encoding="utf-8"))["parts"]
        program, _, arguments = str(parts[-1]["command"]).partition(" ")
        data = settings["data"]
    except (OSError, ValueError, KeyError, IndexError, TypeError, yaml.YAMLError) as error:
        raise InputError(
            f"{folder} is no folder of a run (config.yaml and run.json): {type(error).__name__}: {error}"
        ) from None
    source = data.get("root") or data.get("train_annotations") or ""
    return {
        "data": Path(str(source)).name,
        "command": f"{PurePath(program).name} {arguments}".strip(),  # not where the program lies on somebody's disk
        "settings": _flat({key: settings.get(key) for key in ("model", "optimizer", "train", "loss")}),
        **_best_scores(folder / "scores.csv"),
    }


def read_scores(path: str | Path) -> Known:
    """Fields of `ModelNotes` that a `scores.json` of `panoptic-detr evaluate --output` tells.

    Raises:
        InputError: it is none.
    """
    try:
        scores = json.loads(Path(path).read_text(encoding="utf-8"))
        groups = {
            name: {key: 100 * float(scores[name][key]) for key in ("pq", "sq", "rq")} for name in GROUPS if name in scores
        }
        box_ap = scores.get("box_ap", {}).get("ap")
        if not groups and box_ap is None:
            raise ValueError("neither PQ nor box AP in it")
        return {"quality": groups, "box_ap": None if box_ap is None else 100 * float(box_ap)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no scores.json of `panoptic-detr evaluate --output`: {error}") from None


def write_card(checkpoint: Checkpoint, library: str, notes: ModelNotes) -> str:
    """The text of `README.md`: metadata as the hub reads it, then sentences for people.

    Args:
        checkpoint: of the model.
        library: what opens the folder: "panoptic_detr" or "transformers".
        notes: everything else that is known.
    """
    name = notes.name or checkpoint.model.name
    head = yaml.safe_dump(_metadata(checkpoint, library, notes, name), sort_keys=False, allow_unicode=True)
    parts = [
        f"---\n{head}---",
        f"# {name}",
        _what(checkpoint),
        f"![a prediction of this model]({PICTURE})" if notes.picture is not None else "",
        f"## Use\n\n```python\n{_use(checkpoint, library, name if '/' in name else 'path/of/this/folder')}\n```",
        _scores(notes),
        _training(notes),
        _classes(checkpoint),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(checkpoint: Checkpoint, library: str, notes: ModelNotes, name: str) -> dict[str, object]:
    panoptic = makes_maps(checkpoint.model.name)
    task = "image-segmentation" if panoptic else "object-detection"
    kind = "deformable-detr" if "deformable" in checkpoint.model.name else "detr"
    metadata: dict[str, object] = {
        "license": notes.license or "unknown",
        **({"license_name": notes.license_name} if notes.license_name else {}),
        **({"license_link": notes.license_link} if notes.license_link else {}),
        "library_name": "transformers" if library == "transformers" else "panoptic-detr",
        "pipeline_tag": task,
        "tags": ["panoptic-segmentation" if panoptic else "object-detection", kind, "panoptic-detr"],
    }
    values = dict(notes.quality.get("All", {})) | ({} if notes.box_ap is None else {"ap": notes.box_ap})
    if values:
        metadata["metrics"] = list(values)
        metrics = [{"type": key, "name": NAMES[key], "value": round(value, 2)} for key, value in values.items()]
        data = notes.data or "validation images"
        result = {
            "task": {"type": task},
            "dataset": {"type": re.sub(r"[^a-z0-9]+", "-", data.lower()).strip("-"), "name": data},
            "metrics": metrics,
        }
        metadata["model-index"] = [{"name": name, "results": [result]}]
    return metadata


def _what(checkpoint: Checkpoint) -> str:
    spec, size = checkpoint.model, sum(value.numel() for value in checkpoint.state_dict.values()) / 1e6
    job = "finds things and stuff and says of every pixel which" if makes_maps(spec.name) else "finds objects and their boxes"
    changed = ", ".join(f"`{key}` {value}" for key, value in spec.overrides.items())
    return (
        f"A `{spec.name}` of [panoptic-detr](https://pypi.org/project/panoptic-detr/) with {size:.1f} million values; it {job}."
        + (f" It differs from the paper's in {changed}." if changed else "")
    )


def _use(checkpoint: Checkpoint, library: str, name: str) -> str:
    panoptic = makes_maps(checkpoint.model.name)
    if library == "transformers":
        task = "image-segmentation" if panoptic else "object-detection"
        return f"from transformers import pipeline\n\nresult = pipeline({task!r}, model={name!r})('photo.jpg')"
    first = "import panoptic_detr as pd\n\n"
    if panoptic:
        return f"{first}result = pd.load_model({name!r})('photo.jpg')\nprint(result)"
    return f"{first}model = pd.load_pretrained({name!r})  # model(images, padding_mask) -> logits and boxes"


def _scores(notes: ModelNotes) -> str:
    if not notes.quality and notes.box_ap is None:
        return ""
    lines = ["## Scores", "", f"Percent, on the validation images{' of ' + notes.data if notes.data else ''}.", ""]
    if notes.quality:
        lines += ["| | PQ | SQ | RQ |", "|---|---|---|---|"]
        for group, scores in notes.quality.items():
            cells = (f"{scores[key]:.1f}" if key in scores else "-" for key in ("pq", "sq", "rq"))
            lines.append(f"| {group} | {' | '.join(cells)} |")
    if notes.box_ap is not None:
        lines += ["", f"Box AP of the things: {notes.box_ap:.1f}."]
    return "\n".join(lines)


def _training(notes: ModelNotes) -> str:
    if not notes.command and not notes.settings:
        return ""
    lines = ["## Training", ""] + ([f"On {notes.data}:", ""] if notes.data else [])
    lines += ["```", notes.command, "```"] if notes.command else []
    if notes.settings:
        rows = [f"| `{key}` | {value} |" for key, value in notes.settings.items()]
        lines += [
            "",
            "<details><summary>All settings</summary>",
            "",
            "| setting | value |",
            "|---|---|",
            *rows,
            "",
            "</details>",
        ]
    return "\n".join(lines)


def _classes(checkpoint: Checkpoint) -> str:
    if checkpoint.categories is None:
        return ""
    things, stuff = checkpoint.categories.things, checkpoint.categories.stuff
    lines = ["## Classes", ""]
    for kind, categories in (("things", things), ("kinds of stuff", stuff)):
        if categories:
            names = ", ".join(category.name for category in categories[:SHOWN])
            lines.append(f"- {len(categories)} {kind}: {names}{' and others' if len(categories) > SHOWN else ''}")
    return "\n".join(lines)


def _flat(values: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Nested settings as one level of dotted names; what is not set, and places on somebody's disk, left out."""
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", []) and key not in ("output", "root"):
            flat[f"{prefix}{key}"] = value
    return flat


def _best_scores(path: Path) -> Known:
    """Quality and box AP of the best row of a run's `scores.csv`, whose values are fractions; nothing where there is none."""
    if not path.is_file():
        return {}
    with open(path, newline="", encoding="utf-8") as stream:
        rows = [{key: float(value) for key, value in row.items() if value not in ("", "nan")} for row in csv.DictReader(stream)]
    if not rows:
        return {}
    best = max(rows, key=lambda row: row.get("PQ", row.get("box AP", 0.0)))
    found: Known = {"box_ap": 100 * best["box AP"]} if "box AP" in best else {}
    if "PQ" in best:
        whole = {key: 100 * best[name] for key, name in (("pq", "PQ"), ("sq", "SQ"), ("rq", "RQ")) if name in best}
        groups = {group: {"pq": 100 * best[f"PQ {group.lower()}"]} for group in GROUPS[1:] if f"PQ {group.lower()}" in best}
        found["quality"] = {"All": whole, **groups}
    return found
