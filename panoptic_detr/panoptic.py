"""The panoptic result: a map, its segments, and what became of the queries that are none; and the call that gives it.

Panoptic PNGs are read and written by `segment_maps`.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, overload

import numpy as np

from panoptic_detr.categories import Category, CategoryTable
from panoptic_detr.config.inference import InferenceSettings
from panoptic_detr.errors import InputError, ShapeError
from panoptic_detr.images import Picture, encode_picture, one_by_one
from panoptic_detr.interop import joined, read_detectron2, read_transformers
from panoptic_detr.segment_maps import measure, write_id_png
from panoptic_detr.shapes import check_shape

if TYPE_CHECKING:
    from supervision import Detections

DropReason = Literal["no object", "low score", "no category", "covered", "small", "merged", "suppressed"]

LARGEST_NUMBER = 2**31 - 1  # of a segment in a map; PNGs hold less
Pictures: TypeAlias = list[Any] | tuple[Any, ...]
Prepared = TypeVar("Prepared")
# Pictures prepared at a time, in batches: among so many, those of one size share a batch.
_WINDOW_BATCHES = 4


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

    Raises:
        InputError: a map that is not of whole numbers from 0, or something else than segments, categories or dropped queries.
    """

    segment_map: np.ndarray
    segments: list[Segment]
    categories: CategoryTable
    dropped: list[Dropped] = field(default_factory=list)
    image_id: int | str | None = None

    def __post_init__(self) -> None:
        self.categories = CategoryTable.of(self.categories)
        _check_map(self.segment_map, "" if self.image_id is None else f"image {self.image_id}: ")
        for name, kind in (("segments", Segment), ("dropped", Dropped)):
            held = getattr(self, name)
            if not isinstance(held, list | tuple) or not all(isinstance(one, kind) for one in held):
                raise InputError(f"{name} must be a list of {kind.__name__}, but got {held!r:.60}")
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
        """The map in the colours of its categories, borders black: what a notebook shows.

        It holds no picture, so that thousands of results fit the memory; `overlay(image, segmentation)` draws on one.
        """
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
        wanted = segment.id if isinstance(segment, Segment) else segment
        pixels: np.ndarray = self.segment_map == wanted
        ids = [known.id for known in self.segments]
        if wanted != 0 and wanted not in ids and not np.any(pixels):
            raise InputError(
                f"there is no segment {wanted!r}; the ids are {', '.join(map(str, ids)) or 'none'}, and 0 for void"
            )
        return pixels

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
        """Write the segment map as a COCO-panoptic PNG (id = R + 256 G + 65536 B); `segment_maps.read_id_png` reads it.

        Raises:
            SegmentMapError: the ending of another format.
        """
        write_id_png(path, self.segment_map)

    @classmethod
    def from_transformers(
        cls,
        result: Mapping[str, object] | Sequence[Mapping[str, object]],
        categories: CategoryTable | Sequence[Mapping[str, object]],
        *,
        id2label: Mapping[int, str] | None = None,
        fuse_stuff: bool = True,
        image_id: int | str | None = None,
    ) -> "PanopticSegmentation":
        """Read a panoptic result of Hugging Face's transformers, of whatever model.

        Args:
            result: of one image, what `post_process_panoptic_segmentation` gives (ids from 0 or 1; -1, or 0 where it is not
                listed, is void), or the list of an image-segmentation pipeline.
            categories: the classes of the ground truth, a table or a COCO list.
            id2label: `model.config.id2label`, to find classes by name; None: label_id is the table's label index.
            fuse_stuff: segments of one class of stuff become one, as COCO's format has it.
            image_id: the data set's id of the image.

        Raises:
            InputError: something else, a label that the table does not have, or a map and a list that disagree.
        """
        table = CategoryTable.of(categories)
        segment_map, pieces = read_transformers(result, table, id2label)
        return cls._of_rows(*joined(segment_map, pieces, fuse_stuff=fuse_stuff), table, image_id)

    @classmethod
    def from_detectron2(
        cls,
        result: Sequence[object] | Mapping[str, object],
        categories: CategoryTable | Sequence[Mapping[str, object]],
        *,
        metadata: object | None = None,
        fuse_stuff: bool = True,
        image_id: int | str | None = None,
    ) -> "PanopticSegmentation":
        """Read a panoptic result of detectron2.

        Args:
            result: of one image, the pair `panoptic_seg`, or the model's output that holds it.
            categories: the classes of the ground truth, a table or a COCO list.
            metadata: `MetadataCatalog.get(...)` of the model's data set, which says what detectron2's contiguous ids mean;
                None: category_id is the table's label index.
            fuse_stuff: see `from_transformers`.
            image_id: the data set's id of the image.

        Raises:
            InputError: something else, a category that the table does not have, or a map and a list that disagree.
        """
        table = CategoryTable.of(categories)
        segment_map, pieces = read_detectron2(result, table, metadata)
        return cls._of_rows(*joined(segment_map, pieces, fuse_stuff=fuse_stuff), table, image_id)

    def to_transformers(self) -> dict[str, object]:
        """The result as transformers' `post_process_panoptic_segmentation` gives it.

        Returns:
            `segmentation`: (H, W) int32 tensor of segment ids, -1 for void; `segments_info`: id, label_id (the table's label
            index), was_fused (stuff) and score of each segment.

        Raises:
            InputError: a segment of a category that the table does not have.
        """
        import torch

        listed = [segment.id for segment in self.segments]
        segmentation = np.where(np.isin(self.segment_map, listed), self.segment_map, -1).astype(np.int32)
        label_of = self.categories.label_of
        unknown = [segment for segment in self.segments if segment.category_id not in label_of]
        if unknown:
            raise InputError(f"segment {unknown[0].id} has category {unknown[0].category_id}, which the table does not have")
        rows = [
            {"id": s.id, "label_id": label_of[s.category_id], "was_fused": not s.isthing, "score": round(s.score, 6)}
            for s in self.segments
        ]
        return {"segmentation": torch.from_numpy(segmentation), "segments_info": rows}

    def to_supervision(self) -> "Detections":
        """The segments as `supervision.Detections`, for its annotators, filters and trackers.

        Returns:
            xyxy (S, 4) corners in pixels, mask (S, H, W) bool, confidence (S,), class_id (S,) category ids, and in `data`
            class_name, segment_id and isthing.

        Raises:
            InputError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError:
            raise InputError("to_supervision needs the library supervision; install it: pip install supervision") from None
        names = {category.id: category.name for category in self.categories.categories}
        corners = [(left, top, left + width, top + height) for left, top, width, height in (s.box for s in self.segments)]
        masks = np.array([self.segment_map == segment.id for segment in self.segments], bool)
        return Detections(
            xyxy=np.array(corners, np.float32).reshape(-1, 4),
            mask=masks.reshape(-1, *self.segment_map.shape),
            confidence=np.array([segment.score for segment in self.segments], np.float32),
            class_id=np.array([segment.category_id for segment in self.segments], int),
            data={
                "class_name": np.array([names.get(s.category_id, f"class {s.category_id}") for s in self.segments], str),
                "segment_id": np.array([segment.id for segment in self.segments], int),
                "isthing": np.array([segment.isthing for segment in self.segments], bool),
            },
        )

    @classmethod
    def _of_rows(
        cls,
        segment_map: np.ndarray,
        rows: Sequence[tuple[Category, float]],
        categories: CategoryTable,
        image_id: int | str | None,
    ) -> "PanopticSegmentation":
        """From a map of 1, 2, ... with class and score of each; areas and boxes are measured."""
        found = measure(segment_map)
        segments = [
            Segment(number, category.id, category.isthing, score, *found[number])
            for number, (category, score) in enumerate(rows, start=1)
        ]
        return cls(segment_map, segments, categories, image_id=image_id)


def _check_map(segment_map: object, where: str) -> None:
    """Refuse what is no map of ids: other shapes, numbers that are not whole, negative ones, more than int32 holds."""
    if not isinstance(segment_map, np.ndarray):
        raise ShapeError(f"PanopticSegmentation.segment_map must be an array (H, W), but got {segment_map!r:.60}")
    check_shape("PanopticSegmentation.segment_map", segment_map, ("H", "W"))
    if segment_map.dtype.kind not in "iu":
        raise InputError(
            f"{where}a segment map must hold integers, but is {segment_map.dtype}; convert it: segment_map.astype('int32')"
        )
    low, high = (int(segment_map.min()), int(segment_map.max())) if segment_map.size else (0, 0)
    if low < 0 or high > LARGEST_NUMBER:
        raise InputError(
            f"{where}segment ids must be 0 (void) to {LARGEST_NUMBER}, but the map has {low} to {high}; number them from 1"
        )


class PicturePredictor(ABC, Generic[Prepared]):
    """Pictures in, panoptic maps out; `Prepared` is a picture that was read, as what computes wants it.

    Attributes:
        settings: thresholds, merging rules and the size at which the model sees images.
        batch_size: pictures of a list that go through the model together.
    """

    settings: InferenceSettings
    batch_size: int

    @overload
    def __call__(self, images: Picture, threshold: float | None = None) -> PanopticSegmentation: ...

    @overload
    def __call__(self, images: Pictures, threshold: float | None = None) -> list[PanopticSegmentation]: ...

    def __call__(
        self, images: Picture | Pictures, threshold: float | None = None
    ) -> PanopticSegmentation | list[PanopticSegmentation]:
        """Predict.

        Args:
            images: a path; an array (H, W, 3) RGB, (H, W) grey or (H, W, 4) RGBA of uint8, uint16 or float in 0..1; a PIL
                image; or a list of these. Photographs are turned upright by their EXIF orientation, and the map is that of
                the upright picture.
            threshold: least probability for this call, for things and stuff alike, instead of the settings'.

        Returns:
            The map, as large as the picture; a list of maps for a list.

        Raises:
            PictureError: a missing or unreadable picture; the message names it.
        """
        if isinstance(images, list | tuple):
            return list(self.stream(images, threshold))
        return next(self.stream([images], threshold))

    def stream(self, images: Iterable[Picture], threshold: float | None = None) -> Iterator[PanopticSegmentation]:
        """Predict any number of pictures, in order, with a few of them in memory at a time.

        Args:
            images: as a list of `__call__`; a generator will do.
            threshold: see `__call__`.

        Raises:
            PictureError: a missing or unreadable picture; the message names it.
        """
        settings, coming = self.settings.with_thresholds(threshold), one_by_one(images)
        window = self.batch_size * (1 if self.batch_size == 1 else _WINDOW_BATCHES)
        while prepared := [self._read(image) for image in islice(coming, window)]:
            yield from self._predict(prepared, settings)

    @abstractmethod
    def _read(self, picture: Picture) -> Prepared:
        """Read a picture."""

    @abstractmethod
    def _predict(self, prepared: list[Prepared], settings: InferenceSettings) -> list[PanopticSegmentation]:
        """The maps of pictures, which are computed in groups of one size."""
