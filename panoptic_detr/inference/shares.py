"""Several processes that share a list of pictures, as torchrun or SLURM starts them: who does what, and who joins it.

Each writes its results by itself; only a few words are exchanged, over gloo, which every machine has.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import distributed

from panoptic_detr.errors import DataError

Item = TypeVar("Item")
PATIENCE = timedelta(days=30)  # shares may take long, and differ


@dataclass(frozen=True)
class Share:
    """One process of several.

    Attributes:
        rank: its number, from 0.
        processes: how many there are.
        local_rank: its number on its machine, from 0.
    """

    rank: int = 0
    processes: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this process joins and reports."""
        return self.rank == 0

    @property
    def part(self) -> str:
        """What tells its files from those of the others; nothing for the first."""
        return "" if self.first else f"{self.rank + 1}-of-{self.processes}"

    def of(self, items: Sequence[Item]) -> Sequence[Item]:
        """Its items of a list that all have: every n-th, so that shares are alike."""
        return items[self.rank :: self.processes] if self.processes > 1 else items

    def device(self, asked: str) -> str:
        """The device that was asked for; where that is any GPU, each process of a machine takes another."""
        if self.processes > 1 and asked in ("auto", "cuda") and torch.cuda.is_available():
            return f"cuda:{self.local_rank % torch.cuda.device_count()}"
        return asked

    def gather(self, value: Item) -> list[Item]:
        """The value of every process, in every process; all must ask.

        Raises:
            DataError: one of the others has ended.
        """
        if self.processes == 1:
            return [value]
        values: list[Item] = [value] * self.processes
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
                raise  # a GPU out of memory, say
            raise DataError("another of the processes has ended, see what it says; then give the same command again") from error
        return values


def join_processes() -> Share:
    """Meet the processes that torchrun or srun has started together with this one; a share of all where it is alone."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if TorchElasticEnvironment.detect():
        torchrun = TorchElasticEnvironment()
        share = Share(torchrun.global_rank(), torchrun.world_size(), torchrun.local_rank())
        address, port = torchrun.main_address, torchrun.main_port
    elif tasks > 1:  # Lightning's environment refuses `srun --ntasks`
        share = Share(int(os.environ["SLURM_PROCID"]), tasks, int(os.environ["SLURM_LOCALID"]))
        nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST") or "127.0.0.1"
        address = SLURMEnvironment.resolve_root_node_address(nodes)
        job, step = (int(os.environ.get(f"SLURM_{name}_ID", 0)) for name in ("JOB", "STEP"))
        port = 15000 + (job + 1009 * step) % 10000  # steps of a job, and jobs that follow each other, may run side by side
    else:
        return Share()
    if share.processes > 1 and not distributed.is_initialized():
        os.environ.setdefault("MASTER_ADDR", address)
        os.environ.setdefault("MASTER_PORT", str(port))
        distributed.init_process_group("gloo", rank=share.rank, world_size=share.processes, timeout=PATIENCE)
    return share


def leave_processes() -> None:
    """Let the others go; where there are none, nothing."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
