"""Text for pictures: lines, plates, and fonts that have the glyphs of any script.

DejaVu Sans comes with matplotlib and covers Latin, Greek, Cyrillic, Arabic, Hebrew and more. Other scripts are looked up among
the installed fonts, after the font file that `first_font` names; where none has a glyph, `printable` returns something that can
be read instead of empty boxes.
"""

import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from panoptic_detr.errors import PictureError

DARK = (18, 18, 22)
LIGHT = (255, 255, 255)
_PLATE_OPACITY = 0.78
_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")  # spaces, controls, joiners: no font needs a glyph for them


_first = ""  # the font file that is asked first; every cache below has it in its key


@contextmanager
def first_font(path: str | Path | None) -> Iterator[None]:
    """Inside this context text is drawn with this font file, as far as it has the glyphs; None changes nothing.

    Raises:
        PictureError: no font that can be read.
    """
    global _first
    if path is not None and not _glyphs(str(path)):
        raise PictureError(f"{path}: no font that can be read; give a file of TrueType or OpenType (.ttf, .otf, .ttc)")
    before, _first = _first, _first if path is None else str(path)
    try:
        yield
    finally:
        _first = before


def default_font_size(shape: Sequence[int]) -> int:
    """Font size in pixels for a picture of (H, W, ...): 11 at 384 x 384, 14 at 480 x 640, 38 at 2048 x 2048."""
    return max(8, round(5 + 0.016 * (shape[0] * shape[1]) ** 0.5))


def line_width(shape: Sequence[int]) -> int:
    """Width in pixels of contour lines in a picture of (H, W, ...)."""
    return max(1, round((shape[0] * shape[1]) ** 0.5 / 400))


def printable(name: str, fallback: str) -> str:
    """`name`, or `fallback` (plain ASCII: "class 17", say) with a warning where no installed font has all of its glyphs."""
    return _printable(name, fallback, _first)


@lru_cache(maxsize=1024)
def _printable(name: str, fallback: str, first: str) -> str:
    if _font_path(name, first) is not None:
        return name
    missing = "".join(sorted(set(name) - _glyphs(_default_font())))
    warnings.warn(
        f"no installed font has the glyphs {missing!r} of class name {name!r}; pictures show {fallback!r} instead. "
        "Install a font for that script (for example Noto Sans CJK: `apt-get install fonts-noto-cjk`) "
        "and delete matplotlib's font cache, or name a font file (font_path, --font-path)",
        UserWarning,
        stacklevel=3,
    )
    return fallback


def text_mask(text: str, size: int) -> np.ndarray:
    """Coverage of a line of text: (h, w) uint8, 255 inside glyphs; every text of one size in pixels has the same height.

    Read-only: it is cached.
    """
    return _text_mask(text, size, _first)


@lru_cache(maxsize=4096)
def _text_mask(text: str, size: int, first: str) -> np.ndarray:
    font = ImageFont.truetype(_font_path(text, first) or _default_font(), size)
    ascent, descent = font.getmetrics()
    picture = Image.new("L", (max(1, round(font.getlength(text))), ascent + descent), 0)
    ImageDraw.Draw(picture).text((0, 0), text, fill=255, font=font)
    mask = np.array(picture)
    mask.flags.writeable = False
    return mask


def shortened(text: str, size: int, width: int) -> str:
    """`text`, cut with an ellipsis so that it is at most `width` pixels wide."""
    if text_mask(text, size).shape[1] <= width:
        return text
    cuts = (text[:length].rstrip() + "…" for length in range(len(text) - 1, 0, -1))
    return next((cut for cut in cuts if text_mask(cut, size).shape[1] <= width), "…")


def plate_size(text: str, size: int) -> tuple[int, int]:
    """(height, width) in pixels of the plate that `draw_plate` puts under a text."""
    stripe, pad = _margins(size)
    height, width = text_mask(text, size).shape
    return height + max(0, pad - 1), width + 2 * pad + stripe


def draw_plate(picture: np.ndarray, top_left: tuple[int, int], text: str, size: int, color: tuple[int, int, int]) -> None:
    """Draw white text on a dark plate with a stripe in the segment's colour, in place; parts outside the picture are cut off.

    Args:
        picture: (H, W, 3) uint8 RGB.
        top_left: (y, x) of the plate.
        text: one line.
        size: font size in pixels.
        color: RGB of the stripe.
    """
    _blend(picture, top_left, *_plate(text, size, color, _first))


def draw_text(
    picture: np.ndarray, top_left: tuple[int, int], text: str, size: int, color: tuple[int, int, int] = LIGHT
) -> None:
    """Draw a line of text without a plate, in place; parts outside the picture are cut off."""
    _blend(picture, top_left, np.array(color, np.float32), text_mask(text, size)[..., None].astype(np.float32) / 255)


def _blend(picture: np.ndarray, top_left: tuple[int, int], colors: np.ndarray, weight: np.ndarray) -> None:
    """Lay (h, w, 3) or (3,) colours over a picture, as far as they lie in it, where their (h, w, 1) weight says so."""
    (y, x), (height, width) = top_left, weight.shape[:2]
    rows, columns = (slice(max(0, -start), max(0, end - start)) for start, end in zip(top_left, picture.shape, strict=False))
    area = picture[max(0, y) : max(0, y + height), max(0, x) : max(0, x + width)]
    weight, colors = weight[rows, columns], colors[rows, columns] if colors.ndim == 3 else colors
    area[:] = (area * (1 - weight) + colors * weight + 0.5).astype(np.uint8)


def _margins(size: int) -> tuple[int, int]:
    """Of a plate, in pixels: width of the coloured stripe at its left end, space left and right of its text."""
    return max(2, round(size * 0.28)), max(1, round(size * 0.3))


@lru_cache(maxsize=1024)
def _plate(text: str, size: int, color: tuple[int, int, int], first: str) -> tuple[np.ndarray, np.ndarray]:
    """Colours (h, w, 3) and opacity (h, w, 1) of a plate, float32: see-through but for its text and stripe, round corners."""
    (height, width), (stripe, pad) = plate_size(text, size), _margins(size)
    mask = text_mask(text, size)
    glyphs, top = np.zeros((height, width, 1), np.float32), (height - mask.shape[0]) // 2
    glyphs[top : top + mask.shape[0], stripe + pad : stripe + pad + mask.shape[1], 0] = mask / 255
    colors = np.array(DARK, np.float32) * (1 - glyphs) + np.array(LIGHT, np.float32) * glyphs
    colors[:, :stripe] = color
    opacity = np.maximum(glyphs, _PLATE_OPACITY)
    opacity[:, :stripe] = 1
    opacity *= _round_corners(height, width, min(max(1, size // 5), height // 2, width // 2))[..., None]
    return colors, opacity


def _round_corners(height: int, width: int, radius: int) -> np.ndarray:
    """(height, width) float32: 1, falling to 0 where a corner is rounded off."""
    rows, columns = (radius - 0.5 - np.minimum(np.arange(side), np.arange(side)[::-1]) for side in (height, width))
    inside_corner = np.minimum.outer(rows, columns) > 0  # nearer to both edges than the circle's centre
    away = np.where(inside_corner, np.hypot.outer(rows, columns), 0)  # from that centre
    return (radius + 0.25 - away).clip(0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def _default_font() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=1024)
def _font_path(text: str, first: str) -> str | None:
    """The first font that has every glyph of a text: that named, DejaVu Sans, installed sans-serif fonts, then any other."""
    needed = frozenset(character for character in text if unicodedata.category(character) not in _INVISIBLE)
    if first and needed <= _glyphs(first):
        return first
    if needed <= _glyphs(_default_font()):
        return _default_font()
    return next((path for path in _installed_fonts() if needed <= _glyphs(path)), None)


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager

    # "Last Resort" has a box with a code for every character: nothing that can be read.
    entries = [e for e in font_manager.fontManager.ttflist if "Last Resort" not in e.name and e.style == "normal"]
    weights = font_manager.weight_dict
    entries.sort(key=lambda e: ("Sans" not in e.name, abs(int(weights.get(str(e.weight), e.weight)) - 400), e.name, e.fname))
    return tuple(dict.fromkeys(entry.fname for entry in entries))


@lru_cache(maxsize=512)
def _glyphs(path: str) -> frozenset[str]:
    """Characters that a font file can show; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(chr(code) for code in FT2Font(path).get_charmap())
    except (RuntimeError, OSError):
        return frozenset()
