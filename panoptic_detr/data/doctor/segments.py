"""The doctor compares the segments of a JSON with the pixels of their map, and repairs what can be repaired."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import Any, TypeGuard

import numpy as np

from panoptic_detr.data.doctor.kinds import show
from panoptic_detr.segment_maps import MAX_ID, measure

Entry = dict[str, Any]
Box = tuple[int, int, int, int]

TINY = 4  # pixels; the merger drops segments up to this size


@dataclass(frozen=True)
class Problem:
    """A defect of a segment, without its image.

    Attributes:
        kind: key of the table of kinds.
        what: what was found.
        segment_id: as written.
        repairable: `SegmentReport.rows` and `ids` have it repaired.
        in_png: the PNG is wrong, not the JSON.
    """

    kind: str
    what: str
    segment_id: Any = None
    repairable: bool = False
    in_png: bool = False


@dataclass
class SegmentReport:
    """What the segments of one image have to say.

    Attributes:
        problems: everything that is wrong.
        rows: the `segments_info` as repaired.
        ids: (H, W) int32, the map as repaired; the very array that was given if nothing had to be changed.
        void: pixels of no segment.
    """

    problems: list[Problem] = field(default_factory=list)
    rows: list[Entry] = field(default_factory=list)
    ids: np.ndarray | None = None
    void: int = 0

    def add(self, kind: str, what: str, segment_id: Any = None, *, repairable: bool = False, in_png: bool = False) -> None:
        """Note a problem."""
        self.problems.append(Problem(kind, what, segment_id, repairable, in_png))

    def statistics(self, isthing: Mapping[int, bool]) -> np.ndarray:
        """(S, 3) int64: category_id, pixels, iscrowd of every segment of a known category."""
        known = (row for row in self.rows if _known(row.get("category_id"), isthing))
        return np.array([(row["category_id"], row["area"], row["iscrowd"]) for row in known], np.int64).reshape(-1, 3)


def examine_segments(rows: list[Any], ids: np.ndarray | None, isthing: Mapping[int, bool]) -> SegmentReport:
    """Compare the segments of an image with its map.

    Args:
        rows: the `segments_info`; anything may be in it.
        ids: (H, W) int32, or None where the PNG cannot be read.
        isthing: of each known category.
    """
    report = SegmentReport(ids=ids)
    if not rows:
        report.add("annotation_empty", "segments_info is empty")
    usable = _usable(rows, isthing, report)
    if ids is None:
        return report
    measures = measure(ids)
    _void_unlisted(measures, listed_ids(rows), report)
    present = _without_empty(usable, measures, report)
    for row in present:
        _check_measures(row, *measures[row["id"]], report)
    report.rows = _one_segment_per_stuff(present, isthing, report)
    if report.ids is not None and report.ids is not ids:
        measures = measure(report.ids)
    for row in report.rows:
        row["area"], row["bbox"] = measures[row["id"]][0], list(measures[row["id"]][1])
    report.void = ids.size - sum(row["area"] for row in report.rows)
    return report


def listed_ids(rows: Any) -> set[int]:
    """Every usable segment id in a `segments_info`."""
    entries = (row for row in rows if isinstance(row, dict)) if isinstance(rows, list) else ()
    return {row["id"] for row in entries if _usable_id(row.get("id"))}


def _usable_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_ID


def _usable(rows: list[Any], isthing: Mapping[int, bool], report: SegmentReport) -> list[Entry]:
    """Segments with an id of their own; copies, so that repairs do not change what was read."""
    usable: dict[int, Entry] = {}
    for number, row in enumerate(rows):
        problem = _row_problem(row)
        if problem:
            report.add("segment_invalid", f"segments_info[{number}]: {problem}", _id_of(row))
        elif row["id"] in usable:
            same = row in rows[:number]
            report.add("segment_duplicate", f"segments_info[{number}] uses it again", row["id"], repairable=same)
        else:
            usable[row["id"]] = {**row, "iscrowd": int(row.get("iscrowd", 0))}
            _check_category(row, isthing, report)
    bare = sum(isinstance(row, dict) and "iscrowd" not in row for row in rows)
    if bare:
        report.add("iscrowd_missing", f"{bare} segments have no iscrowd", repairable=True)
    return list(usable.values())


def _row_problem(row: Any) -> str:
    if not isinstance(row, dict):
        return f"{show(row)} is no object"
    if not _usable_id(row.get("id")):
        return f"id is {show(row.get('id'))}"
    crowd = row.get("iscrowd", 0)
    return "" if crowd in (0, 1) else f"iscrowd is {show(crowd)}"


def _id_of(row: Any) -> int | str | None:
    value = row.get("id") if isinstance(row, dict) else None
    return value if isinstance(value, int | str) else None


def _check_category(row: Entry, isthing: Mapping[int, bool], report: SegmentReport) -> None:
    category_id = row.get("category_id")
    if not _known(category_id, isthing):
        report.add("category_unknown", f"category_id is {show(category_id)}", row["id"])


def _known(category_id: Any, isthing: Mapping[int, bool]) -> bool:
    return isinstance(category_id, int) and not isinstance(category_id, bool) and category_id in isthing


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


def _is_box(value: Any) -> TypeGuard[list[float]]:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or isfinite(value)


def _one_segment_per_stuff(rows: list[Entry], isthing: Mapping[int, bool], report: SegmentReport) -> list[Entry]:
    """Stuff is not countable: all its pixels in an image are one segment, the first that is listed."""
    first: dict[int, Entry] = {}
    merged: dict[int, int] = {}
    for row in rows:
        category_id: Any = row.get("category_id")
        if row["iscrowd"] or not _known(category_id, isthing) or isthing[category_id]:
            continue
        keeper = first.setdefault(category_id, row)
        if keeper is not row:
            what = f"category {category_id} is stuff and already has segment {keeper['id']}"
            report.add("stuff_repeated", what, row["id"], repairable=True)
            merged[row["id"]] = keeper["id"]
    if merged and report.ids is not None:
        report.ids = report.ids.copy()
        for old, new in merged.items():
            report.ids[report.ids == old] = new
    return [row for row in rows if row["id"] not in merged]
