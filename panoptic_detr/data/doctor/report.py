"""The doctor's words: a line per defect, a summary by kind, statistics, a JSON file, a figure, an exit status."""

import json
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from panoptic_detr.data.coco import DataPaths
from panoptic_detr.data.coco.defects import ERRORS, KINDS, Defect, printable
from panoptic_detr.data.doctor.examine import Diagnosis, check_dataset
from panoptic_detr.data.doctor.statistics import class_table, draw, overview
from panoptic_detr.files import staged_file


def report_check(
    splits: dict[str, DataPaths],
    *,
    queries: int,
    fix: Path | None,
    copy_images: bool,
    things: list[str],
    json_file: Path | None,
    figure: Path | None,
    limit: int | None,
    strict: bool,
    workers: int | None,
) -> int:
    """Check splits and say everything; the command `data check` explains the arguments, and has the defaults.

    Returns:
        0 if there is no error, 1 otherwise.

    Raises:
        DataError: an output cannot be written.
    """
    with nullcontext() if json_file is None else staged_file(json_file) as file:
        printer = _Printer(file, limit)
        diagnosis = check_dataset(
            splits, printer.add, fix=fix, copy_images=copy_images, things=things, workers=workers, progress=True
        )
        printer.finish(summary(diagnosis, queries))
    _print_tables(diagnosis, queries)
    if figure is not None:
        draw(diagnosis.statistics, queries, figure)
        print(f"figure: {figure}")
    if fix is not None:
        _say_fixed(diagnosis, fix)
    print(_verdict(diagnosis))
    return 1 if diagnosis.errors or (strict and diagnosis.notes) else 0


def summary(diagnosis: Diagnosis, queries: int) -> dict[str, object]:
    """The diagnosis as plain values for a JSON."""
    return {
        "errors": dict(diagnosis.errors),
        "notes": dict(diagnosis.notes),
        "repairable": {kind: count for kind, count in diagnosis.repairable.items() if count},
        "statistics": {split: rows.as_dict(queries) for split, rows in diagnosis.statistics.items()},
        "fixed": diagnosis.fixed,
        "left_out": diagnosis.left_out,
    }


def kind_table(diagnosis: Diagnosis) -> Table:
    """How often each kind of defect occurs, errors first."""
    table = Table(title="Defects by kind")
    for name in ("", "kind", "what it is", "what to do"):
        table.add_column(name)
    table.add_column("found", justify="right")
    table.add_column("--fix can", justify="right")
    for counts in (diagnosis.errors, diagnosis.notes):
        for kind, count in counts.most_common():
            row, severity = KINDS[kind], "error" if kind in ERRORS else "note"
            table.add_row(severity, kind, row.title, row.remedy, str(count), str(diagnosis.repairable[kind] or ""))
    return table


class _Printer:
    """Prints defects as they are found, `limit` of each kind at most, and writes all to a JSON, however many there are."""

    def __init__(self, file: IO[str] | None, limit: int | None) -> None:
        self.file, self.limit, self.found = file, limit, Counter[str]()
        self.separator = '{"defects": ['

    def add(self, defect: Defect) -> None:
        self.found[defect.kind] += 1
        if self.limit is None or self.found[defect.kind] <= self.limit:
            print(defect.line())
        if self.file is not None:
            self.file.write(f"{self.separator}\n{json.dumps(defect.as_dict())}")
            self.separator = ","

    def finish(self, end: dict[str, object]) -> None:
        if self.file is not None:
            start = self.separator if self.separator != "," else ""
            self.file.write(f'{start}\n],\n"summary": {json.dumps(end)}\n}}\n')


def _print_tables(diagnosis: Diagnosis, queries: int) -> None:
    console = Console(highlight=False, markup=False)
    console.print(overview(diagnosis.statistics, queries))
    console.print(class_table(diagnosis.statistics))
    if diagnosis.errors or diagnosis.notes:
        console.print(kind_table(diagnosis))


def _say_fixed(diagnosis: Diagnosis, fix: Path) -> None:
    for split, images in diagnosis.fixed.items():
        missing = diagnosis.left_out.get(split, [])
        names = ", ".join(map(repr, missing[:5])) + (", ..." if len(missing) > 5 else "")
        lost = f"; {len(missing)} images left out because repair is not certain: {names}" if missing else ""
        print(printable(f"repaired copy of {split}: {images} images in {fix}{lost}"))
    if not diagnosis.fixed:
        print("no repaired copy: the JSON or its categories must be mended by hand first")


def _verdict(diagnosis: Diagnosis) -> str:
    images = sum(len(rows.segments) for rows in diagnosis.statistics.values())
    errors, notes = diagnosis.errors.total(), diagnosis.notes.total()
    return f"{images} images: {errors} errors, {notes} notes" if errors or notes else f"{images} images: no defect found"
