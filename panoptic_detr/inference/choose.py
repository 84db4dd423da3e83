"""Which queries of an image deserve a mask: those whose best class is a known category with enough probability.

The choice needs class logits only, so it runs before the mask head; the merger is handed the same choice with the masks
and says which of them show too little (`merge`, `contest`).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from panoptic_detr.categories import Category, CategoryTable
from panoptic_detr.errors import MergeError
from panoptic_detr.panoptic import DropReason
from panoptic_detr.shapes import check_shape


@dataclass(frozen=True)
class Choice:
    """The best class of every query of one image and whether it passes."""

    scores: list[float]  # probability of the best class, Q values
    # the category of the best class; None for "no object" and for label slots without a category
    categories: list[Category | None]
    reasons: list[DropReason | None]  # why a query is not chosen; None for the chosen ones

    @property
    def queries(self) -> list[int]:
        """The chosen queries, in order."""
        return [query for query, reason in enumerate(self.reasons) if reason is None]

    def only(self, queries: Collection[int]) -> "Choice":
        """The same with no other queries chosen than these; the others count as scored too low."""
        kept = set(queries)
        reasons = enumerate(self.reasons)
        return replace(self, reasons=[why or (None if query in kept else "low score") for query, why in reasons])

    def best(self, count: int | None) -> "Choice":
        """The same with the `count` chosen queries of the highest scores (all for None)."""
        if count is None or len(self.queries) <= count:
            return self
        return self.only(sorted(self.queries, key=lambda query: -self.scores[query])[:count])


def choose_queries(
    logits: Tensor,
    categories: CategoryTable,
    *,
    threshold: float = 0.85,
    stuff_threshold: float | None = None,
    no_object: bool = True,
) -> Choice:
    """Choose the confident queries of one image (DETR paper, section 4.3).

    Args:
        logits: (Q, C) class logits; with `no_object` the last of the C slots means "no object" (softmax), otherwise every
            slot is a class (sigmoid).
        categories: what the label slots mean; `num_labels` must be the number of real slots.
        threshold: least probability, exclusive.
        stuff_threshold: the same for stuff, where it differs.
        no_object: whether the last slot means "no object".

    Raises:
        MergeError: the label slots are not those of the table, a threshold is outside [0, 1], or logits are NaN.
    """
    check_shape("logits", logits, ("Q", "C"))
    labels_expected = logits.shape[1] - int(no_object)
    if labels_expected != categories.num_labels:
        kind = "label slots and one for no-object" if no_object else "label slots"
        raise MergeError(
            f"logits have {logits.shape[1]} slots, but the category table means {categories.num_labels} {kind}; "
            "pass the table that the model was trained with, and no_object=False for sigmoid classes"
        )
    stuff_threshold = threshold if stuff_threshold is None else stuff_threshold
    check_fraction("threshold", threshold)
    check_fraction("stuff_threshold", stuff_threshold)
    logits = logits.detach().float()
    probabilities = logits.softmax(-1) if no_object else logits.sigmoid()  # (Q, C)
    if bool(torch.isnan(probabilities).any()):
        raise MergeError("class logits are not finite numbers; the weights or the images contain NaN")
    scores, labels = probabilities.max(-1)  # (Q,), (Q,)
    return _judge(scores.tolist(), labels.tolist(), categories, threshold, stuff_threshold, no_object)


def check_fraction(name: str, value: float) -> None:
    """Raise `MergeError` unless `value` lies in [0, 1]."""
    if not 0.0 <= value <= 1.0:
        raise MergeError(f"{name} must lie in [0, 1], but got {value}")


def _judge(
    scores: list[float],
    labels: list[int],
    table: CategoryTable,
    threshold: float,
    stuff_threshold: float,
    no_object: bool,
) -> Choice:
    categories = [table.by_label.get(label) for label in labels]
    reasons: list[DropReason | None] = []
    for score, label, category in zip(scores, labels, categories, strict=True):
        if no_object and label == table.num_labels:
            reasons.append("no object")
        elif category is None:
            reasons.append("no category")
        else:
            passes = score > (threshold if category.isthing else stuff_threshold)
            reasons.append(None if passes else "low score")
    return Choice(scores, categories, reasons)
