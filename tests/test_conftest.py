"""The guards that every other test relies on."""

import random
import socket
import urllib.request

import numpy as np
import pytest
import torch


@pytest.mark.parametrize("address", ["192.0.2.1", "2001:db8::1", "example.org"])
def test_the_network_is_out_of_reach(address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as client, pytest.raises(RuntimeError, match="must not use the network"):
        client.connect((address, 80))


def test_downloads_are_refused_by_name():
    with pytest.raises(RuntimeError, match=r"looks up 'example\.org'"):
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open("http://example.org/", timeout=1)


def test_this_machine_stays_reachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        with socket.create_connection(server.getsockname(), timeout=5) as client:
            assert client.getpeername() == server.getsockname()


FIRST_DRAWS: list[tuple[float, float, float]] = []


@pytest.mark.parametrize("turn", [1, 2])
def test_every_test_starts_from_the_same_random_state(turn):
    FIRST_DRAWS.append((random.random(), np.random.rand(), torch.rand(()).item()))
    assert FIRST_DRAWS[0] == FIRST_DRAWS[-1] == (0.8444218515250481, 0.5488135039273248, pytest.approx(0.4962565898895264))


def test_tests_compute_on_one_thread():
    assert torch.get_num_threads() == 1
