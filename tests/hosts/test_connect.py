"""Processes that have nobody to connect to, and arguments that cannot be right."""

import os
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
refused(ValueError, "process_id=2, num_processes=2", "127.0.0.1:1", 2, 2)

bk.connect_processes()
import jax
assert jax.process_count() == 1
assert not jax.distributed.is_initialized()
import blackjax
refused(RuntimeError, "before anything is computed", "127.0.0.1:1", 2, 0)
"""


def test_process_without_a_cluster_is_alone() -> None:
    # What JAX would take for a cluster, where the tests run in one.
    cluster = ("SLURM_", "OMPI_", "PMI_", "JAX_COORDINATOR", "KUBERNETES_")
    env = {k: v for k, v in os.environ.items() if not k.startswith(cluster)}
    ended = subprocess.run(
        [sys.executable, "-c", ALONE],
        env={**env, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert ended.returncode == 0, ended.stderr
    assert "no cluster was found; this process is alone" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"start_timeout": 0}, ValueError, "start_timeout must be an int, at least 1"),
        ({"loss_timeout": 0.5}, TypeError, "loss_timeout must be an int, at least 1"),
        ({"loss_timeout": True}, TypeError, "loss_timeout must be an int"),
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
