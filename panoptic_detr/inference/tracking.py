"""Things that keep their ids over the frames of a film: by the overlap of their masks, and their class.

Each thing that was seen is expected where it was last, moved on as it moved last. It is found again as the thing of its class
whose mask agrees best with that (the assignment with the largest sum of IoUs, each at least 0.2); after some frames without, it
is forgotten. No appearance is compared, so what was hidden for long, or jumps further than its own size, comes back under a new
id.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from panoptic_detr.categories import CategoryTable
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import with_ids

LEAST = 0.2  # IoU of a thing and where it is expected


@dataclass
class _Track:
    """A thing as it was seen last.

    Attributes:
        segment_id: its id in all frames.
        category_id: its class.
        mask: (h, w) bool, inside its box.
        left: of the box, and the next one.
        top: in pixels.
        area: pixels of the mask.
        motion: (x, y) in pixels per frame.
        missed: frames since.
    """

    segment_id: int
    category_id: int
    mask: np.ndarray
    left: int
    top: int
    area: int
    motion: tuple[float, float] = (0.0, 0.0)
    missed: int = 0


class Tracker:
    """Gives the things of one frame after the other the ids that they had before; stuff has one id per class.

    Args:
        categories: the classes of the film; stuff has the ids 1, 2, ... in their order, things the next ones.
        patience: frames for which a thing that is not seen is remembered.
    """

    def __init__(self, categories: CategoryTable, *, patience: int = 10) -> None:
        self._stuff = {category.id: number for number, category in enumerate(categories.stuff, start=1)}
        self._next = len(self._stuff) + 1
        self._patience = patience
        self._tracks: list[_Track] = []

    def update(self, segmentation: PanopticSegmentation) -> PanopticSegmentation:
        """The next frame with the ids of the film."""
        things = [segment for segment in segmentation.segments if segment.isthing]
        ids = self._known(things, segmentation.segment_map)
        taken = set(ids.values())
        for segment in segmentation.segments:
            known = ids.get(segment.id, self._stuff.get(segment.category_id))
            ids[segment.id] = self._next if known is None or (segment.id not in ids and known in taken) else known
            taken.add(ids[segment.id])
            self._next = max(self._next, ids[segment.id] + 1)
        renamed = _renamed(segmentation, ids)
        self.recall(renamed)
        return renamed

    def recall(self, segmentation: PanopticSegmentation) -> None:
        """Take in a frame that has the ids of the film already."""
        before = {track.segment_id: track for track in self._tracks}
        for track in self._tracks:
            track.missed += 1
        for segment in segmentation.segments:
            self._next = max(self._next, segment.id + 1)
            if segment.isthing:
                before[segment.id] = _seen(segment, segmentation.segment_map, before.get(segment.id))
        self._tracks = [track for track in before.values() if track.missed <= self._patience]

    def _known(self, things: Sequence[Segment], segment_map: np.ndarray) -> dict[int, int]:
        """The ids of things that were seen before, by their ids in this frame."""
        overlaps = np.zeros((len(self._tracks), len(things)))
        column = {segment.id: index for index, segment in enumerate(things)}
        for row, track in enumerate(self._tracks):
            for segment_id, shared in _shared(track, segment_map).items():
                index = column.get(segment_id)
                if index is not None and things[index].category_id == track.category_id:
                    overlaps[row, index] = shared / (track.area + things[index].area - shared)
        overlaps[overlaps < LEAST] = 0
        rows, columns = linear_sum_assignment(overlaps, maximize=True)
        pairs = zip(rows.tolist(), columns.tolist(), strict=True)
        return {things[j].id: self._tracks[i].segment_id for i, j in pairs if overlaps[i, j] > 0}


def _shared(track: _Track, segment_map: np.ndarray) -> Mapping[int, int]:
    """Pixels of each id of the frame where a thing is expected."""
    x, y = (round(step * (track.missed + 1)) for step in track.motion)
    left, top = track.left + x, track.top + y
    height, width = track.mask.shape
    inside = (
        slice(max(0, -top), max(0, min(height, segment_map.shape[0] - top))),
        slice(max(0, -left), max(0, min(width, segment_map.shape[1] - left))),
    )
    mask = track.mask[inside]
    if not mask.size:
        return {}
    y, x = top + inside[0].start, left + inside[1].start
    window = segment_map[y : y + mask.shape[0], x : x + mask.shape[1]]
    ids, counts = np.unique(window[mask], return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def _seen(segment: Segment, segment_map: np.ndarray, before: _Track | None) -> _Track:
    left, top, width, height = segment.box
    mask = segment_map[top : top + height, left : left + width] == segment.id
    track = _Track(segment.id, segment.category_id, mask, left, top, segment.area)
    if before is not None:
        (x, y), (old_x, old_y) = _centre(track), _centre(before)
        track.motion = ((x - old_x) / (before.missed or 1), (y - old_y) / (before.missed or 1))
    return track


def _centre(track: _Track) -> tuple[float, float]:
    rows, columns = np.nonzero(track.mask)
    return track.left + float(columns.mean()), track.top + float(rows.mean())


def _renamed(segmentation: PanopticSegmentation, ids: Mapping[int, int]) -> PanopticSegmentation:
    dropped = [replace(row, into=ids.get(row.into) if row.into else row.into) for row in segmentation.dropped]
    segments = [replace(segment, id=ids[segment.id]) for segment in segmentation.segments]
    return replace(segmentation, segment_map=with_ids(segmentation.segment_map, ids), segments=segments, dropped=dropped)
