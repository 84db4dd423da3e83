"""The values that flow between the rooms of the package.

Axes: B images, Q object queries, C class logits, L decoder layers, D model width, H W pixels, h w feature cells, S segments of
an image, K chosen queries. Every class checks its shapes where values enter; the message says expected and got.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from panoptic_detr.boxes import cxcywh_to_xyxy
from panoptic_detr.errors import InputError, ShapeError
from panoptic_detr.query_masks import QueryMasks
from panoptic_detr.shapes import check_shape, map_tensors, move


@dataclass
class Target:
    """What an image shows: one label, box and region per segment.

    Attributes:
        labels: (S,) int64 label indices.
        boxes: (S, 4) float32, cxcywh in [0, 1] of the unpadded image.
        segment_map: (H, W) integer; 0 is void, i + 1 the i-th segment. None where only boxes are known.
        image_id: the data set's id of the image.
        masks: (S, H, W) bool, only for data whose segments overlap and therefore have no segment map.
    """

    labels: Tensor
    boxes: Tensor
    segment_map: Tensor | None = None
    image_id: int | str = 0
    masks: Tensor | None = None

    def __post_init__(self) -> None:
        check_shape("Target.labels", self.labels, ("S",))
        check_shape("Target.boxes", self.boxes, (len(self.labels), 4))
        if self.segment_map is not None:
            check_shape("Target.segment_map", self.segment_map, ("H", "W"))
        if self.masks is not None:
            check_shape("Target.masks", self.masks, (len(self.labels), "H", "W"))

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Target":
        """Copy to a device."""
        return move(self, device)

    def region_masks(self, segments: Tensor) -> Tensor:
        """Expand the chosen segments.

        Args:
            segments: (K,) int64 indices into the segments of this target.

        Returns:
            (K, H, W) bool masks.

        Raises:
            InputError: the target has neither a segment map nor masks.
        """
        if self.masks is not None:
            return self.masks[segments]  # (K, H, W)
        if self.segment_map is None:
            raise InputError(f"image {self.image_id}: the target has boxes only; mask losses need a segment map")
        places = (segments + 1).to(self.segment_map.dtype)  # comparing bytes with bytes is several times faster
        return self.segment_map[None] == places[:, None, None]  # (K, H, W)


@dataclass
class Sample:
    """One image of a data set on its way through the transforms.

    Attributes:
        image: (3, H, W), uint8 on reading, float32 normalised after the last transform.
        target: its segments; `segment_map` has the image's H and W.
        original_size: (height, width) on disk.
        file_name: for messages.
    """

    image: Tensor
    target: Target
    original_size: tuple[int, int]
    file_name: str = ""

    def __post_init__(self) -> None:
        check_shape("Sample.image", self.image, (3, "H", "W"))
        if self.target.segment_map is not None:
            check_shape("Sample.target.segment_map", self.target.segment_map, self.image.shape[1:])


@dataclass
class Batch:
    """Images of one step, zero-padded right and below to one size.

    Attributes:
        images: (B, 3, H, W) float32, normalised with the ImageNet mean and deviation, zero on padding.
        padding_mask: (B, H, W) bool, True on padding.
        targets: one per image; empty at inference.
        sizes: (height, width) of each image before padding.
        original_sizes: (height, width) of each image on disk.
        image_ids: the data set's ids.
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    original_sizes: list[tuple[int, int]] = field(default_factory=list)
    image_ids: list[int | str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_shape("Batch.images", self.images, ("B", 3, "H", "W"))
        batch, _, height, width = self.images.shape
        check_shape("Batch.padding_mask", self.padding_mask, (batch, height, width))
        if self.targets and len(self.targets) != batch:
            raise ShapeError(f"Batch.targets must be {batch} targets, but got {len(self.targets)}")

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Batch":
        """Copy every tensor to a device."""
        return move(self, device)

    def pin_memory(self) -> "Batch":
        """Copy every tensor to page-locked memory, from where a GPU fetches it faster; a DataLoader calls this by name."""
        return map_tensors(self, Tensor.pin_memory)


@dataclass
class FeatureLevel:
    """One level of a feature pyramid.

    Attributes:
        features: (B, C, h, w).
        padding_mask: (B, h, w) bool, True on padding.
        stride: pixels of the image per cell.
    """

    features: Tensor
    padding_mask: Tensor
    stride: int

    def __post_init__(self) -> None:
        batch, _, height, width = self.features.shape
        check_shape("FeatureLevel.padding_mask", self.padding_mask, (batch, height, width))


@dataclass
class Predictions:
    """Classes and boxes of a group of queries.

    Attributes:
        logits: (L, B, Q, C).
        boxes: (L, B, Q, 4) cxcywh in [0, 1] of the unpadded image.
    """

    logits: Tensor
    boxes: Tensor

    def __post_init__(self) -> None:
        check_shape("logits", self.logits, ("L", "B", "Q", "C"))
        check_shape("boxes", self.boxes, (*self.logits.shape[:3], 4))


@dataclass
class DetectorOutput:
    """Everything a detector says about a batch; the mask head, losses, merger and pictures need nothing else.

    Attributes:
        logits: (L, B, Q, C) class logits of every decoder layer, the last layer last.
        boxes: (L, B, Q, 4) cxcywh in [0, 1] of the unpadded image.
        decoder_states: (B, Q, D) of the last layer.
        memory: the encoder's output at one level, stride 32 (DC5: 16).
        projected: (B, D, h, w) the backbone's last features projected to the model width, at the memory's level.
        features: backbone features from fine to coarse, finer than the memory (C2, C3, C4).
        no_object: the last class slot means "no object" (softmax); otherwise every slot is a class (sigmoid).
        one_to_many: the extra query group of hybrid matching, in training only.
        proposals: two-stage: (1, B, N, C) logits and (1, B, N, 4) boxes of the encoder's tokens.
        dense: class logits per cell (B, C, h, w) for the dense auxiliary loss, in training only.
        masks: masks of all queries as a product, for losses in every layer; None where a mask head makes them.
        fixed_labels: labels of the last queries, each of which stands for one class; these are never matched.
        segmenter: masks of chosen queries; set by panoptic models (see `segment`).
    """

    logits: Tensor
    boxes: Tensor
    decoder_states: Tensor
    memory: FeatureLevel
    projected: Tensor
    features: tuple[FeatureLevel, ...]
    no_object: bool = True
    one_to_many: Predictions | None = None
    proposals: Predictions | None = None
    dense: tuple[FeatureLevel, ...] = ()
    masks: QueryMasks | None = None
    fixed_labels: tuple[int, ...] = ()
    segmenter: Callable[["DetectorOutput", Sequence[Tensor]], list[Tensor]] | None = None

    def __post_init__(self) -> None:
        check_shape("DetectorOutput.logits", self.logits, ("L", "B", "Q", "C"))
        check_shape("DetectorOutput.boxes", self.boxes, (*self.logits.shape[:3], 4))
        check_shape("DetectorOutput.decoder_states", self.decoder_states, (*self.logits.shape[1:3], "D"))

    def segment(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Mask logits of the chosen queries: one (K_i,) LongTensor per image in, one (K_i, h, w) tensor per image out."""
        if self.segmenter is None:
            raise InputError("this output comes from a detector without a mask head; build the '..._panoptic' model for masks")
        return self.segmenter(self, queries)

    def probabilities(self) -> Tensor:
        """Class probabilities of the last layer without the no-object slot: (B, Q, num_labels) float32."""
        logits = self.logits[-1].float()
        return logits.softmax(-1)[..., :-1] if self.no_object else logits.sigmoid()

    def boxes_xyxy(self) -> Tensor:
        """Corner boxes of the last layer: (B, Q, 4), fractions of the unpadded image."""
        return cxcywh_to_xyxy(self.boxes[-1].float())


# What a model returns, torch.export can return too.
for _returned in (FeatureLevel, Predictions, QueryMasks, DetectorOutput):
    torch.export.register_dataclass(_returned)


def pad_images(images: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack images of different sizes, zero-padded right and below.

    Args:
        images: each (3, H_i, W_i).

    Returns:
        images (B, 3, H, W) and padding_mask (B, H, W) bool, True on padding; H and W are the largest of the batch.
    """
    rows = list(images)
    height, width = max(image.shape[1] for image in rows), max(image.shape[2] for image in rows)
    stacked = rows[0].new_zeros((len(rows), 3, height, width))
    padding_mask = torch.ones((len(rows), height, width), dtype=torch.bool, device=rows[0].device)
    for index, image in enumerate(rows):
        stacked[index, :, : image.shape[1], : image.shape[2]] = image
        padding_mask[index, : image.shape[1], : image.shape[2]] = False
    return stacked, padding_mask
