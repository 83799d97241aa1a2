"""One process without a cluster, ports in use, and wrong arguments."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest

import batchkit as bk

from ..helpers import unchecked


ALONE = """
import logging, os
logging.basicConfig(level=logging.INFO, format="%(message)s")
import batchkit as bk

def refused(error, words, *arguments, **options):
    try:
        bk.connect_processes(*arguments, **options)
    except error as raised:
        assert words in str(raised), raised
    else:
        raise AssertionError(words)

words = "JAX found no cluster. Pass all three arguments"
refused(ValueError, "process_id=0): " + words, process_id=0)
refused(ValueError, words, "127.0.0.1:1", 2)
os.environ["PMI_SIZE"] = "3"
refused(ValueError, "process_id=None) with PMI_SIZE=3: " + words)
del os.environ["PMI_SIZE"]
os.environ["JAX_COORDINATOR_ADDRESS"] = "127.0.0.1:1"
refused(ValueError, "with JAX_COORDINATOR_ADDRESS=127.0.0.1:1: " + words)
del os.environ["JAX_COORDINATOR_ADDRESS"]
refused(ValueError, "process_id=2, num_processes=2", "127.0.0.1:1", 2, 2)

bk.connect_processes()
import jax
assert jax.process_count() == 1
assert not jax.distributed.is_initialized()
import blackjax
refused(RuntimeError, "before anything is computed", "127.0.0.1:1", 2, 0)
# SIGABRT is handled where there are several processes.
import signal
os.kill(os.getpid(), signal.SIGABRT)
"""
CONNECTED = """
import socket
import batchkit as bk

with socket.socket(socket.AF_INET6) as busy:
    busy.bind(("::", 0))
    busy.listen()
    address = f"127.0.0.1:{busy.getsockname()[1]}"
    try:
        bk.connect_processes(address, 1, 0)
    except RuntimeError as error:
        assert f"the port of {address} is in use" in str(error), error
    else:
        raise AssertionError
bk.connect_processes(address, 1, 0)
try:
    bk.connect_processes(address, 1, 0)
except RuntimeError as error:
    assert "connected already" in str(error), error
else:
    raise AssertionError
"""


def _run(program: str) -> subprocess.CompletedProcess[str]:
    # What JAX would take for a cluster, where the tests run in one.
    cluster = ("SLURM_", "OMPI_", "PMI_", "JAX_COORDINATOR", "KUBERNETES_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(cluster)}
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**env, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
    )


def test_process_without_a_cluster_is_alone() -> None:
    ended = _run(ALONE)
    assert ended.returncode == -signal.SIGABRT, ended.stderr
    assert ended.stderr.strip() == (
        "connect_processes: no cluster was found; this process is alone"
    )


def test_ports_and_second_calls_are_named() -> None:
    ended = _run(CONNECTED)
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"start_timeout": 0}, ValueError, "start_timeout must be an int, at least 1"),
        ({"loss_timeout": 0.5}, TypeError, "loss_timeout must be an int, at least 1"),
        ({"loss_timeout": True}, TypeError, "loss_timeout must be an int"),
        (
            {"coordinator_address": "::1"},
            ValueError,
            r"must be 'host:port' of the first process, such as .* or '\[::1\]:1234'",
        ),
        (
            {"coordinator_address": "node1:65536"},
            ValueError,
            "must be 'host:port' of the first process",
        ),
        (
            {"heartbeat_timeout_seconds": 3},
            TypeError,
            r"heartbeat_timeout_seconds=...\): the name here is loss_timeout",
        ),
        ({"end_timeout": -1}, ValueError, "end_timeout must be an int, at least 1"),
        (
            {"coordinator_address": 1234},
            TypeError,
            "coordinator_address must be 'host:port' of the first process",
        ),
        (
            {"coordinator_address": "node1", "num_processes": 2, "process_id": 0},
            ValueError,
            r"address='node1'\): coordinator_address must be 'host:port'",
        ),
    ],
)
def test_wrong_arguments_are_named(
    arguments: dict[str, Any], error: type[Exception], words: str
) -> None:
    with unchecked(), pytest.raises(error, match=words):
        bk.connect_processes(**arguments)
