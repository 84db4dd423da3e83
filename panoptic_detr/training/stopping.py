"""What ends a run before its last step: a loader process that died, numbers that are not finite.

A signal (SIGTERM, SIGINT, SIGHUP) is noted by `signals.StopRequest`, and the trainer saves and stops after the step.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from panoptic_detr.errors import CheckpointError, TrainingError
from panoptic_detr.structures import Batch
from panoptic_detr.weights import write_atomically


@contextmanager
def explained_worker_death() -> Iterator[None]:
    """Say in one line why a loader process that died ends the run."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise TrainingError(
            f"{' '.join(str(error).split()).rstrip('. ')}. Often memory or shared memory (/dev/shm) has run out: lower "
            "data.workers, or set it to 0 to load in the training process and see the error itself"
        ) from error


def describe_nonfinite(step: int, values: Mapping[str, float], group: Sequence[Batch], saved: Path | None) -> str:
    """One sentence about a step with infinite or undefined values.

    Args:
        step: number of the step, from 0.
        values: losses and gradient norm by name.
        group: its batches.
        saved: where the batches were kept.
    """
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    ids = ", ".join(str(image_id) for batch in group for image_id in batch.image_ids)
    where = f"; the batch is kept in {str(saved)!r}" if saved else ""
    return f"step {step} is not finite ({', '.join(wrong[:4])}) on images {ids}{where}"


def save_batch(group: Sequence[Batch], folder: Path, step: int, rank: int = 0) -> Path | None:
    """Keep the batches of a step as plain tensors (`torch.load(path, weights_only=True)`); None if the disk refuses."""
    content = [
        {
            "images": batch.images.cpu(),
            "padding_mask": batch.padding_mask.cpu(),
            "image_ids": list(batch.image_ids),
            "labels": [target.labels.cpu() for target in batch.targets],
            "boxes": [target.boxes.cpu() for target in batch.targets],
            "segment_maps": [None if t.segment_map is None else t.segment_map.cpu() for t in batch.targets],
        }
        for batch in group
    ]
    try:
        return write_atomically(
            folder / f"nonfinite_step_{step:08d}_rank_{rank}.pt", lambda stream: torch.save(content, stream)
        )
    except CheckpointError:
        return None
