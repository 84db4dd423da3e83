"""Pictures in the size and on the scale in which the network sees them, as nodes of a graph."""

from collections.abc import Sequence

import numpy as np

from panoptic_detr.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from panoptic_detr.exported.graph import Graph, Value

ROWS_AT_ONCE = 32  # of the result, whose weights make one product


def resized(
    graph: Graph,
    image: Value,
    short_side: Value | None,
    long_side: Value | None,
    fixed: Sequence[int] | None,
    statistics: tuple[Sequence[float], Sequence[float]] = (IMAGENET_MEAN, IMAGENET_STD),
) -> Value:
    """(B, H, W, 3) uint8 pictures as the network wants them: (B, 3, h, w) float32, resized and normalised.

    Args:
        graph: to add to.
        image: the pictures.
        short_side: wanted length of the short side, 0 to keep the size.
        long_side: limit of the long side.
        fixed: (height, width) whatever the pictures' size, instead.
        statistics: mean and deviation that images are normalised with.
    """
    height, width = image.size(1), image.size(2)
    size = graph.list_of(*fixed) if fixed else graph.list_of(*target_size(graph, height, width, short_side, long_side))
    if graph.for_openvino:
        pixels = antialiased(graph, image, size)
    else:
        channels_first = graph.Transpose(image, perm=[0, 3, 1, 2])
        sizes = graph.Concat(graph.Shape(channels_first, end=2), size, axis=0)
        pixels = graph.Resize(channels_first, None, None, sizes, mode="linear", antialias=1, exclude_outside=1)
    centre, spread = (255 * np.array(values, np.float32).reshape(3, 1, 1) for values in statistics)
    mean, scale = (graph.constant(values, np.float32) for values in (centre, 1 / spread))
    return (pixels.to(np.float32) - mean) * scale


def target_size(graph: Graph, height: Value, width: Value, short_side: Value | None, long_side: Value | None) -> list[Value]:
    """Height and width with the given short side, or with the long side at its limit (`data.transforms.target_size`)."""
    assert short_side is not None
    assert long_side is not None
    short, long = graph.Min(height, width), graph.Max(height, width)
    limited = graph.Max(graph.Round((long_side * short).to(np.float64) / long.to(np.float64)).to(np.int64), 1)
    short_new = graph.Where(short_side * long > long_side * short, limited, short_side)
    other = graph.Max(short_new * long / short, 1)
    tall, keep = height > width, short_side.equals(0)
    rows, columns = graph.Where(tall, other, short_new), graph.Where(tall, short_new, other)
    return [graph.Where(keep, height, rows), graph.Where(keep, width, columns)]


def antialiased(graph: Graph, image: Value, size: Value) -> Value:
    """(B, H, W, 3) uint8 pictures as (B, 3, h, w) of whole float32 numbers, for (h, w).

    OpenVINO 2026.4 leaves antialiasing out of Resize on a CPU, so that of a large picture a few pixels would count; its
    operator after Pillow's takes a minute and gigabytes for every new size of a large picture.
    """
    batch, height, width = (image.size(axis) for axis in range(3))
    target_height, target_width = graph.Gather(size, 0), graph.Gather(size, 1)
    # Across first, and whole numbers between: as PyTorch does it, or every seventh value would be another grey level.
    across = graph.Transpose(image, perm=[0, 2, 1, 3]).reshape(batch, width, -1)  # (B, W, H * 3)
    columns = graph.Round(averaged_rows(graph, across, target_width)).reshape(batch, target_width, height, 3)
    down = graph.Transpose(columns, perm=[0, 2, 1, 3]).reshape(batch, height, -1)  # (B, H, w * 3)
    pixels = graph.Round(averaged_rows(graph, down, target_height)).reshape(batch, target_height, target_width, 3)
    return graph.Transpose(pixels, perm=[0, 3, 1, 2])


def averaged_rows(graph: Graph, values: Value, target: Value) -> Value:
    """(B, N, X) values as (B, n, X) float32: means of neighbouring rows, weighted by triangles (as in Pillow and PyTorch).

    A triangle is two rows wide, of the given ones or of the result, whichever are larger. A few rows of the result at a time
    are a product of their weights with the given rows that they need. Positions are whole numbers: bfloat16 would round others.
    """
    length = values.size(1)
    reach = graph.Max(length, target) * 2  # distances are whole numbers here, in parts (2 * n) of a given row
    span = graph.Min((length * ROWS_AT_ONCE + reach) / target + 2, length)

    def product(inner: Graph, number: Value, _: list[Value]) -> tuple[None, list[Value], list[Value]]:
        """The next few rows of the result."""
        rows = inner.arange(inner.constant(ROWS_AT_ONCE, np.int64)) + number * ROWS_AT_ONCE  # those beyond are cut off later
        centres = (rows * 2 + 1) * length  # (R,)
        first = inner.Max(inner.Gather(centres, 0) - reach, 0) / (target * 2)
        start = inner.Min(first, length - span)
        places = ((inner.arange(span) + start) * 2 + 1) * target  # (S,)
        weights = inner.Max(reach - inner.Abs(places - centres.unsqueeze(1)), 0)  # (R, S)
        total = inner.Max(weights.sum(1).unsqueeze(1), 1).to(np.float32)
        shares = weights.to(np.float32) / total
        return None, [], [inner.MatMul(shares, values.cut(start, start + span, 1).to(np.float32))]

    times = (target + (ROWS_AT_ONCE - 1)) / ROWS_AT_ONCE
    (found,) = graph.loop(product, [], [], times=times)  # (times, B, R, X)
    found = graph.Transpose(found, perm=[1, 0, 2, 3])
    return found.reshape(values.size(0), times * ROWS_AT_ONCE, -1).cut(0, target, 1)
