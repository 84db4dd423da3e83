"""From pixels to the panoptic map as one module of PyTorch that `torch.export` takes: what an exported program holds.

Step by step the same as `inference.choose`, `inference.contest` and `inference.winners`, whose comments say why; but all images
of a batch go together, and loops carry values of fixed shapes: of every query, whether it has a mask or not, and of a last one
that stands for nobody. Only the masks themselves are stored by places 0..M-1 of their image, the last again nobody's.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop
from torch.nn import functional as F

from panoptic_detr.categories import CategoryTable
from panoptic_detr.exported.parts import DEAD, LARGEST, PER_QUERY, Detection, Segmentation
from panoptic_detr.exported.runtime import CODE

Values = tuple[Tensor, ...]
PIXELS_AT_ONCE = 2**14  # that are interpolated between mask cells of different winners


class Axis(NamedTuple):
    """How pixels of one image axis lie between mask cells, and spread over the result (`inference.winners.Axis`)."""

    low: Tensor
    high: Tensor
    weight: Tensor
    spread: Tensor
    repeats: Tensor


class Choice(NamedTuple):
    """Of every query (B, Q): score, category id (-1 for none), thing or not, reason code, and whether it is kept."""

    scores: Tensor
    categories: Tensor
    things: Tensor
    reasons: Tensor
    kept: Tensor


class Masks(NamedTuple):
    """Masks of a batch by their places: logits (B, M + 1, h, w), and whose they are (B, M + 1), Q for nobody's."""

    cells: Tensor
    queries: Tensor


class Settled(NamedTuple):
    """After the contest (B, Q + 1): alive, pixels, reason code, leader; and who won each sampled pixel (B, n, m)."""

    alive: Tensor
    areas: Tensor
    reasons: Tensor
    leaders: Tensor
    winners: Tensor


class Program(nn.Module):
    """A model with all that the predictor does around it.

    Args:
        model: a panoptic model in eval mode.
        table: what its labels mean.
        no_object: the last class slot means "no object".
        mean: of the red, green and blue that images are normalised with, 0..1.
        deviation: the same.
        size: (height, width) at which the networks see all pictures; None: as large as the canvas.
    """

    ids: Tensor
    isthing: Tensor
    codes: Tensor
    centre: Tensor
    scale: Tensor

    def __init__(
        self,
        model: nn.Module,
        table: CategoryTable,
        no_object: bool,
        mean: Sequence[float],
        deviation: Sequence[float],
        size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.size = size
        self.detection = Detection(model)
        assert isinstance(model.mask_head, nn.Module)
        self.segmentation = Segmentation(model.mask_head)
        self.no_object = no_object
        known = [table.by_label.get(label) for label in range(table.num_labels + no_object)]
        codes = [CODE["low score"] if category else CODE["no category"] for category in known]
        codes[-1] = CODE["no object"] if no_object else codes[-1]
        for name, values in (
            ("ids", [category.id if category else -1 for category in known]),
            ("isthing", [bool(category and category.isthing) for category in known]),
            ("codes", codes),
            ("centre", (255 * torch.tensor(mean)).view(3, 1, 1)),
            ("scale", 1 / (255 * torch.tensor(deviation)).view(3, 1, 1)),
        ):
            self.register_buffer(name, torch.as_tensor(values))

    def forward(
        self,
        image: Tensor,
        threshold: Tensor,
        stuff_threshold: Tensor,
        min_area: Tensor,
        min_visible: Tensor,
        max_segments: Tensor,
        keep_first: Tensor,
        canvas: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Predict.

        Args:
            image: (B, H, W, 3) uint8.
            threshold: see `runtime.SETTINGS`; so are the others.
            stuff_threshold: of stuff.
            min_area: in pixels.
            min_visible: a share.
            max_segments: of a picture.
            keep_first: bool.
            canvas: (h, w), the size at which the networks see the pictures; what is in it does not matter.

        Returns:
            The outputs of an exported file by their names.
        """
        size = (image.shape[1], image.shape[2])
        seen = self.size if canvas is None else canvas.shape
        pixels = F.interpolate(image.permute(0, 3, 1, 2), size=seen, mode="bilinear", antialias=True)
        found = self.detection((pixels.float() - self.centre) * self.scale)
        choice = self.choose(found[0], threshold, stuff_threshold, max_segments)
        places = choice.kept.nonzero()  # (K, 2)
        logits = self.masks_of(found, places)  # (K, h, w)
        masks = placed(choice.kept, places, logits)
        axes = tuple(make_axis(logits.shape[1 + axis], pixels.shape[2 + axis], size[axis], image.device) for axis in (0, 1))
        cells = logits.shape[1] * logits.shape[2]
        per_cell = torch.full((), size[0] * size[1] / cells, dtype=torch.float64, device=image.device)
        kept, things = (F.pad(values, (0, 1)) for values in (choice.kept, choice.kept & choice.things))  # (B, Q + 1)
        visible, areas = drop_hidden(masks, things, min_visible, per_cell)
        alive = visible & kept
        reasons = torch.where(visible, CODE[None], CODE["suppressed"])
        leaders = leaders_of(F.pad(choice.categories, (0, 1), value=-1), things, alive)
        done = settle(masks, alive, areas, reasons, leaders, axes, min_area, keep_first)
        outputs = result(done, choice, axes)
        raw = {"logits": found[0], "query_boxes": found[1], "mask_logits": logits, "mask_places": places}
        return {**outputs, "category_ids": choice.categories, "scores": choice.scores, **raw}

    def choose(self, logits: Tensor, threshold: Tensor, stuff_threshold: Tensor, max_segments: Tensor) -> Choice:
        """Choose the confident queries from (B, Q, C) logits (`inference.choose`)."""
        probabilities = logits.softmax(-1) if self.no_object else logits.sigmoid()
        scores, best = probabilities.max(-1)
        things, categories = self.isthing[best], self.ids[best]
        passed = (scores > torch.where(things, threshold, stuff_threshold)) & (categories >= 0)
        order = torch.where(passed, scores, -1.0).argsort(dim=1, descending=True, stable=True)
        rank = torch.zeros_like(order).scatter(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
        kept = passed & ((rank < max_segments) | (max_segments < 1))
        return Choice(scores, categories, things, self.codes[best], kept)

    def masks_of(self, found: Sequence[Tensor], places: Tensor) -> Tensor:
        """Mask logits (K, h, w) of the queries at places (K, 2), one at a time."""
        rows, maps = found[1:PER_QUERY], found[PER_QUERY:]
        height, width = maps[-1].shape[2:]
        cells = torch.arange(height * width, device=places.device)
        count = torch.ones_like(places[:, 0]).sum()

        def left(number: Tensor, _: Tensor) -> Tensor:
            return number < count

        def add(number: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
            image, query = places.index_select(0, number[None])[0].unbind()
            own = [value.index_select(0, image[None])[0].index_select(0, query[None]) for value in rows]
            mask = self.segmentation(*own, *(value.index_select(0, image[None]) for value in maps))
            return number + 1, masks.scatter(0, number * len(cells) + cells, mask.flatten())

        start = torch.zeros((), dtype=torch.long, device=places.device)
        flat = maps[-1].new_zeros((places.shape[0] * height * width,))
        return repeat(left, add, (start, flat))[1].view(-1, height, width)


def repeat(go_on: Callable[..., Tensor], step: Callable[..., Values], start: Values) -> Values:
    """Values after as many steps as `go_on` asks for; the same as a loop in Python, and recorded as one."""
    if torch.compiler.is_compiling():
        found: Values = while_loop(go_on, step, start)
        return found
    while go_on(*start):
        start = step(*start)
    return start


def placed(kept: Tensor, places: Tensor, logits: Tensor) -> Masks:
    """Masks (K, h, w) of kept queries (B, Q) at places (K, 2), image by image."""
    batch, queries = kept.shape
    most = cast(int, kept.sum(1).max().item())
    torch._check(most >= 0)
    torch._check(most <= queries)
    images, query = places.unbind(1)
    slots = (kept.long().cumsum(1) - 1)[images, query]  # (K,)
    cells = logits.new_full((batch, most + 1, *logits.shape[1:]), DEAD)
    cells = cells.index_put((images, slots), logits.clamp(-LARGEST, LARGEST))
    whose = torch.full((batch, most + 1), queries, device=places.device).index_put((images, slots), query)
    return Masks(cells, whose)


def nearest(pixels: int, size: int, device: torch.device) -> Tensor:
    """For each of `size` pixels, which of `pixels` source pixels it shows (`segment_maps.nearest_pixels`)."""
    centres = torch.full((size,), pixels / size, dtype=torch.float64, device=device)
    centres = torch.cat([centres[:1] * 0.5, centres[1:]])
    return centres.cumsum(0).long().clamp(max=pixels - 1)


def make_axis(cells: int, pixels: int, target: int, device: torch.device) -> Axis:
    """Lay out one axis: mask cells, pixels that the network saw, pixels of the result."""
    count = cast(int, torch.sym_min(pixels, target))
    sampled, spread = nearest(pixels, count, device), nearest(count, target, device)
    scale = torch.full((), cells / pixels, dtype=torch.float32, device=device)
    source = (scale * (sampled.float() + 0.5) - 0.5).clamp(min=0)
    low = source.long().clamp(max=cells - 1)
    repeats = torch.zeros(count, dtype=torch.long, device=device).scatter_add(0, spread, torch.ones_like(spread))
    return Axis(low, (low + 1).clamp(max=cells - 1), (source - low).clamp(0, 1), spread, repeats)


def winning_masks(cells: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """Place of the highest of (B, M + 1, h, w) masks at every sampled pixel, (B, n, m) (`inference.winners`)."""
    best = cells.argmax(1)  # (B, h, w)
    right = torch.cat([best[:, :, 1:], best[:, :, -1:]], dim=2)
    across = best == right
    below = torch.cat([best[:, 1:], best[:, -1:]], dim=1)
    agreed = across & (best == below) & torch.cat([across[:, 1:], across[:, -1:]], dim=1)
    quads = torch.where(agreed, best, -1)
    sure = quads.index_select(2, columns.low).index_select(1, rows.low)  # (B, n, m)
    unsure = (sure < 0).flatten().nonzero()[:, 0]  # (P,)
    down, over = rows.low.shape[0], columns.low.shape[0]
    height, width = cells.shape[2:]
    table = cells.permute(0, 2, 3, 1).flatten(0, 2)  # (B * h * w, M + 1)
    total = (sure < 0).sum()

    def left(start: Tensor, _: Tensor) -> Tensor:
        return start < total

    def decide(start: Tensor, winners: Tensor) -> tuple[Tensor, Tensor]:
        """Between four cells of the next few pixels."""
        number = torch.minimum(start + torch.arange(PIXELS_AT_ONCE, device=start.device), total - 1)
        pixels = unsure.index_select(0, number)
        image, place = pixels // (down * over), pixels % (down * over)
        row, column = place // over, place % over
        top, bottom = ((image * height + values[row]) * width for values in (rows.low, rows.high))
        west, east = columns.low[column], columns.high[column]
        share, deep = columns.weight[column][:, None], rows.weight[row][:, None]
        upper = table[top + west] * (1 - share) + table[top + east] * share  # (p, M + 1)
        lower = table[bottom + west] * (1 - share) + table[bottom + east] * share
        found = (upper * (1 - deep) + lower * deep).argmax(1)
        return start + PIXELS_AT_ONCE, winners.scatter(0, pixels, found)

    zero = torch.zeros((), dtype=torch.long, device=cells.device)
    return repeat(left, decide, (zero, sure.flatten()))[1].view_as(sure)


def drop_hidden(masks: Masks, things: Tensor, min_visible: Tensor, per_cell: Tensor) -> tuple[Tensor, Tensor]:
    """Drop things that show too little of their own mask, the least visible first (`inference.contest.hidden_things`).

    Args:
        masks: of the batch.
        things: (B, Q + 1) bool, which may be dropped.
        min_visible: least share; 0 drops none.
        per_cell: pixels of the result for each cell.

    Returns:
        (B, Q + 1) which are left, and the pixels that the others had.
    """
    flat = masks.cells.flatten(2)  # (B, M + 1, N)
    positive = (flat > 0).long()
    nothing = torch.zeros_like(things, dtype=torch.long)
    own = nothing.scatter_add(1, masks.queries, positive.sum(2)).clamp(min=1).float()  # (B, Q + 1)
    numbers = torch.arange(things.shape[1], device=flat.device)

    def go_on(go: Tensor, *_: Tensor) -> Tensor:
        return go.clone()

    def drop(_: Tensor, left: Tensor, candidates: Tensor, area: Tensor) -> tuple[Tensor, ...]:
        """Drop one thing of every image that has one to drop."""
        best = torch.where(left.gather(1, masks.queries)[:, :, None], flat, DEAD).argmax(1)  # (B, N)
        seen = positive.gather(1, best[:, None])[:, 0]
        best = masks.queries.gather(1, best)  # now queries
        visible = nothing.scatter_add(1, best, seen).float() / own
        least, worst = torch.where(candidates, visible, torch.inf).min(1)
        goes = (numbers == worst[:, None]) & (least < min_visible)[:, None]
        pixels = ((best == worst[:, None]).sum(1).double() * per_cell).round().long()[:, None]
        candidates = candidates & ~goes
        return (goes.any(1) & candidates.any(1)).any(), left & ~goes, candidates, torch.where(goes, pixels, area)

    start = ((min_visible > 0) & things.any(), torch.ones_like(things), things.clone(), nothing.clone())
    _, left, _, area = repeat(go_on, drop, start)
    return left, area


def leaders_of(categories: Tensor, things: Tensor, alive: Tensor) -> Tensor:
    """(B, Q + 1) every query's leader: itself, or for stuff the first living one of its category."""
    numbers = torch.arange(alive.shape[1], device=alive.device)
    same = (categories[:, :, None] == categories[:, None]) & alive[:, None]
    first = (same | (numbers[:, None] == numbers)).int().argmax(2)
    return torch.where(things | ~alive, numbers, first)


def settle(
    masks: Masks,
    alive: Tensor,
    areas: Tensor,
    reasons: Tensor,
    leaders: Tensor,
    axes: Sequence[Axis],
    min_area: Tensor,
    keep_first: Tensor,
) -> Settled:
    """Give every pixel to a mask, dropping small segments until there are none (`inference.contest.Contest.settle`).

    An image that is done goes along with the others unchanged.
    """
    rows, columns = axes
    pixels = (rows.repeats[:, None] * columns.repeats).flatten()  # (n * m,) of the result
    repeats_first = leaders != torch.arange(leaders.shape[1], device=leaders.device)
    least = min_area.clamp(min=1)

    def go_on(go: Tensor, *_: Tensor) -> Tensor:
        return go.clone()

    def compete(_: Tensor, alive: Tensor, areas: Tensor, reasons: Tensor, _before: Tensor) -> tuple[Tensor, ...]:
        """Give the pixels to who is alive, and drop who is left with too few."""
        living = alive.gather(1, masks.queries)[:, :, None, None]
        places = winning_masks(torch.where(living, masks.cells, DEAD), rows, columns)  # (B, n, m)
        winners = masks.queries.gather(1, places.flatten(1))  # (B, n * m)
        won = torch.zeros_like(areas).scatter_add(1, winners, pixels.expand_as(winners))
        areas = torch.where(alive, won, areas)
        total = torch.zeros_like(areas).scatter_add(1, leaders, torch.where(alive, won, 0)).gather(1, leaders)
        small = alive & (total < least)
        again = alive & ~small & keep_first & repeats_first
        why = torch.where(areas > 0, CODE["small"], CODE["covered"])
        reasons = torch.where(small, why, torch.where(again, CODE["suppressed"], reasons))
        left = alive & ~small & ~again
        go = (((small | again) & (areas > 0)).any(1) & left.any(1)).any()
        return go, left, areas, reasons, winners.view_as(places)

    nobody = leaders.new_zeros((leaders.shape[0], rows.low.shape[0], columns.low.shape[0]))
    start = torch.ones_like(alive).any(), alive, areas, reasons, nobody
    _, alive, areas, reasons, winners = repeat(go_on, compete, start)
    return Settled(alive, areas, reasons, leaders, winners)


def result(done: Settled, choice: Choice, axes: Sequence[Axis]) -> dict[str, Tensor]:
    """The maps and the rows of every query, from what the contest left."""
    rows, columns = axes
    numbers = torch.arange(done.alive.shape[1], device=done.alive.device)
    leads = done.alive & (done.leaders == numbers)
    ids = torch.where(leads, leads.long().cumsum(1), 0)  # (B, Q + 1)
    joined = torch.where(done.alive, ids.gather(1, done.leaders), 0)
    sampled = joined.gather(1, done.winners.flatten(1)).view_as(done.winners)  # (B, n, m)
    segment_map = sampled.int().index_select(2, columns.spread).index_select(1, rows.spread)  # (B, H, W)
    top, bottom = extent(sampled, len(numbers) + 1, rows, 1)
    left, right = extent(sampled, len(numbers) + 1, columns, 2)
    boxes = torch.stack([left, top, right - left + 1, bottom - top + 1], dim=-1)  # (B, Q + 2, 4)
    boxes = torch.where(leads[..., None], boxes.gather(1, ids[..., None].expand(-1, -1, 4)), 0)
    united = torch.zeros_like(done.areas).scatter_add(1, done.leaders, torch.where(done.alive, done.areas, 0))
    merged = done.alive & ~leads
    reasons = torch.where(merged, CODE["merged"], done.reasons)[:, :-1]
    return {
        "segment_map": segment_map,
        "ids": ids[:, :-1],
        "areas": torch.where(leads, united, done.areas)[:, :-1],
        "boxes": boxes[:, :-1],
        "reasons": torch.where(choice.kept, reasons, choice.reasons),
        "joined": torch.where(merged, joined, 0)[:, :-1],
    }


def extent(sampled: Tensor, segments: int, axis_of: Axis, axis: int) -> tuple[Tensor, Tensor]:
    """(B, S) first and last pixel of every id along an axis of the result."""
    length = axis_of.low.shape[0]
    places = torch.arange(length, device=sampled.device)
    flat = (sampled * length + (places[:, None] if axis == 1 else places)).flatten(1)
    there = sampled.new_zeros((sampled.shape[0], segments * length)).scatter(1, flat, 1).unflatten(1, (segments, length))
    there = there.index_select(2, axis_of.spread)  # (B, S, pixels of the result)
    return there.argmax(2), there.shape[2] - 1 - there.flip(2).argmax(2)
