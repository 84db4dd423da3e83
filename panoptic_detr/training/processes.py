"""Several processes that act as one: how they start, what they tell each other, and weights spread over them (FSDP)."""

import ctypes
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, distributed, nn

from panoptic_detr.config.stages import TrainConfig
from panoptic_detr.errors import ConfigError, InputError
from panoptic_detr.parallel import usable_cores
from panoptic_detr.training.step import transformer_layers
from panoptic_detr.weights import choose_device

Value = TypeVar("Value")

PR_SET_PDEATHSIG = 1  # of Linux: prctl.h
THREADS = 64  # of one process are no harm anywhere: recipes for larger machines work on smaller ones


def start_fabric(train: TrainConfig, *, unused_parameters: bool = False) -> Fabric:
    """Devices, processes and precision; launched and seeded.

    Args:
        train: settings.
        unused_parameters: trained parameters may stay without gradient (see `LossConfig.switches_terms_off`).

    Raises:
        ConfigError: torchrun or srun started another number of processes than the settings say, or PyTorch is too old for FSDP.
    """
    wanted = train.devices * train.nodes
    started = int(os.environ.get("WORLD_SIZE") or os.environ.get("SLURM_STEP_NUM_TASKS") or 1)
    if started > 1 and started != wanted:
        raise ConfigError(
            f"{started} processes were started (torchrun or srun), but train.devices x train.nodes is {wanted}; train.devices "
            "must be the processes on one machine, and train.nodes the machines"
        )
    _check_devices(train)
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    strategy: str | Strategy = "auto"
    if wanted > 1 and train.strategy == "fsdp":
        strategy = sharding_strategy(wanted)
    elif wanted > 1 or train.strategy == "ddp":
        strategy = DDPStrategy(find_unused_parameters=unused_parameters)
    try:
        fabric = Fabric(
            accelerator=train.accelerator,
            devices=train.devices,
            num_nodes=train.nodes,
            strategy=strategy,
            precision=train.precision,
        )
    except (RuntimeError, ValueError) as error:
        asked = f"train.accelerator {train.accelerator}, train.devices {train.devices}, train.precision {train.precision}"
        raise ConfigError(f"not possible here ({asked}): {error}; train.accelerator auto takes what there is") from error
    end_with_the_first_process()
    logging.getLogger("lightning_fabric.utilities.distributed").setLevel(logging.WARNING)  # no greeting from each process
    fabric.launch()
    # Every process draws its own dropout; initial weights are the same, because process 0 hands its own to all.
    fabric.seed_everything(train.seed + fabric.global_rank, verbose=False)
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else PyTorch refuses matrix products on CUDA
    torch.use_deterministic_algorithms(train.deterministic)
    return fabric


def _check_devices(train: TrainConfig) -> None:
    """Refuse an accelerator that is not there, more processes than devices (a CPU's cores), and threads without number.

    Raises:
        ConfigError: the message says how many there are.
    """
    try:
        choose_device(train.accelerator)
    except InputError as error:
        raise ConfigError(f"train.accelerator: {error}") from None
    on_gpu = train.accelerator in ("cuda", "gpu", "auto") and torch.cuda.is_available()
    there, what = (torch.cuda.device_count(), "GPUs") if on_gpu else (usable_cores(), "CPU cores")
    if train.devices > there:
        raise ConfigError(f"train.devices is {train.devices}, but this machine has {there} {what}; give at most so many")
    if (train.threads or 0) > max(usable_cores(), THREADS):
        raise ConfigError(
            f"train.threads is {train.threads}, but this machine has {usable_cores()} CPU cores; give at most so many, or null"
        )


def end_with_the_first_process() -> None:
    """In a process that the first one has started (`train.devices` without torchrun or SLURM): end when that one does.

    Otherwise it would wait for ever if the first one is killed before both know each other. On Linux only.
    """
    started_by_another = {"TORCHELASTIC_RUN_ID", "SLURM_PROCID"} & os.environ.keys()
    if sys.platform == "linux" and not started_by_another and int(os.environ.get("LOCAL_RANK", 0)):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == 1:
            os._exit(1)


def gather(fabric: Fabric, value: Value) -> list[Value]:
    """The value of every process, in every process."""
    if fabric.world_size == 1:
        return [value]
    values = [value] * fabric.world_size
    distributed.all_gather_object(values, value)
    return values


def any_process(fabric: Fabric, flag: bool) -> bool:
    """Whether the flag is up in any process; every process must ask."""
    if fabric.world_size == 1:
        return flag
    votes: Any = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return float(votes) > 0


def share_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Give every process the first one's buffers: each collects batch statistics from its own images."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            distributed.broadcast(buffer, src=0)


def sharding_strategy(processes: int) -> ModelParallelStrategy:
    """Fully sharded data parallelism: trained weights, their gradients and the optimizer's state are spread over processes.

    Raises:
        ConfigError: PyTorch is too old for it.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7):
        raise ConfigError(f"train.strategy: fsdp needs PyTorch 2.7 or newer, but this is {torch.__version__}; use ddp")
    return ModelParallelStrategy(_shard, data_parallel_size=processes, tensor_parallel_size=1)


def _shard(step: nn.Module, mesh: Any) -> nn.Module:
    """Spread the first process's weights: each transformer layer is one part, the rest another; frozen ones stay whole."""
    from torch.distributed.fsdp import fully_shard

    for tensor in [*step.parameters(), *step.buffers()]:
        distributed.broadcast(tensor.detach(), src=0)
    frozen = {parameter for parameter in step.parameters() if not parameter.requires_grad}
    for module in [*transformer_layers(step), step]:
        if any(parameter.requires_grad for parameter in module.parameters()):
            fully_shard(module, mesh=mesh["data_parallel"], ignored_params=frozen)
    return step


@contextmanager
def whole_modules(model: nn.Module) -> Iterator[None]:
    """Inside the context every process holds all weights, and can use the model without the others."""
    parts: list[Any] = [module for module in model.modules() if hasattr(module, "unshard")]
    for part in parts:
        part.unshard()
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not parts[0], recurse=False)  # the outermost part stays whole until backward
            part.reshard()


def whole(value: Any) -> Any:
    """A tensor put together from the parts of all processes; in mappings, every tensor; anything else as it is."""
    if isinstance(value, Mapping):
        return {name: whole(item) for name, item in value.items()}
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def local(tensor: Any) -> Tensor:
    """This process's part of a tensor that is spread, sharing its memory; any other tensor itself."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def spread_like(value: Any, live: Any) -> Any:
    """A whole tensor spread as the live one of the same shape is; anything else as it is."""
    if not hasattr(live, "full_tensor") or not isinstance(value, Tensor) or value.shape != live.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(live.device), live.device_mesh, live.placements)
