"""A report that opens in any browser: scores, curves, confusions and a gallery, in one file that needs no network."""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import PictureError
from panoptic_detr.files import write_whole
from panoptic_detr.quality import CAUSES, MEANING
from panoptic_detr.visualization.draw import Palette, category_colors
from panoptic_detr.visualization.errors import ERROR_COLORS, ERROR_NAMES, Entry, ErrorKind
from panoptic_detr.visualization.report.images import Confusion, Values, image_data

Curve = Sequence[tuple[float, float]]
Scores = Mapping[str, Any]

_PICTURE_BYTES = 8_800_000  # of all pictures together, so that the file stays below 10 MB
_PLOT = (260, 120)  # width and height of a curve in its own units
_MOST_POINTS = 300
_WORST_OF_A_CAUSE = 4
# The curves that people look for, in this order; the others stand folded below them.
_KNOWN_TERMS = ("loss", "class", "box_l1", "box_giou", "mask_focal", "mask_dice")
_KNOWN_SCORES = ("PQ", "PQ things", "PQ stuff", "box AP", "mask AP", "SQ", "RQ")


def write_report(
    path: str | Path,
    entries: Iterable[Entry],
    scores: Scores | Callable[[], Scores],
    *,
    categories: CategoryTable,
    curves: Mapping[str, Curve] | None = None,
    title: str = "Panoptic segmentation report",
    facts: Mapping[str, str] | None = None,
    palette: Palette = "distinct",
    count: int | None = None,
) -> Path:
    """Write the report.

    Args:
        path: of the HTML file.
        entries: images with truth and prediction, used one at a time; a few hundred at most.
        scores: "All", "Things" and "Stuff" with pq, sq, rq (fractions) and n; "per_class" by category id with pq, sq, rq and,
            if known, tp, fp, fn (`PanopticQualityResult.as_dict()`, or the same with its `per_class`); "points_lost" by
            group and cause, if known. A function is called after the last entry, for scores that are counted on the way.
        categories: the table that the ids of `scores` refer to.
        curves: name to (step, value) points, for example from `read_curves`.
        title: heading.
        facts: name and value pairs under the heading: model, data set, settings.
        palette: see `overlay`.
        count: how many entries a generator will give; pictures are made smaller the more there are.

    Returns:
        The path.

    Raises:
        PictureError: an entry lacks truth or prediction, or the file cannot be written.
    """
    if count is None:
        entries = list(entries)
        count = len(entries)
    confusion, budget = Confusion(), _PICTURE_BYTES // max(1, count)
    images = [image_data(e, i, budget=budget, palette=palette, confusion=confusion) for i, e in enumerate(entries)]
    final = scores() if callable(scores) else scores
    page = _template().render(
        title=title,
        facts=dict(facts or {}),
        **_plots(curves or {}),
        groups=[(name, _values(final[name])) for name in ("All", "Things", "Stuff") if name in final],
        points=point_rows(final.get("points_lost", {}), images),
        classes=class_rows(final.get("per_class", {}), categories, palette),
        **_image_values(images, confusion),
    )
    try:
        write_whole(path, page.encode("utf-8"))
    except OSError as error:
        why = f"{path}: the report cannot be written ({error.strerror}); choose a folder you may write to"
        raise PictureError(why) from None
    return Path(path)


def _image_values(images: Sequence[Values], confusion: Confusion) -> Values:
    """What the template shows of the images: confusions, the ranking and the gallery."""
    return {
        "matrix": confusion.matrix(),
        "confusions": confusion.worst(),
        "ranked": sorted(images, key=lambda image: (image["pq"], image["id"])),
        "gallery": [{key: image[key] for key in ("id", "name", "map", "truth", "prediction")} for image in images],
        "kinds": [{"name": ERROR_NAMES[kind], "color": hex_color(ERROR_COLORS[kind])} for kind in ErrorKind],
    }


def _plots(curves: Mapping[str, Curve]) -> Values:
    """What the template shows of a run: the curves that people know, and all others; scores in per cent, as everywhere."""
    percent = {name: [(step, round(100 * value, 1)) for step, value in curves.get(name, ())] for name in _KNOWN_SCORES}
    shown = {name: points for name, points in {**curves, **percent}.items() if len(points) > 1}
    known = [name for name in (*_KNOWN_TERMS, *_KNOWN_SCORES, "lr") if name in shown]
    titles = {"lr": "learning rate", **{name: f"{name} (%)" for name in _KNOWN_SCORES}}
    return {
        "plots": [plot(titles.get(name, name), shown[name]) for name in known],
        "more_plots": [plot(name, points) for name, points in shown.items() if name not in known],
    }


def _values(group: Any) -> Values:
    return group._asdict() if hasattr(group, "_asdict") else dict(group)


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(files(__package__).joinpath("page.html.jinja").read_text(encoding="utf-8"))


def class_rows(per_class: Mapping[int | str, object], categories: CategoryTable, palette: Palette) -> list[Values]:
    """A row per category that occurs, the best first.

    Args:
        per_class: by category id: pq, sq, rq as fractions, and counts tp, fp, fn if known. Values are mappings or named tuples.
        categories: names and kinds.
        palette: for the dot before the name.
    """
    colors = category_colors(categories, palette)
    rows = []
    for key, value in per_class.items():
        quality = _values(value)
        category = categories.by_id.get(int(key))
        seen = sum(quality.get(name, 0) for name in ("tp", "fp", "fn")) if "tp" in quality else None
        if category is None or seen == 0:
            continue
        rows.append({"name": category.name, "kind": category.kind, "color": hex_color(colors[category.id]), **quality})
    return sorted(rows, key=lambda row: (-row["pq"], row["name"]))


def point_rows(points: Mapping[str, Mapping[str, float]], images: Sequence[Values]) -> list[Values]:
    """What PQ was lost to: a row per cause, with the images in which it cost most.

    Args:
        points: by group, what each cause cost, as fractions of PQ.
        images: from `image_data`.
    """
    rows: list[Values] = []
    most = max(next(iter(points.values()), {}).values(), default=0.0) or 1.0
    for cause in CAUSES:
        values = {group: by_cause[cause] for group, by_cause in points.items()}
        worst = sorted(images, key=lambda image: (-image["lost"][cause], image["id"]))[:_WORST_OF_A_CAUSE]
        shown = [image for image in worst if image["lost"][cause] > 0]
        if any(values.values()):
            row = {"name": cause.replace("_", " "), "meaning": MEANING[cause], "groups": values, "worst": shown}
            rows.append({**row, "share": next(iter(values.values())) / most})
    return rows


def plot(name: str, points: Curve) -> Values:
    """A curve as SVG points, thinned to a few hundred, with its ends and extremes."""
    data = np.asarray(points, dtype=np.float64)
    data = data[np.linspace(0, len(data) - 1, min(len(data), _MOST_POINTS)).round().astype(int)]
    low, high = data.min(0), data.max(0)
    span = np.where(high > low, high - low, 1.0)
    x = (data[:, 0] - low[0]) / span[0] * _PLOT[0]
    y = _PLOT[1] - (data[:, 1] - low[1]) / span[1] * _PLOT[1]
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    ends = {"first": f"{low[0]:g}", "end": f"{high[0]:g}", "low": f"{low[1]:.4g}", "high": f"{high[1]:.4g}"}
    return {"name": name, "path": path, "width": _PLOT[0], "height": _PLOT[1], "last": f"{data[-1, 1]:.4g}", **ends}


def read_curves(*paths: str | Path) -> dict[str, list[tuple[float, float]]]:
    """Read the curves of a run from its CSV logs, where they are: every column of numbers, by the "step" column.

    Raises:
        PictureError: a file without a "step" column.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for path in map(Path, paths):
        if not path.is_file():
            continue
        try:
            with open(path, newline="", encoding="utf-8") as stream:
                reader = csv.DictReader(stream)
                if "step" not in (reader.fieldnames or ()):
                    raise PictureError(f"{path}: a run's log has a 'step' column, but this file has {reader.fieldnames}")
                for row in reader:
                    _add_points(curves, row)
        except (UnicodeDecodeError, csv.Error) as error:
            raise PictureError(f"{path}: not a CSV file of text ({error}); a run writes log.csv and scores.csv") from None
    return {name: points for name, points in curves.items() if name != "epoch"}


def hex_color(color: Sequence[int]) -> str:
    """A colour as browsers write it."""
    return "#{:02x}{:02x}{:02x}".format(*color)


def _add_points(curves: dict[str, list[tuple[float, float]]], row: Mapping[str, str | None]) -> None:
    for name, text in row.items():
        try:
            point = (float(row["step"] or ""), float(text or ""))
        except (TypeError, ValueError):
            continue  # an empty cell: this column was not logged at this step
        if name != "step" and np.isfinite(point).all():
            curves.setdefault(name, []).append(point)
