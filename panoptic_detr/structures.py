"""The values that flow between the rooms of the package.

Axes: B images, Q object queries, C class logits, L decoder layers, D model width, H W pixels, h w feature cells, S segments of
an image, K chosen queries. Every class checks its shapes where values enter; the message says expected and got.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from panoptic_detr.boxes import cxcywh_to_xyxy
from panoptic_detr.categories import CategoryTable


class ShapeError(ValueError):
    """A tensor of a shape that its place does not allow."""


def check_shape(name: str, value: Tensor | np.ndarray, expected: Sequence[int | str]) -> None:
    """Raise `ShapeError` unless `value` has as many axes as `expected` and every integer in it agrees (strings are free)."""
    got = tuple(value.shape)
    fits = len(got) == len(expected) and all(isinstance(e, str) or e == g for e, g in zip(expected, got, strict=True))
    if not fits:
        raise ShapeError(f"{name} must be ({', '.join(map(str, expected))}), but got {got}")


def move(value: Any, device: torch.device | str) -> Any:
    """Copy tensors, dataclasses of tensors and sequences of these to `device`; leave everything else as it is."""
    # A copy to the host must be complete on return; one to a device may overlap with what follows there.
    overlap = torch.device(device).type != "cpu"
    return map_tensors(value, lambda tensor: tensor.to(device, non_blocking=overlap))


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor in a value made of tensors, dataclasses and sequences."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, function) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: map_tensors(getattr(value, f.name), function) for f in fields(value)})
    return value


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
            ValueError: the target has neither a segment map nor masks.
        """
        if self.masks is not None:
            return self.masks[segments]  # (K, H, W)
        if self.segment_map is None:
            raise ValueError(f"image {self.image_id}: the target has boxes only; mask losses need a segment map")
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
    segmenter: Callable[["DetectorOutput", Sequence[Tensor]], list[Tensor]] | None = None

    def __post_init__(self) -> None:
        check_shape("DetectorOutput.logits", self.logits, ("L", "B", "Q", "C"))
        check_shape("DetectorOutput.boxes", self.boxes, (*self.logits.shape[:3], 4))
        check_shape("DetectorOutput.decoder_states", self.decoder_states, (*self.logits.shape[1:3], "D"))

    def segment(self, queries: Sequence[Tensor]) -> list[Tensor]:
        """Mask logits of the chosen queries: one (K_i,) LongTensor per image in, one (K_i, h, w) tensor per image out."""
        if self.segmenter is None:
            raise ValueError("this output comes from a detector without a mask head; build the '..._panoptic' model for masks")
        return self.segmenter(self, queries)

    def probabilities(self) -> Tensor:
        """Class probabilities of the last layer without the no-object slot: (B, Q, num_labels) float32."""
        logits = self.logits[-1].float()
        return logits.softmax(-1)[..., :-1] if self.no_object else logits.sigmoid()

    def boxes_xyxy(self) -> Tensor:
        """Corner boxes of the last layer: (B, Q, 4), fractions of the unpadded image."""
        return cxcywh_to_xyxy(self.boxes[-1].float())


DropReason = Literal["no object", "low score", "no category", "covered", "small", "merged", "suppressed"]


@dataclass(frozen=True)
class Segment:
    """One region of a panoptic result.

    Attributes:
        id: its value in the segment map, from 1.
        category_id: the data set's category id.
        isthing: countable or not.
        score: probability of the class, 0..1 (1 for ground truth).
        area: pixels.
        box: (left, top, width, height) in pixels of the segment map.
        query: the object query it came from, None for ground truth; of merged stuff the first.
        iscrowd: ground truth only: a group that is not told apart.
    """

    id: int
    category_id: int
    isthing: bool
    score: float
    area: int
    box: tuple[int, int, int, int]
    query: int | None = None
    iscrowd: bool = False


@dataclass(frozen=True)
class Dropped:
    """A query that is not a segment of its own in the result, and why.

    Attributes:
        query: index of the object query.
        reason: "no object" / "low score" / "no category" (not kept); "covered" (won no pixel), "small" (too few pixels),
            "suppressed" (shows too little of its own mask, or repeats a stuff category where only the first is kept),
            "merged" (joined the stuff segment `into`).
        score: probability of its best class.
        category_id: its class, if it has one.
        area: pixels it had when it was dropped.
        into: id of the segment that it joined.
    """

    query: int
    reason: DropReason
    score: float
    category_id: int | None = None
    area: int = 0
    into: int | None = None


@dataclass
class PanopticSegmentation:
    """One stuff-and-things map with its segments.

    Attributes:
        segment_map: (H, W) int32; 0 is void, other values are segment ids.
        segments: every segment with at least one pixel.
        categories: the table that the category ids refer to.
        dropped: queries that are no segment of their own, and why.
        image_id: the data set's id of the image, if it has one.
    """

    segment_map: np.ndarray
    segments: list[Segment]
    categories: CategoryTable
    dropped: list[Dropped] = field(default_factory=list)
    image_id: int | str | None = None

    def __post_init__(self) -> None:
        check_shape("PanopticSegmentation.segment_map", self.segment_map, ("H", "W"))

    def to_coco(self, image_id: int | str | None = None, file_name: str | None = None) -> dict[str, Any]:
        """The image's entry in the `annotations` of a COCO-panoptic JSON; `save` writes the PNG that belongs to it."""
        image_id = self.image_id if image_id is None else image_id
        return {
            "image_id": image_id,
            "file_name": f"{image_id}.png" if file_name is None else file_name,
            "segments_info": [
                {
                    "id": s.id,
                    "category_id": s.category_id,
                    "isthing": int(s.isthing),
                    "area": s.area,
                    "bbox": list(s.box),
                    "iscrowd": int(s.iscrowd),
                    "score": round(s.score, 6),
                    "query": s.query,
                }
                for s in self.segments
            ],
        }

    def save(self, path: Any) -> None:
        """Write the segment map as a COCO-panoptic PNG (id = R + 256 G + 65536 B)."""
        from panoptic_detr.segment_maps import write_id_png

        write_id_png(path, self.segment_map)


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
