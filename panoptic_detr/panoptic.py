"""The panoptic result: a map, its segments, and what became of the queries that are none."""

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from panoptic_detr.categories import CategoryTable
from panoptic_detr.images import encode_picture
from panoptic_detr.segment_maps import write_id_png
from panoptic_detr.shapes import check_shape

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
        name: of the category; filled in by the `PanopticSegmentation` that holds the segment.
    """

    id: int
    category_id: int
    isthing: bool
    score: float
    area: int
    box: tuple[int, int, int, int]
    query: int | None = None
    iscrowd: bool = False
    name: str = field(default="", compare=False)


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


@dataclass(repr=False)
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
        names = {category.id: category.name for category in self.categories.categories}
        self.segments = [replace(s, name=names[s.category_id]) if s.category_id in names else s for s in self.segments]

    def __repr__(self) -> str:
        height, width = self.segment_map.shape
        told = [f"{s.name or s.category_id} {s.score:.2f}" for s in self.segments]
        reasons = Counter(dropped.reason for dropped in self.dropped)
        return (
            f"PanopticSegmentation of {width} x {height} pixels\n"
            f"{len(told)} segments: {', '.join(told) or 'none'}\n"
            f"{len(self.dropped)} other queries: {', '.join(f'{count} {why}' for why, count in reasons.items()) or 'none'}"
        )

    def _repr_png_(self) -> bytes:
        """The map in the colours of its categories, borders black: what a notebook shows."""
        height, width = self.segment_map.shape
        picture = np.full((height, width, 3), 255, np.uint8)
        for segment in self.segments:
            category = self.categories.by_id.get(segment.category_id)
            picture[self.mask(segment)] = category.color if category else (128, 128, 128)
        picture[:-1][self.segment_map[:-1] != self.segment_map[1:]] = 0
        picture[:, :-1][self.segment_map[:, :-1] != self.segment_map[:, 1:]] = 0
        return encode_picture(picture)

    def mask(self, segment: Segment | int) -> np.ndarray:
        """The pixels of a segment, or of the segment of an id: (H, W) bool."""
        return self.segment_map == (segment.id if isinstance(segment, Segment) else segment)

    def to_coco(self, image_id: int | str | None = None, file_name: str | None = None) -> dict[str, object]:
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

    def save(self, path: str | Path) -> None:
        """Write the segment map as a COCO-panoptic PNG (id = R + 256 G + 65536 B).

        Raises:
            SegmentMapError: the ending of another format.
        """
        write_id_png(path, self.segment_map)
