"""Scores as a person reads them (rich tables) and as programs do (JSON, CSV)."""

import csv
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from panoptic_detr.evaluation.coco_ap import ApScores, ThingPrecision
from panoptic_detr.files import write_whole
from panoptic_detr.quality import CAUSES as CAUSES_OF_LOSS
from panoptic_detr.quality import FEW_IMAGES, NO_ERRORS, SIZES, ErrorCounts, PanopticQualityResult, intervals

CAUSES = ErrorCounts._fields
AP_COLUMNS = dict(zip(("AP", "AP50", "AP75", "small", "medium", "large", "recall"), ApScores._fields, strict=False))


def show_scores(
    result: PanopticQualityResult | None, things: ThingPrecision | None, *, per_class: bool, console: Console | None = None
) -> None:
    """Print the tables and notes."""
    console = console or Console(markup=False)
    if result is not None:
        if per_class:
            console.print(class_table(result))
        console.print(group_table(result), points_table(result), error_table(result, per_class=per_class))
        console.print(other_scores(result), highlight=False)
        if result.by_image:
            console.print(interval_table(result, per_class=per_class))
    if things is not None:
        console.print(ap_table(things))
    for note in result.notes if result is not None else ():
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def write_scores(folder: Path, result: PanopticQualityResult | None, things: ThingPrecision | None) -> None:
    """Write `scores.json`, `classes.csv` with PQ and `ap.csv` with AP per category into an existing folder.

    Tables of an earlier evaluation that this one does not have are removed, as they would look like its own.
    """
    files = {"scores.json": json.dumps(as_json(result, things), indent=1, ensure_ascii=False) + "\n"}
    if result is not None:
        files["classes.csv"] = as_csv(class_rows(result))
    if things is not None:
        files["ap.csv"] = as_csv(ap_rows(things))
    for name in {"classes.csv", "ap.csv"} - files.keys():
        (folder / name).unlink(missing_ok=True)
    for name, text in files.items():
        write_whole(folder / name, text.encode())


def group_table(result: PanopticQualityResult) -> Table:
    """PQ, SQ, RQ (percent) and N of everything, things and stuff."""
    table = _table(f"Panoptic quality, {result.images} images", ["", "PQ", "SQ", "RQ", "N"])
    for name, group in (("All", result.all), ("Things", result.things), ("Stuff", result.stuff)):
        table.add_row(name, *map(_percent, group[:3]), str(group.n))
    return table


def class_table(result: PanopticQualityResult) -> Table:
    """Scores (percent) and counts of every category that occurs."""
    table = _table("Per category", ["id", "category", "kind", "PQ", "SQ", "RQ", "TP", "FP", "FN"])
    for category in result.categories.categories:
        quality = result.per_class[category.id]
        counts = (quality.tp, quality.fp, quality.fn)
        if any(counts):
            table.add_row(str(category.id), Text(category.name), category.kind, *map(_percent, quality[:3]), *map(str, counts))
    return table


def points_table(result: PanopticQualityResult) -> Table:
    """What PQ was lost to, in points, by group, and for all classes by size of segment; the columns add up to 100 - PQ."""
    groups = result.groups()
    table = _table("Points lost", ["", *groups, *SIZES])
    losses = [result.loss(ids) for ids in groups.values()]
    for cause in CAUSES_OF_LOSS:
        by_size = losses[0][cause]
        values = [*(sum(loss[cause]) for loss in losses), *by_size]
        if any(values):
            table.add_row(cause.replace("_", " "), *map(_percent, values))
    sizes = [sum(column) for column in zip(*losses[0].values(), strict=True)]
    table.add_section()
    table.add_row("100 - PQ", *(_percent(sum(map(sum, loss.values()))) for loss in losses), *map(_percent, sizes))
    return table


def other_scores(result: PanopticQualityResult) -> str:
    """The scores beside PQ, in one line."""
    scores = {"mIoU": result.mean_iou, "PQ-dagger": result.pq_dagger}
    if result.boundary is not None:
        scores |= {f"boundary PQ {group}": result.boundary_quality(group).pq for group in result.groups()}
    return " · ".join(f"{name} {_percent(value)}" for name, value in scores.items())


def interval_table(result: PanopticQualityResult, *, per_class: bool = False) -> Table:
    """The 95 % intervals of what other images of this kind would give."""
    few = f": {result.images} only, too few to say much of others" if result.images < FEW_IMAGES else ""
    table = _table(f"95 % intervals over images{few}", ["", "score", "low", "high"])
    groups = 9
    for name, row in list(intervals(result).items())[: None if per_class else groups]:
        table.add_row(Text(name), *map(_percent, row))
    return table


def error_table(result: PanopticQualityResult, *, per_class: bool = False) -> Table:
    """What the errors are: causes of false negatives (lost) and false positives (extra), in all or by category."""
    table = _table("Errors by cause", ["", "", *(cause.replace("_", "\n") for cause in CAUSES), "total"])
    for name, lost, extra in _error_rows(result, per_class):
        for side, counts in (("lost", lost), ("extra", extra)):
            table.add_row(Text(name), side, *map(str, counts), str(counts.total))
            name = ""
    return table


def ap_table(things: ThingPrecision) -> Table:
    """AP (percent) of boxes and masks over things, by object size."""
    table = _table("Average precision over things", ["", *AP_COLUMNS])
    for name, scores in (("boxes", things.boxes), ("masks", things.masks)):
        if scores is not None:
            table.add_row(name, *(_percent(getattr(scores, field)) for field in AP_COLUMNS.values()))
    return table


def as_json(result: PanopticQualityResult | None, things: ThingPrecision | None = None) -> dict[str, object]:
    """Everything as plain values, fractions; the panoptic part in panopticapi's layout with more per category."""
    content: dict[str, object] = {}
    if result is not None:
        content = result.as_dict()
        content["per_class"] = {str(row["id"]): {k: v for k, v in row.items() if k != "id"} for row in class_rows(result)}
        content |= {
            "images": result.images,
            "notes": list(result.notes),
            "mIoU": result.mean_iou,
            "PQ_dagger": result.pq_dagger,
        }
        content["points_lost"] = {name: result.loss(ids) for name, ids in result.groups().items()}
        if result.boundary is not None:
            content["boundary"] = {name: result.boundary_quality(name)._asdict() for name in result.groups()}
        if result.by_image:
            content["intervals"] = {name: row._asdict() for name, row in intervals(result).items()}
    if things is not None:
        content["box_ap"] = _ap_values(things.boxes)
        if things.masks is not None:
            content["mask_ap"] = _ap_values(things.masks)
    return content


def as_csv(rows: Sequence[dict[str, object]]) -> str:
    """Rows of one kind as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def class_rows(result: PanopticQualityResult) -> list[dict[str, object]]:
    """One flat row of scores, counts and errors per category of the table."""
    rows = []
    for category in result.categories.categories:
        row: dict[str, object] = {"id": category.id, "name": category.name, "isthing": int(category.isthing)}
        row |= result.per_class[category.id]._asdict()
        for side, errors in (("lost", result.lost), ("extra", result.extra)):
            counts = errors.get(category.id, NO_ERRORS)
            row |= {f"{side}_{cause}": value for cause, value in zip(CAUSES, counts, strict=True)}
        row |= {f"points_{cause}": sum(sizes) for cause, sizes in result.losses[category.id].items()}
        row["iou"] = result.pixels[category.id].iou if category.id in result.pixels else None
        if result.boundary is not None:
            row["boundary_pq"] = result.boundary[category.id].pq
        rows.append(row)
    return rows


def ap_rows(things: ThingPrecision) -> list[dict[str, object]]:
    """One row of box AP and mask AP per category of things."""
    rows = []
    for category_id, box_ap in things.boxes.per_class.items():
        row: dict[str, object] = {"id": category_id, "box_ap": box_ap}
        if things.masks is not None:
            row["mask_ap"] = things.masks.per_class[category_id]
        rows.append(row)
    return rows


def _error_rows(result: PanopticQualityResult, per_class: bool) -> Iterable[tuple[str, ErrorCounts, ErrorCounts]]:
    if per_class:
        for category in result.categories.categories:
            lost, extra = (side.get(category.id, NO_ERRORS) for side in (result.lost, result.extra))
            if lost.total or extra.total:
                yield category.name, lost, extra
    lost, extra = (ErrorCounts(*map(sum, zip(NO_ERRORS, *side.values(), strict=True))) for side in (result.lost, result.extra))
    yield "All", lost, extra


def _ap_values(scores: ApScores) -> dict[str, object]:
    values = scores._asdict()
    values["per_class"] = {str(category_id): ap for category_id, ap in scores.per_class.items()}
    return values


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left")
    for column in columns:
        words = column in ("", "category", "kind")
        table.add_column(column, justify="left" if words else "right", no_wrap=not words)
    return table
