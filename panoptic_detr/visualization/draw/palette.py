"""Colours: one per category that colour-blind readers can tell apart, in shades for the things of one class.

Distances are measured in OKLab (Ottosson, 2020) for normal vision and for the three kinds of dichromacy (Machado et al., 2009),
and the smallest of the four counts.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import InputError
from panoptic_detr.panoptic import PanopticSegmentation

Palette = Literal["distinct", "coco"]

VOID_COLOR = (96, 96, 96)

_DICHROMACY = np.array(
    [
        [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]],
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    ]
)
_RGB_TO_LMS = np.array(
    [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
)
_LMS_TO_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
# Okabe and Ito's colours (without black), reordered so that neighbours in a category list differ most.
_SEEDS = ((230, 159, 0), (0, 114, 178), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0), (240, 228, 66))


def oklab(rgb: np.ndarray) -> np.ndarray:
    """OKLab coordinates (lightness 0..1, a, b) of (..., 3) RGB colours in 0..255."""
    return _linear_to_oklab(_to_linear(rgb))


def vision_distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Smallest OKLab distance of colours over normal vision and three dichromacies.

    Args:
        first: (..., 3) RGB in 0..255.
        second: (..., 3) RGB in 0..255, broadcastable against the first.

    Returns:
        (...) distances; about 0.02 is just noticeable.
    """
    return np.linalg.norm(_all_visions(first) - _all_visions(second), axis=-1).min(0)


@lru_cache(maxsize=8)
def distinct_colors(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` colours, the first seven Okabe and Ito's, each further one as far as possible from all before it.

    The sequence does not depend on `count`: a longer one only adds colours, so categories keep theirs when a table grows.
    """
    seeds = np.array(_SEEDS[:count], dtype=np.float64)  # (n, 3)
    candidates = _candidates()
    views = _all_visions(candidates)  # (4, N, 3)
    nearest = np.full(len(candidates), np.inf)
    for seed in seeds:
        nearest = np.minimum(nearest, np.linalg.norm(views - _all_visions(seed)[:, None], axis=-1).min(0))
    chosen = [(int(r), int(g), int(b)) for r, g, b in seeds]
    while len(chosen) < count:
        best = int(nearest.argmax())
        red, green, blue = candidates[best].astype(int).tolist()
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(views - views[:, best : best + 1], axis=-1).min(0))
    return tuple(chosen)


def category_colors(categories: CategoryTable, palette: Palette = "distinct") -> dict[int, tuple[int, int, int]]:
    """The colour of every category id.

    Args:
        categories: the table; with "distinct" the order in it decides, with "coco" its own colours are used.
        palette: "distinct" or "coco".

    Raises:
        InputError: another palette name.
    """
    if palette == "coco":
        return {category.id: category.color for category in categories.categories}
    if palette != "distinct":
        raise InputError(
            f"palette {palette!r} is unknown; choose 'distinct' (colour-blind safe) or 'coco' (the table's own colours)"
        )
    colors = distinct_colors(len(categories.categories))
    return {category.id: color for category, color in zip(categories.categories, colors, strict=True)}


def segment_colors(segmentation: PanopticSegmentation, palette: Palette = "distinct") -> np.ndarray:
    """One colour per segment: its category's, in lighter and darker shades for further things of the same class.

    Returns:
        (S, 3) uint8 RGB in the order of `segmentation.segments`; a category that the table does not know is drawn as void.
    """
    base = category_colors(segmentation.categories, palette)
    seen: dict[int, int] = {}
    colors = np.empty((len(segmentation.segments), 3), dtype=np.uint8)
    for index, segment in enumerate(segmentation.segments):
        turn = seen.get(segment.category_id, 0)
        seen[segment.category_id] = turn + 1
        colors[index] = shade(base.get(segment.category_id, VOID_COLOR), turn if segment.isthing else 0)
    return colors


def shade(color: Sequence[int], turn: int) -> np.ndarray:
    """The `turn`-th shade of a colour: itself, lighter, darker, still lighter, ..., eight in all and then again; (3,) uint8."""
    strength = (0.0, 0.34, -0.28, 0.56, -0.44, 0.18, -0.14, 0.45)[turn % 8]
    rgb = np.asarray(color, dtype=np.float64)
    end = 255.0 if strength > 0 else 0.0
    return np.round(rgb + abs(strength) * (end - rgb)).astype(np.uint8)


def luminance(rgb: np.ndarray) -> np.ndarray:
    """Relative luminance 0..1 (WCAG) of (..., 3) RGB in 0..255."""
    return _to_linear(rgb) @ np.array([0.2126, 0.7152, 0.0722])


def _candidates() -> np.ndarray:
    """Grid colours that are neither pale nor nearly black or white: (N, 3) in 0..255."""
    steps = np.linspace(0, 255, 14).round()
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(-1, 3)
    lab = oklab(grid)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    return grid[(lab[:, 0] > 0.38) & (lab[:, 0] < 0.92) & (chroma > 0.05)]


def _all_visions(rgb: np.ndarray) -> np.ndarray:
    """OKLab of (..., 3) RGB as four kinds of eyes see it: (4, ..., 3)."""
    linear = _to_linear(rgb)
    seen = np.einsum("vij,...j->v...i", _DICHROMACY, linear)
    return _linear_to_oklab(seen.clip(0, 1))


def _to_linear(rgb: np.ndarray) -> np.ndarray:
    value = np.asarray(rgb, dtype=np.float64) / 255
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _linear_to_oklab(linear: np.ndarray) -> np.ndarray:
    return np.cbrt(linear @ _RGB_TO_LMS.T) @ _LMS_TO_LAB.T
