"""`import batchkit` starts no backend and loads few modules.

Each program runs in an interpreter of its own, where nothing has been imported.
"""

import subprocess
import sys

import pytest


LOADS_LITTLE = """
import sys
import batchkit
names = {"blackjax", "scipy", "matplotlib", "arviz", "jax.experimental.topologies"}
loaded = names & sys.modules.keys()
assert not loaded, loaded
"""

# The number of devices is fixed once JAX has looked for them.
NO_BACKEND = """
import batchkit, jax
jax.config.update("jax_num_cpu_devices", 3)
assert len(jax.devices("cpu")) == 3
"""

DISTRIBUTED = """
import socket
import batchkit, jax
with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
jax.distributed.initialize(f"localhost:{port}", num_processes=1, process_id=0)
assert jax.process_count() == 1
jax.distributed.shutdown()
"""

# After a backend has started, a child waits for threads that only its parent has.
FORKED = """
import os, signal, time
import batchkit, jax
child = os.fork()
if child == 0:
    os._exit(int(jax.jit(lambda x: x + 1)(2) != 3))
for _ in range(600):
    done, status = os.waitpid(child, os.WNOHANG)
    if done:
        break
    time.sleep(0.1)
else:
    os.kill(child, signal.SIGKILL)
assert (done, status) == (child, 0), (done, status)
"""


@pytest.mark.parametrize(
    "program",
    [LOADS_LITTLE, NO_BACKEND, DISTRIBUTED, FORKED],
    ids=["loads little", "no backend", "distributed", "forked"],
)
def test_import_starts_nothing(program, monkeypatch):
    # The tests' own host devices would decide how many there are.
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
