"""A COCO-panoptic data set as samples: image, labels, boxes around things and stuff, and one id map.

Masks are never stacked: the id map travels through augmentation as one channel and the boxes are read off it afterwards.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.utils.data import Dataset

from panoptic_detr.categories import Category, CategoryTable
from panoptic_detr.data.coco.index import CocoIndex, read_index
from panoptic_detr.data.coco.layout import find_image, resolve_paths
from panoptic_detr.errors import DataError, SegmentMapError
from panoptic_detr.files import safe_path
from panoptic_detr.images import read_image
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import read_id_png, renumber
from panoptic_detr.structures import Sample, Target

Transform = Callable[[Sample, torch.Generator], Sample]


@dataclass(frozen=True)
class Others:
    """The other images of a data set, for augmentation that mixes several."""

    samples: Callable[[int], Sample]  # the i-th, as read from disk
    count: int  # how many there are
    thing_labels: tuple[int, ...]  # labels of things


class CocoPanoptic(Dataset[Sample]):
    """Images with panoptic annotations, read lazily; small enough in memory for COCO's 118,000 training images.

    Crowd segments are not targets; their pixels are void in the target's map. A sample depends on (seed, epoch, index) only,
    not on the number of workers.
    """

    def __init__(
        self,
        images: str | Path,
        panoptic: str | Path,
        annotations: str | Path,
        *,
        categories: CategoryTable | None = None,
        transforms: Transform | None = None,
        seed: int = 0,
        cache: Literal["none", "memory"] = "none",
    ) -> None:
        """Read the JSON; pictures are read when they are asked for.

        Args:
            images: folder of the images.
            panoptic: folder of the annotation PNGs.
            annotations: the JSON.
            categories: the table to use instead of the JSON's own.
            transforms: what happens to each sample; it draws from the generator it is given and from nothing else. One with a
                true `measures_boxes` (`Transform`) gets targets without boxes and measures them on its map.
            seed: of the augmentation.
            cache: "memory" keeps decoded pictures (4 bytes per pixel), for small sets.

        Raises:
            DataError: a missing folder, an unusable JSON.
            CategoryError: an unusable category list.
        """
        paths = resolve_paths(images=images, panoptic=panoptic, annotations=annotations)
        self.images, self.panoptic = paths.images, paths.panoptic
        self.transforms, self.seed = transforms, seed
        self._index: CocoIndex = read_index(paths.annotations, categories=categories)
        self._chosen = np.arange(len(self._index.image_ids))
        # Shared memory, so that workers that live through many epochs see `set_epoch` too.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] | None = {} if cache == "memory" else None

    @classmethod
    def from_root(
        cls,
        root: str | Path,
        split: str | None = None,
        *,
        categories: CategoryTable | None = None,
        transforms: Transform | None = None,
        seed: int = 0,
        cache: Literal["none", "memory"] = "none",
    ) -> "CocoPanoptic":
        """Open a data set in COCO's own layout (see `resolve_paths`)."""
        paths = resolve_paths(root, split)
        return cls(
            paths.images,
            paths.panoptic,
            paths.annotations,
            categories=categories,
            transforms=transforms,
            seed=seed,
            cache=cache,
        )

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, i: int) -> Sample:
        """The i-th sample after the transforms.

        Raises:
            DataError, SegmentMapError: a defect of the files, with the place and the way out.
        """
        row, sample = self._row(i), self._sample(i)
        if self.transforms is None:
            return sample
        mixing: dict[str, object] = {"others": self._others()} if getattr(self.transforms, "mixes", False) else {}
        try:
            return self.transforms(sample, self._generator(row), **mixing)
        except DataError:  # of another image that was to be mixed in
            raise
        except (ValueError, RuntimeError) as error:
            raise DataError(f"{self._where(row)}: the transforms failed: {error}") from error

    def _sample(self, i: int) -> Sample:
        """The i-th sample as it is on disk."""
        row = self._row(i)
        image, places = self._decoded(row)
        labels, image_id = self._labels(row), self._index.image_ids[row]
        if getattr(self.transforms, "measures_boxes", False):  # off the map that they have moved
            target = Target(labels, torch.zeros(len(labels), 4), torch.from_numpy(places), image_id)
        else:
            target = retarget(torch.from_numpy(places), labels, image_id)
        image_tensor = torch.from_numpy(image).permute(2, 0, 1)  # (3, H, W)
        return Sample(image_tensor, target, places.shape, self._index.image_names[row])

    def _others(self) -> Others:
        things = tuple(label for label, category in self.categories.by_label.items() if category.isthing)
        return Others(self._sample, len(self), things)

    @property
    def categories(self) -> CategoryTable:
        """The category table."""
        return self._index.categories

    @property
    def image_ids(self) -> list[int | str]:
        """Ids of the images, in the order of the samples."""
        return [self._index.image_ids[row] for row in self._chosen]

    @property
    def names(self) -> dict[int | str, str]:
        """File names by id of all images of the JSON, those outside a subset too."""
        return dict(zip(self._index.image_ids, self._index.image_names, strict=True))

    @property
    def annotations(self) -> Path:
        """The JSON."""
        return self._index.path

    @property
    def segment_count(self) -> int:
        """Segments of all samples; crowds are not counted."""
        before = np.concatenate([[0], np.cumsum(~self._index.iscrowd)])[self._index.offsets]
        return int(np.diff(before)[self._chosen].sum())

    @property
    def only_crowds(self) -> list[Category]:
        """Categories all of whose segments are crowds, so that they are neither learnt nor scored."""
        crowd = self._index.iscrowd
        ids = np.setdiff1d(self._index.category_ids[crowd], self._index.category_ids[~crowd])
        return [self.categories.by_id[i] for i in ids.tolist()]

    def image(self, i: int) -> np.ndarray:
        """The i-th image as it is stored: (H, W, 3) uint8 RGB."""
        return read_image(self.image_path(i))

    def image_path(self, i: int) -> Path:
        """File of the i-th image."""
        row = self._row(i)
        return find_image(self.images, self._index.image_names[row], self._where(row))

    def target(self, i: int) -> Target:
        """The i-th target at its original size, without reading the image."""
        row = self._row(i)
        return retarget(torch.from_numpy(self._places(row)), self._labels(row), self._index.image_ids[row])

    def truth(self, i: int) -> PanopticSegmentation:
        """The i-th annotation at its original size, crowds included; ids are renumbered 1..S in the JSON's order."""
        row = self._row(i)
        rows = self._index.segments_of(row)
        ranks = self._read_map(row)
        extents, counts = ndimage.find_objects(ranks, rows.stop - rows.start), np.bincount(ranks.ravel())
        segments = []
        for place, (category_id, crowd) in enumerate(
            zip(self._index.category_ids[rows].tolist(), self._index.iscrowd[rows].tolist(), strict=True)
        ):
            (top, bottom), (left, right) = ((s.start, s.stop) for s in extents[place])
            isthing, box = self.categories.by_id[category_id].isthing, (left, top, right - left, bottom - top)
            segments.append(Segment(place + 1, category_id, isthing, 1.0, int(counts[place + 1]), box, iscrowd=crowd))
        return PanopticSegmentation(ranks.astype(np.int32), segments, self.categories, image_id=self._index.image_ids[row])

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose augmentation is drawn; seen by running workers and by subsets too."""
        self._epoch[0] = epoch

    def subset(self, indices: Sequence[int]) -> "CocoPanoptic":
        """The same data set with these samples only; each keeps its augmentation."""
        part = copy.copy(self)
        part._chosen = self._chosen[np.asarray(indices, dtype=np.int64)]
        return part

    def named(self, image_ids: Iterable[str]) -> "CocoPanoptic":
        """The images of these ids, each once, in this order.

        Args:
            image_ids: as text, each one or several with commas between them.

        Raises:
            DataError: an id that is not there, or none at all.
        """
        place = {str(image_id): index for index, image_id in enumerate(self.image_ids)}
        named = [part for text in image_ids for part in ([text] if text in place else text.split(",")) if part]
        missing = [image_id for image_id in named if image_id not in place]
        if missing:
            raise DataError(f"{self.panoptic}: there is no image {missing[0]} among its {len(self)}; check --image-ids")
        if not named:
            raise DataError("--image-ids names no image; give ids, or leave it out for all")
        return self.subset([place[image_id] for image_id in dict.fromkeys(named)])

    def _row(self, i: int) -> int:
        return int(self._chosen[i])  # IndexError ends a plain `for` loop over the data set

    def _where(self, row: int) -> str:
        return f"{self._index.path}: image {self._index.image_ids[row]!r}"

    def _labels(self, row: int) -> Tensor:
        """Label indices of the targets of an image: (S,) int64."""
        rows = self._index.segments_of(row)
        category_ids = self._index.category_ids[rows][~self._index.iscrowd[rows]]
        return torch.tensor([self.categories.label_of[c] for c in category_ids.tolist()], dtype=torch.int64)

    def _generator(self, row: int) -> torch.Generator:
        state = np.random.SeedSequence([self.seed, int(self._epoch[0]), row]).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))

    def _decoded(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Image (H, W, 3) uint8 and the map of its targets (H, W)."""
        if self._cache is not None and row in self._cache:
            return self._cache[row]
        image = read_image(find_image(self.images, self._index.image_names[row], self._where(row)))
        places = self._places(row)
        if image.shape[:2] != places.shape:
            raise DataError(
                f"{self._where(row)}: the image is {image.shape[1]}x{image.shape[0]} pixels but its annotation "
                f"{self.panoptic / self._index.png_names[row]} is {places.shape[1]}x{places.shape[0]}; they must be equal"
            )
        if self._cache is not None:
            self._cache[row] = image, places
        return image, places

    def _places(self, row: int) -> np.ndarray:
        """The id map of the targets: (H, W), 0 void or crowd, i + 1 the i-th segment that is no crowd."""
        ranks, crowd = self._read_map(row), self._index.iscrowd[self._index.segments_of(row)]
        if not crowd.any():
            return ranks
        return np.concatenate([[0], np.where(crowd, 0, np.cumsum(~crowd))]).astype(ranks.dtype)[ranks]

    def _read_map(self, row: int) -> np.ndarray:
        """The annotation PNG with ids replaced by 1 + position in the JSON's segments_info: (H, W) uint8, int16 or int32."""
        path = safe_path(self.panoptic, self._index.png_names[row], self._where(row))
        try:
            segment_map = read_id_png(path)
        except SegmentMapError as error:
            raise SegmentMapError(f"{self._where(row)}: {error}") from None
        return renumber(segment_map, self._index.segment_ids[self._index.segments_of(row)], f"{self._where(row)}: {path}")


def retarget(segment_map: Tensor, labels: Tensor, image_id: int | str) -> Target:
    """Make a target from an id map; segments without a pixel are left out and the others renumbered.

    Args:
        segment_map: (H, W) uint8, int16 or int32 on the CPU: 0 void, i + 1 the segment of labels[i].
        labels: (S,) int64.
        image_id: of the image.

    Returns:
        A target whose boxes are the tight boxes of the segments' pixels.
    """
    extents = ndimage.find_objects(segment_map.numpy(), max_label=len(labels)) if len(labels) else []
    present = [place for place, extent in enumerate(extents) if extent is not None]
    if len(present) < len(labels):
        numbers = torch.zeros(len(labels) + 1, dtype=segment_map.dtype)
        numbers[torch.tensor(present, dtype=torch.int64) + 1] = torch.arange(1, len(present) + 1, dtype=segment_map.dtype)
        segment_map, labels = numbers[segment_map.int()], labels[present]
    edges = [(e[1].start, e[0].start, e[1].stop, e[0].stop) for e in extents if e is not None]
    xyxy = torch.tensor(edges, dtype=torch.float32).reshape(-1, 4)
    height, width = segment_map.shape
    size = torch.tensor([width, height], dtype=torch.float32)
    boxes = torch.cat([(xyxy[:, :2] + xyxy[:, 2:]) / (2 * size), (xyxy[:, 2:] - xyxy[:, :2]) / size], dim=1)  # (S, 4)
    return Target(labels, boxes, segment_map, image_id)
