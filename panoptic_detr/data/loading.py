"""From samples to batches: collation, the order of an epoch (resumable, split over processes), and the loader."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from panoptic_detr.data.coco import CocoPanoptic
from panoptic_detr.errors import DataError, InputError, SegmentMapError
from panoptic_detr.parallel import bounded, reporting_forks, start_worker
from panoptic_detr.structures import Batch, Sample, pad_images


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples into a batch, zero-padded right and below to the largest of them."""
    images, padding_mask = pad_images(sample.image for sample in samples)
    return Batch(
        images=images,
        padding_mask=padding_mask,
        targets=[sample.target for sample in samples],
        sizes=[(sample.image.shape[1], sample.image.shape[2]) for sample in samples],
        original_sizes=[sample.original_size for sample in samples],
        image_ids=[sample.target.image_id for sample in samples],
    )


class EpochSampler(Sampler[int]):
    """The order of the samples in an epoch: a permutation that depends on (seed, epoch), split over processes.

    It can start in the middle of an epoch: `resume(epoch, position)` continues exactly where a run with the same settings
    stopped after `position` samples of this process.
    """

    def __init__(
        self,
        length: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        equal_shares: bool = True,
    ) -> None:
        """Describe the order.

        Args:
            length: samples of the data set.
            shuffle: permute; otherwise in the data set's order.
            seed: of the permutations.
            rank: number of this process.
            world_size: number of processes.
            equal_shares: training: every process gets as many samples (some are repeated at the end of the epoch), or it
                would wait for the others forever. Evaluation: False, every sample once.

        Raises:
            InputError: rank outside of the processes, or no sample.
        """
        if not 0 <= rank < world_size:
            raise InputError(f"rank must be in 0..{world_size - 1} for {world_size} process(es), but got {rank}")
        if length < 1:
            raise InputError(f"a sampler needs at least one sample, but the data set has {length}")
        self.length, self.shuffle, self.seed = length, shuffle, seed
        self.rank, self.world_size, self.equal_shares = rank, world_size, equal_shares
        self.epoch, self.position = 0, 0

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.resume(epoch, 0)

    def resume(self, epoch: int, position: int) -> None:
        """Go to a place within an epoch, where `position` samples of this process are done already."""
        if not 0 <= position <= self.share:
            raise InputError(f"position must be in 0..{self.share} (samples of this process per epoch), but got {position}")
        self.epoch, self.position = epoch, position

    @property
    def share(self) -> int:
        """Samples of this process in a whole epoch."""
        extra = self.world_size - 1 if self.equal_shares else self.world_size - 1 - self.rank
        return (self.length + extra) // self.world_size

    def __len__(self) -> int:
        return self.share

    def __iter__(self) -> Iterator[int]:
        """The rest of the epoch from the position on."""
        order = np.arange(self.length)
        if self.shuffle:
            order = np.random.default_rng([self.seed, self.epoch]).permutation(self.length)
        mine = self.rank + self.world_size * np.arange(self.position, self.share)
        return iter(order[mine % self.length].tolist())


@dataclass(frozen=True)
class _Failure:
    """An error that travels from a worker as a value: raised there, PyTorch would bury its message in a traceback."""

    kind: type[DataError] | type[SegmentMapError]
    message: str


@dataclass(frozen=True)
class _Guarded(Dataset["Sample | _Failure"]):
    """A data set whose defects are values."""

    dataset: Dataset[Sample]

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # PyTorch's Dataset does not promise a length

    def __getitem__(self, i: int) -> "Sample | _Failure":
        try:
            return self.dataset[i]
        except (DataError, SegmentMapError) as error:
            return _Failure(type(error), str(error))


def _collate_guarded(samples: Sequence["Sample | _Failure"]) -> "Batch | _Failure":
    for sample in samples:
        if isinstance(sample, _Failure):
            return sample
    return collate([sample for sample in samples if isinstance(sample, Sample)])


class PanopticLoader(DataLoader[Batch]):
    """A DataLoader that raises the data set's own errors, from workers too, and can start at any batch of any epoch."""

    def set_position(self, epoch: int, batch: int) -> None:
        """Make the next iteration start with this batch of this epoch.

        Raises:
            InputError: the order of the samples is not an `EpochSampler`'s, so that only batch 0 can be found again.
        """
        guarded = self.dataset
        if isinstance(guarded, _Guarded) and isinstance(guarded.dataset, CocoPanoptic):
            guarded.dataset.set_epoch(epoch)
        if isinstance(self.sampler, EpochSampler):
            self.sampler.resume(epoch, min(batch * (self.batch_size or 1), len(self.sampler)))
        elif batch:
            raise InputError(f"cannot start at batch {batch}: make the loader with an EpochSampler")

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches from the position on; `len` is that of a whole epoch."""
        if self.num_workers and self._iterator is None:
            self.multiprocessing_context = reporting_forks()
        for batch in super().__iter__():
            if isinstance(batch, _Failure):
                # Made here and kept in no variable: a cycle of error, traceback and frame would keep the workers waiting.
                raise batch.kind(batch.message)
            yield batch


def make_loader(
    dataset: Dataset[Sample],
    *,
    batch_size: int,
    sampler: Sampler[int] | None = None,
    workers: int = 0,
    pin_memory: bool = False,
    drop_last: bool = False,
) -> PanopticLoader:
    """Batches of a data set.

    Args:
        dataset: its samples end normalised (see transforms).
        batch_size: samples per batch.
        sampler: their order; by default the data set's own. `loader.set_position` tells it the epoch.
        workers: processes that read ahead, no more than samples and than make sense; 0 reads in this process.
        pin_memory: for faster copies to a GPU.
        drop_last: leave out a last batch that is not full.
    """
    workers = bounded(min(workers, len(dataset)))  # type: ignore[arg-type]
    return PanopticLoader(
        _Guarded(dataset),  # type: ignore[arg-type]
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=_collate_guarded,
        pin_memory=pin_memory,
        drop_last=drop_last,
        worker_init_fn=_start_worker,
        multiprocessing_context=reporting_forks() if workers > 0 else None,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers > 0 else None,
        generator=torch.Generator(),  # PyTorch would draw the workers' seeds, which nothing here uses, from the global one
    )


def _start_worker(_: int) -> None:
    """One thread per worker, which only the parent process ends.

    Cluster schedulers signal whole process groups; a worker that dies of it takes the step at hand with it.
    """
    torch.set_num_threads(1)
    if hasattr(signal, "sigwaitinfo"):  # it tells who sent the signal; not on macOS and Windows
        # Blocked before any thread begins: one that does not block the signal would receive it for the whole process.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_the_parent_asks, daemon=True).start()
    start_worker()


def _end_when_the_parent_asks() -> None:
    parent = multiprocessing.parent_process()
    while parent is not None and signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid and parent.is_alive():
        pass
    os._exit(0)
