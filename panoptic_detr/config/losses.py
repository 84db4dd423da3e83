"""Settings of matching and losses, a section of both stages."""

from dataclasses import dataclass
from typing import Literal

from panoptic_detr.config.types import at_least, check_fields, fraction

MaskLossKind = Literal["full", "points"]
Scheme = Literal["none", "branch", "epoch", "layer"]


@dataclass
class LossConfig:
    """Matching and losses; a setting of null takes the published value of the model's family.

    In stage 2 on a frozen detector only the mask losses train anything: there null leaves a term of the detector out, and
    earlier layers have no losses.

    Attributes:
        aux_loss: losses on the earlier decoder layers and the proposals.
        class_weight: weight of the class term in the total; null: 1 with no-object (DETR), 2 without. 0 leaves a term out.
        l1_weight: of the L1 box term; null: 5 (mask_detr: 2).
        giou_weight: of the generalized-IoU term; null: 2 (mask_detr: 1).
        mask_focal_weight: of the focal mask term.
        mask_dice_weight: of the DICE mask term.
        dense_weight: of the dense class term, for models built with it; null: 5.
        no_object_weight: class weight of unmatched queries (softmax heads).
        cost_class: weight of the class in the matching cost; null: 1 with no-object, 2 without.
        cost_l1: of the L1 box distance in the matching cost.
        cost_giou: of the generalized IoU in the matching cost.
        mask_loss: `full`: at the images' resolution (paper); `points`: at `mask_points` places of every mask.
        mask_points: places per mask for `points`.
        masks_per_image: mask losses for at most so many objects of an image, drawn anew in each step: less memory and time
            where an image has dozens of objects; null for all.
        hybrid: matching scheme (H-DETR); `auto`: `branch` for models with one-to-many queries, `none` for others.
        one_to_many_repeats: K, how often each object is matched one-to-many.
        one_to_many_weight: lambda, weight of the one-to-many branch.
        one_to_many_share: rho, for `epoch`: the share of the training that is one-to-many, 0..1.
        one_to_many_layers: L1, for `layer`: how many decoder layers are one-to-many.
        mask_bce_weight: for mask_detr, as are all below; cross-entropy of a thing's mask around the thing; null: 2.
        contest_weight: cross-entropy of who wins a place, all over the image and around things; null: 2.
        stuff_dice_weight: DICE of each stuff class in the contest; null: 2.
        presence_weight: whether a stuff class is in the image; null: 1.
        peaks_weight: focal loss of the map that queries for things start from; null: 1.
        cost_mask_bce: cross-entropy of the mask in the matching cost; null: 2.
        cost_mask_dice: DICE of the mask in the matching cost; null: 2.
        roi_side: places around a thing are side x side; null: 12.
        point_step: one place in so many pixels squared, all over the image; null: 4.
        contest_layers: how many of the last predictions compete for pixels (there is one before the first decoder layer too);
            null: 4.
        contest_balance: places of a segment with n of them weigh n to minus this, so that thin regions count more; null: 0.
    """

    aux_loss: bool = True
    class_weight: float | None = None
    l1_weight: float | None = None
    giou_weight: float | None = None
    mask_focal_weight: float = 1.0
    mask_dice_weight: float = 1.0
    dense_weight: float | None = None
    no_object_weight: float = 0.1
    cost_class: float | None = None
    cost_l1: float = 5.0
    cost_giou: float = 2.0
    mask_loss: MaskLossKind = "full"
    mask_points: int = 12544
    masks_per_image: int | None = None
    hybrid: Scheme | Literal["auto"] = "auto"
    one_to_many_repeats: int = 6
    one_to_many_weight: float = 1.0
    one_to_many_share: float = 2 / 3
    one_to_many_layers: int = 3
    mask_bce_weight: float | None = None
    contest_weight: float | None = None
    stuff_dice_weight: float | None = None
    presence_weight: float | None = None
    peaks_weight: float | None = None
    cost_mask_bce: float | None = None
    cost_mask_dice: float | None = None
    roi_side: int | None = None
    point_step: int | None = None
    contest_layers: int | None = None
    contest_balance: float | None = None

    def __post_init__(self) -> None:
        check_fields("loss", self)
        for name, value in vars(self).items():
            if "weight" in name or name.startswith("cost_"):
                at_least(f"loss.{name}", value, 0)
        for name in ("mask_points", "masks_per_image", "one_to_many_repeats", "roi_side", "point_step", "contest_layers"):
            at_least(f"loss.{name}", getattr(self, name), 1)
        at_least("loss.one_to_many_layers", self.one_to_many_layers, 0)
        fraction("loss.one_to_many_share", self.one_to_many_share)

    @property
    def switches_terms_off(self) -> bool:
        """Whether terms are left out (a weight of 0, no auxiliary losses), so that nothing may reach a head.

        With every term on, each trained parameter gets a gradient in every step, even without any object in the images.
        """
        return not all(value is None or value for value in vars(self).values())


MASK_DETR_ONLY = frozenset(
    "mask_bce_weight contest_weight stuff_dice_weight presence_weight peaks_weight cost_mask_bce cost_mask_dice roi_side "
    "point_step contest_layers contest_balance".split()
)
