"""Communication between the host processes of a `jax.distributed` program.

Every process runs the same Python, and its devices compute parts of the same programs.
JAX does not check this: if shapes differ between processes, their programs deadlock or
mix up their numbers. So processes compare what they are about to run, before they run
it. All communication uses JAX's own collectives; with one process there is none.
"""

import contextlib
import hashlib
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import ContextVar
from typing import Any, Final

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh


# Seconds to wait until the other processes reach the same point. They may still be
# loading their data.
TIMEOUT: Final = 300.0
# Bytes sent at a time, since JAX allocates them on every device.
MAX_MESSAGE: Final = 2**26

_SINGLE_PROCESS: ContextVar[bool] = ContextVar("single_process", default=False)


def is_multiprocess() -> bool:
    """Return True if the program runs in more than one process."""
    return jax.process_count() > 1


def is_first_process() -> bool:
    """Return True in the process that logs and writes files for all."""
    return jax.process_index() == 0


@contextlib.contextmanager
def single_process() -> Iterator[None]:
    """Skip `check_agreement` in the body, which traces only and runs nothing.

    A user may inspect a program in one process while the others do something else.
    """
    token = _SINGLE_PROCESS.set(True)
    try:
        yield
    finally:
        _SINGLE_PROCESS.reset(token)


def spans_all_processes(mesh: Mesh | AbstractMesh) -> bool:
    """Return True if there are several processes and a mesh has devices of each."""
    if not is_multiprocess():
        return False
    if isinstance(mesh, AbstractMesh):  # set by jax.set_mesh, without devices
        return mesh.size == jax.device_count()
    found = {device.process_index for device in mesh.devices.flat}
    return len(found) == jax.process_count()


def allgather_bytes(data: bytes) -> list[bytes]:
    """Gather bytes of any length from every process, in the order of the processes."""
    if not is_multiprocess():
        return [data]
    sizes = _allgather_row(np.array([len(data)], np.uint32).view(np.uint8))
    longest = max(int(row.view(np.uint32)[0]) for row in sizes)
    padded = np.frombuffer(data.ljust(longest, b"\0"), np.uint8)
    rows = _allgather_row(padded) if longest else [padded] * len(sizes)
    return [
        row.tobytes()[: int(size.view(np.uint32)[0])]
        for row, size in zip(rows, sizes, strict=True)
    ]


def allgather_numbers(*numbers: int | float) -> np.ndarray:
    """Gather numbers exactly: one row for each process, in float64."""
    row = np.array(numbers, np.float64)
    if not is_multiprocess():
        return row[None]
    # As bytes, since JAX rounds float64 to float32 unless x64 is enabled.
    rows = _allgather_row(row.view(np.uint8))
    return np.stack([each.view(np.float64) for each in rows])


def global_array_bytes(x: jax.Array) -> Iterator[bytes]:
    """Iterate in every process over the bytes of an array that spans processes.

    They come in messages of limited size, since no process may have room for all.
    Joined they are the bytes of the array if it is sharded along its first axis only.
    """
    owners: dict[tuple[int, ...], int] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        corner, owner = _corner(index), device.process_index or 0
        owners[corner] = min(owner, owners.get(corner, owner))
    local = {_corner(part.index): part.data for part in x.addressable_shards}
    size = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for corner, owner in sorted(owners.items()):
        is_owner = owner == jax.process_index()
        data = np.asarray(local[corner]).tobytes() if is_owner else b"\0" * size
        for start in range(0, size, MAX_MESSAGE):
            yield broadcast_bytes(data[start : start + MAX_MESSAGE], is_owner)


def _corner(index: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(each.start or 0 for each in index)


def broadcast_bytes(data: bytes, is_source: bool) -> bytes:
    """Send the bytes of one process to all; the others pass as many of their own."""
    message = np.frombuffer(data, np.uint8)
    received = multihost_utils.broadcast_one_to_all(message, is_source=is_source)
    return np.asarray(received).tobytes()


def check_agreement(
    description: str, error: Callable[[str], Exception], where: str = ""
) -> None:
    """Raise in every process unless all of them pass the same description.

    `error` makes the exception from a list of the differing descriptions, and `where`
    names the operation in the message after a timeout.
    """
    if not is_multiprocess() or _SINGLE_PROCESS.get():
        return
    data = description.encode()
    digest = np.frombuffer(hashlib.sha256(data).digest(), np.uint8)
    rows = _with_timeout(lambda: _allgather_row(digest), where)
    if all(np.array_equal(row, rows[0]) for row in rows):
        return
    texts = _with_timeout(lambda: allgather_bytes(data), where)
    raise error(_list_by_process(texts))


def _list_by_process(texts: list[bytes]) -> str:
    """List the texts, each after the numbers of the processes that sent it."""
    by_text: dict[str, list[str]] = {}
    for i, text in enumerate(texts):
        by_text.setdefault(text.decode(), []).append(str(i))
    parts: list[str] = []
    for text, numbers in by_text.items():
        if len(numbers) > 4:
            numbers = [*numbers[:2], "...", numbers[-1]]
        plural = "es" if len(numbers) > 1 else ""
        parts.append(f"process{plural} {', '.join(numbers)} {text}")
    return "; ".join(parts)


def _allgather_row(row: np.ndarray) -> list[np.ndarray]:
    """Gather a row of bytes from every process, of the same length in each."""
    rows = np.asarray(multihost_utils.process_allgather(row))
    return [np.ascontiguousarray(each) for each in rows]


def _with_timeout(collective: Callable[[], Any], where: str) -> Any:
    """Run a collective, also in the middle of a trace, for at most `TIMEOUT`."""
    result: Future[Any] = Future()

    def run() -> None:
        try:
            result.set_result(collective())
        except BaseException as error:  # raised again in the calling thread
            result.set_exception(error)

    # JAX's trace is local to a thread: in a new thread the collective runs although
    # the caller is being traced. A daemon thread can also be abandoned.
    threading.Thread(target=run, daemon=True).start()
    try:
        return result.result(TIMEOUT)
    except TimeoutError:
        if result.done():  # raised by the collective itself
            raise
        raise RuntimeError(
            f"{where}: process {jax.process_index()} of {jax.process_count()} waited "
            f"{TIMEOUT:.0f} s for the others to reach the same point. Every process "
            "must trace and run the same programs, in the same order; to inspect a "
            "program in a single process use a mesh of its own devices."
        ) from None
