"""Losses of Mask-DETR: things are matched by class, box and mask; stuff has its own queries; all compete for the pixels.

Masks are compared in every decoder layer, at places that give each thing the same weight, however small it is, as panoptic
quality does. The contest is that of `merge_panoptic`: a softmax over stuff queries and matched things, all over the image.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.boxes import cxcywh_to_xyxy, generalized_iou
from panoptic_detr.errors import InputError
from panoptic_detr.models import unpadded_extent
from panoptic_detr.query_masks import QueryMasks
from panoptic_detr.structures import DetectorOutput, Target
from panoptic_detr.training.losses.criterion import GlobalCounts, Losses, term_of
from panoptic_detr.training.losses.matcher import HybridMatching
from panoptic_detr.training.losses.places import Places, around_things, everywhere, look_up, things_of
from panoptic_detr.training.losses.terms import box_losses, sigmoid_focal_loss

LEAST_SIGMA = 0.7  # cells: width of a peak at the least
LARGEST_COST = 10.0  # of a mask
HUGE = 1e9


class MaskCriterion(nn.Module):
    """Losses of a batch for a detector whose output has `masks`.

    Args:
        num_labels: class slots.
        weights: of the terms in the total, by name; 0 leaves one out.
        costs: of the matching, by the names of the terms.
        stuff_labels: labels whose queries are never matched; needed where a step is spread over several batches or processes.
        roi_side: places around a thing are side x side.
        point_step: one place in so many pixels squared, all over the image.
        contest_layers: how many of the last predictions compete for pixels.
        contest_balance: places of a segment with n of them weigh n to minus this in the contest; 0 for all the same.
    """

    def __init__(
        self,
        *,
        num_labels: int,
        weights: dict[str, float],
        costs: dict[str, float],
        stuff_labels: Sequence[int] = (),
        roi_side: int = 12,
        point_step: int = 4,
        contest_layers: int = 4,
        contest_balance: float = 0.0,
    ) -> None:
        super().__init__()
        if min([*weights.values(), *costs.values()]) < 0:
            raise InputError(f"weights of losses and costs must be at least 0, but got {weights} and {costs}")
        if min(roi_side, point_step, contest_layers) < 1:
            raise InputError(
                f"roi_side, point_step and contest_layers must be at least 1; got {roi_side}, {point_step}, {contest_layers}"
            )
        self.num_labels, self.weights, self.costs = num_labels, weights, costs
        self.stuff_labels = tuple(stuff_labels)
        self.roi_side, self.point_step, self.contest_layers = roi_side, point_step, contest_layers
        self.contest_balance = contest_balance
        self.hybrid = HybridMatching()
        self.progress = 0.0

    def counts(self, targets: Sequence[Target]) -> GlobalCounts:
        """Things in every image of this step in all processes; pass the targets of every accumulated batch at once."""
        return _counts(targets, self.stuff_labels)

    def forward(self, output: DetectorOutput, targets: Sequence[Target], counts: GlobalCounts | None = None) -> Losses:
        """Compare.

        Args:
            output: of a detector with `masks`.
            targets: one per image, with segment maps.
            counts: what to divide by; by default the things of these targets in all processes.

        Raises:
            InputError: an output without masks, another number of targets than images, or targets without segment map.
        """
        self._check(output, targets)
        counts = _counts(targets, output.fixed_labels) if counts is None else counts
        images = [_Image(self, output, target, index) for index, target in enumerate(targets)]
        assert output.masks is not None
        sampled = output.masks.sample([image.points for image in images])
        for image, features in zip(images, sampled, strict=True):
            image.compare(Places(image.points, look_up(image.target, image.points), features))
        divisor, share = counts.boxes(), counts.share_of(len(targets)) / len(targets)
        terms: dict[str, Tensor] = {}
        for image in images:
            for values, factor in ((image.per_thing, 1 / divisor), (image.per_image, share)):
                for name, value in values.items():
                    terms[name] = value * factor + terms.get(name, 0.0)
        weights = {name: self.weights[term_of(name)] for name in terms}
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return Losses(total, terms, weights, [image.pairs() for image in images])

    def _check(self, output: DetectorOutput, targets: Sequence[Target]) -> None:
        if output.masks is None or output.proposals is None or len(output.dense) != 1:
            raise InputError("these losses are for the output of a Mask-DETR in training mode, which has masks and proposals")
        if len(targets) != output.logits.shape[1]:
            raise InputError(f"{output.logits.shape[1]} images, but {len(targets)} targets")
        for target in targets:
            if target.segment_map is None:
                raise InputError(f"image {target.image_id}: the target has boxes only; mask losses need a segment map")
            if len(target) and not 0 <= int(target.labels.min()) <= int(target.labels.max()) < self.num_labels:
                raise InputError(
                    f"image {target.image_id}: labels {int(target.labels.min())}..{int(target.labels.max())} are outside the "
                    f"class head's 0..{self.num_labels - 1}; build the model with the data set's number of labels"
                )


class _Image:
    """One image on its way to its losses.

    Attributes:
        points: (P, 2) where masks are compared: all over the image, then around each thing.
        per_thing: sums over the things, by term.
        per_image: means over the image, by term.
    """

    def __init__(self, criterion: MaskCriterion, output: DetectorOutput, target: Target, index: int) -> None:
        assert output.masks is not None
        self.criterion, self.output, self.target, self.index = criterion, output, target, index
        self.masks: QueryMasks = output.masks
        fixed, device = list(output.fixed_labels), target.labels.device
        self.num_things = output.logits.shape[2] - len(fixed)  # queries that are matched
        self.things = things_of(target, fixed)  # (n,)
        self.stuff = torch.isin(target.labels, target.labels.new_tensor(fixed)).nonzero()[:, 0]  # (m,)
        slot_of = {label: self.num_things + slot for slot, label in enumerate(fixed)}
        own = [slot_of[label] for label in target.labels[self.stuff].tolist()]
        self.stuff_queries = torch.tensor(own, device=device, dtype=torch.long)  # (m,)
        self.places_each = criterion.roi_side**2
        uniform = everywhere(target, criterion.point_step)
        self.num_uniform = len(uniform)
        self.points = torch.cat([uniform, around_things(target, self.things, criterion.roi_side)])
        self.per_thing: dict[str, Tensor] = {}
        self.per_image: dict[str, Tensor] = {}

    def compare(self, places: Places) -> None:
        """Match, and fill in the terms."""
        count, weights = len(self.things), self.criterion.weights
        self.places = places
        self.near = places.part(self.num_uniform, len(places.points))
        segments = self.near.segments.view(count, self.places_each)  # (n, R)
        self.wanted = (segments == self.things[:, None] + 1).float()
        self.known = (segments > 0).float()
        self.queries, self.objects = self._match()  # (L, k) each
        layers = len(self.output.logits)
        for layer in range(layers):
            suffix = "" if layer == layers - 1 else f"_layer{layer}"
            of_things = {"class": self._classes(layer), **self._boxes(layer), **self._masks(layer)}
            of_image = self._presence(layer)
            if layer >= layers - self.criterion.contest_layers:
                of_image |= self._contest(layer)
            self.per_thing |= {name + suffix: value for name, value in of_things.items() if weights[name]}
            self.per_image |= {name + suffix: value for name, value in of_image.items() if weights[name]}
        self.per_thing |= {name: value for name, value in self._proposals().items() if weights[term_of(name)]}

    def pairs(self) -> tuple[Tensor, Tensor]:
        """(queries, segments) of the last layer, those of stuff included."""
        return torch.cat([self.queries[-1], self.stuff_queries]), torch.cat([self.things[self.objects[-1]], self.stuff])

    @torch.no_grad()
    def _match(self) -> tuple[Tensor, Tensor]:
        """The cheapest assignment of queries to things in every layer: (L, k) queries and (L, k) places in `things`."""
        costs = self._costs().float().cpu().numpy()  # (L, Q, n)
        found = [linear_sum_assignment(np.nan_to_num(cost, nan=HUGE, posinf=HUGE, neginf=-HUGE)) for cost in costs]
        queries, objects = (torch.from_numpy(np.stack(side)).to(self.things.device) for side in zip(*found, strict=True))
        return queries, objects

    def _costs(self) -> Tensor:
        costs, output, count = self.criterion.costs, self.output, self.num_things
        labels, boxes = self.target.labels[self.things], self.target.boxes[self.things].float()
        p = output.logits[:, self.index, :count].index_select(-1, labels).float().sigmoid()  # (L, Q, n)
        found = output.boxes[:, self.index, :count].float()  # (L, Q, 4)
        overlap = generalized_iou(cxcywh_to_xyxy(found)[:, :, None], cxcywh_to_xyxy(boxes)[None, None])
        every = torch.arange(count, device=labels.device).expand(len(found), -1)
        bce, dice = _mask_losses(self._logits_near(every), self.wanted, self.known)  # (L, Q, n) each
        positive = 0.25 * (1 - p) ** 2 * -(p + 1e-8).log()
        negative = 0.75 * p**2 * -(1 - p + 1e-8).log()
        return (
            costs["class"] * (positive - negative)
            + costs["box_l1"] * torch.cdist(found, boxes.expand(len(found), -1, -1), p=1)
            - costs["box_giou"] * overlap
            + costs["mask_bce"] * bce.clamp(max=LARGEST_COST)
            + costs["mask_dice"] * dice
        )

    def _logits_near(self, queries: Tensor) -> Tensor:
        """Mask logits of queries (L, K) at the places around every thing: (L, K, n, R)."""
        count, each = len(self.things), self.places_each
        layers = [
            self.masks.of_features(self.index, chosen, self.near.features, self.near.points, layer)
            for layer, chosen in enumerate(queries)
        ]
        return torch.stack(layers).view(*queries.shape, count, each)

    def _classes(self, layer: int) -> Tensor:
        logits = self.output.logits[layer, self.index, : self.num_things].float()  # (Q, C)
        wanted = torch.zeros_like(logits)
        wanted[self.queries[layer], self.target.labels[self.things[self.objects[layer]]]] = 1
        return sigmoid_focal_loss(logits, wanted).sum()

    def _boxes(self, layer: int) -> dict[str, Tensor]:
        found = self.output.boxes[layer, self.index].index_select(0, self.queries[layer]).float()
        l1, giou = box_losses(found, self.target.boxes[self.things[self.objects[layer]]])
        return {"box_l1": l1.sum(), "box_giou": giou.sum()}

    def _masks(self, layer: int) -> dict[str, Tensor]:
        """Masks of the matched queries, each around its own thing."""
        objects = self.objects[layer]
        near = Places(*(value.unflatten(0, (len(self.things), self.places_each))[objects] for value in self.near.values()))
        logits = self.masks.each_at(self.index, self.queries[layer], near.features, near.points, layer)  # (k, R)
        bce, dice = _mask_losses(logits, self.wanted[objects], self.known[objects])
        return {"mask_bce": bce.sum(), "mask_dice": dice.sum()}

    def _contest(self, layer: int) -> dict[str, Tensor]:
        """Who wins which place: matched things and stuff queries, as in the merger; and the DICE of each stuff class."""
        device, matched = self.things.device, self.queries[layer]
        contenders = torch.cat([matched, torch.arange(self.num_things, self.output.logits.shape[2], device=device)])
        row_of = torch.full((len(self.target) + 1,), -1, dtype=torch.long, device=device)
        row_of[self.things[self.objects[layer]] + 1] = torch.arange(len(matched), device=device)
        row_of[self.stuff + 1] = self.stuff_queries - self.num_things + len(matched)
        winners = row_of[self.places.segments]  # (P,), -1 where nobody is known to win
        known = winners >= 0
        if not len(contenders) or not bool(known.any()):
            return {}
        logits = self.masks.of_features(self.index, contenders, self.places.features, self.places.points, layer)  # (K, P)
        weights = rarity(winners[known], len(contenders), self.criterion.contest_balance)
        contest = (F.cross_entropy(logits.T[known], winners[known], reduction="none") * weights).mean()
        uniform = slice(self.num_uniform)
        p = logits[:, uniform].softmax(0) * known[uniform]
        truth = F.one_hot(winners[uniform].clamp(min=0), len(contenders)).T * known[uniform]  # (K, P)
        stuff = row_of[self.stuff + 1].unique()
        overlap, sizes = (p[stuff] * truth[stuff]).sum(1), p[stuff].sum(1) + truth[stuff].sum(1)
        dice = 1 - (2 * overlap + 1) / (sizes + 1)
        return {"contest": contest, "stuff_dice": dice.sum() / max(len(stuff), 1)}

    def _presence(self, layer: int) -> dict[str, Tensor]:
        """Whether each stuff class is in the image: its own query's logit of its own class."""
        if not self.output.fixed_labels:
            return {}
        labels = torch.tensor(self.output.fixed_labels, device=self.things.device)
        logits = self.output.logits[layer, self.index, self.num_things :].float().gather(1, labels[:, None])[:, 0]
        wanted = torch.isin(labels, self.target.labels).float()
        return {"presence": F.binary_cross_entropy_with_logits(logits, wanted)}

    def _proposals(self) -> dict[str, Tensor]:
        """Peaks at the things, and the boxes of the cells there."""
        proposals, (heat,) = self.output.proposals, self.output.dense
        assert proposals is not None
        padding_mask = heat.padding_mask[self.index : self.index + 1]
        logits, extent = heat.features[self.index].float(), unpadded_extent(padding_mask)[0]  # (C, h, w), (2,)
        boxes = self.target.boxes[self.things].float()
        cells = (self._middles() * extent).long()  # (n, 2)
        sigma = (boxes[:, 2:] * extent / 6).clamp(min=LEAST_SIGMA)
        wanted = peaks(logits.shape, cells, sigma, self.target.labels[self.things])
        loss = peak_loss(logits, wanted) * ~padding_mask
        open_labels = [label for label in range(len(logits)) if label not in self.output.fixed_labels]
        at = cells[:, 1] * logits.shape[2] + cells[:, 0]
        l1, giou = box_losses(proposals.boxes[0, self.index].index_select(0, at).float(), boxes)
        return {"peaks": loss[open_labels].sum(), "box_l1_proposals": l1.sum(), "box_giou_proposals": giou.sum()}

    def _middles(self) -> Tensor:
        """For each thing the place of its own that is nearest to the middle of its box: (n, 2)."""
        boxes, count = self.target.boxes[self.things], len(self.things)
        points = self.near.points.view(count, self.places_each, 2)
        distance = ((points - boxes[:, None, :2]) / boxes[:, None, 2:]).abs().sum(-1)  # (n, R)
        own = self.wanted > 0
        best = distance.masked_fill(~own, torch.inf).argmin(1)
        nearest = points[torch.arange(count, device=best.device), best]
        return torch.where(own.any(1, keepdim=True), nearest, boxes[:, :2]).clamp(0, 1 - 1e-6)


def rarity(winners: Tensor, count: int, exponent: float) -> Tensor:
    """Weights (P,) of places, with mean 1: those of a segment that wins many of them (P,) of `count` segments count less."""
    if not exponent:
        return torch.ones_like(winners, dtype=torch.float32)
    weights = torch.bincount(winners, minlength=count).clamp(min=1).float()[winners] ** -exponent
    return weights / weights.mean()


def peaks(shape: Sequence[int], cells: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    """Bumps of height 1 (Zhou et al., 2019, section 3).

    Args:
        shape: (C, h, w).
        cells: (n, 2) column and row of each.
        sigma: (n, 2) width and height in cells.
        labels: (n,) the map of each.

    Returns:
        (C, h, w).
    """
    x, y = (torch.arange(size, device=cells.device) for size in (shape[2], shape[1]))
    near_x = torch.exp(-0.5 * ((x - cells[:, :1]) / sigma[:, :1]) ** 2)  # (n, w)
    near_y = torch.exp(-0.5 * ((y - cells[:, 1:]) / sigma[:, 1:]) ** 2)  # (n, h)
    bumps = near_y[:, :, None] * near_x[:, None]  # (n, h, w)
    maps = bumps.new_zeros(tuple(shape))
    for label in labels.unique().tolist():
        maps[label] = bumps[labels == label].amax(0)
    return maps


def peak_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Focal loss of a map of peaks (Zhou et al., 2019, eq. 1): (...) logits and wanted values, 1 at a peak, to (...)."""
    p = logits.sigmoid()
    positive = -F.logsigmoid(logits) * (1 - p) ** 2
    negative = -F.logsigmoid(-logits) * p**2 * (1 - wanted) ** 4
    return torch.where(wanted == 1, positive, negative)


def _mask_losses(logits: Tensor, wanted: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and DICE (...) of logits (..., R) and 0/1 values at places; those that are not known do not count."""
    bce = F.binary_cross_entropy_with_logits(logits, wanted.expand_as(logits), reduction="none") * known
    p = logits.sigmoid() * known
    dice = 1 - (2 * (p * wanted).sum(-1) + 1) / (p.sum(-1) + wanted.sum(-1) + 1)
    return bce.sum(-1) / known.sum(-1).clamp(min=1), dice


def _counts(targets: Sequence[Target], stuff_labels: Sequence[int]) -> GlobalCounts:
    local = [len(things_of(target, stuff_labels)) for target in targets]
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return GlobalCounts(tuple(local))
    gathered: list[list[int]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, local)
    return GlobalCounts(tuple(chain.from_iterable(gathered)), len(gathered))


def build_mask_criterion(
    *,
    num_labels: int,
    stuff_labels: Sequence[int] = (),
    class_weight: float = 2.0,
    l1_weight: float = 2.0,
    giou_weight: float = 1.0,
    mask_bce_weight: float = 2.0,
    mask_dice_weight: float = 1.0,
    contest_weight: float = 2.0,
    stuff_dice_weight: float = 2.0,
    presence_weight: float = 1.0,
    peaks_weight: float = 1.0,
    cost_class: float = 2.0,
    cost_l1: float = 5.0,
    cost_giou: float = 2.0,
    cost_mask_bce: float = 2.0,
    cost_mask_dice: float = 2.0,
    roi_side: int = 12,
    point_step: int = 4,
    contest_layers: int = 4,
    contest_balance: float = 0.0,
) -> MaskCriterion:
    """Build the criterion of a Mask-DETR.

    Args:
        num_labels: label slots.
        stuff_labels: labels of classes that have queries of their own; training takes them from the data's categories.
        class_weight: and the other weights: of the terms in the total; 0 leaves a term out.
        l1_weight: L1 box loss.
        giou_weight: generalized-IoU loss.
        mask_bce_weight: cross-entropy of a thing's mask around the thing.
        mask_dice_weight: DICE of the same.
        contest_weight: cross-entropy of who wins a place, all over the image and around things.
        stuff_dice_weight: DICE of each stuff class in the contest.
        presence_weight: whether a stuff class is in the image.
        peaks_weight: focal loss of the map that queries for things start from.
        cost_class: weights of the matching cost.
        cost_l1: L1 box distance.
        cost_giou: generalized IoU.
        cost_mask_bce: cross-entropy of the mask.
        cost_mask_dice: DICE of the mask.
        roi_side: places around a thing are side x side.
        point_step: one place in so many pixels squared, all over the image.
        contest_layers: how many of the last predictions compete for pixels; there is one before the first decoder layer too.
        contest_balance: places of a segment with n of them weigh n to minus this in the contest, so that thin regions count
            more; 0 for all the same.
    """
    return MaskCriterion(
        num_labels=num_labels,
        weights={
            "class": class_weight,
            "box_l1": l1_weight,
            "box_giou": giou_weight,
            "mask_bce": mask_bce_weight,
            "mask_dice": mask_dice_weight,
            "contest": contest_weight,
            "stuff_dice": stuff_dice_weight,
            "presence": presence_weight,
            "peaks": peaks_weight,
        },
        costs={
            "class": cost_class,
            "box_l1": cost_l1,
            "box_giou": cost_giou,
            "mask_bce": cost_mask_bce,
            "mask_dice": cost_mask_dice,
        },
        stuff_labels=stuff_labels,
        roi_side=roi_side,
        point_step=point_step,
        contest_layers=contest_layers,
        contest_balance=contest_balance,
    )
