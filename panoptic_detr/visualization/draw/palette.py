"""Colours: one per category that colour-blind readers can tell apart, in shades for the things of one class."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import InputError
from panoptic_detr.panoptic import PanopticSegmentation

Palette = Literal["distinct", "coco"]

VOID_COLOR = (96, 96, 96)
# Okabe and Ito's seven colours, then each as far as possible from all before it: the smallest of its OKLab distances
# (Ottosson, 2020) for normal vision and for three kinds of dichromacy (Machado et al., 2009).
_DISTINCT = np.frombuffer(
    bytes.fromhex(
        "e69f000072b2009e73cc79a756b4e9d55e00f0e44276271462ffff3b3b76b1c49d8900ff894e629d76ffb13b00003bc4b1ebb162d8eb623b4e"
        "89b176ebc462624e89d83bd89d6289eb763b62279dc49db162764ed814b19dd8c49d4eff893b277676d8ff76d8b189ffeb3b62c44e0089ff89"
        "00623bb114d889c47689c4ffb1d889c4009debb13b769dc4274e62d8d8004e8962b10089d86289899d3b76ebebc4629d76148900629d4e00b1"
        "c49dffb1763b764e76d8b1c4c43bc4ff4ec4ff769d764eebb1b14e9d00628914b10014c4763b00d8004e1489eb6200d88962c49d9d6227ff62"
        "7600ebffb1b176623beb4eeb8900768989c4c400764eb189893bc4c4003b3bd83bb176b14e9deb4e62893b767676629d89d8d8b127b19debd8"
        "b1d8ffc4b1d8b19dd8eb6214d89dc476b19dc4c4893bc4eb7676b1628976c476d8d84eff00761400eb629d76629deb89623b9dd8ebc4146276"
        "ebeb7689eb9d764e3b89ffd83bc4628927273b624e4e149dff89eb764e9deb8989c44eebc49d00d814d8b14e274e76627689279d140089894e"
        "d8b176893bff2776c4ff9dff00ffc462d8b10000ffb19d4eb189623b3b89b1c400622762d8c4eb9dffb18914d8ebd89d3b899d3b9d00c489b1"
        "c4d87689b1c4b114eb4e7689ffc4ff9d623bd83bb1ebc4d8b14e760000eb9d769d27894ed8624e89d89dd84ed8c4893b27c49d76ff00eb9db1"
        "d8c44eeb6276b1768962eb00d8eb629dc462890027c4d8b14e9d62ff89c4c4b189629d9d27b14e76ebc476144ed876ffd89deb9dd8000089c4"
        "b100b17676ff76b162ff279d9db13b9d3b00eb76b1d8148989d84e9d2762c43b144eb1d82762b1ebd84e274e147600b17600763b4e89ff2727"
        "76d862d89d3b899d769d89279d4e27763b4eeb76eb76273b8927624ed8897600c4d8c49d0000d8623bc489eb4e6262c48976ebd83b4eb1623b"
        "8962d8d8769d899dd8273beb623b769d2727b1274e9d4eebd814c4c4b13bc49d89eb8900eb89b1d8eb9d3b762776c400ffb1d8629dffc4eb76"
        "4e89ff894e7600764eb1ff4e4ec44ed88989c44e4eb1003b00ebb1"
    ),
    np.uint8,
).reshape(-1, 3)
# Shades of one colour by turn: 0 is itself, above it mixes white in, below it black.
_SHADES = (0.0, 0.34, -0.28, 0.56, -0.44, 0.18, -0.14, 0.45)


def distinct_colors(count: int) -> list[tuple[int, int, int]]:
    """The first `count` colours of the table, from the beginning again where it ends (after 256)."""
    return [(red, green, blue) for red, green, blue in _DISTINCT[np.arange(count) % len(_DISTINCT)].tolist()]


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


def segment_colors(
    segmentation: PanopticSegmentation, palette: Palette = "distinct", *, shade_by_id: bool = False
) -> np.ndarray:
    """One colour per segment: its category's, in lighter and darker shades for further things of the same class.

    Args:
        segmentation: of which picture.
        palette: see `category_colors`.
        shade_by_id: an id decides about the shade, so that a thing that keeps its id over a film keeps its colour.

    Returns:
        (S, 3) uint8 RGB in the order of `segmentation.segments`; a category that the table does not know is drawn as void.
    """
    base = category_colors(segmentation.categories, palette)
    seen: dict[int, int] = {}
    colors = np.empty((len(segmentation.segments), 3), dtype=np.uint8)
    for index, segment in enumerate(segmentation.segments):
        turn = seen.get(segment.category_id, 0)
        seen[segment.category_id] = turn + 1
        turn = segment.id if shade_by_id else turn
        colors[index] = shade(base.get(segment.category_id, VOID_COLOR), turn if segment.isthing else 0)
    return colors


def shade(color: Sequence[int], turn: int) -> np.ndarray:
    """The `turn`-th shade of a colour: itself, lighter, darker, still lighter, ..., eight in all and then again; (3,) uint8."""
    strength = _SHADES[turn % len(_SHADES)]
    rgb = np.asarray(color, dtype=np.float64)
    end = 255.0 if strength > 0 else 0.0
    return np.round(rgb + abs(strength) * (end - rgb)).astype(np.uint8)
