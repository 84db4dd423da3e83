"""The semantic view of panoptic maps: every pixel has a class, instances are forgotten; mean IoU, and PQ-dagger.

**mIoU**: IoU of a class is shared pixels / (true + predicted - shared pixels), summed over all images, void of the truth left
out; mIoU is the mean over the classes that occur (Long et al., CVPR 2015, section 5). Crowds are pixels of their class, and
predicted void is nothing.

**PQ-dagger** (Porzi et al., CVPR 2019, section 4.1): PQ for things; for a stuff class, which has no instances to recognise, the
mean over the images that have it of the IoU of its pixels there, without a threshold.
"""

from typing import NamedTuple

import numpy as np

from panoptic_detr.quality.overlaps import Overlaps, sums
from panoptic_detr.quality.points import IOU_UNIT


class PixelCounts(NamedTuple):
    """What the semantic scores need to know of one category.

    Attributes:
        shared: pixels that are of the class on both sides.
        truth: true pixels.
        predicted: predicted pixels, without those on void.
        images: images whose truth has the class.
        iou_units: sum of the IoU of these images, in units of 2**-53 (rounded down; the sum is the same in any order).
    """

    shared: int = 0
    truth: int = 0
    predicted: int = 0
    images: int = 0
    iou_units: int = 0

    @property
    def iou(self) -> float | None:
        """IoU over all images; None if the class never occurs."""
        union = self.truth + self.predicted - self.shared
        return self.shared / union if union else None

    @property
    def image_iou(self) -> float | None:
        """Mean IoU over the images whose truth has the class; None if there is none."""
        return self.iou_units / IOU_UNIT / self.images if self.images else None


def count_pixels(overlaps: Overlaps) -> dict[int, PixelCounts]:
    """Pixels of every class, by category id."""
    ids, true_places, places = overlaps.classes
    kinds, cells = len(ids), overlaps.images * len(ids)  # by image and category
    true_cells, cells_of = overlaps.truth_images * kinds + true_places, overlaps.prediction_images * kinds + places
    same = overlaps.equal_names
    shared = sums(true_cells[overlaps.truth[same]], overlaps.intersections[same], cells)
    truth, predicted = sums(true_cells, overlaps.truth_areas, cells), sums(cells_of, overlaps.rated_areas, cells)
    units = (shared / np.maximum(truth + predicted - shared, 1) * IOU_UNIT).astype(np.int64)
    columns = np.stack([shared, truth, predicted, truth > 0, np.where(truth > 0, units, 0)], axis=-1)
    rows = columns.reshape(overlaps.images, kinds, 5).sum(0).tolist()  # units of up to 1,023 images fit into 63 bits
    return {category_id: PixelCounts(*row) for category_id, row in zip(ids.tolist(), rows, strict=True)}
