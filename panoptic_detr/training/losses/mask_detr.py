"""Losses of Mask-DETR: things are matched by class, box and mask; stuff has its own queries; all compete for the pixels.

Masks are compared in every decoder layer, at places of a jittered grid over the whole image and of one around every thing, so
that each thing has the same weight, however small it is, as in panoptic quality. The contest is that of `merge_panoptic`: a
softmax over stuff queries and matched things, all over the image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.boxes import cxcywh_to_xyxy, generalized_iou
from panoptic_detr.errors import InputError
from panoptic_detr.query_masks import QueryMasks, unpadded_extent
from panoptic_detr.structures import DetectorOutput, Target
from panoptic_detr.training.losses.criterion import GlobalCounts, Losses, term_of
from panoptic_detr.training.losses.matcher import HybridMatching, cheapest, focal_cost
from panoptic_detr.training.losses.terms import box_losses, sigmoid_focal_loss

LEAST_SIGMA = 0.7  # cells: width of a peak at the least
LARGEST_COST = 10.0  # of a mask
ROI_SCALE = 1.5  # places around a thing lie in so many times its box
ROI_MARGIN = 8  # pixels that are added to a small one at least
BEFORE_THE_END = 1 - 1e-6

# Published weights of the terms in the total, and of the matching cost.
WEIGHTS = {
    **{"class": 2.0, "box_l1": 2.0, "box_giou": 1.0, "mask_bce": 2.0, "mask_dice": 1.0},
    **{"contest": 2.0, "stuff_dice": 2.0, "presence": 1.0, "peaks": 1.0},
}
COSTS = {"class": 2.0, "box_l1": 5.0, "box_giou": 2.0, "mask_bce": 2.0, "mask_dice": 2.0}


@dataclass(eq=False, kw_only=True)
class MaskCriterion(nn.Module):
    """Losses of a batch for a detector whose output has `masks`."""

    num_labels: int  # class slots
    # labels whose queries are never matched; needed where a step is spread over several batches or processes
    stuff_labels: Sequence[int] = ()
    # of the terms in the total, by name; 0 leaves one out
    weights: Mapping[str, float] = field(default_factory=lambda: WEIGHTS)
    costs: Mapping[str, float] = field(default_factory=lambda: COSTS)  # of the matching, by the names of the terms
    roi_side: int = 12  # places around a thing are side x side
    point_step: int = 4  # one place in so many pixels squared, all over the image
    # how many of the last predictions compete for pixels; there is one before the first decoder layer too
    contest_layers: int = 4
    contest_balance: float = 0.0  # places of a segment with n of them weigh n to minus this in the contest; 0 for all the same
    hybrid: HybridMatching = field(default_factory=HybridMatching)  # none here
    progress: float = 0.0  # share of the training that is done, 0..1

    def __post_init__(self) -> None:
        super().__init__()

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
            image.see(Places(image.points, look_up(image.target, image.points), features))
        for image, pairs in zip(images, match([image.costs() for image in images]), strict=True):
            image.compare(*pairs)
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


@dataclass(frozen=True)
class Places:
    """Places in one image, with what lies there and the pixel features that are found there."""

    points: Tensor  # (..., 2) x, y as fractions of the unpadded image
    segments: Tensor  # (...) int64 number of the segment, 0 for void
    features: Tensor  # (..., E)

    def part(self, start: int, stop: int) -> "Places":
        """Those from start to stop."""
        return Places(*(value[start:stop] for value in self.values()))

    def values(self) -> tuple[Tensor, Tensor, Tensor]:
        """Points, segments and features."""
        return self.points, self.segments, self.features


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

    def see(self, places: Places) -> None:
        """Take in what lies at the places."""
        count = len(self.things)
        self.places = places
        self.near = places.part(self.num_uniform, len(places.points))
        segments = self.near.segments.view(count, self.places_each)  # (n, R)
        self.wanted = (segments == self.things[:, None] + 1).float()
        self.known = (segments > 0).float()

    def compare(self, queries: Tensor, objects: Tensor) -> None:
        """Fill in the terms for matched queries and their places in `things`, (L, k) each."""
        self.queries, self.objects, weights = queries, objects, self.criterion.weights
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
    def costs(self) -> Tensor:
        """What it costs to match each query with each thing: (L, Q, n)."""
        costs, output, count = self.criterion.costs, self.output, self.num_things
        labels, boxes = self.target.labels[self.things], self.target.boxes[self.things].float()
        p = output.logits[:, self.index, :count].index_select(-1, labels).float().sigmoid()  # (L, Q, n)
        found = output.boxes[:, self.index, :count].float()  # (L, Q, 4)
        overlap = generalized_iou(cxcywh_to_xyxy(found)[:, :, None], cxcywh_to_xyxy(boxes)[None, None])
        bce, dice = (torch.stack(values) for values in zip(*map(self._mask_costs, range(len(found))), strict=True))  # (L, Q, n)
        return (
            costs["class"] * focal_cost(p)
            + costs["box_l1"] * torch.cdist(found, boxes.expand(len(found), -1, -1), p=1)
            - costs["box_giou"] * overlap
            + costs["mask_bce"] * bce.clamp(max=LARGEST_COST)
            + costs["mask_dice"] * dice
        )

    def _mask_costs(self, layer: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy and DICE of every query's mask with every thing's: (Q, n) each."""
        every = torch.arange(self.num_things, device=self.things.device)
        logits = self.masks.of_features(self.index, every, self.near.features, self.near.points, layer)  # (Q, n * R)
        return all_mask_losses(logits.view(self.num_things, *self.wanted.shape), self.wanted, self.known)

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
        bce, dice = mask_losses(logits, self.wanted[objects], self.known[objects])
        return {"mask_bce": bce.sum(), "mask_dice": dice.sum()}

    def _contest(self, layer: int) -> dict[str, Tensor]:
        """Who wins which place: matched things and stuff queries, as in the merger; and the DICE of each stuff class."""
        device, matched = self.things.device, self.queries[layer]
        contenders = torch.cat([matched, torch.arange(self.num_things, self.output.logits.shape[2], device=device)])
        row_of = torch.full((len(self.target) + 1,), -1, dtype=torch.long, device=device)
        row_of[self.things[self.objects[layer]] + 1] = torch.arange(len(matched), device=device)
        row_of[self.stuff + 1] = self.stuff_queries - self.num_things + len(matched)
        winners = row_of[self.places.segments]  # (P,), -1 where nobody is known to win
        known = (winners >= 0).nonzero()[:, 0]
        if not len(contenders) or not len(known):
            return {}
        winners, places = winners[known], Places(*(value[known] for value in self.places.values()))
        logits = self.masks.of_features(self.index, contenders, places.features, places.points, layer)  # (K, P)
        total = logits.logsumexp(0)  # (P,)
        weights = rarity(winners, len(contenders), self.criterion.contest_balance)
        contest = ((total - logits.gather(0, winners[None])[0]) * weights).mean()
        uniform = int((known < self.num_uniform).sum())
        stuff = row_of[self.stuff + 1].unique()  # (m,)
        p = (logits[stuff, :uniform] - total[:uniform]).exp()  # (m, P)
        truth = winners[:uniform] == stuff[:, None]
        dice = 1 - (2 * (p * truth).sum(1) + 1) / (p.sum(1) + truth.sum(1) + 1)
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


def match(costs: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """The cheapest assignment in every layer of every image; the costs are copied to the host once.

    Args:
        costs: of each image, (L, Q, n).

    Returns:
        For each image the queries and the things that are matched: (L, k) each.
    """
    flat = torch.cat([cost.flatten() for cost in costs]).float().cpu().numpy()
    parts = np.split(flat, np.cumsum([cost.numel() for cost in costs])[:-1])
    solved = [
        np.stack([np.stack(cheapest(layer)) for layer in part.reshape(cost.shape)], axis=1)  # (2, L, k)
        for part, cost in zip(parts, costs, strict=True)
    ]
    packed = torch.from_numpy(np.concatenate([pairs.reshape(2, -1) for pairs in solved], axis=1)).to(costs[0].device)
    columns = packed.split([pairs[0].size for pairs in solved], dim=1)
    return [
        (queries.view(pairs.shape[1:]), objects.view(pairs.shape[1:]))
        for (queries, objects), pairs in zip(columns, solved, strict=True)
    ]


def rarity(winners: Tensor, count: int, exponent: float) -> Tensor:
    """Weights (P,) of places, with mean 1: those of a segment that wins many of them (P,) of `count` segments count less."""
    if not exponent:
        return torch.ones_like(winners, dtype=torch.float32)
    weights = torch.bincount(winners, minlength=count).clamp(min=1).float()[winners] ** -exponent
    return weights / weights.mean()


def peaks(shape: Sequence[int], cells: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    """Bumps of height 1 on maps (C, h, w) (Zhou et al., 2019, section 3).

    Each of n has a place, `cells` (n, 2), column and row; a width and height in cells, `sigma` (n, 2); and a map, `labels`
    (n,).
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


def mask_losses(logits: Tensor, wanted: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy and DICE (...) of logits (..., R) and 0/1 values at places; those that are not known do not count."""
    bce = F.binary_cross_entropy_with_logits(logits, wanted.expand_as(logits), reduction="none") * known
    p = logits.sigmoid() * known
    dice = 1 - (2 * (p * wanted).sum(-1) + 1) / (p.sum(-1) + wanted.sum(-1) + 1)
    return bce.sum(-1) / known.sum(-1).clamp(min=1), dice


def all_mask_losses(logits: Tensor, wanted: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """`mask_losses` of (Q, n, R) logits with (n, R) values, all of what is wanted being known: (Q, n) each, in few passes."""
    own, sizes = wanted[..., None], known[..., None]  # (n, R, 1) each
    with torch.autocast(logits.device.type, enabled=False):  # whose half precision is too coarse for sums
        by_thing = logits.float().transpose(0, 1)  # (n, Q, R)
        p = by_thing.sigmoid()
        bce = (F.softplus(by_thing) @ sizes - by_thing @ own) / sizes.sum(1, keepdim=True).clamp(min=1)  # (n, Q, 1)
        dice = 1 - (2 * p @ own + 1) / (p @ sizes + own.sum(1, keepdim=True) + 1)
    return bce[..., 0].T, dice[..., 0].T


def _counts(targets: Sequence[Target], stuff_labels: Sequence[int]) -> GlobalCounts:
    return GlobalCounts.gathered([len(things_of(target, stuff_labels)) for target in targets])


def things_of(target: Target, fixed_labels: Sequence[int]) -> Tensor:
    """Indices (n,) of the segments whose class has no query of its own."""
    fixed = torch.isin(target.labels, target.labels.new_tensor(list(fixed_labels)))
    return (~fixed).nonzero()[:, 0]


def look_up(target: Target, points: Tensor) -> Tensor:
    """Numbers (P,) int64 of the segments at points (P, 2); 0 for void."""
    height, width = _size(target)
    x = (points[:, 0] * width).long().clamp(0, width - 1)
    y = (points[:, 1] * height).long().clamp(0, height - 1)
    assert target.segment_map is not None
    return target.segment_map.flatten()[y * width + x].long()


def everywhere(target: Target, step: int) -> Tensor:
    """One place (P, 2) by chance in every `step` x `step` pixels of the image."""
    height, width = _size(target)
    rows, columns = -(-height // step), -(-width // step)
    device = target.labels.device
    grid = torch.rand(rows, columns, 2, device=device)
    grid[..., 0] += torch.arange(columns, device=device)
    grid[..., 1] += torch.arange(rows, device=device)[:, None]
    return (grid.flatten(0, 1) * step / torch.tensor([width, height], device=device)).clamp(max=BEFORE_THE_END)


def around_things(target: Target, things: Tensor, side: int) -> Tensor:
    """A jittered grid of side x side places around each of n chosen segments: (n * side * side, 2), thing by thing."""
    height, width = _size(target)
    boxes = target.boxes[things].float()  # (n, 4)
    size = torch.maximum(boxes[:, 2:] * ROI_SCALE, boxes[:, 2:] + ROI_MARGIN / boxes.new_tensor([width, height]))
    axis = torch.arange(side, device=boxes.device)
    grid = torch.stack([axis.expand(side, -1), axis[:, None].expand(-1, side)], dim=-1).flatten(0, 1)  # (R, 2)
    jitter = torch.rand(len(things), side * side, 2, device=boxes.device)
    points = boxes[:, None, :2] + size[:, None] * ((grid + jitter) / side - 0.5)  # (n, R, 2)
    return points.clamp(0, BEFORE_THE_END).flatten(0, 1)


def _size(target: Target) -> tuple[int, int]:
    assert target.segment_map is not None
    return target.segment_map.shape[0], target.segment_map.shape[1]
