"""What holds for every test: one thread, fixed seeds, no display, no network."""

import os

# Before NumPy, OpenCV or torch start their thread pools; the processes that tests start inherit it. One thread per process
# keeps the numbers the same on every machine and lets pytest-xdist use the cores.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_variable] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["HF_HUB_OFFLINE"] = "1"  # of the Hugging Face hub and of what asks it

import ipaddress
import random
import socket
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)
# The first gradient of a process sets autograd up. After torch.export it would start threads for what that adds, and the
# processes that tests fork off could take no gradient.
torch.ones(1, requires_grad=True).sum().backward()


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine."""


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests reach nothing but this machine: no test downloads, and none passes or fails by the weather outside."""

    def guard(method: str) -> None:
        original = getattr(socket.socket, method)

        def checked(self: socket.socket, address: Any, *rest: Any) -> Any:
            if self.family != getattr(socket, "AF_UNIX", None) and not _is_local(address[0]):
                raise NetworkBlockedError(f"tests must not use the network, but something wants {address[0]}:{address[1]}")
            return original(self, address, *rest)

        monkeypatch.setattr(socket.socket, method, checked)

    guard("connect")
    guard("connect_ex")
    look_up = socket.getaddrinfo

    def checked_look_up(host: Any, *rest: Any, **named: Any) -> Any:
        if host is not None and not _is_local(host):
            raise NetworkBlockedError(f"tests must not use the network, but something looks up {host!r}")
        return look_up(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", checked_look_up)


@pytest.fixture(autouse=True)
def environment_as_it_was() -> Iterator[None]:
    """What a run in this process leaves for its launcher (LOCAL_RANK and the like) would make later ones take it for theirs."""
    before = set(os.environ)
    yield
    for name in set(os.environ) - before - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Every test starts from the same random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


def _is_local(host: str | bytes) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in ("", "localhost", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False
