"""The panoptic data doctor: every defect of a data set by name, what to do about it, and a repaired copy where that is certain.

Images are looked at one by one on all cores; nothing in the files raises, whatever it is.
"""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from panoptic_detr.data.coco import IMAGE_ENDINGS, DataPaths, list_splits, make_split, resolve_paths, split_parts
from panoptic_detr.data.coco.defects import Defect, ImageId, Report, show
from panoptic_detr.data.coco.entries import Entries, Entry, read_entries
from panoptic_detr.data.doctor.image import Check, Findings, ImageTask, examine
from panoptic_detr.data.doctor.statistics import Statistics
from panoptic_detr.errors import DataError
from panoptic_detr.files import staged_folder, write_json
from panoptic_detr.parallel import parallel_map


@dataclass
class Diagnosis:
    """The outcome of a check."""

    errors: Counter[str] = field(default_factory=Counter)  # defects by kind that stop something or read wrong
    notes: Counter[str] = field(default_factory=Counter)  # the others by kind
    repairable: Counter[str] = field(default_factory=Counter)  # how many of each kind `fix` repairs
    statistics: dict[str, Statistics] = field(default_factory=dict)  # by split
    fixed: dict[str, int] = field(default_factory=dict)  # by split: images in the repaired copy
    # by split: images that cannot be repaired and are not in the copy
    left_out: dict[str, list[ImageId]] = field(default_factory=dict)

    def count(self, defect: Defect) -> None:
        """Count a defect."""
        (self.errors if defect.severity == "error" else self.notes)[defect.kind] += 1
        self.repairable[defect.kind] += defect.repairable


def find_splits(
    root: str | Path | None = None,
    split: str | None = None,
    *,
    images: str | Path | None = None,
    panoptic: str | Path | None = None,
    annotations: str | Path | None = None,
) -> dict[str, DataPaths]:
    """Where the splits to be checked lie: the one that is named, or every `annotations/panoptic_*.json` under the root.

    Raises:
        DataError: there is none, or a part of one is missing.
    """
    if root is None or split is not None or annotations is not None:
        paths = resolve_paths(root, split, images=images, panoptic=panoptic, annotations=annotations)
        return {split or paths.annotations.stem.removeprefix("panoptic_"): paths}
    names = list_splits(root)
    if not names:
        raise DataError(
            f"no {Path(root) / 'annotations' / 'panoptic_<split>.json'}; check the root, name the paths one by one "
            "(--images --panoptic --annotations), or convert other forms with `panoptic-detr data convert`"
        )
    return {name: resolve_paths(root, name, images=images, panoptic=panoptic) for name in names}


def check_dataset(
    splits: dict[str, DataPaths],
    sink: Report,
    *,
    fix: str | Path | None = None,
    copy_images: bool = False,
    things: Sequence[str] = (),
    void_share: float = 0.5,
    workers: int | None = None,
    progress: bool = False,
) -> Diagnosis:
    """Look at every image of every split.

    Args:
        splits: where each split lies (see `find_splits`).
        sink: is given every defect as it is found.
        fix: folder for a repaired copy in COCO's own layout; images that cannot be repaired are left out of it. The original
            is never touched.
        copy_images: copy images into the repaired copy instead of linking to the originals.
        things: names of categories that are things, whatever the JSON says; the repaired copy says so.
        void_share: a larger share of void in an image is noted.
        workers: processes; by default one per core.
        progress: show a bar.

    Raises:
        DataError: the repaired copy cannot be written, or no category has one of the names.
    """
    session = _Session(Diagnosis(), sink, copy_images, void_share, workers, progress)
    listings = [_read(paths, split) for split, paths in splits.items()]
    _set_things(listings, things)
    with ExitStack() as stack:
        staged = None if fix is None else stack.enter_context(staged_folder(fix, _parts(listings)))
        for listing in listings:
            session.check(listing, None if staged is None or not listing.entries.sound else make_split(staged, listing.split))
        for defect in (*_differing_categories(listings), *_unlisted_files(listings)):
            session.report(defect)
    return session.diagnosis


@dataclass(frozen=True)
class _Listing:
    """A split: its name, where it lies, and what its JSON says."""

    split: str
    paths: DataPaths
    entries: Entries

    def tasks(self) -> list[ImageTask]:
        """The images."""
        images, annotations, broken = self.entries.images, self.entries.annotations, self.entries.broken
        return [ImageTask(entry, annotations.get(i), i in broken) for i, entry in images.items()]


def _read(paths: DataPaths, split: str) -> _Listing:
    try:
        return _Listing(split, paths, read_entries(paths.annotations))
    except DataError as error:
        unreadable = Entries(paths.annotations, sound=False)
        unreadable.add("json_unreadable", str(error))
        return _Listing(split, paths, unreadable)


@dataclass
class _Session:
    """What the splits of one check share."""

    diagnosis: Diagnosis
    sink: Report
    copy_images: bool
    void_share: float
    workers: int | None
    progress: bool
    seen: dict[bytes, tuple[str, ImageId]] = field(default_factory=dict)

    def report(self, defect: Defect) -> None:
        self.diagnosis.count(defect)
        self.sink(defect)

    def check(self, listing: _Listing, fixed: DataPaths | None) -> None:
        """Look at the images of one split; write its repaired copy where one is wanted."""
        for defect in listing.entries.defects:
            self.report(replace(defect, split=listing.split))
        categories = listing.entries.categories
        statistics = self.diagnosis.statistics[listing.split] = Statistics(categories)
        check = Check(listing.paths, listing.split, categories, self.void_share, fixed, self.copy_images)
        bar = f"check {listing.split}" if self.progress else ""
        rows, lost = [], []
        for findings in parallel_map(partial(examine, check=check), listing.tasks(), workers=self.workers, description=bar):
            for defect in (*findings.defects, *_seen_before(findings, listing, self.seen)):
                self.report(defect)
            statistics.add(findings.size, findings.segments, findings.void)
            if findings.repaired is not None:
                rows.append(findings.repaired)
            else:
                lost.append(findings.image_id)
        for defect in _odd_categories(listing, statistics):
            self.report(defect)
        if fixed is not None:
            _write_fixed(fixed, listing, rows)
            self.diagnosis.fixed[listing.split], self.diagnosis.left_out[listing.split] = len(rows), lost


def _set_things(listings: list[_Listing], names: Sequence[str]) -> None:
    """Make things of the categories with these names."""
    known = {category.name for listing in listings for category in listing.entries.categories.values()}
    if unknown := [name for name in names if name not in known]:
        raise DataError(f"no category is called {unknown[0]!r}; the categories are {', '.join(sorted(known))}")
    for listing in listings:
        entries = listing.entries
        entries.categories = {i: replace(c, isthing=c.isthing or c.name in names) for i, c in entries.categories.items()}
        entries.category_rows = [
            {**row, "isthing": 1} if entries.categories[row["id"]].isthing else row for row in entries.category_rows
        ]


def _parts(listings: list[_Listing]) -> list[str]:
    """What a repaired copy consists of; the JSONs last, because they make the rest count."""
    parts = [split_parts(listing.split) for listing in listings if listing.entries.sound]
    return [*(folder for *folders, _ in parts for folder in folders), *(annotations for *_, annotations in parts)]


def _write_fixed(fixed: DataPaths, listing: _Listing, rows: list[tuple[Entry, Entry]]) -> None:
    lists = {
        "categories": listing.entries.category_rows,
        "images": (entry for entry, _ in rows),
        "annotations": (annotation for _, annotation in rows),
    }
    with open(fixed.annotations, "w", encoding="utf-8") as file:
        write_json(file, listing.entries.head, lists)


def _seen_before(findings: Findings, listing: _Listing, seen: dict[bytes, tuple[str, ImageId]]) -> Iterator[Defect]:
    """The same bytes under another id or in another split."""
    if not findings.digest:
        return
    split, image_id = seen.setdefault(findings.digest, (listing.split, findings.image_id))
    if (split, image_id) == (listing.split, findings.image_id):
        return
    kind = "image_repeated" if split == listing.split else "image_in_two_splits"
    where = "" if split == listing.split else f" of {split}"
    file = str(listing.paths.images / findings.name)
    yield Defect(kind, f"the same bytes as image {show(image_id)}{where}", listing.split, findings.image_id, file)


def _odd_categories(listing: _Listing, statistics: Statistics) -> Iterator[Defect]:
    """No category that is a thing; categories of crowds only."""
    file = str(listing.paths.annotations)
    if listing.entries.categories and not any(category.isthing for category in listing.entries.categories.values()):
        yield Defect("no_things", f"all {len(listing.entries.categories)} categories are stuff", listing.split, file=file)
    for category_id, (count, *_) in statistics.ranked():
        if statistics.crowds[category_id] == count > 1:
            what = f"all {count} annotations of {listing.entries.categories[category_id]} are crowds"
            yield Defect("category_all_crowds", what, listing.split, file=file)


def _differing_categories(listings: list[_Listing]) -> Iterator[Defect]:
    """Splits whose categories mean something else than those of the first."""
    sound = [listing for listing in listings if listing.entries.sound]
    for listing in sound[1:]:
        mine, theirs = ({i: str(category) for i, category in part.entries.categories.items()} for part in (listing, sound[0]))
        ids = sorted(i for i in mine.keys() | theirs.keys() if mine.get(i) != theirs.get(i))
        if ids:
            here, there = mine.get(ids[0], "missing"), theirs.get(ids[0], "missing")
            what = f"{len(ids)} ids differ; {ids[0]} is {here} here and {there} in {sound[0].split}"
            yield Defect("categories_differ", what, listing.split, file=str(listing.paths.annotations))


def _unlisted_files(listings: list[_Listing]) -> Iterator[Defect]:
    """One note for each folder with pictures that no JSON lists."""
    listed: dict[Path, set[str]] = {}
    split_of: dict[Path, str] = {}
    for listing in listings:
        for folder, entries in (
            (listing.paths.images, listing.entries.images.values()),
            (listing.paths.panoptic, listing.entries.annotations.values()),
        ):
            split_of.setdefault(folder, listing.split)
            listed.setdefault(folder, set()).update(_stem(str(entry.get("file_name"))) for entry in entries)
    for folder, stems in listed.items():
        names = sorted(name for name in _pictures(folder) if _stem(name) not in stems)
        if names:
            what = f"{len(names)} pictures that the JSON does not list, such as {show(names[0])}"
            yield Defect("file_unlisted", what, split_of[folder], file=str(folder))


def _stem(name: str) -> str:
    return os.path.splitext(os.path.normpath(name.replace("\\", "/")))[0]


def _pictures(folder: Path) -> Iterator[str]:
    """Names of the pictures in a folder and below, relative to it."""
    for parent, _, files in os.walk(folder):
        for file in files:
            if file.lower().endswith(IMAGE_ENDINGS):
                yield os.path.relpath(os.path.join(parent, file), folder)
