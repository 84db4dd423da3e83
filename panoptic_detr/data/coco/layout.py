"""Where a COCO-panoptic data set lies."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from panoptic_detr.errors import DataError
from panoptic_detr.files import check_path, make_folder, safe_path

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
_ENDINGS = (*IMAGE_ENDINGS, ".tif", ".tiff", ".bmp", ".gif", ".webp")  # of pictures elsewhere


@dataclass(frozen=True)
class DataPaths:
    """Where a data set lies."""

    images: Path  # folder that the JSON's image file names refer to
    panoptic: Path  # folder of the annotation PNGs
    annotations: Path  # the JSON


def list_splits(root: str | Path) -> list[str]:
    """Names of the splits under a root in COCO's own layout: those of `annotations/panoptic_<split>.json`."""
    return sorted(path.stem.removeprefix("panoptic_") for path in (Path(root) / "annotations").glob("panoptic_*.json"))


def split_parts(split: str) -> list[str]:
    """What a split consists of, relative to its root in COCO's own layout: two folders, and the JSON that makes them count."""
    return [split, f"panoptic_{split}", f"annotations/panoptic_{split}.json"]


def check_split_name(split: str) -> None:
    """Refuse the name of a new split that is no folder name.

    Raises:
        DataError: it is empty, hidden, or has separators or letters that cannot be printed.
    """
    if not split or not split.isprintable() or any(letter in split for letter in "/\\:") or split.startswith("."):
        raise DataError(f"split {split!r} is no folder name; use a word such as train or val")


def make_split(root: Path, split: str) -> DataPaths:
    """Make the folders of a new split under its root in COCO's own layout; where its parts go."""
    images, panoptic, annotations = (root / part for part in split_parts(split))
    make_folder(annotations.parent)
    return DataPaths(make_folder(images), make_folder(panoptic), annotations)


def resolve_paths(
    root: str | Path | None = None,
    split: str | None = None,
    *,
    images: str | Path | None = None,
    panoptic: str | Path | None = None,
    annotations: str | Path | None = None,
) -> DataPaths:
    """Find a data set in COCO's own layout under `root`, or at explicit places, or a mixture (explicit ones win).

    Args:
        root: folder with `<split>/`, `panoptic_<split>/` (here or in `annotations/`) and `annotations/panoptic_<split>.json`.
        split: for example train2017; by default the only one there is, or val2017.
        images: folder of the images.
        panoptic: folder of the annotation PNGs.
        annotations: the JSON.

    Raises:
        DataError: something is not there; the message lists every place that was looked at.
    """
    for place in (root, images, panoptic, annotations):
        if place is not None:
            check_path(place)
    named = images is not None and panoptic is not None and annotations is not None
    splits = [] if root is None else list_splits(root)
    if not named:
        split = _chosen_split(root, split, splits)
    base, part = Path(root or "."), split or ""
    found = {
        "image folder": _first_existing([images] if images else [base / part]),
        "panoptic folder": _first_existing(
            [panoptic] if panoptic else [base / f"panoptic_{part}", base / "annotations" / f"panoptic_{part}"]
        ),
        "annotation JSON": _first_existing([annotations] if annotations else [base / "annotations" / f"panoptic_{part}.json"]),
    }
    missing = [f"no {name} at {' or '.join(map(str, value))}" for name, value in found.items() if isinstance(value, list)]
    if missing:
        others = f" (the splits there are: {', '.join(splits)})" if splits and split not in splits else ""
        raise DataError(f"{'; '.join(missing)}; check the root and the split{others}, or name the paths one by one")
    return DataPaths(*(value for value in found.values() if isinstance(value, Path)))


def _chosen_split(root: str | Path | None, split: str | None, splits: Sequence[str]) -> str:
    """The split that is meant, of those that a root has."""
    if root is not None and split is not None:
        return split
    if len(splits) == 1:
        return splits[0]
    if "val2017" in splits:
        return "val2017"
    if splits:
        raise DataError(f"{root} has the splits {', '.join(splits)}; say which one")
    if root is not None:
        raise DataError(
            f"there is no annotations/panoptic_<split>.json in {root}; check the root, or name the paths one by one"
        )
    raise DataError(
        "the data set is not fully named: give a root folder and a split (COCO's own layout), "
        "or all of: the image folder, the panoptic folder and the annotation JSON"
    )


def with_ending(name: str, ending: str) -> str:
    """A picture's name with another ending; after a dot that begins no picture's ending the name goes on (`scan.1`)."""
    stem, dot, last = name.rpartition(".")
    return f"{stem if stem and dot + last.lower() in _ENDINGS else name}{ending}"


def find_image(folder: str | Path, name: str, where: str, key: str = "file_name") -> Path:
    """The image file of an entry: as written; if that is missing, with .jpg, .jpeg or .png after the name or as its ending.

    Args:
        folder: of the images.
        name: in the JSON.
        where: for messages: in whose entry it stands.
        key: for messages: of the JSON.

    Raises:
        DataError: neither exists.
    """
    path = safe_path(folder, name, where, key)
    longer = [path.with_name(path.name + ending) for ending in IMAGE_ENDINGS]
    for candidate in (path, *longer, *(path.with_name(with_ending(path.name, ending)) for ending in IMAGE_ENDINGS)):
        if os.path.isfile(candidate):  # unlike Path.is_file, False also for names that the file system refuses
            return candidate
    if os.path.islink(path):
        raise DataError(f"{where}: the image {path} is a link to {os.readlink(path)!r}, where there is nothing; mend the link")
    raise DataError(f"{where}: the image {path} is missing (also not as {', '.join(IMAGE_ENDINGS)}); check the image folder")


def _first_existing(candidates: Sequence[str | Path]) -> Path | list[Path]:
    """The first path that exists, or all of them."""
    paths = [Path(candidate) for candidate in candidates]
    return next((path for path in paths if path.exists()), paths)
