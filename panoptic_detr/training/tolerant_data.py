"""A data set that goes on without its unreadable images."""

import sys

import torch

from panoptic_detr.data.coco_panoptic import CocoPanoptic, DataError
from panoptic_detr.segment_maps import SegmentMapError
from panoptic_detr.structures import Sample

ATTEMPTS = 20


class TolerantPanoptic(CocoPanoptic):
    """Gives the next readable sample in the place of one that cannot be read, and names each of those once per process.

    The order of an epoch stays the same for every process and after a resume.
    """

    def __getitem__(self, i: int) -> Sample:
        """The i-th sample, or the first readable one after it.

        Raises:
            DataError: many samples in a row cannot be read; then something else is wrong.
        """
        for attempt in range(ATTEMPTS):
            try:
                return super().__getitem__((i + attempt) % len(self))
            except (DataError, SegmentMapError) as error:
                self._report(error)
                last = error
        raise DataError(f"{ATTEMPTS} samples in a row cannot be read; the last one: {last}")

    def _report(self, error: Exception) -> None:
        named: set[str] = self.__dict__.setdefault("_named", set())
        if str(error) not in named:
            named.add(str(error))
            worker = torch.utils.data.get_worker_info()
            where = "" if worker is None else f" (loader process {worker.id})"
            print(f"left out{where}: {error}", file=sys.stderr, flush=True)
