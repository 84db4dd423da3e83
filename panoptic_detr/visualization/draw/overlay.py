"""The panoptic picture: fill, contour and label of every segment, void hatched."""

from collections.abc import Sequence
from numbers import Real
from pathlib import Path

import cv2
import numpy as np

from panoptic_detr.errors import PictureError
from panoptic_detr.images import Picture, as_rgb, check_is_picture
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.visualization.draw.labels import Place, Wish, outlines, place_labels
from panoptic_detr.visualization.draw.palette import Palette, segment_colors
from panoptic_detr.visualization.draw.text import default_font_size, draw_plate, first_font, line_width, plate_size, printable

_STRIP_PIXELS = 1 << 18  # worked on at a time: stays in the cache, and bounds the memory for large pictures

_ROOMY_SIDE = 480
LONGEST_SIDE = 2**14
LARGEST_FONT = 1000


def overlay(
    image: Picture,
    segmentation: PanopticSegmentation,
    *,
    alpha: float = 0.5,
    contours: bool = True,
    labels: bool = True,
    show_scores: bool = True,
    palette: Palette = "distinct",
    font_size: int | None = None,
    scale: int = 1,
    font_path: str | Path | None = None,
    shade_by_id: bool = False,
) -> np.ndarray:
    """Draw a panoptic segmentation over its image.

    Things of one class come in shades of its colour. Void is hatched grey; groups (`iscrowd`) are striped. A label
    stands deep inside its segment where there is room, beside it otherwise, never on another label; one without room
    is left out.

    Args:
        image: path or array (see `as_rgb`), as large as the segment map.
        segmentation: what to draw.
        alpha: opacity of the fill, 0..1.
        contours: draw the outlines.
        labels: write class names.
        show_scores: write scores behind the names of predictions (segments that come from a query or score less than 1).
        palette: "distinct" (told apart by colour-blind readers too) or "coco" (the category table's own colours).
        font_size: in pixels; by default it follows from the picture's size.
        scale: enlarge the image this many times before drawing, so that labels fit small images.
        font_path: file of a font for names, as far as it has their glyphs; others come from DejaVu Sans and installed fonts.
        shade_by_id: of the shades of a class, an id decides which a thing has, so that it keeps it over the frames of a film.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB; the inputs are not changed.

    Raises:
        PictureError: image and segment map differ in size or are something else, alpha, scale or font size is out of range, or
            the font cannot be read.
    """
    check_is_picture(image)
    if not isinstance(segmentation, PanopticSegmentation):
        raise PictureError(
            f"{type(segmentation).__name__} is no PanopticSegmentation: give what a predictor gives for this picture, or make "
            "one (from_transformers, from_detectron2, read_panoptic)"
        )
    if font_size is not None and not (isinstance(font_size, Real) and 1 <= font_size <= LARGEST_FONT):
        raise PictureError(f"font_size must be 1 to {LARGEST_FONT} pixels, but got {font_size!r}")
    picture, index_map = _prepare(as_rgb(image), segmentation, alpha, scale)
    colors = segment_colors(segmentation, palette, shade_by_id=shade_by_id)
    table = _blend_table(segmentation.segments, colors, alpha)
    striped = np.array([True, *(segment.iscrowd for segment in segmentation.segments)])
    drawn = np.empty_like(picture)
    rows = max(1, _STRIP_PIXELS // picture.shape[1])
    for top in range(0, picture.shape[0], rows):
        part = slice(top, min(top + rows, picture.shape[0]))
        drawn[part] = _filled(picture[part], index_map[part], table, striped, top)
    if contours:
        _draw_contours(drawn, index_map, colors)
    if labels:
        size = default_font_size(drawn.shape) if font_size is None else font_size
        with first_font(font_path):
            _draw_labels(drawn, index_map, segmentation, colors, size, show_scores)
    return drawn


def index_of(segmentation: PanopticSegmentation) -> np.ndarray:
    """The segment map with 0 for void (and ids that no segment has) and i + 1 for the i-th segment; (H, W) uint16."""
    segment_map = segmentation.segment_map
    if segment_map.size == 0:
        return np.zeros(segment_map.shape, np.uint16)
    high = int(segment_map.max())
    table = np.zeros(high + 1, np.uint16)  # only the pages of ids that occur are ever touched
    for index, segment in enumerate(segmentation.segments, start=1):
        if 0 < segment.id <= high:
            table[segment.id] = index
    return table[segment_map]


def label_text(segment: Segment, segmentation: PanopticSegmentation, *, show_scores: bool = True) -> str:
    """What a label says: the class name (COCO's "-merged" and "-other" endings left out), "group" for crowds, the score."""
    name = class_name(segmentation, segment.category_id)
    if segment.iscrowd:
        return f"{name} (group)"
    predicted = segment.query is not None or segment.score < 1
    return f"{name} {segment.score:.2f}" if show_scores and predicted else name


def class_name(segmentation: PanopticSegmentation, category_id: int) -> str:
    """A class as pictures name it: by its `display_name`, or "class 17" where the table does not know it."""
    category = segmentation.categories.by_id.get(category_id)
    return f"class {category_id}" if category is None else display_name(category.name, category_id)


def display_name(name: str, category_id: int) -> str:
    """A class name as pictures show it: without COCO's "-merged" and "-other", and with glyphs that some font has."""
    short = name.removesuffix("-merged").removesuffix("-other").strip() or name
    return printable(short, f"class {category_id}")


def enlargement(shape: Sequence[int]) -> int:
    """How many times a picture of (H, W, ...) wants to be enlarged so that labels fit: small ones to about 480 pixels."""
    return max(1, round(_ROOMY_SIDE / max(shape[:2])))


def enlarged(image: Picture, scale: int) -> np.ndarray:
    """The image `scale` times as large, smoothly: (H * scale, W * scale, 3) uint8 RGB.

    Raises:
        PictureError: the scale is no whole number from 1, or makes a side of more than 16,384 pixels.
    """
    picture = as_rgb(image)
    whole = isinstance(scale, Real) and scale >= 1 and float(scale).is_integer()
    if not whole or max(picture.shape) * scale > LONGEST_SIDE:
        most = f" that leaves no side longer than {LONGEST_SIDE} pixels" if whole else ""
        raise PictureError(f"scale must be a whole number from 1{most}, but got {scale!r}")
    return picture if scale == 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def _prepare(
    picture: np.ndarray, segmentation: PanopticSegmentation, alpha: float, scale: int
) -> tuple[np.ndarray, np.ndarray]:
    """Check and enlarge: the picture (H, W, 3) and the index map (H, W)."""
    if picture.shape[:2] != segmentation.segment_map.shape:
        (height, width), (map_height, map_width) = picture.shape[:2], segmentation.segment_map.shape
        raise PictureError(
            f"image {segmentation.image_id}: the image is {height}x{width} (height x width) "
            f"but its segment map {map_height}x{map_width}; "
            "pass the image that was segmented, or ask the merger for target_size=(height, width)"
        )
    if not (isinstance(alpha, Real) and 0 <= alpha <= 1):
        raise PictureError(f"alpha must be in 0..1, but got {alpha!r}")
    picture, index_map = enlarged(picture, scale), index_of(segmentation)
    return picture, index_map.repeat(scale, axis=0).repeat(scale, axis=1)


def _filled(picture: np.ndarray, index_map: np.ndarray, table: np.ndarray, striped: np.ndarray, top: int) -> np.ndarray:
    """Colour a strip of the picture that starts at row `top`.

    Args:
        picture: (h, W, 3) uint8.
        index_map: (h, W), values below S + 1.
        table: (2 * (S + 1),) uint32 from `_blend_table`.
        striped: (S + 1,) bool, which segments have stripes.
        top: so that stripes go on from strip to strip.
    """
    code = index_map.astype(np.intp)
    stripes = striped.take(code)
    if stripes.any():
        stripes &= _hatch(index_map.shape, top, 4 * line_width(picture.shape))
        code[stripes] += len(striped)
    blend = table.take(code).view(np.uint8).reshape(*code.shape, 4)
    keep = cv2.extractChannel(blend, 3)
    kept = cv2.multiply(picture, cv2.merge([keep, keep, keep]), scale=1 / 255)
    return cv2.add(kept, cv2.cvtColor(blend, cv2.COLOR_RGBA2RGB))


def _blend_table(segments: Sequence[Segment], colors: np.ndarray, alpha: float) -> np.ndarray:
    """What is added to the picture (red, green, blue) and how much of it is kept, packed into one number per segment.

    Stuff is filled more thinly than things, so that things stand out.

    Returns:
        (2 * (S + 1),) uint32: void and the segments, then the same for their stripes.
    """
    fill = np.concatenate([np.array([[70, 70, 70]]), colors]).astype(np.float32)  # (S + 1, 3)
    bright = fill + (255 - fill) * 0.7
    bright[0] = 185
    weight = np.array([alpha, *(alpha if segment.isthing else 0.72 * alpha for segment in segments)], np.float32)
    weight = np.concatenate([weight, weight])[:, None]  # (2 (S + 1), 1)
    packed = np.concatenate([np.concatenate([fill, bright]) * weight, 255 * (1 - weight)], axis=1)  # (2 (S + 1), 4)
    return np.ascontiguousarray(np.round(packed).astype(np.uint8)).view(np.uint32).ravel()


def _hatch(shape: tuple[int, int], top: int, period: int) -> np.ndarray:
    """Diagonal stripes, a third of the area; (h, W) bool."""
    diagonal = np.add.outer(np.arange(top, top + shape[0]), np.arange(shape[1])) % (2 * period)
    return diagonal < max(1, 2 * period // 3)


def _draw_contours(picture: np.ndarray, index_map: np.ndarray, colors: np.ndarray) -> None:
    """Trace every segment's inner outline in its own full colour, in place."""
    width = line_width(picture.shape)
    edges: np.ndarray = outlines(index_map).view(np.uint8)
    if width > 1:
        edges = cv2.dilate(edges, np.ones((width, width), np.uint8))
    lines = 0.7 * colors + 0.3 * 255
    edge_colors = np.concatenate([np.full((1, 3), 40.0), lines]).round().astype(np.uint8)
    on = np.flatnonzero(edges)
    picture.reshape(-1, 3)[on] = edge_colors[index_map.reshape(-1)[on]]


def _draw_labels(
    picture: np.ndarray,
    index_map: np.ndarray,
    segmentation: PanopticSegmentation,
    colors: np.ndarray,
    size: int,
    show_scores: bool,
) -> None:
    """Write the labels, in place: things first, the larger ones before the smaller."""
    segments = segmentation.segments
    order = sorted(range(len(segments)), key=lambda i: (not segments[i].isthing, -segments[i].area, i))
    wordings = {i: _wordings(segments[i], segmentation, size, show_scores) for i in order}
    wishes = [Wish(i + 1, tuple(plate_size(text, points) for text, points in wordings[i])) for i in order]
    places = place_labels(index_map, wishes)
    for place in places:
        if not place.inside:
            _draw_leader(picture, place, size, colors[place.segment - 1])
    for place in places:
        red, green, blue = colors[place.segment - 1].tolist()
        text, points = wordings[place.segment - 1][place.wording]
        draw_plate(picture, place.top_left, text, points, (red, green, blue))


def _wordings(segment: Segment, segmentation: PanopticSegmentation, size: int, show_scores: bool) -> list[tuple[str, int]]:
    """Texts and font sizes for a label, the best first; where the plate would hide the segment only small letters are used."""
    full, name = (label_text(segment, segmentation, show_scores=show) for show in (show_scores, False))
    height, width = plate_size(full, size)
    small = max(8, round(size * 0.8))
    roomy = segment.area > 3 * height * width
    return list(dict.fromkeys([(full, size if roomy else small), (full, small), (name, small)]))


def _draw_leader(picture: np.ndarray, place: Place, size: int, color: np.ndarray) -> None:
    """Draw a line from a label beside its segment to the segment, in place."""
    y, x = place.top_left
    start, end = (x + size // 2, y + size // 2), (place.anchor[1], place.anchor[0])
    width = line_width(picture.shape)
    cv2.line(picture, start, end, (18, 18, 22), width + 2, cv2.LINE_AA)
    cv2.line(picture, start, end, color.tolist(), width, cv2.LINE_AA)
    cv2.circle(picture, end, width + 1, color.tolist(), -1, cv2.LINE_AA)
