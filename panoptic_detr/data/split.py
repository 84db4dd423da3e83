"""One split of a data set becomes two, train and val: each class in its share, and what belongs together on one side."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from panoptic_detr.data.coco import DataPaths, find_image, make_split, split_parts
from panoptic_detr.data.coco.defects import ImageId
from panoptic_detr.data.coco.entries import Entries, Entry, read_entries, slashed, usable_segments
from panoptic_detr.errors import DataError
from panoptic_detr.files import safe_path, staged_folder, write_json
from panoptic_detr.images import place_image


def split_dataset(
    paths: DataPaths, out: str | Path, *, val: float = 0.2, group: str | None = None, seed: int = 0, copy_files: bool = False
) -> list[str]:
    """Write a data set with the splits `train` and `val`; it appears complete or not at all.

    Args:
        paths: where the split lies that is divided.
        out: root of the new data set.
        val: share of the images that are for validation, between 0 and 1.
        group: regular expression; images in whose file names it finds the same (its first group, or all of it) stay together:
            frames of one film, say.
        seed: of the choice among equals.
        copy_files: copy images and PNGs instead of linking to them.

    Returns:
        What to tell the user.

    Raises:
        DataError: a share or an expression that is none, fewer than two groups, a defect of the data set, `out` has a split.
    """
    if not 0 < val < 1:
        raise DataError(f"the share of validation is {val}, but must lie between 0 and 1, such as 0.2")
    found = read_entries(paths.annotations)
    if wrong := [defect for defect in found.defects if defect.severity == "error"]:
        raise DataError(f"{wrong[0].line()}; mend the data set first: `panoptic-detr data check`")
    groups = _groups(found, group)
    if len(groups) < 2:
        way_out = "a data set needs two images" if group is None else "give a --group that finds different texts in their names"
        raise DataError(
            f"{paths.annotations}: {len(found.images)} image(s) in {len(groups)} group(s) cannot be divided; {way_out}"
        )
    chosen = {image_id for place in choose_groups(_counts(found, groups), val, seed) for image_id in groups[place]}
    splits = {name: [i for i in found.images if (i in chosen) == (name == "val")] for name in ("train", "val")}
    with staged_folder(out, [part for parts in zip(*map(split_parts, splits), strict=True) for part in parts]) as staged:
        for name, image_ids in splits.items():
            new = make_split(staged, name)
            _place(found, paths, image_ids, new, copy_files)
            with open(new.annotations, "w", encoding="utf-8") as file:
                rows = {"images": found.images, "annotations": found.annotations}
                lists = {key: [_plain(entries[i]) for i in image_ids] for key, entries in rows.items()}
                write_json(file, found.head, {"categories": found.category_rows, **lists})
    return [*_words(found, splits, len(groups)), f"splits train and val: {out}"]


def choose_groups(counts: np.ndarray, share: float, seed: int) -> list[int]:
    """Choose groups that have `share` of every class, as nearly as whole groups allow; groups of rare classes choose first.

    Args:
        counts: (G, C) how many images of each group show each class; the last column counts its images.
        share: between 0 and 1.
        seed: of the order among equals.

    Returns:
        Places of the groups; at least one, and not all.
    """
    totals = np.maximum(counts.sum(0), 1)
    rarest = np.where(counts > 0, totals, totals.max() + 1).min(1)  # (G,)
    order = np.random.default_rng(seed).permutation(len(counts))
    order = order[np.argsort(rarest[order], kind="stable")]
    weights = 1 / totals
    weights[-1] *= counts.shape[1]  # the number of images matters as much as all classes together
    missing = share * totals
    chosen: list[int] = []
    for place in order.tolist():
        if len(chosen) + 1 < len(counts) and weights @ (np.abs(missing) - np.abs(missing - counts[place])) > 0:
            missing = missing - counts[place]
            chosen.append(place)
    return chosen or [int(order[-1])]


def _groups(found: Entries, pattern: str | None) -> list[list[ImageId]]:
    """Images that stay together."""
    if pattern is None:
        return [[image_id] for image_id in found.images]
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise DataError(f"the pattern {pattern!r} is no regular expression: {error}") from None
    groups: dict[tuple[bool, object], list[ImageId]] = {}
    for image_id, entry in found.images.items():
        match = expression.search(slashed(entry["file_name"]))
        key = (False, image_id) if match is None else (True, match[1] if expression.groups else match[0])
        groups.setdefault(key, []).append(image_id)
    return list(groups.values())


def _classes(found: Entries, image_id: ImageId) -> set[int]:
    """Categories that an image shows."""
    rows = found.annotations[image_id]["segments_info"]
    return {row["category_id"] for row in usable_segments(rows, found.categories, lambda defect: None)}


def _counts(found: Entries, groups: list[list[ImageId]]) -> np.ndarray:
    """(G, C + 1): images of each group that show each category, and all of its images."""
    columns = {category_id: column for column, category_id in enumerate(found.categories)}
    counts = np.zeros((len(groups), len(columns) + 1), np.int64)
    for row, image_ids in enumerate(groups):
        for image_id in image_ids:
            counts[row, [*(columns[i] for i in _classes(found, image_id)), -1]] += 1
    return counts


def _place(found: Entries, paths: DataPaths, image_ids: list[ImageId], new: DataPaths, copy: bool) -> None:
    """Put images and PNGs of one split into its folders."""
    for image_id in image_ids:
        name, where = found.images[image_id]["file_name"], f"{found.path}: image {image_id!r}"
        place_image(find_image(paths.images, name, where), new.images, slashed(name), copy=copy)
        png = found.annotations[image_id]["file_name"]
        source = safe_path(paths.panoptic, png, where)
        if not source.is_file():
            raise DataError(
                f"{where}: its annotation PNG {source} is missing; look at the data set with `panoptic-detr data check`"
            )
        place_image(source, new.panoptic, slashed(png), copy=copy)


def _plain(entry: Entry) -> Entry:
    return {**entry, "file_name": slashed(entry["file_name"])}


def _words(found: Entries, splits: dict[str, list[ImageId]], groups: int) -> Iterator[str]:
    """Images of each split, and classes that one of them lacks."""
    yield f"{len(found.images)} images in {groups} groups"
    shown = {name: {i for image_id in image_ids for i in _classes(found, image_id)} for name, image_ids in splits.items()}
    for name, image_ids in splits.items():
        absent = [str(found.categories[i]) for i in sorted(set().union(*shown.values()) - shown[name])]
        lacks = f"; without {', '.join(absent)}" if absent else ""
        yield f"{name}: {len(image_ids)} images ({len(image_ids) / len(found.images):.1%}){lacks}"
