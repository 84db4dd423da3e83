"""Two sets of predictions of the same images: is one better, where, and what does it look like?"""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.table import Table
from rich.text import Text

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import EvaluationError, PictureError
from panoptic_detr.evaluation.panoptic import score_annotations
from panoptic_detr.evaluation.panoptic_files import AnnotationSet, ImageId, folder_of, read_annotations
from panoptic_detr.evaluation.tables import as_csv
from panoptic_detr.files import make_folder, safe_path, write_whole
from panoptic_detr.images import read_image, save_picture
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.quality import (
    FEW_IMAGES,
    Interval,
    PanopticQualityResult,
    difference_intervals,
    image_quality,
    interval_names,
)
from panoptic_detr.visualization.draw import overlay, side_by_side
from panoptic_detr.visualization.errors import error_view

GROUPS = ("All PQ", "All SQ", "All RQ", "Things PQ", "Stuff PQ")
PICTURES = 10


@dataclass(frozen=True)
class Comparison:
    """Scores of two sets of predictions, and what lies between them.

    Attributes:
        results: of the first and the second.
        differences: second minus first, with intervals, by name as in `intervals`.
        changes: (image id, PQ of the first, PQ of the second), all classes of the image together, the largest change first.
        truth: the annotations of the truth.
        sides: those of the first and the second, under the image ids of the truth.
    """

    results: tuple[PanopticQualityResult, PanopticQualityResult]
    differences: dict[str, Interval]
    changes: list[tuple[str, float, float]]
    truth: AnnotationSet
    sides: tuple[AnnotationSet, AnnotationSet]

    def summary(self) -> str:
        """Wins and losses by image, in a sentence."""
        steps = [np.sign(after - before) for _, before, after in self.changes]
        counts = [sum(step == sign for step in steps) for sign in (1, -1, 0)]
        few = (
            f"; {len(steps)} are too few to call a difference real, which takes {FEW_IMAGES}" if len(steps) < FEW_IMAGES else ""
        )
        return "of {} images the second is better on {}, worse on {}, equal on {}".format(len(steps), *counts) + few


def compare_predictions(
    gt_json: str | Path, gt_folder: str | Path, first: Path, second: Path, *, workers: int | None = None
) -> Comparison:
    """Score two results JSONs, whose PNGs lie beside them (`folder_of`), on one ground truth.

    Raises:
        EvaluationError: as `evaluate_panoptic`.
    """
    truth = read_annotations(gt_json, gt_folder)
    (one, before), (two, after) = (
        score_annotations(truth, read_annotations(path, folder_of(path)), workers=workers, per_image=True)
        for path in (first, second)
    )
    pairs = zip(one.by_image, two.by_image, strict=True)
    changes = [(name, image_quality(old), image_quality(new)) for (name, old), (_, new) in pairs]
    changes.sort(key=lambda row: (-abs(row[2] - row[1]), row[0]))
    return Comparison((one, two), difference_intervals(one, two), changes, truth, (before, after))


def comparison_table(comparison: Comparison, *, per_class: bool = False) -> Table:
    """Both scores, their difference and its interval in points: groups, and the classes whose difference is real, or all."""
    table = Table(title="The second against the first", title_justify="left")
    for column in ("", "first", "second", "difference", "95 % interval", "real"):
        table.add_column(column, justify="left" if column in ("", "real") else "right")
    for row in difference_rows(comparison):
        if row.name in GROUPS if row.category_id is None else per_class or row.is_real:
            interval = f"{100 * row.interval.low:+.1f} to {100 * row.interval.high:+.1f}"
            values = (f"{100 * row.first:.1f}", f"{100 * row.second:.1f}", f"{100 * row.interval.value:+.1f}")
            table.add_row(Text(row.name), *values, interval, "yes" if row.is_real else "no")
    return table


class Difference(NamedTuple):
    """A score of both sides (fractions), and second minus first with its interval."""

    name: str  # "All PQ", or of a category
    category_id: int | None  # whose PQ it is; None for a group
    first: float
    second: float
    interval: Interval
    is_real: bool  # over images enough


def difference_rows(comparison: Comparison) -> list[Difference]:
    """PQ, SQ and RQ of all groups, and PQ of every class that occurs on a side."""
    first, second = comparison.results
    rows, enough = [], len(comparison.changes) >= FEW_IMAGES
    for group in ("All", "Things", "Stuff"):
        before_after = getattr(first, group.lower()), getattr(second, group.lower())
        for score in ("pq", "sq", "rq"):
            name = f"{group} {score.upper()}"
            before, after = (float(getattr(side, score)) for side in before_after)
            interval = comparison.differences[name]
            rows.append(Difference(name, None, before, after, interval, enough and interval.is_real))
    names = interval_names(first.categories)
    for category in first.categories.categories:
        one, other = first.per_class[category.id], second.per_class[category.id]
        if any(one[3:]) or any(other[3:]):
            interval = comparison.differences[names[category.id]]
            rows.append(Difference(category.name, category.id, one.pq, other.pq, interval, enough and interval.is_real))
    return rows


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write `differences.csv`, a row per score, and `changes.csv`, a row per image, the largest change first; fractions."""
    differences: list[dict[str, object]] = []
    for row in difference_rows(comparison):
        scores = {"id": row.category_id, "name": row.name, "first": row.first, "second": row.second}
        value, low, high = row.interval
        differences.append({**scores, "difference": value, "low": low, "high": high, "real": int(row.is_real)})
    changes: list[dict[str, object]] = [
        {"image": name, "first": before, "second": after, "difference": after - before}
        for name, before, after in comparison.changes
    ]
    make_folder(folder)
    for name, rows in (("differences.csv", differences), ("changes.csv", changes)):
        write_whole(folder / name, as_csv(rows).encode())


def draw_changes(comparison: Comparison, output: Path, images: Path | None = None) -> int:
    """Draw the truth and the errors of both sides for the images that changed most, at most ten; returns how many.

    Args:
        comparison: what to draw.
        output: the folder for the pictures.
        images: folder of the images; on grey without it.

    Raises:
        EvaluationError: no such folder.
    """
    truth, categories = comparison.truth, comparison.truth.categories()
    ids = {str(image_id): image_id for image_id in truth.entries}
    changed = [row for row in comparison.changes[:PICTURES] if row[1] != row[2]]
    if images is not None and not images.is_dir():
        raise EvaluationError(f"{images} is no folder; the images of the ground truth are needed for pictures, or leave it out")
    make_folder(output)
    for old in output.glob("change_[0-9][0-9]_*.png"):  # of an earlier comparison, which would look like this one's
        old.unlink()
    for place, (name, before, after) in enumerate(changed, start=1):
        expected = truth.segmentation(ids[name], categories)
        picture = _picture(images, truth.image_names.get(ids[name]), expected)
        drawn = [overlay(picture, expected)]
        drawn += [
            error_view(picture, _side(side, ids[name], expected, categories), expected, legend=False)
            for side in comparison.sides
        ]
        shown = truth.image_names.get(ids[name]) or f"image {name}"
        titles = [shown, f"first: PQ {100 * before:.1f}", f"second: PQ {100 * after:.1f}"]
        save_picture(output / f"change_{place:02d}_{100 * (after - before):+.0f}.png", side_by_side(drawn, titles))
    return len(changed)


def _side(side: AnnotationSet, image_id: ImageId, truth: PanopticSegmentation, table: CategoryTable) -> PanopticSegmentation:
    """A prediction; an empty one where there is none."""
    if image_id in side.entries:
        return side.segmentation(image_id, table)
    return PanopticSegmentation(np.zeros_like(truth.segment_map), [], table, image_id=image_id)


def _picture(images: Path | None, name: str | None, truth: PanopticSegmentation) -> np.ndarray:
    """The image (H, W, 3), or grey where it is not at hand."""
    size = truth.segment_map.shape
    if images is not None and name is not None:
        with suppress(PictureError):
            found = read_image(safe_path(images, name, "images of the ground truth"))
            if found.shape[:2] == size:
                return found
    return np.full((*size, 3), 160, np.uint8)
