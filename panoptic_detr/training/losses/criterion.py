"""The training criterion of every detector: match, then add up the losses (DETR paper, section 3.1 and appendix A.2)."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from panoptic_detr.config.losses import MaskLossKind
from panoptic_detr.errors import InputError
from panoptic_detr.models import cell_centres
from panoptic_detr.structures import DetectorOutput, FeatureLevel, Predictions, Target
from panoptic_detr.training.losses.matcher import HungarianMatcher, HybridMatching, Matches
from panoptic_detr.training.losses.terms import (
    box_losses,
    cells_inside_boxes,
    dense_class_loss,
    hard_points,
    interpolate_masks,
    mask_losses,
    sample_masks,
    sigmoid_class_loss,
    softmax_class_loss,
    sum_per_layer,
)


@dataclass(frozen=True)
class Losses:
    """What the criterion found.

    Attributes:
        total: scalar, the weighted sum; call `backward` on it.
        terms: unweighted scalars by name: `class`, `box_l1`, `box_giou`, `mask_focal`, `mask_dice` of the last layer; with
            `_layer0` and so on for earlier decoder layers, `_proposals` for two-stage, `_one_to_many` for the hybrid branch.
        weights: the weight of each term in the total.
        matching: (queries, objects) of each image in the last layer.
    """

    total: Tensor
    terms: dict[str, Tensor]
    weights: dict[str, float]
    matching: list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms in the total; a weight of zero leaves the term out (DETR paper, Table 4)."""

    class_: float = 1.0
    box_l1: float = 5.0
    box_giou: float = 2.0
    mask_focal: float = 1.0
    mask_dice: float = 1.0
    dense: float = 5.0

    def of(self, term: str) -> float:
        """Weight of a term without its suffix."""
        return self.class_ if term == "class" else float(getattr(self, term))


@dataclass(frozen=True)
class GlobalCounts:
    """Objects in every image of one optimiser step, over all processes and accumulated batches.

    Losses are divided by these counts, so that the gradient does not depend on how the images were spread over devices.
    """

    objects: tuple[int, ...]
    processes: int = 1

    @classmethod
    def gathered(cls, local: list[int]) -> "GlobalCounts":
        """From the counts of this process, which every process has to give."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls(tuple(local))
        counts: list[list[int]] = [[]] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(counts, local)
        return cls(tuple(chain.from_iterable(counts)), len(counts))

    def boxes(self, repeats: int = 1) -> float:
        """Matched objects per process, at least 1."""
        return max(sum(self.objects) * repeats / self.processes, 1.0)

    def share_of(self, images: int) -> float:
        """What a mean over so many images of this process counts in the mean over all images, times the processes."""
        return images * self.processes / len(self.objects)

    def class_weight(self, queries: int, repeats: int, no_object_weight: float) -> float:
        """Sum of the class weights of all queries, per process (the divisor of a weighted mean)."""
        matched = sum(min(count * repeats, queries) for count in self.objects)
        return (matched + no_object_weight * (queries * len(self.objects) - matched)) / self.processes


@dataclass(eq=False, kw_only=True)
class Criterion(nn.Module):
    """Losses of a batch for any detector."""

    num_labels: int  # class slots without no-object
    matcher: HungarianMatcher  # its class cost also says whether the head is a softmax or a sigmoid one
    weights: LossWeights  # of the terms
    no_object_weight: float = 0.1  # class weight of unmatched queries, for softmax heads
    aux_loss: bool = True  # also on the earlier decoder layers (of both groups of queries) and on the proposals
    masks: bool = False  # also the mask losses, from the output's `segment`
    # "full": at the images' resolution (paper); "points": at `mask_points` places of every mask
    mask_loss: MaskLossKind = "full"
    mask_points: int = 12544  # places per mask for "points"
    # mask losses for at most so many objects of an image, drawn anew in each step; None for all
    masks_per_image: int | None = None
    hybrid: HybridMatching = field(default_factory=HybridMatching)  # one-to-many matching
    progress: float = 0.0  # share of the training that is done, 0..1

    def __post_init__(self) -> None:
        super().__init__()

    def counts(self, targets: Sequence[Target]) -> GlobalCounts:
        """Objects per image of this step in all processes; pass the targets of every accumulated batch at once."""
        return GlobalCounts.gathered([len(target) for target in targets])

    def forward(self, output: DetectorOutput, targets: Sequence[Target], counts: GlobalCounts | None = None) -> Losses:
        """Compare.

        Args:
            output: of a detector, or of a panoptic model if this criterion has mask losses.
            targets: one per image.
            counts: what to divide by; by default the objects of these targets in all processes.

        Raises:
            InputError: a label outside the class head, or another number of targets than images.
        """
        self._check(output, targets)
        counts = self.counts(targets) if counts is None else counts
        main = self._trained_layers(Predictions(output.logits, output.boxes))
        repeats = self.hybrid.main_repeats(len(main.logits), self.progress)
        matches = self.matcher(main, targets, repeats)
        terms = self._group(main, targets, matches, repeats, counts, "")
        pairs = matches.of_layer(-1)
        if output.proposals is not None and self.aux_loss:
            terms |= self._proposals(output.proposals, targets, counts)
        weights = {name: self.weights.of(term_of(name)) for name in terms}
        if output.one_to_many is not None and self.hybrid.scheme == "branch":
            extra = self._one_to_many(self._trained_layers(output.one_to_many), targets, counts)
            terms |= extra
            weights |= {name: self.weights.of(term_of(name)) * self.hybrid.weight for name in extra}
        if output.dense and self.weights.dense:
            share = counts.share_of(len(targets))
            terms["dense"], weights["dense"] = share * dense_term(output.dense, targets, self.num_labels), self.weights.dense
        if self.masks:
            divisor = counts.boxes(repeats[-1])
            found = mask_terms(output, targets, pairs, divisor, self.mask_loss, self.mask_points, self.masks_per_image)
            terms |= found
            weights |= {name: self.weights.of(name) for name in found}
        total = torch.stack([weights[name] * value for name, value in terms.items()]).sum()
        return Losses(total, terms, weights, pairs)

    def _trained_layers(self, predictions: Predictions) -> Predictions:
        """The decoder layers that losses are for: all, or the last."""
        return predictions if self.aux_loss else Predictions(predictions.logits[-1:], predictions.boxes[-1:])

    def _group(
        self,
        predictions: Predictions,
        targets: Sequence[Target],
        matches: Matches,
        repeats: list[int],
        counts: GlobalCounts,
        suffix: str,
    ) -> dict[str, Tensor]:
        """Class and box terms of every layer of one group of queries."""
        values: dict[str, Tensor] = {}  # each (L,)
        if self.weights.class_:
            values["class"] = self._class_loss(predictions, targets, matches, repeats, counts)
        if self.weights.box_l1 or self.weights.box_giou:
            divisor = matches.counts.new_tensor([counts.boxes(r) for r in repeats], dtype=torch.float32)
            wanted = torch.cat([target.boxes for target in targets])[_flat_objects(matches, targets)]  # (P, 4)
            found = predictions.boxes[matches.layers, matches.images, matches.queries].float()  # (P, 4)
            l1, giou = box_losses(found, wanted.float())
            for name, losses in (("box_l1", l1), ("box_giou", giou)):
                values[name] = sum_per_layer(losses, matches.layers, len(repeats)) / divisor.to(losses.device)
        last = len(repeats) - 1
        return {
            f"{name}{'' if layer == last else f'_layer{layer}'}{suffix}": value
            for name, per_layer in values.items()
            if self.weights.of(name)
            for layer, value in enumerate(per_layer.unbind())
        }

    def _class_loss(
        self, predictions: Predictions, targets: Sequence[Target], matches: Matches, repeats: list[int], counts: GlobalCounts
    ) -> Tensor:
        """Class loss of every layer, (L,)."""
        logits = predictions.logits.float()
        classes = matches.queries.new_full(logits.shape[:3], self.num_labels)  # (L, B, Q)
        labels = torch.cat([target.labels for target in targets])[_flat_objects(matches, targets)]  # (P,)
        classes[matches.layers, matches.images, matches.queries] = labels
        if self.matcher.class_cost == "sigmoid":
            sums, divisor = sigmoid_class_loss(logits, classes), [counts.boxes(r) for r in repeats]
        else:
            sums = softmax_class_loss(logits, classes, self.no_object_weight)
            divisor = [counts.class_weight(logits.shape[2], r, self.no_object_weight) for r in repeats]
        return sums / sums.new_tensor(divisor)

    def _proposals(self, proposals: Predictions, targets: Sequence[Target], counts: GlobalCounts) -> dict[str, Tensor]:
        """Two-stage: every object has label 0 for the encoder's proposals (Deformable DETR, section 4.2)."""
        classless = [replace(target, labels=torch.zeros_like(target.labels)) for target in targets]
        matches = self.matcher(proposals, classless, [1])
        return self._group(proposals, classless, matches, [1], counts, "_proposals")

    def _one_to_many(self, predictions: Predictions, targets: Sequence[Target], counts: GlobalCounts) -> dict[str, Tensor]:
        """The hybrid branch: its own queries, every object matched K times in every layer."""
        repeats = [self.hybrid.repeats] * len(predictions.logits)
        matches = self.matcher(predictions, targets, repeats)
        return self._group(predictions, targets, matches, repeats, counts, "_one_to_many")

    def _check(self, output: DetectorOutput, targets: Sequence[Target]) -> None:
        if len(targets) != output.logits.shape[1]:
            raise InputError(f"{output.logits.shape[1]} images, but {len(targets)} targets")
        if output.no_object != (self.matcher.class_cost == "softmax"):
            head, wanted = ("softmax", "sigmoid") if output.no_object else ("sigmoid", "softmax")
            raise InputError(
                f"the model has a {head} class head, but the criterion was built for a {wanted} one; a detector's attribute "
                "no_object must be what its DetectorOutput says"
            )
        slots = output.logits.shape[3] - output.no_object
        if slots != self.num_labels:
            raise InputError(
                f"the model has {slots} label slots, but the criterion was built with num_labels={self.num_labels}"
            )
        labels = torch.cat([target.labels for target in targets])
        wrong = (labels < 0) | (labels >= self.num_labels)
        if wrong.any():  # the only wait for the device, however many images there are
            place = int(wrong.nonzero()[0])
            ends = torch.tensor([len(target) for target in targets]).cumsum(0)
            image = targets[int((ends <= place).sum())].image_id
            raise InputError(
                f"image {image}: label {int(labels[place])} is outside the class head's "
                f"0..{self.num_labels - 1}; build the model with the data set's number of labels"
            )


def _flat_objects(matches: Matches, targets: Sequence[Target]) -> Tensor:
    """Index of each matched object in the concatenation of all targets: (P,)."""
    starts = torch.tensor([0, *[len(target) for target in targets]]).cumsum(0).to(matches.images.device)
    return starts[matches.images] + matches.objects


def term_of(name: str) -> str:
    """A term's name without the suffixes of layer and group."""
    return name.split("_layer")[0].removesuffix("_one_to_many").removesuffix("_proposals")


def mask_terms(
    output: DetectorOutput,
    targets: Sequence[Target],
    pairs: Sequence[tuple[Tensor, Tensor]],
    num_objects: float,
    kind: MaskLossKind,
    num_points: int,
    masks_per_image: int | None = None,
) -> dict[str, Tensor]:
    """Mask losses of matched queries, in the last decoder layer only (DETR paper, section 4.4).

    Args:
        output: of a panoptic model.
        targets: with segment maps.
        pairs: (queries, objects) of each image.
        num_objects: divisor.
        kind: "full" resolution of the padded batch, or "points".
        num_points: places per mask for "points".
        masks_per_image: at most so many objects of an image, drawn anew each time; each then counts for those left out.

    Returns:
        `mask_focal` and `mask_dice`, scalars.
    """
    chosen = [_sample(pair, masks_per_image) for pair in pairs]
    masks = output.segment([queries for queries, _ in chosen])
    canvas = _canvas(targets)
    focal, dice = masks[0].new_zeros(()), masks[0].new_zeros(())
    for logits, target, (_, objects), (_, every) in zip(masks, targets, chosen, pairs, strict=True):
        if len(objects) == 0:
            focal = focal + logits.sum()
            continue
        found, wanted = _compared(logits.float(), target, objects, canvas, kind, num_points)  # (K, N) each
        losses = mask_losses(found, wanted)
        share = len(every) / len(objects)
        focal, dice = focal + share * losses[0].sum(), dice + share * losses[1].sum()
    return {"mask_focal": focal / num_objects, "mask_dice": dice / num_objects}


def _sample(pair: tuple[Tensor, Tensor], limit: int | None) -> tuple[Tensor, Tensor]:
    """At most so many of an image's (queries, objects), by chance."""
    queries, objects = pair
    if limit is None or len(objects) <= limit:
        return pair
    rows = torch.randperm(len(objects))[:limit].to(objects.device)
    return queries[rows], objects[rows]


def _compared(
    logits: Tensor, target: Target, objects: Tensor, canvas: tuple[int, int], kind: MaskLossKind, num_points: int
) -> tuple[Tensor, Tensor]:
    """Logits and wanted values of one image at the places where they are compared: (K, N) each."""
    wanted = target.region_masks(objects)  # (K, H, W)
    wanted = F.pad(wanted, (0, canvas[1] - wanted.shape[2], 0, canvas[0] - wanted.shape[1]))
    if kind == "points":
        return sample_masks(logits, wanted, hard_points(logits, num_points))
    return interpolate_masks(logits, canvas).flatten(1), wanted.flatten(1).to(logits.dtype)


def dense_term(dense: Sequence[FeatureLevel], targets: Sequence[Target], num_labels: int) -> Tensor:
    """The dense class loss, mean over the given maps."""
    losses = [_dense_level(level, targets, num_labels) for level in dense]
    return torch.stack(losses).mean()


def _dense_level(level: FeatureLevel, targets: Sequence[Target], num_labels: int) -> Tensor:
    logits = level.features.flatten(2).transpose(1, 2).float()  # (B, N, C)
    wanted = torch.stack(
        [
            cells_inside_boxes(centres, target.boxes, target.labels, num_labels)
            for centres, target in zip(cell_centres(level.padding_mask), targets, strict=True)
        ]
    )
    return dense_class_loss(logits, wanted, ~level.padding_mask.flatten(1))


def _canvas(targets: Sequence[Target]) -> tuple[int, int]:
    """(height, width) of the padded batch: the largest of its segment maps."""
    shapes = [(t.masks if t.masks is not None else t.segment_map) for t in targets]
    known = [shape for shape in shapes if shape is not None]
    if len(known) < len(targets):
        raise InputError("mask losses need a segment map in every target; these targets have boxes only")
    return max(m.shape[-2] for m in known), max(m.shape[-1] for m in known)
