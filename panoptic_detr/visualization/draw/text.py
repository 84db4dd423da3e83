"""Text for pictures: fonts that have the glyphs of any script, cached glyph masks, plates.

DejaVu Sans comes with matplotlib and covers Latin, Greek, Cyrillic, Arabic, Hebrew and more. Other scripts are looked up among
the installed fonts; where none has a glyph, `printable` returns something that can be read instead of empty boxes.
"""

import unicodedata
import warnings
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

DARK = (18, 18, 22)
LIGHT = (255, 255, 255)
_INVISIBLE = ("Zs", "Zl", "Zp", "Cc", "Cf")  # spaces, controls, joiners: no font needs a glyph for them


@lru_cache(maxsize=1024)
def printable(name: str, fallback: str) -> str:
    """`name`, or `fallback` with a warning where no installed font has all of its glyphs.

    Args:
        name: any text.
        fallback: plain ASCII to show instead, for example "class 17".
    """
    if _font_path(name) is not None:
        return name
    missing = "".join(sorted(set(name) - _glyphs(_default_font())))
    warnings.warn(
        f"no installed font has the glyphs {missing!r} of class name {name!r}; pictures show {fallback!r} instead. "
        "Install a font for that script (for example Noto Sans CJK: `apt-get install fonts-noto-cjk`) "
        "and delete matplotlib's font cache",
        UserWarning,
        stacklevel=2,
    )
    return fallback


@lru_cache(maxsize=4096)
def text_mask(text: str, size: int) -> np.ndarray:
    """Coverage of a line of text.

    Args:
        text: one line.
        size: font size in pixels.

    Returns:
        (h, w) uint8, 255 inside glyphs; every text of one size has the same height. Read-only: it is cached.
    """
    font = _font(_font_path(text) or _default_font(), size)
    ascent, descent = font.getmetrics()
    width = max(1, round(font.getlength(text)))
    picture = Image.new("L", (width, ascent + descent), 0)
    ImageDraw.Draw(picture).text((0, 0), text, fill=255, font=font)
    mask = np.array(picture)
    mask.flags.writeable = False
    return mask


def plate_size(text: str, size: int) -> tuple[int, int]:
    """(height, width) in pixels of the plate that `draw_plate` puts under a text."""
    height, width = text_mask(text, size).shape
    pad = padding(size)
    return height + max(0, pad - 1), width + 2 * pad + stripe_width(size)


def padding(size: int) -> int:
    """Space left and right of the text on its plate, in pixels."""
    return max(1, round(size * 0.3))


def stripe_width(size: int) -> int:
    """Width of the coloured stripe at the left end of a plate, in pixels."""
    return max(2, round(size * 0.28))


def draw_plate(picture: np.ndarray, top_left: tuple[int, int], text: str, size: int, color: tuple[int, int, int]) -> None:
    """Draw white text on a dark plate with a stripe in the segment's colour, in place; parts outside the picture are cut off.

    Args:
        picture: (H, W, 3) uint8 RGB.
        top_left: (y, x) of the plate.
        text: one line.
        size: font size in pixels.
        color: RGB of the stripe.
    """
    plate = _plate(text, size, color)
    opacity = _plate_opacity(text, size)
    y, x = top_left
    height, width = opacity.shape
    y0, x0, y1, x1 = max(0, y), max(0, x), min(picture.shape[0], y + height), min(picture.shape[1], x + width)
    if y0 >= y1 or x0 >= x1:
        return
    part = (slice(y0 - y, y1 - y), slice(x0 - x, x1 - x))
    area = picture[y0:y1, x0:x1]
    weight = opacity[part][..., None]
    picture[y0:y1, x0:x1] = (area * (1 - weight) + plate[part] * weight + 0.5).astype(np.uint8)


def draw_text(
    picture: np.ndarray, top_left: tuple[int, int], text: str, size: int, color: tuple[int, int, int] = LIGHT
) -> None:
    """Draw a line of text without a plate, in place; parts outside the picture are cut off."""
    mask = text_mask(text, size)
    y, x = top_left
    height, width = min(mask.shape[0], picture.shape[0] - y), min(mask.shape[1], picture.shape[1] - x)
    if y < 0 or x < 0 or height <= 0 or width <= 0:
        return
    weight = mask[:height, :width, None].astype(np.float32) / 255
    area = picture[y : y + height, x : x + width]
    area[:] = (area * (1 - weight) + np.array(color, np.float32) * weight + 0.5).astype(np.uint8)


def shortened(text: str, size: int, width: int) -> str:
    """`text`, cut with an ellipsis so that it is at most `width` pixels wide."""
    if text_mask(text, size).shape[1] <= width:
        return text
    for length in range(len(text) - 1, 0, -1):
        short = text[:length].rstrip() + "…"
        if text_mask(short, size).shape[1] <= width:
            return short
    return "…"


@lru_cache(maxsize=1024)
def _plate(text: str, size: int, color: tuple[int, int, int]) -> np.ndarray:
    """(h, w, 3) float32 colours of a plate."""
    height, width = plate_size(text, size)
    mask = text_mask(text, size)
    plate = np.empty((height, width, 3), np.float32)
    plate[:] = DARK
    stripe, pad = stripe_width(size), padding(size)
    top = (height - mask.shape[0]) // 2
    plate[:, :stripe] = color
    area = plate[top : top + mask.shape[0], stripe + pad : stripe + pad + mask.shape[1]]
    weight = mask[..., None].astype(np.float32) / 255
    area[:] = area * (1 - weight) + np.array(LIGHT, np.float32) * weight
    return plate


@lru_cache(maxsize=1024)
def _plate_opacity(text: str, size: int) -> np.ndarray:
    """(h, w) float32: 0.82 on the plate, 1 on its text and stripe, 0 at the rounded corners."""
    height, width = plate_size(text, size)
    mask, stripe, pad = text_mask(text, size), stripe_width(size), padding(size)
    opacity = np.full((height, width), 0.78, np.float32)
    opacity[:, :stripe] = 1
    top = (height - mask.shape[0]) // 2
    glyphs = opacity[top : top + mask.shape[0], stripe + pad : stripe + pad + mask.shape[1]]
    np.maximum(glyphs, mask.astype(np.float32) / 255, out=glyphs)
    return opacity * _rounded(height, width, max(1, size // 5))


def _rounded(height: int, width: int, radius: int) -> np.ndarray:
    """(height, width) float32 coverage of a rectangle with rounded corners."""
    big = np.zeros((height * 4, width * 4), np.uint8)
    r = min(radius, height // 2, width // 2) * 4
    cv2.rectangle(big, (r, 0), (width * 4 - 1 - r, height * 4 - 1), 255, -1)
    cv2.rectangle(big, (0, r), (width * 4 - 1, height * 4 - 1 - r), 255, -1)
    for x in (r, width * 4 - 1 - r):
        for y in (r, height * 4 - 1 - r):
            cv2.circle(big, (x, y), r, 255, -1)
    return cv2.resize(big, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


@lru_cache(maxsize=1)
def _default_font() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@lru_cache(maxsize=64)
def _font(path: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


@lru_cache(maxsize=1024)
def _font_path(text: str) -> str | None:
    """The first font that has every glyph of a text: DejaVu Sans, then installed sans-serif fonts, then any other."""
    needed = frozenset(character for character in text if unicodedata.category(character) not in _INVISIBLE)
    for path in (_default_font(), *(_installed_fonts() if not needed <= _glyphs(_default_font()) else ())):
        if needed <= _glyphs(path):
            return path
    return None


@lru_cache(maxsize=1)
def _installed_fonts() -> tuple[str, ...]:
    from matplotlib import font_manager

    # "Last Resort" has a box with a code for every character: nothing that can be read.
    entries = [e for e in font_manager.fontManager.ttflist if "Last Resort" not in e.name and e.style == "normal"]
    entries.sort(key=lambda e: ("Sans" not in e.name, abs(_weight(e.weight) - 400), e.name, e.fname))
    return tuple(dict.fromkeys(entry.fname for entry in entries))


def _weight(weight: int | str) -> int:
    return weight if isinstance(weight, int) else {"bold": 700, "light": 300}.get(weight, 400)


@lru_cache(maxsize=512)
def _glyphs(path: str) -> frozenset[str]:
    """Characters that a font file can show; none if it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(chr(code) for code in FT2Font(path).get_charmap())
    except (RuntimeError, OSError):
        return frozenset()


def free_row(top: int, left: int, size: tuple[int, int], taken: list[tuple[int, int, int, int]], bottom: int) -> int | None:
    """The first row from `top` down at which a plate meets no other; it is then added to `taken`.

    Args:
        top: wished row.
        left: column.
        size: (height, width) of the plate.
        taken: (top, left, bottom, right) of the plates so far.
        bottom: rows of the picture.

    Returns:
        The row, or None where there is none left.
    """
    height, width = size
    for row in range(top, bottom - height + 1):
        if all(row >= b or row + height <= t or left >= r or left + width <= x for t, x, b, r in taken):
            taken.append((row, left, row + height, left + width))
            return row
    return None
