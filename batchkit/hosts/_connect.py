"""Connecting the processes of one program, with stated time-outs."""

import contextlib
import errno
import logging
import os
import re
import socket
from collections.abc import Mapping
from typing import Any, Final

import jax

from .._util._checks import check_number, check_type
from .._util._multihost import is_multiprocess
from ..run._processes import check_same_versions
from ._loss import explaining_loss, uninstall


_LOG: Final = logging.getLogger("batchkit")
# From the errors of `jax.distributed.initialize` that users need not understand.
_NOT_FOUND: Final = ("should be defined", "must be defined")
_TOO_LATE: Final = "before any JAX"
_PORT_IN_USE: Final = "Failed to start RPC server"
# Variables that say that there are other processes.
_OTHERS: Final = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "JAX_COORDINATOR_ADDRESS")
# Arguments of JAX that have another name here.
_RENAMED: Final = {
    "initialization_timeout": "start_timeout",
    "heartbeat_timeout_seconds": "loss_timeout",
    "shutdown_timeout_seconds": "end_timeout",
}


def connect_processes(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    start_timeout: int = 300,
    loss_timeout: int = 60,
    end_timeout: int = 3600,
    **options: Any,
) -> None:
    """Connect the processes of a program, on one host or on many.

    Every process calls it after `import batchkit` and before anything is computed,
    which `import blackjax` does. It calls `jax.distributed.initialize` with time-outs
    after which a lost process ends the others, and checks that the processes reach each
    other and have the same versions. Without arguments, where JAX finds no cluster, it
    does nothing, so the same program runs on a laptop.

    If a process is lost, each of the others ends with an error that says what to do,
    about `loss_timeout` seconds later at the most. A network that is back before that
    is waited for. JAX's preemption service is switched off, since it keeps SIGTERM from
    ending a process; a run that is saved handles the signal itself.

    ```python
    import batchkit as bk


    def main() -> None:
        bk.connect_processes(loss_timeout=30)
        import blackjax  # not before

        ...
    ```

    **Arguments:**

    - `coordinator_address`: `"host:port"` of the first process, with any free port. The
        default is what JAX finds under SLURM, Open MPI, Kubernetes and on Cloud TPUs.
    - `num_processes`: the number of processes, found likewise by default.
    - `process_id`: the number of this process, from 0 on, found likewise by default.
    - `start_timeout`: seconds to wait for the other processes to start; 300 by
        default.
    - `loss_timeout`: seconds without a sign of life after which a process counts as
        lost; 60 by default.
    - `end_timeout`: seconds for which a process that has ended waits for the others,
        such as a first one that draws figures; 3,600 by default.
    - `**options`: other arguments of `jax.distributed.initialize`, such as
        `local_device_ids`.

    **Raises:**

    `TypeError` and `ValueError` for arguments that cannot be right. `RuntimeError` if
    the processes are connected already, if JAX computed something before, if the port
    is in use, if not all processes start in time, if they cannot reach each other, and
    if their versions differ.
    """
    _check_arguments(coordinator_address, options)
    for name, seconds in (
        ("start_timeout", start_timeout),
        ("loss_timeout", loss_timeout),
        ("end_timeout", end_timeout),
    ):
        check_number("connect_processes", name, seconds, "in seconds")
    if jax.distributed.is_initialized():
        raise RuntimeError(
            "connect_processes: the processes are connected already. Call it once, and "
            "do not call `jax.distributed.initialize` besides."
        )
    if process_id == 0 and "coordinator_bind_address" not in options:
        _check_port(coordinator_address)
    late = (
        f"connect_processes: the processes did not meet within {start_timeout} s. "
        "Start every process, give all of them the address of the first one and their "
        "number, each a number of its own, and a longer start_timeout if they start "
        "late."
    )
    # This service of JAX catches SIGTERM in C++ and lets the process go on, which could
    # not be ended before its run begins. Runs handle the signal themselves.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        with explaining_loss(late):
            jax.distributed.initialize(
                coordinator_address,
                num_processes,
                process_id,
                initialization_timeout=start_timeout,
                heartbeat_timeout_seconds=loss_timeout,
                shutdown_timeout_seconds=end_timeout,
                **options,
            )
    except ValueError as error:
        uninstall()
        if not any(words in str(error) for words in _NOT_FOUND):
            raise
        _check_alone(coordinator_address, num_processes, process_id)
        return
    except RuntimeError as error:
        uninstall()
        raise _explained(error, coordinator_address) from error
    if not is_multiprocess():
        uninstall()
        return
    unreachable = (
        "connect_processes: the processes reach the first one, but not each other. "
        f"{_own_address()}"
    )
    with explaining_loss(unreachable):
        check_same_versions("connect_processes")


def _check_arguments(address: object, options: Mapping[str, object]) -> None:
    owner, name = "connect_processes", "coordinator_address"
    for given in _RENAMED.keys() & options.keys():
        raise TypeError(f"{owner}({given}=...): the name here is {_RENAMED[given]}.")
    if address is None:
        return
    rule = "'host:port' of the first process, such as '10.0.0.1:1234' or '[::1]:1234'"
    check_type(isinstance(address, str), owner, name, address, rule)
    found = re.fullmatch(r"(\[.+\]|[^:\s]+):(\d+)", str(address))
    if found is None or not 0 < int(found[2]) < 2**16:
        raise ValueError(f"{owner}({name}={address!r}): {name} must be {rule}.")


def _check_alone(*given: object) -> None:
    """Raise unless this is the only process, where JAX has found no others."""
    names = "coordinator_address", "num_processes", "process_id"
    found = ", ".join(f"{x}={y!r}" for x, y in zip(names, given, strict=True))
    found = f"connect_processes({found})"
    others = [x for x in _OTHERS if os.environ.get(x, "1") != "1"]
    if others:
        found = f"{found} with {others[0]}={os.environ[others[0]]}"
    elif given == (None, None, None):
        _LOG.info("connect_processes: no cluster was found; this process is alone")
        return
    raise ValueError(
        f"{found}: JAX found no cluster. Pass all three arguments, or "
        "cluster_detection_method='mpi4py', or start one process without any."
    )


def _explained(error: RuntimeError, address: str | None) -> RuntimeError:
    """Return the error to raise for one of `jax.distributed.initialize`."""
    if _TOO_LATE in str(error):
        return RuntimeError(
            "connect_processes must be called before anything is computed with JAX. "
            "`import blackjax` computes: import it afterwards."
        )
    if _PORT_IN_USE in str(error):
        return _port_in_use(address)
    return RuntimeError(f"connect_processes: {error}")


def _check_port(address: str | None) -> None:
    """Raise if the port of the first process is in use, where JAX may crash."""
    if address is None:
        return
    with socket.socket(socket.AF_INET) as probe:
        # Connections of a program that has just ended do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", int(address.rsplit(":", 1)[1])))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise _port_in_use(address) from error


def _port_in_use(address: str | None) -> RuntimeError:
    where = "" if address is None else f" of {address}"
    return RuntimeError(
        f"connect_processes: the port{where} is in use on this host, the first one. "
        "Choose another one, the same in all processes."
    )


def _own_address() -> str:
    """Describe the address that this host has for others, which gloo offers them."""
    name, address = socket.gethostname(), "no address"
    with contextlib.suppress(OSError):
        address = socket.gethostbyname(name)
    return (
        "On CPUs each offers the address of its host's name, which here is that of "
        f"{name!r}: {address}. Where others cannot reach it, on this host or on "
        "another, write the right address into its /etc/hosts."
    )
