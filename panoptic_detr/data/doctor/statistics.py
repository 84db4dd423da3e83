"""What a trainer wants to know of a data set before training: segments per image, sizes, classes; as table and figure."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from panoptic_detr.categories import Category
from panoptic_detr.data.coco.defects import printable
from panoptic_detr.errors import InputError
from panoptic_detr.files import make_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_BARS = 40  # classes that the figure shows
AREA_EDGES = 2.0 ** np.arange(0, 25)


@dataclass
class Statistics:
    """Counts over one split; a few bytes per image."""

    categories: dict[int, Category]  # by id
    segments: list[int] = field(default_factory=list)  # per image, without crowds: what a query detector must find
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # how many images have (height, width)
    by_category: dict[int, np.ndarray] = field(default_factory=dict)  # category id to (segments, images, pixels)
    crowds: Counter[int] = field(default_factory=Counter)  # how many segments are groups, by category
    pixels: int = 0  # of all readable annotations
    void: int = 0  # those of no segment
    # (24,) how many segments have an area between the powers of two in AREA_EDGES
    areas: np.ndarray = field(default_factory=lambda: np.zeros(len(AREA_EDGES) - 1, np.int64))

    def add(self, size: tuple[int, int] | None, segments: np.ndarray, void: int) -> None:
        """Count one image: its size, None if it cannot be read; its segments, (S, 3) category_id, pixels, iscrowd; its void."""
        if size is not None:
            self.sizes[size] += 1
        crowd = segments[:, 2] > 0
        self.segments.append(int((~crowd).sum()))
        self.crowds.update(segments[crowd, 0].tolist())
        self.pixels += int(segments[:, 1].sum()) + void
        self.void += void
        self.areas += np.histogram(segments[:, 1], AREA_EDGES)[0]
        for category_id in np.unique(segments[:, 0]).tolist():
            mine = segments[segments[:, 0] == category_id]
            row = self.by_category.setdefault(category_id, np.zeros(3, np.int64))
            row += [len(mine), 1, mine[:, 1].sum()]

    def over(self, queries: int) -> int:
        """Images with more segments than a detector has queries."""
        return sum(count > queries for count in self.segments)

    def as_dict(self, queries: int) -> dict[str, object]:
        """Plain values for a JSON."""
        return {
            "images": len(self.segments),
            "segments_per_image": _spread(self.segments),
            "queries": queries,
            "images_over_queries": self.over(queries),
            "crowds": self.crowds.total(),
            "void_share": self.void / max(1, self.pixels),
            "sizes": [{"height": h, "width": w, "images": count} for (h, w), count in self.sizes.most_common()],
            "categories": [
                {"id": c.id, "name": c.name, "isthing": int(c.isthing), **self._counts(c.id)}
                for c in sorted(self.categories.values(), key=lambda category: category.id)
            ],
        }

    def _counts(self, category_id: int) -> dict[str, int]:
        row = self.by_category.get(category_id, np.zeros(3, np.int64))
        return dict(zip(("segments", "images", "pixels"), row.tolist(), strict=True))

    def ranked(self) -> list[tuple[int, np.ndarray]]:
        """Categories that occur, the most frequent first."""
        return sorted(self.by_category.items(), key=lambda item: (-int(item[1][0]), item[0]))


def overview(splits: dict[str, Statistics], queries: int) -> Table:
    """One column per split."""
    table = Table("", *(printable(split) for split in splits), title="What a trainer needs to know")
    rows = [_overview_column(statistics, queries) for statistics in splits.values()]
    for name in rows[0] if rows else ():
        table.add_row(name, *(row[name] for row in rows))
    return table


def class_table(splits: dict[str, Statistics]) -> Table:
    """Segments and images of every category in each split, the most frequent first, and who never occurs."""
    table = Table(title="Categories")
    for name in ("id", "name", "kind"):
        table.add_column(name)
    for split in splits:
        table.add_column(f"{printable(split)}: segments / images", justify="right")
    categories: dict[int, Category] = {}
    totals: Counter[int] = Counter()
    for statistics in splits.values():
        categories = {**statistics.categories, **categories}
        totals.update({i: int(row[0]) for i, row in statistics.by_category.items()})
    for category_id, _ in sorted(totals.items(), key=lambda item: (-item[1], item[0])):
        cells = [statistics._counts(category_id) for statistics in splits.values()]
        category = categories[category_id]
        counts = [f"{cell['segments']} / {cell['images']}" for cell in cells]
        table.add_row(str(category_id), printable(category.name), category.kind, *counts)
    unused = len(categories) - len(totals)
    table.caption = f"{unused} of {len(categories)} categories never occur" if unused else None
    return table


def draw(splits: dict[str, Statistics], queries: int, path: str | Path) -> None:
    """Write a figure with one row per split: segments per image, their areas, image sizes, classes.

    Args:
        splits: the statistics by split.
        queries: drawn as a line.
        path: a picture; its ending says which kind.

    Raises:
        DataError: the folder cannot be written.
        InputError: an ending that matplotlib does not know.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(18, 4.5 * len(splits)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(splits), 4, squeeze=False, width_ratios=(1, 1, 1, 2))
    for axes, (split, statistics) in zip(grid, splits.items(), strict=True):
        _draw_segments(axes[0], statistics, queries, split)
        _draw_areas(axes[1], statistics)
        _draw_sizes(axes[2], statistics)
        _draw_classes(axes[3], statistics)
    ending = Path(path).suffix[1:].lower()
    if ending not in figure.canvas.get_supported_filetypes():
        known = ", ".join(sorted(figure.canvas.get_supported_filetypes()))
        raise InputError(f"{path}: a figure cannot be written with the ending {ending!r}; name one of {known}")
    make_folder(Path(path).parent)
    write_whole(path, lambda stream: figure.savefig(stream, format=ending, dpi=100))


def _overview_column(statistics: Statistics, queries: int) -> dict[str, str]:
    spread = _spread(statistics.segments)
    return {
        "images": str(len(statistics.segments)),
        "image sizes": _sizes(statistics.sizes),
        "segments (without crowds)": str(sum(statistics.segments)),
        "segments per image: mean, median, most": f"{spread['mean']:.1f}, {spread['median']:.0f}, {spread['most']:.0f}",
        f"images with more than {queries} segments": str(statistics.over(queries)),
        "crowds": str(statistics.crowds.total()),
        "void": f"{statistics.void / max(1, statistics.pixels):.1%}",
    }


def _draw_segments(axes: "Axes", statistics: Statistics, queries: int, split: str) -> None:
    counts = statistics.segments or [0]
    axes.hist(counts, bins=min(50, max(counts) + 1), color="#4a85ec")
    if max(counts) > queries / 2:
        axes.axvline(queries, color="#e65348", label=f"{queries} queries")
        axes.legend()
    axes.set(title=f"{_plain(split)}: {statistics.over(queries)} images over {queries}", xlabel="segments", ylabel="images")


def _draw_areas(axes: "Axes", statistics: Statistics) -> None:
    axes.stairs(statistics.areas, AREA_EDGES, fill=True, color="#60a85c")
    axes.set(xscale="log", title="segment areas", xlabel="pixels", ylabel="segments")


def _draw_sizes(axes: "Axes", statistics: Statistics) -> None:
    rows = statistics.sizes.most_common(5000)
    heights, widths = [size[0] for size, _ in rows], [size[1] for size, _ in rows]
    axes.scatter(widths, heights, s=[10 + 90 * count / rows[0][1] for _, count in rows], color="#a860dc", alpha=0.6)
    axes.set(title=f"{len(statistics.sizes)} image sizes", xlabel="width", ylabel="height", xlim=(0, None), ylim=(0, None))


def _draw_classes(axes: "Axes", statistics: Statistics) -> None:
    rows = statistics.ranked()[:MOST_BARS]
    colors = ["#f7bf3d" if statistics.categories[i].isthing else "#4ab2be" for i, _ in rows]
    axes.bar(range(len(rows)), [row[0] for _, row in rows], color=colors)
    axes.set_xticks(range(len(rows)), [_plain(statistics.categories[i].name)[:20] for i, _ in rows], rotation=90, fontsize=7)
    axes.set(title=f"{len(statistics.by_category)} categories occur (yellow things, blue stuff)", ylabel="segments")
    if rows:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.8)


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: ASCII only (its font lacks the rest), and no formulas."""
    return text.encode("ascii", "backslashreplace").decode().replace("$", r"\$")


def _spread(counts: list[int]) -> dict[str, float]:
    values = np.array(counts or [0])
    return {"mean": float(values.mean()), "median": float(np.median(values)), "most": float(values.max())}


def _sizes(sizes: Counter[tuple[int, int]]) -> str:
    if not sizes:
        return "none readable"
    heights, widths = [h for h, _ in sizes], [w for _, w in sizes]
    if len(sizes) == 1:
        return f"all {widths[0]}x{heights[0]}"
    return f"{len(sizes)}, widths {min(widths)} to {max(widths)}, heights {min(heights)} to {max(heights)}"
