"""What the predictor does around the network, as a graph: the choice of queries, and the merger.

Step by step the same as `inference.choose`, `inference.contest` and `inference.winners`, whose comments say why; but every mask
of an image keeps its place, and those that dropped out are set to a value below all others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import helper

from panoptic_detr.categories import CategoryTable
from panoptic_detr.exported.graph import Graph, Value
from panoptic_detr.exported.parts import DEAD, LARGEST
from panoptic_detr.exported.runtime import CODE
from panoptic_detr.panoptic import DropReason

PIXELS_AT_ONCE = 2**16  # that are interpolated between mask cells of different winners


def code_of(graph: Graph, reason: DropReason | None) -> Value:
    """The number that stands for a reason."""
    return graph.constant(CODE[reason], np.int64)


@dataclass(frozen=True)
class Chosen:
    """The choice of every query (B, Q): score, category id (-1 for none), thing or not, reason code, and whether it is kept."""

    scores: Value
    categories: Value
    things: Value
    reasons: Value
    kept: Value


def choose(graph: Graph, logits: Value, table: CategoryTable, no_object: bool, settings: Mapping[str, Value]) -> Chosen:
    """Choose the confident queries from (B, Q, C) logits (`inference.choose`)."""
    labels = range(table.num_labels + no_object)
    known = [table.by_label.get(label) for label in labels]
    ids = graph.constant([category.id if category else -1 for category in known], np.int64)
    isthing = graph.constant([bool(category and category.isthing) for category in known], np.bool_)
    codes = [CODE["low score"] if category else CODE["no category"] for category in known]
    if no_object:
        codes[-1] = CODE["no object"]
    probabilities = graph.Softmax(logits, axis=-1) if no_object else graph.Sigmoid(logits)  # (B, Q, C)
    scores, best = (
        graph.ReduceMax(probabilities, graph.constant([-1], np.int64), keepdims=0),
        graph.ArgMax(logits, axis=-1, keepdims=0),
    )
    things, categories = graph.Gather(isthing, best), graph.Gather(ids, best)  # (B, Q)
    limit = graph.Where(things, settings["threshold"], settings["stuff_threshold"])
    passed = (scores > limit) & ~(categories < 0)
    kept = passed & among_best(graph, graph.Where(passed, scores, -1.0), settings["max_segments"])
    reasons = graph.Gather(graph.constant(codes, np.int64), best)
    return Chosen(scores, categories, things, reasons, kept)


def among_best(graph: Graph, scores: Value, limit: Value) -> Value:
    """Whether each of (B, Q) scores is among the `limit` highest of its image; 0 for all."""
    queries = scores.size(1)
    count = graph.Where(limit > 0, graph.Min(limit, queries), queries)
    places = Value(graph.fresh("places"), np.int64)
    top = graph.fresh("top")
    graph.nodes.append(helper.make_node("TopK", [scores.name, count.reshape(1).name], [top, places.name], axis=1))
    nothing = graph.full(0, np.int64, scores.size(0), queries)
    ones = graph.Expand(graph.constant([1], np.int64), graph.Shape(places))
    return graph.ScatterElements(nothing, places, ones, axis=1) > 0


@dataclass(frozen=True)
class Axis:
    """How pixels of one image axis lie between mask cells, and spread over the result (`inference.winners.Axis`)."""

    low: Value
    high: Value
    weight: Value
    spread: Value
    repeats: Value


def nearest(graph: Graph, pixels: Value, size: Value) -> Value:
    """For each of `size` pixels, which of `pixels` source pixels it shows (`segment_maps.nearest_pixels`).

    Without doubles by whole numbers, which differ where a centre falls between two pixels.
    """
    if graph.for_openvino:
        return (graph.arange(size) * 2 + 1) * pixels / (size * 2)
    step = pixels.to(np.float64) / size.to(np.float64)
    steps = graph.Expand(step.reshape(1), size.reshape(1))
    first = graph.Concat((step * 0.5).reshape(1), steps.cut(1, 2**62), axis=0)
    return graph.Min(graph.CumSum(first, graph.constant(0, np.int64)).to(np.int64), pixels - 1)


def make_axis(graph: Graph, cells: Value, pixels: Value, target: Value) -> Axis:
    """Lay out one axis: mask cells, pixels that the network saw, pixels of the result."""
    count = graph.Min(pixels, target)
    sampled, spread = nearest(graph, pixels, count), nearest(graph, count, target)
    scale = (cells.to(np.float64) / pixels.to(np.float64)).to(np.float32)
    source = graph.Max((sampled.to(np.float32) + 0.5) * scale - 0.5, 0.0)
    low = graph.Min(source.to(np.int64), cells - 1)
    weight = graph.Min(graph.Max(source - low.to(np.float32), 0.0), 1.0)
    ones = graph.Expand(graph.constant([1], np.int64), target.reshape(1))
    return Axis(low, graph.Min(low + 1, cells - 1), weight, spread, graph.count(spread, ones, count))


def winning_masks(graph: Graph, cells: Value, rows: Axis, columns: Axis) -> Value:
    """Index of the highest of (K, h, w) masks at every sampled pixel, (n, m) int64 (`inference.winners`)."""
    best = graph.ArgMax(cells, axis=0, keepdims=0)  # (h, w)
    right = graph.Concat(best.cut(1, 2**62, 1), best.cut(-1, 2**62, 1), axis=1)
    across = best.equals(right)
    below = graph.Concat(best.cut(1, 2**62), best.cut(-1, 2**62), axis=0)
    flags = across.to(np.int64)
    across_below = graph.Concat(flags.cut(1, 2**62), flags.cut(-1, 2**62), axis=0) > 0
    agreed = across & best.equals(below) & across_below
    quads = graph.Where(agreed, best, -1)
    sure = graph.Gather(graph.Gather(quads, columns.low, axis=1), rows.low, axis=0)  # (n, m)
    open_pixels = graph.Transpose(graph.NonZero(sure < 0), perm=[1, 0])  # (P, 2)
    # Of all masks at once: ONNX Runtime is faster at rows of a table (h * w, K), OpenVINO at columns of (K, h * w).
    flat, places, masks = cells.reshape(cells.size(0), -1), 1, 0
    if not graph.for_openvino:
        flat, places, masks = graph.Transpose(flat, perm=[1, 0]), 0, 1
    total, width = open_pixels.size(0), cells.size(2)

    def step(inner: Graph, number: Value, states: list[Value]) -> tuple[None, list[Value], list[Value]]:
        """Decide between four cells of the next few pixels."""
        start = number * PIXELS_AT_ONCE
        pixels = open_pixels.cut(start, start + PIXELS_AT_ONCE)  # (p, 2)
        row, column = (inner.Gather(pixels, axis, axis=1) for axis in (0, 1))
        top, bottom = (inner.Gather(value, row) * width for value in (rows.low, rows.high))
        left, right = (inner.Gather(value, column) for value in (columns.low, columns.high))
        over = inner.Gather(columns.weight, column).unsqueeze(masks)
        down = inner.Gather(rows.weight, row).unsqueeze(masks)
        upper_left, upper_right, lower_left, lower_right = (
            inner.Gather(flat, cell, axis=places) for cell in (top + left, top + right, bottom + left, bottom + right)
        )
        upper = upper_left * (1.0 - over) + upper_right * over  # (p, K), or (K, p)
        lower = lower_left * (1.0 - over) + lower_right * over
        found = inner.ArgMax(upper * (1.0 - down) + lower * down, axis=masks, keepdims=0)
        return None, [inner.Concat(states[0], found, axis=0)], []

    times = (total + (PIXELS_AT_ONCE - 1)) / PIXELS_AT_ONCE
    (found,) = graph.loop(step, [graph.full(0, np.int64, 0)], [1], times=times)
    return graph.ScatterND(sure, open_pixels, found)


def drop_hidden(graph: Graph, cells: Value, things: Value, min_visible: Value, per_cell: Value) -> list[Value]:
    """Drop things that show too little of their own mask, the least visible first (`inference.contest.hidden_things`).

    Args:
        graph: to add to.
        cells: (K, h, w) masks.
        things: (K,) bool, which may be dropped.
        min_visible: least share; 0 drops none.
        per_cell: pixels of the result for each cell.

    Returns:
        (K,) which are left, and the pixels that the others had.
    """
    flat = cells.reshape(cells.size(0), -1)  # (K, N)
    positive = (flat > 0.0).to(np.int64)
    own = graph.Max(positive.sum(1), 1).to(np.float32)
    count = cells.size(0)
    left = graph.Expand(graph.constant([True], np.bool_), count.reshape(1))

    def step(inner: Graph, _: Value, states: list[Value]) -> tuple[Value, list[Value], list[Value]]:
        """Drop one thing."""
        left, candidates, area = states
        best = inner.ArgMax(inner.Where(left.unsqueeze(1), flat, DEAD), axis=0, keepdims=0)  # (N,)
        seen = inner.GatherElements(positive, best.unsqueeze(0), axis=0).squeeze(0)
        visible = inner.count(best, seen, count).to(np.float32) / own
        visible = inner.Where(candidates, visible, float("inf"))
        worst = inner.ArgMin(visible, axis=0, keepdims=0)
        drops = inner.Gather(visible, worst) < min_visible
        goes = inner.arange(count).equals(worst) & drops
        lost = best.equals(worst).to(np.int64).sum()
        pixels = inner.Round(lost.to(np.float64) * per_cell).to(np.int64)
        candidates = candidates & ~goes
        return drops & candidates.any(), [left & ~goes, candidates, inner.Where(goes, pixels, area)], []

    start = [left, things, graph.full(0, np.int64, count)]
    left, _, area = graph.loop(step, start, [1, 1, 1], go_on=(min_visible > 0.0) & things.any())
    return [left, area]


@dataclass(frozen=True)
class Settled:
    """Masks (K,) after the contest: alive or not, pixels, reason code, leader; and who won each sampled pixel (n, m)."""

    alive: Value
    areas: Value
    reasons: Value
    leaders: Value
    winners: Value


def settle(
    graph: Graph,
    cells: Value,
    alive: Value,
    areas: Value,
    reasons: Value,
    leaders: Value,
    axes: tuple[Axis, Axis],
    settings: Mapping[str, Value],
) -> Settled:
    """Give every pixel to a mask, dropping small segments until there are none (`inference.contest.Contest.settle`)."""
    rows, columns = axes
    pixels = (rows.repeats.unsqueeze(1) * columns.repeats.unsqueeze(0)).reshape(-1)  # (n * m,) of the result
    count = cells.size(0)
    belongs = leaders.unsqueeze(1).equals(graph.arange(count).unsqueeze(0))  # (K, K): i's leader is j
    least, first_only = graph.Max(settings["min_area"], 1), settings["keep_first"]

    def step(inner: Graph, _: Value, states: list[Value]) -> tuple[Value, list[Value], list[Value]]:
        """Give the pixels to who is alive, and drop who is left with too few."""
        alive, areas, reasons, _before = states
        winners = winning_masks(inner, inner.Where(alive.unsqueeze(1, 2), cells, DEAD), rows, columns)
        won = inner.count(winners.reshape(-1), pixels, count)
        areas = inner.Where(alive, won, areas)
        mine = (belongs & alive.unsqueeze(1)).to(np.int64) * won.unsqueeze(1)  # (K, K)
        total = inner.Gather(mine.sum(0), leaders)
        small = alive & (total < least)
        repeats = alive & ~small & first_only & ~leaders.equals(inner.arange(count))
        why = inner.Where(areas > 0, code_of(inner, "small"), code_of(inner, "covered"))
        reasons = inner.Where(small, why, inner.Where(repeats, code_of(inner, "suppressed"), reasons))
        left = alive & ~small & ~repeats
        again = ((small | repeats) & (areas > 0)).any() & left.any()
        return again, [left, areas, reasons, winners], []

    nobody = graph.full(0, np.int64, rows.low.size(0), columns.low.size(0))
    # At least one round, even where nobody is alive: OpenVINO gives wrong shapes for loops of none. Not more than masks, since
    # a round that another follows drops one.
    start, always = [alive, areas, reasons, nobody], graph.constant(True, np.bool_)
    alive, areas, reasons, winners = graph.loop(step, start, [1, 1, 1, 2], times=count, go_on=always)
    return Settled(alive, areas, reasons, leaders, winners)


def merge_image(
    graph: Graph,
    number: Value,
    chosen: Chosen,
    places: Value,
    masks: Value,
    size: Sequence[Value],
    axes: tuple[Axis, Axis],
    settings: Mapping[str, Value],
) -> list[Value]:
    """Merge the masks of one image of a batch.

    Args:
        graph: body of the loop over images.
        number: which image.
        chosen: of the batch.
        places: (K, 2) image and query of every mask.
        masks: (K, h, w) logits.
        size: (height, width) of the result.
        axes: rows and columns.
        settings: inputs of the file.

    Returns:
        The map (H, W) int32, and of every query (Q,): id of its segment or 0, area, box (Q, 4), reason, id that it joined.
    """
    rows = graph.NonZero(graph.Gather(places, 0, axis=1).equals(number)).reshape(-1)  # (k,)
    queries = graph.Gather(graph.Gather(places, rows), 1, axis=1)  # (k,)
    count = rows.size(0)
    own = graph.Clip(graph.Gather(masks, rows), -LARGEST, LARGEST)
    nobody = graph.full(DEAD, np.float32, 1, masks.size(1), masks.size(2))  # so that there is always one
    cells = graph.Concat(own, nobody, axis=0)  # (k + 1, h, w)
    things, categories = (graph.Gather(graph.Gather(value, number), queries) for value in (chosen.things, chosen.categories))
    things = graph.Concat(things.to(np.int64), graph.constant([0], np.int64), axis=0) > 0
    categories = graph.Concat(categories, graph.constant([-1], np.int64), axis=0)
    real = graph.arange(count + 1) < count
    per_cell = (size[0] * size[1]).to(np.float64) / (masks.size(1) * masks.size(2)).to(np.float64)
    visible, areas = drop_hidden(graph, cells, things & real, settings["min_visible"], per_cell)
    alive = visible & real
    reasons = graph.Where(visible, code_of(graph, None), code_of(graph, "suppressed"))
    leaders = leaders_of(graph, categories, things, alive)
    done = settle(graph, cells, alive, areas, reasons, leaders, axes, settings)
    return result(graph, done, queries, chosen.scores.size(1), size, axes)


def leaders_of(graph: Graph, categories: Value, things: Value, alive: Value) -> Value:
    """(K,) every mask's leader: itself, or for stuff the first living mask of its category."""
    numbers = graph.arange(categories.size(0))
    itself = numbers.unsqueeze(1).equals(numbers.unsqueeze(0))
    same = categories.unsqueeze(1).equals(categories.unsqueeze(0)) & ~things.unsqueeze(1) & alive.unsqueeze(0)
    first = graph.ArgMax((same | itself).to(np.int32), axis=1, keepdims=0)
    return graph.Where(things | ~alive, numbers, first)


def result(
    graph: Graph, done: Settled, queries: Value, total: Value, size: Sequence[Value], axes: tuple[Axis, Axis]
) -> list[Value]:
    """The map and the rows of every query, from what the contest left (see `merge_image`)."""
    rows, columns = axes
    numbers = graph.arange(done.alive.size(0))
    leads = done.alive & done.leaders.equals(numbers)
    order = graph.CumSum(leads.to(np.int64), graph.constant(0, np.int64))
    ids = graph.Where(leads, order, 0)  # (k + 1,)
    joined = graph.Where(done.alive, graph.Gather(ids, done.leaders), 0)
    sampled = graph.Gather(joined, done.winners)  # (n, m)
    wide = graph.Gather(sampled.to(np.int32), columns.spread, axis=1)
    segment_map = graph.Gather(wide, rows.spread, axis=0)  # (H, W)
    segments = leads.to(np.int64).sum() + 1
    top, bottom = extent(graph, sampled, segments, rows, axis=0)
    left, right = extent(graph, sampled, segments, columns, axis=1)
    boxes = graph.Concat(*(v.unsqueeze(1) for v in (left, top, right - left + 1, bottom - top + 1)), axis=1)  # (S + 1, 4)
    boxes = graph.Where(leads.unsqueeze(1), graph.Gather(boxes, ids), 0)
    mine = done.leaders.unsqueeze(1).equals(numbers.unsqueeze(0)) & done.alive.unsqueeze(1)
    united = (mine.to(np.int64) * done.areas.unsqueeze(1)).sum(0)
    areas = graph.Where(leads, united, done.areas)
    merged = done.alive & ~leads
    reasons = graph.Where(merged, code_of(graph, "merged"), done.reasons)
    into = graph.Where(merged, joined, 0)
    return [segment_map, *(spread_rows(graph, value, queries, total) for value in (ids, areas, boxes, reasons, into))]


def extent(graph: Graph, sampled: Value, segments: Value, axis_of: Axis, axis: int) -> list[Value]:
    """(S + 1,) first and last pixel of every id along an axis of the result."""
    length = axis_of.low.size(0)
    places = graph.arange(length).unsqueeze(1 - axis)
    flat = (sampled * length + places).reshape(-1)
    ones = graph.Expand(graph.constant([1], np.int32), graph.Shape(flat))
    there = graph.ScatterElements(graph.full(0, np.int32, segments * length), flat, ones, axis=0).reshape(segments, length)
    there = graph.Gather(there, axis_of.spread, axis=1)  # (S + 1, pixels of the result)
    return [graph.ArgMax(there, axis=1, keepdims=0, select_last_index=last) for last in (0, 1)]


def spread_rows(graph: Graph, values: Value, queries: Value, total: Value) -> Value:
    """Values (k + 1, ...) of the chosen queries (k,) to all (Q, ...), zero for the others."""
    values = values.cut(0, queries.size(0))
    shape = graph.Concat(total.reshape(1), graph.Shape(values, start=1), axis=0)
    zeros = graph.Expand(graph.constant(0, np.int64), shape)
    return graph.ScatterND(zeros, queries.unsqueeze(1), values)
