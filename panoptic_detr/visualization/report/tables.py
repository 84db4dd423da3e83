"""The tables and curves of a report as plain values for its template."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import PictureError
from panoptic_detr.visualization.draw import Palette, category_colors

Curve = Sequence[tuple[float, float]]

_PLOT = (260, 120)  # width and height of a curve in its own units
_MOST_POINTS = 300


@dataclass
class Confusion:
    """How often a true class was taken for another.

    Attributes:
        counts: (true class, predicted class) to number of segments; "" as true class counts extra segments, as predicted class
            missed ones.
    """

    counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, truth: str, predicted: str) -> None:
        """Count one segment."""
        self.counts[truth, predicted] = self.counts.get((truth, predicted), 0) + 1

    def names(self, limit: int) -> list[str]:
        """Classes with the most mistakes, then the most segments, at most `limit`, in alphabetical order."""
        tally: dict[str, list[int]] = {}
        for (truth, predicted), count in self.counts.items():
            for name in {truth, predicted} - {""}:
                entry = tally.setdefault(name, [0, 0])
                entry[0] += count * (truth != predicted)
                entry[1] += count
        return sorted(sorted(tally, key=lambda name: tally[name], reverse=True)[:limit])

    def worst(self, limit: int = 12) -> list[tuple[str, str, int]]:
        """The most frequent mistakes of one class for another: (true, predicted, count)."""
        mistakes = [(t, p, n) for (t, p), n in self.counts.items() if t and p and t != p]
        return sorted(mistakes, key=lambda row: (-row[2], row[:2]))[:limit]

    def matrix(self, limit: int = 30) -> dict[str, Any]:
        """Rows of cells (count, share of the row's total) for the template; a last row for extra segments."""
        names = self.names(limit)
        rows = []
        for truth in [*names, ""]:
            total = sum(count for (t, _), count in self.counts.items() if t == truth)
            cells = [self.counts.get((truth, predicted), 0) for predicted in [*names, ""]]
            shown = [
                {"count": n, "share": n / total if total else 0.0, "hit": bool(truth) and p == truth}
                for n, p in zip(cells, [*names, ""], strict=True)
            ]
            rows.append({"name": truth, "cells": shown, "total": total})
        return {"names": names, "rows": rows}


def class_rows(per_class: Mapping[Any, Any], categories: CategoryTable, palette: Palette) -> list[dict[str, Any]]:
    """A row per category that occurs, the best first.

    Args:
        per_class: by category id: pq, sq, rq as fractions, and counts tp, fp, fn if known. Values are mappings or named tuples.
        categories: names and kinds.
        palette: for the dot before the name.
    """
    colors = category_colors(categories, palette)
    rows = []
    for key, value in per_class.items():
        quality = value._asdict() if hasattr(value, "_asdict") else dict(value)
        category = categories.by_id.get(int(key))
        seen = sum(quality.get(name, 0) for name in ("tp", "fp", "fn")) if "tp" in quality else None
        if category is None or seen == 0:
            continue
        rows.append({"name": category.name, "kind": category.kind, "color": hex_color(colors[category.id]), **quality})
    return sorted(rows, key=lambda row: (-row["pq"], row["name"]))


def plot(name: str, points: Curve) -> dict[str, Any]:
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
    """Read the curves of a run from its CSV logs: every column of numbers, by step.

    Args:
        paths: CSV files with a "step" column; missing files are skipped.

    Raises:
        PictureError: a file without a "step" column.
    """
    curves: dict[str, list[tuple[float, float]]] = {}
    for path in map(Path, paths):
        if not path.is_file():
            continue
        with open(path, newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            if "step" not in (reader.fieldnames or ()):
                raise PictureError(f"{path}: a run's log has a 'step' column, but this file has {reader.fieldnames}")
            for row in reader:
                _add_points(curves, row)
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
