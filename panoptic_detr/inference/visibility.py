"""Things that hide behind others: one that shows only a small part of its own mask is probably a second find of an object."""

import torch
from torch import Tensor


def hidden_things(cells: Tensor, things: list[bool], min_visible: float) -> list[tuple[int, int]]:
    """Find the things to drop, the least visible first; each one dropped uncovers others before the next is judged.

    One at a time, because two copies of one object hide each other: the better half must stay. Judged on the mask grid,
    where this costs next to nothing.

    Args:
        cells: (K, h, w) float32 mask logits, without padding.
        things: K values, whether each mask belongs to a thing; stuff is never dropped.
        min_visible: least share of a thing's own mask (cells with a positive logit) in which it wins the argmax. A thing
            without any positive cell counts as invisible.

    Returns:
        (index, cells that it had won) of each dropped mask, in the order of dropping.
    """
    if not len(cells):
        return []
    cells = cells.flatten(1).clone()  # (K, h * w)
    positive = cells > 0
    own = positive.sum(1).clamp(min=1)  # (K,)
    candidates = torch.tensor(things, device=cells.device)  # (K,)
    best = cells.max(0).indices  # (h * w,)
    dropped = []
    while bool(candidates.any()):
        shown = torch.bincount(best[positive.gather(0, best[None])[0]], minlength=len(cells))  # (K,)
        visible = (shown / own).masked_fill(~candidates, torch.inf)
        worst = int(visible.argmin())
        if float(visible[worst]) >= min_visible:
            break
        lost = best == worst
        dropped.append((worst, int(lost.sum())))
        candidates[worst] = False
        cells[worst] = -torch.inf
        best[lost] = cells[:, lost].max(0).indices
    return dropped
