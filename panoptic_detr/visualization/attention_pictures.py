"""Pictures of attention (DETR paper, Figures 3, 6 and 8; Deformable DETR, Figure 6)."""

from collections.abc import Sequence

import cv2
import numpy as np

from panoptic_detr.images import Picture, as_rgb
from panoptic_detr.panoptic import PanopticSegmentation
from panoptic_detr.visualization.attention import Look, Sampling, boxes_of_queries
from panoptic_detr.visualization.draw import default_font_size, draw_boxes, draw_plate, label_text, segment_colors, side_by_side

Color = tuple[int, int, int]


def heat(image: Picture, attention: np.ndarray, *, scale: int = 1) -> np.ndarray:
    """An attention map over the darkened grey image, from dark violet to yellow, less its lowest 5% and highest 0.5%.

    Args:
        image: path or array (see `as_rgb`).
        attention: (h, w) weights, any scale.
        scale: enlarge the image so many times.

    Returns:
        (H * scale, W * scale, 3) uint8 RGB.
    """
    picture = _enlarged(image, scale)
    strength = _strength(attention, picture.shape[:2])[..., None]
    colors = cv2.applyColorMap(np.round(strength * 255).astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return (
        np.round(_grey(picture) * 0.55 * (1 - 0.75 * strength) + colors * (0.25 + 0.6 * strength)).clip(0, 255).astype(np.uint8)
    )


def draw_point_attention(
    image: Picture, attention: np.ndarray, points: Sequence[tuple[float, float]], *, scale: int = 1
) -> np.ndarray:
    """The image with numbered points, and beside it what each of them attends to (Fig. 3).

    Args:
        image: path or array (see `as_rgb`).
        attention: (P, h, w) from `Look.encoder_attention`.
        points: (x, y), fractions of the image.
        scale: enlarge the image so many times.
    """
    picture = _enlarged(image, scale).copy()
    for number, point in enumerate(points, start=1):
        _mark(picture, point, str(number))
    maps = [heat(image, one, scale=scale) for one in attention]
    for one, point in zip(maps, points, strict=True):
        _mark(one, point, "")
    titles = ["image", *(f"point {number}" for number in range(1, len(maps) + 1))]
    return side_by_side([picture, *maps], titles, columns=min(len(titles), 3))


def draw_object_attention(
    image: Picture,
    attention: np.ndarray,
    colors: np.ndarray,
    *,
    boxes_cxcywh: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    scale: int = 1,
) -> np.ndarray:
    """Each object's decoder attention in the object's colour, all in one picture (Fig. 6).

    Args:
        image: path or array (see `as_rgb`).
        attention: (K, h, w) from `Look.decoder_attention`.
        colors: (K, 3) RGB, one per object.
        boxes_cxcywh: (K, 4) fractions of the image; drawn if given.
        names: written at the boxes.
        scale: enlarge the image so many times.
    """
    picture = _enlarged(image, scale)
    drawn = _grey(picture) * 0.7
    for one, color in zip(attention, np.asarray(colors, np.float32), strict=True):
        strength = 0.9 * _strength(one, picture.shape[:2])[..., None]
        drawn = drawn * (1 - strength) + color * strength
    drawn = np.round(drawn).clip(0, 255).astype(np.uint8)
    if boxes_cxcywh is not None:
        draw_boxes(drawn, boxes_cxcywh, [_rgb(color) for color in colors], names or [""] * len(colors))
    return drawn


def draw_mask_attention(
    image: Picture, attention: np.ndarray, *, box_cxcywh: np.ndarray | None = None, name: str = "object", scale: int = 1
) -> np.ndarray:
    """The mask head's maps of one query, head by head, each on a scale of its own; titles say each one's share of the whole.

    Args:
        image: path or array (see `as_rgb`).
        attention: (M, h, w), one query of `Look.mask_attention`.
        box_cxcywh: (4,) the query's box, fractions of the image; if given, a picture of it comes first.
        name: what the query found.
        scale: enlarge the image so many times.
    """
    total = attention.sum()
    titles = [f"head {head}: {100 * one.sum() / max(total, 1e-12):.0f}%" for head, one in enumerate(attention, start=1)]
    cells = [heat(image, one, scale=scale) for one in attention]
    if box_cxcywh is not None:
        subject = _enlarged(image, scale).copy()
        draw_boxes(subject, box_cxcywh[None], [(255, 255, 255)], [""])
        cells, titles = [subject, *cells], [name, *titles]
    return side_by_side(cells, titles, columns=min(len(cells), 4 if box_cxcywh is None else 3))


def draw_sampling(
    image: Picture,
    samplings: Sequence[Sampling],
    colors: np.ndarray,
    *,
    boxes_cxcywh: np.ndarray | None = None,
    names: Sequence[str] | None = None,
    scale: int = 1,
) -> np.ndarray:
    """Sampling points of deformable attention in the objects' colours; the larger the dot, the larger the weight.

    Args:
        image: path or array (see `as_rgb`).
        samplings: one per object, from `Look.decoder_sampling`.
        colors: (K, 3) RGB.
        boxes_cxcywh: (K, 4) fractions of the image; drawn if given.
        names: written at the boxes.
        scale: enlarge the image so many times.
    """
    picture = _enlarged(image, scale)
    drawn = np.round(_grey(picture) * 0.7).astype(np.uint8)
    height, width = drawn.shape[:2]
    largest = max(2.0, (height * width) ** 0.5 / 70)
    for index, sampling in enumerate(samplings):
        color = _rgb(colors[index])
        top = max(float(sampling.weights.max()), 1e-12)
        for (x, y), weight in sorted(zip(sampling.points.tolist(), sampling.weights.tolist(), strict=True), key=lambda p: p[1]):
            if 0 <= x < 1 and 0 <= y < 1:
                radius = max(1, round(largest * (weight / top) ** 0.5))
                cv2.circle(drawn, (int(x * width), int(y * height)), radius, color, -1, cv2.LINE_AA)
    if boxes_cxcywh is not None:
        draw_boxes(drawn, boxes_cxcywh, [_rgb(color) for color in colors], names or [""] * len(colors))
    return drawn


def draw_look(
    image: Picture,
    prediction: PanopticSegmentation,
    seen: Look,
    *,
    points: Sequence[tuple[float, float]] = ((0.5, 0.5),),
    layer: int = -1,
    scale: int = 1,
) -> dict[str, np.ndarray]:
    """Every picture of attention that a model has, for the segments that it predicted.

    Args:
        image: path or array (see `as_rgb`).
        prediction: its segments name the queries.
        seen: from `look` on the same image.
        points: of the image, (x, y) as fractions of it, for the encoder.
        layer: of encoder and decoder.
        scale: enlarge the image so many times.

    Returns:
        Pictures by name: "encoder", "decoder" and "masks", as far as the model has them and predicted something.
    """
    picture, drawn = as_rgb(image), {}
    if seen.has_encoder_maps:
        drawn["encoder"] = draw_point_attention(picture, seen.encoder_attention(points, layer=layer), points, scale=scale)
    kept = [(s, color) for s, color in zip(prediction.segments, segment_colors(prediction), strict=True) if s.query is not None]
    if not kept:
        return drawn
    queries = [segment.query for segment, _ in kept if segment.query is not None]
    colors, boxes = np.stack([color for _, color in kept]), boxes_of_queries(seen.output)[queries]
    names = [label_text(segment, prediction) for segment, _ in kept]
    if seen.has_decoder_maps:
        maps = seen.decoder_attention(queries, layer=layer)
        drawn["decoder"] = draw_object_attention(picture, maps, colors, boxes_cxcywh=boxes, names=names, scale=scale)
    else:
        places = seen.decoder_sampling(queries, layer=layer)
        drawn["decoder"] = draw_sampling(picture, places, colors, boxes_cxcywh=boxes, names=names, scale=scale)
    if seen.mask_head is not None:
        largest = max(range(len(kept)), key=lambda index: (kept[index][0].isthing, kept[index][0].area))
        maps = seen.mask_attention([queries[largest]])[0]
        drawn["masks"] = draw_mask_attention(picture, maps, box_cxcywh=boxes[largest], name=names[largest], scale=scale)
    return drawn


def _enlarged(image: Picture, scale: int) -> np.ndarray:
    picture = as_rgb(image)
    return picture if scale == 1 else cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def _strength(attention: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A map scaled so that its 5% quantile becomes 0 and its 99.5% quantile 1, smoothly enlarged to (height, width)."""
    low, high = (float(value) for value in np.quantile(attention, (0.05, 0.995)))
    small = ((attention - low) / max(high - low, 1e-12)).clip(0, 1).astype(np.float32)
    return cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR)


def _grey(picture: np.ndarray) -> np.ndarray:
    """(H, W, 3) float32 of three equal channels."""
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB).astype(np.float32)


def _rgb(color: np.ndarray) -> Color:
    red, green, blue = (int(value) for value in color)
    return red, green, blue


def _mark(picture: np.ndarray, point: tuple[float, float], text: str) -> None:
    """Draw a ringed dot, and a text beside it, in place."""
    x, y = int(point[0] * picture.shape[1]), int(point[1] * picture.shape[0])
    radius = max(3, default_font_size(picture.shape) // 3)
    cv2.circle(picture, (x, y), radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(picture, (x, y), radius, (213, 94, 0), -1, cv2.LINE_AA)
    if text:
        draw_plate(picture, (y + radius, x + radius), text, default_font_size(picture.shape), (213, 94, 0))
