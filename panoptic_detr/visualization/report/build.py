"""A report that opens in any browser: scores, curves, confusions and a gallery, in one file that needs no network."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import PictureError
from panoptic_detr.files import write_whole
from panoptic_detr.visualization.draw import Palette
from panoptic_detr.visualization.entry import Entry
from panoptic_detr.visualization.errors import ERROR_COLORS, ERROR_NAMES, ErrorKind
from panoptic_detr.visualization.report.images import image_data
from panoptic_detr.visualization.report.tables import Confusion, Curve, class_rows, hex_color, plot

Scores = Mapping[str, Any]

_PICTURE_BYTES = 8_800_000  # of all pictures together, so that the file stays below 10 MB


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
            if known, tp, fp, fn (`PanopticQualityResult.as_dict()`, or the same with its `per_class`). A function is called
            after the last entry, for scores that are counted on the way.
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
        plots=[plot(name, points) for name, points in (curves or {}).items() if len(points) > 1],
        **_score_values(final, categories, palette),
        **_image_values(images, confusion),
    )
    return _write_page(path, page)


def _score_values(scores: Scores, categories: CategoryTable, palette: Palette) -> dict[str, Any]:
    """What the template shows in the tables of scores."""
    return {
        "groups": [(name, _values(scores[name])) for name in ("All", "Things", "Stuff") if name in scores],
        "classes": class_rows(scores.get("per_class", {}), categories, palette),
    }


def _image_values(images: Sequence[Mapping[str, Any]], confusion: Confusion) -> dict[str, Any]:
    """What the template shows of the images: confusions, the ranking and the gallery."""
    return {
        "matrix": confusion.matrix(),
        "confusions": confusion.worst(),
        "ranked": sorted(images, key=lambda image: (image["pq"], image["id"])),
        "gallery": [{key: image[key] for key in ("id", "name", "map", "truth", "prediction")} for image in images],
        "kinds": [{"name": ERROR_NAMES[kind], "color": hex_color(ERROR_COLORS[kind])} for kind in ErrorKind],
    }


def _write_page(path: str | Path, page: str) -> Path:
    try:
        write_whole(path, page.encode("utf-8"))
    except OSError as error:
        raise PictureError(
            f"{path}: the report cannot be written ({error.strerror}); choose a folder you may write to"
        ) from None
    return Path(path)


def _values(group: Any) -> dict[str, float]:
    return group._asdict() if hasattr(group, "_asdict") else dict(group)


def _template() -> Template:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    text = files("panoptic_detr.visualization").joinpath("report.html.jinja").read_text(encoding="utf-8")
    return environment.from_string(text)
