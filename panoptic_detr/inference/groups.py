"""Images of one size go through the model together, images of different sizes do not.

The published mask head normalises over the whole canvas, padding included, so a padded image gets slightly other masks than the
same image alone. Grouping by size makes every result independent of what else is in the list or batch.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from panoptic_detr.structures import Batch


def same_size_groups(sizes: Sequence[tuple[int, int]], limit: int) -> Iterator[list[int]]:
    """Indices of images in groups of one (height, width), at most `limit` in each."""
    by_size: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, size in enumerate(sizes):
        by_size[size].append(index)
    for indices in by_size.values():
        for start in range(0, len(indices), limit):
            yield indices[start : start + limit]


def unpadded_parts(batch: Batch) -> Iterator[tuple[list[int], Batch]]:
    """Split a padded batch into batches without padding; each comes with the indices of its images in the whole."""
    for indices in same_size_groups(batch.sizes, len(batch)):
        height, width = batch.sizes[indices[0]]
        yield (
            indices,
            Batch(
                images=batch.images[indices, :, :height, :width],
                padding_mask=batch.padding_mask[indices, :height, :width],
                targets=[batch.targets[index] for index in indices] if batch.targets else [],
                sizes=[batch.sizes[index] for index in indices],
                original_sizes=[batch.original_sizes[index] for index in indices],
                image_ids=[batch.image_ids[index] for index in indices],
            ),
        )
