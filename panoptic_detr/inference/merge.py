"""From class and mask logits of one image to one panoptic map (DETR paper, section 4.3).

Queries whose best class is a category with enough probability are kept; every pixel goes to the kept query with the highest
mask logit; masks of one stuff category are united; segments of too few pixels are dropped and their pixels go to the next
best query. Every query that is no segment of the result is listed with the reason.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import torch
from torch import Tensor

from panoptic_detr.categories import CategoryTable
from panoptic_detr.config.inference import DuplicateStuff
from panoptic_detr.errors import MergeError
from panoptic_detr.inference.choose import Choice, check_fraction, choose_queries
from panoptic_detr.inference.contest import Contest, Frame
from panoptic_detr.panoptic import Dropped, PanopticSegmentation, Segment
from panoptic_detr.shapes import check_shape

# Larger logits are cut, so that infinite ones do not become NaN between cells; no order within them changes.
_LARGEST_LOGIT = 1e30


def merge_panoptic(
    logits: Tensor,
    mask_logits: Tensor,
    *,
    categories: CategoryTable | Sequence[Mapping[str, object]],
    size: Sequence[int],
    target_size: Sequence[int] | None = None,
    padded_size: Sequence[int] | None = None,
    threshold: float = 0.85,
    stuff_threshold: float | None = None,
    min_area: int = 5,
    min_visible: float = 0.0,
    duplicate_stuff: DuplicateStuff = "union",
    no_object: bool = True,
    queries: Tensor | Sequence[int] | None = None,
    image_id: int | str | None = None,
) -> PanopticSegmentation:
    """Merge the masks of one image into one map.

    Args:
        logits: (Q, C) class logits, the no-object slot last if `no_object`, otherwise sigmoid classes.
        mask_logits: (Q, h, w), or (K, h, w) for the K queries named by `queries`, or for exactly those that pass the
            thresholds, in order.
        categories: the table of the model, or a COCO category list (`CategoryTable.of`).
        size: (height, width) of the image that the model saw, without padding.
        target_size: (height, width) of the result, usually the image on disk; `size` by default. The map is resized by
            nearest pixel centres; areas and boxes are those of the result.
        padded_size: (height, width) that the mask logits cover, where the image was padded right and below; `size` by default.
        threshold: least probability of a query, exclusive.
        stuff_threshold: the same for stuff, where it differs.
        min_area: least pixels of a segment in the result.
        min_visible: a thing that shows less than this share of its own mask is dropped (`hidden_things`); 0 keeps all.
        duplicate_stuff: "union" unites masks of one stuff category, as the paper says; "keep_first" repeats the published
            code, where later ones only help the first over `min_area` and are then dropped and their pixels given away.
        no_object: whether the last class slot means "no object".
        queries: (K,) the queries that `mask_logits` belong to.
        image_id: passed on to the result.

    Returns:
        The map; ids are 1..n in the order of queries.

    Raises:
        MergeError: arguments that do not fit together; the message says which.
        ShapeError: logits or masks of a wrong number of axes.
    """
    for name, value in (("logits", logits), ("mask_logits", mask_logits)):
        if not isinstance(value, Tensor):
            raise MergeError(f"{name} must be a tensor, but got {type(value).__name__}; torch.from_numpy makes one of an array")
    check_shape("logits", logits, ("Q", "C"))
    table = CategoryTable.of(categories, num_labels=logits.shape[1] - int(no_object))
    choice = choose_queries(logits, table, threshold=threshold, stuff_threshold=stuff_threshold, no_object=no_object)
    frame = Frame.of(size, target_size, padded_size)
    check_fraction("min_visible", min_visible)
    if duplicate_stuff not in get_args(DuplicateStuff):
        raise MergeError(f"duplicate_stuff must be one of {', '.join(get_args(DuplicateStuff))}, but got {duplicate_stuff!r}")
    check_shape("mask_logits", mask_logits, ("K", "h", "w"))
    named = _named_queries(choice, len(mask_logits), queries)
    choice = choice.only(named)
    rows = torch.tensor([named.index(query) for query in choice.queries], dtype=torch.long, device=mask_logits.device)
    return merge_choice(
        choice,
        mask_logits.index_select(0, rows),
        frame,
        table,
        min_area=min_area,
        min_visible=min_visible,
        union=duplicate_stuff == "union",
        image_id=image_id,
    )


def merge_choice(
    choice: Choice,
    mask_logits: Tensor,
    frame: Frame,
    categories: CategoryTable,
    *,
    min_area: int,
    min_visible: float,
    union: bool,
    image_id: int | str | None,
) -> PanopticSegmentation:
    """Merge the masks (K, h, w) of the chosen queries, in order, as `merge_panoptic` does once it has chosen."""
    cells = mask_logits.detach().float()
    if bool(torch.isnan(cells).any()):
        raise MergeError("mask logits contain NaN; the weights or the images do too")
    contest = Contest(choice, cells.clamp(-_LARGEST_LOGIT, _LARGEST_LOGIT), frame, union)
    if min_visible > 0:
        contest.drop_hidden(min_visible)
    contest.settle(min_area)
    segment_map, segments = contest.result()
    return PanopticSegmentation(segment_map, segments, categories, _dropped(choice, contest, segments), image_id)


def _named_queries(choice: Choice, rows: int, queries: Tensor | Sequence[int] | None) -> list[int]:
    """Which query each row of the masks belongs to."""
    count = len(choice.scores)
    if queries is not None:
        named = [int(query) for query in queries]
        if len(named) != rows or len(set(named)) != rows or any(not 0 <= query < count for query in named):
            raise MergeError(
                f"queries must name {rows} different queries of {count}, one per row of mask_logits, but got {named}"
            )
        return named
    if rows == count:
        return list(range(count))
    if rows == len(choice.queries):
        return choice.queries
    raise MergeError(
        f"mask_logits have {rows} masks, but there are {count} queries, of which {len(choice.queries)} pass the threshold; "
        "pass `queries` to say which ones the masks belong to"
    )


def _dropped(choice: Choice, contest: Contest, segments: Iterable[Segment]) -> list[Dropped]:
    """One entry, in order, for every query that is no segment's own query."""
    id_of = {segment.query: segment.id for segment in segments}
    mask_of = {query: mask for mask, query in enumerate(contest.queries)}
    entries = []
    for query, (score, category, reason) in enumerate(zip(choice.scores, choice.categories, choice.reasons, strict=True)):
        if query in id_of:
            continue
        area, into = 0, None
        if reason is None:
            mask = mask_of[query]
            reason, area = contest.fallen.get(mask, ("merged", contest.area.get(mask, 0)))
            into = id_of[contest.queries[contest.leader[mask]]] if reason == "merged" else None
        entries.append(Dropped(query, reason, score, category.id if category else None, area, into))
    return entries
