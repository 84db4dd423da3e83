"""The doctor's words: a line per defect, a summary by kind, statistics, a JSON file, a figure, an exit status."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
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
    """Check splits and say everything; the command `data check` has the defaults.

    Args:
        splits: where each lies.
        queries: the detector's; images with more segments are counted.
        fix: folder for the repaired copy; None for no copy.
        copy_images: copy images there instead of linking.
        things: names of categories that are things, whatever the JSON says.
        json_file: all defects and statistics as JSON; None for no file.
        figure: a picture of the statistics; None for no picture.
        limit: lines per kind of defect; None for all.
        strict: notes count like errors for the exit status.
        workers: processes; None for one per core.

    Returns:
        0 if there is no error, 1 otherwise.

    Raises:
        DataError: an output cannot be written.
    """
    with _defect_file(json_file) as file:
        printer = _Printer(file, limit)
        diagnosis = check_dataset(
            splits, printer.add, fix=fix, copy_images=copy_images, things=things, workers=workers, progress=True
        )
        file.finish(summary(diagnosis, queries))
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


class _DefectFile:
    """Writes defects to a JSON one by one, so that a million of them need no memory."""

    def __init__(self, file: IO[str] | None) -> None:
        self.file, self.separator = file, '{"defects": ['

    def add(self, defect: Defect) -> None:
        if self.file is not None:
            self.file.write(f"{self.separator}\n{json.dumps(defect.as_dict())}")
            self.separator = ","

    def finish(self, end: dict[str, object]) -> None:
        if self.file is not None:
            start = self.separator if self.separator != "," else ""
            self.file.write(f'{start}\n],\n"summary": {json.dumps(end)}\n}}\n')


@contextmanager
def _defect_file(path: Path | None) -> Iterator[_DefectFile]:
    if path is None:
        yield _DefectFile(None)
        return
    with staged_file(path) as file:
        yield _DefectFile(file)


class _Printer:
    """Prints defects as they are found, `limit` of each kind at most, and files them all."""

    def __init__(self, file: _DefectFile, limit: int | None) -> None:
        self.file, self.limit, self.found = file, limit, Counter[str]()

    def add(self, defect: Defect) -> None:
        self.found[defect.kind] += 1
        if self.limit is None or self.found[defect.kind] <= self.limit:
            print(defect.line())
        self.file.add(defect)


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
