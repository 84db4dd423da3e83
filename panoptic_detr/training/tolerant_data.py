"""Data sets that go on without their unreadable images: in training the next one takes the place, in evaluation none does."""

import sys
from functools import partial

import torch
from lightning_fabric import Fabric

from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.errors import DataError, SegmentMapError
from panoptic_detr.parallel import parallel_map
from panoptic_detr.structures import Sample
from panoptic_detr.training.processes import gather

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


def readable_part(dataset: CocoPanoptic, fabric: Fabric, workers: int = 0) -> CocoPanoptic:
    """The samples that can be evaluated, the same in every process; each other one is named.

    Args:
        dataset: for evaluation; the first process reads every file of it once.
        fabric: of the run.
        workers: processes that read; 0 reads here.

    Raises:
        DataError: none can be read.
    """
    problems: list[str] = []
    if fabric.is_global_zero:
        every = range(len(dataset))
        problems = list(parallel_map(partial(_problem, dataset), every, workers=workers, description="validation files"))
        for problem in filter(None, problems):
            print(f"left out of evaluation: {problem}", file=sys.stderr, flush=True)
    problems = gather(fabric, problems)[0]
    left = [index for index, problem in enumerate(problems) if not problem]
    if problems and not left:
        raise DataError(f"none of the {len(problems)} images for evaluation can be read; the last one: {problems[-1]}")
    return dataset.subset(left)


def _problem(dataset: CocoPanoptic, index: int) -> str:
    """What keeps a sample from being evaluated; empty for nothing."""
    try:
        dataset[index]
        dataset.truth(index)
    except (DataError, SegmentMapError) as error:
        return str(error)
    return ""
