"""The doctor compares the segments of a JSON with the pixels of their map, and repairs what can be repaired."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TypeGuard

import numpy as np

from panoptic_detr.categories import Category
from panoptic_detr.data.coco.defects import Defect, show
from panoptic_detr.data.coco.entries import Entry, is_integer, is_segment_id, usable_segments
from panoptic_detr.segment_maps import measure

Box = tuple[int, int, int, int]

TINY = 4  # pixels; the merger drops segments up to this size


@dataclass
class SegmentReport:
    """What the segments of one image have to say."""

    defects: list[Defect] = field(default_factory=list)  # everything that is wrong, without the image
    rows: list[Entry] = field(default_factory=list)  # the `segments_info` as repaired
    # (H, W) int32, the map as repaired; the very array that was given if nothing had to be changed
    ids: np.ndarray | None = None
    void: int = 0  # pixels of no segment

    def add(
        self, kind: str, what: str, segment_id: int | None = None, *, repairable: bool = False, in_png: bool = False
    ) -> None:
        """Note a defect."""
        self.defects.append(Defect(kind, what, segment_id=segment_id, repairable=repairable, in_png=in_png))

    def statistics(self, categories: Mapping[int, Category]) -> np.ndarray:
        """(S, 3) int64: category_id, pixels, iscrowd of every segment of a known category."""
        known = (row for row in self.rows if _category(row, categories) is not None)
        return np.array([(row["category_id"], row["area"], row["iscrowd"]) for row in known], np.int64).reshape(-1, 3)


def examine_segments(rows: list[object], ids: np.ndarray | None, categories: Mapping[int, Category]) -> SegmentReport:
    """Compare the segments of an image with its map (H, W) int32, which is None where the PNG cannot be read.

    Anything may be in `rows`, the `segments_info`; `categories` are the known ones by id.
    """
    report = SegmentReport(ids=ids)
    if not rows:
        report.add("annotation_empty", "segments_info is empty")
    usable = list(usable_segments(rows, categories, report.defects.append))
    if bare := sum(isinstance(row, dict) and "iscrowd" not in row for row in rows):
        report.add("iscrowd_missing", f"{bare} segments have no iscrowd", repairable=True)
    if ids is None:
        return report
    measures = measure(ids)
    _void_unlisted(measures, listed_ids(rows), report)
    present = _without_empty(usable, measures, report)
    for row in present:
        _check_measures(row, *measures[row["id"]], report)
    report.rows = _one_segment_per_stuff(present, categories, report)
    if report.ids is not None and report.ids is not ids:
        measures = measure(report.ids)
    for row in report.rows:
        row["area"], row["bbox"] = measures[row["id"]][0], list(measures[row["id"]][1])
    report.void = ids.size - sum(row["area"] for row in report.rows)
    return report


def listed_ids(rows: object) -> set[int]:
    """Every usable segment id in a `segments_info`."""
    entries = (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    return {row["id"] for row in entries if is_segment_id(row.get("id"))}


def _category(row: Entry, categories: Mapping[int, Category]) -> Category | None:
    """The category of a segment, where it is a known one; unhashable values are none."""
    category_id = row.get("category_id")
    return categories.get(category_id) if is_integer(category_id) else None


def _void_unlisted(measures: Mapping[int, tuple[int, Box]], listed: set[int], report: SegmentReport) -> None:
    """Pixels of ids that the JSON does not list become void."""
    unlisted = sorted(measures.keys() - listed)
    for value in unlisted:
        what = f"{measures[value][0]} pixels have an id that segments_info does not list"
        report.add("segment_only_in_png", what, value, repairable=True, in_png=True)
    if unlisted and report.ids is not None:
        report.ids = np.where(np.isin(report.ids, unlisted), np.int32(0), report.ids)


def _without_empty(rows: list[Entry], measures: Mapping[int, tuple[int, Box]], report: SegmentReport) -> list[Entry]:
    for row in rows:
        if row["id"] not in measures:
            report.add("segment_only_in_json", "no pixel of the PNG has its id", row["id"], repairable=True)
    return [row for row in rows if row["id"] in measures]


def _check_measures(row: Entry, area: int, box: Box, report: SegmentReport) -> None:
    """Compare area and bbox with the pixels; a bbox may be off by less than a pixel (from polygons)."""
    stated, numbers = row.get("area"), row.get("bbox")
    if not _is_number(stated) or stated != area:
        found = "missing" if "area" not in row else show(stated)
        report.add("area_wrong", f"area is {found}, but it has {area} pixels", row["id"], repairable=True)
    if not _is_box(numbers) or any(abs(a - b) >= 1 for a, b in zip(numbers, box, strict=True)):
        found = "missing" if "bbox" not in row else show(numbers)
        report.add("bbox_wrong", f"bbox is {found}, but its pixels span {list(box)}", row["id"], repairable=True)
    if area <= TINY or min(box[2:]) == 1:
        report.add("segment_tiny", f"it has {area} pixels in {box[2]}x{box[3]}", row["id"])


def _is_box(value: object) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or isfinite(value))


def _one_segment_per_stuff(rows: list[Entry], categories: Mapping[int, Category], report: SegmentReport) -> list[Entry]:
    """Stuff is not countable: all its pixels in an image are one segment, the first that is listed."""
    first: dict[int, Entry] = {}
    merged: dict[int, int] = {}
    for row in rows:
        category = _category(row, categories)
        if row["iscrowd"] or category is None or category.isthing:
            continue
        keeper = first.setdefault(category.id, row)
        if keeper is not row:
            what = f"category {category.id} {category} already has segment {keeper['id']}"
            certain = any(other.isthing for other in categories.values())  # or perhaps nobody said what is a thing
            report.add("stuff_repeated", what, row["id"], repairable=certain)
            if certain:
                merged[row["id"]] = keeper["id"]
    if merged and report.ids is not None:
        report.ids = report.ids.copy()
        for old, new in merged.items():
            report.ids[report.ids == old] = new
    return [row for row in rows if row["id"] not in merged]
