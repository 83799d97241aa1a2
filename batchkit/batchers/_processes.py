"""What several processes of one program tell each other.

With `jax.distributed` every process runs the same Python, and its devices compute parts
of the same programs. JAX trusts that they do: where one process has other shapes than
another, their programs wait for each other for ever, or mix up their numbers. So they
compare what they are about to run, where that is decided. All of it goes through JAX's
own collectives, and with one process nothing happens at all.
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


# Seconds that a process waits for the others to come to the same place. They may still
# be loading their data.
PATIENCE: Final = 300.0
# Bytes that are told at a time: JAX holds them on every device.
PIECE: Final = 2**26

_ALONE: ContextVar[bool] = ContextVar("alone", default=False)


def several() -> bool:
    """Whether the program runs in several processes."""
    return jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that speaks and writes for all."""
    return jax.process_index() == 0


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """In the body nothing is run, and this may be the only process that is there."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def spans_all(mesh: Mesh | AbstractMesh) -> bool:
    """Whether a mesh has devices of every process, and there are several."""
    if not several():
        return False
    if isinstance(mesh, AbstractMesh):  # set by jax.set_mesh: it knows no devices
        return mesh.size == jax.device_count()
    found = {device.process_index for device in mesh.devices.flat}
    return len(found) == jax.process_count()


def gathered(data: bytes) -> list[bytes]:
    """Bytes of every process, in the order of the processes, in all of them."""
    if not several():
        return [data]
    sizes = _gathered(np.array([len(data)], np.uint32).view(np.uint8))
    longest = max(int(row.view(np.uint32)[0]) for row in sizes)
    padded = np.frombuffer(data.ljust(longest, b"\0"), np.uint8)
    rows = _gathered(padded) if longest else [padded] * len(sizes)
    return [
        row.tobytes()[: int(size.view(np.uint32)[0])]
        for row, size in zip(rows, sizes, strict=True)
    ]


def numbers_of_all(*numbers: int | float) -> np.ndarray:
    """As many numbers of every process, one row for each, exactly."""
    row = np.array(numbers, np.float64)
    if not several():
        return row[None]
    # As bytes: JAX would round them to the precision that it is set to.
    return np.stack([each.view(np.float64) for each in _gathered(row.view(np.uint8))])


def bytes_of_parts(x: jax.Array) -> Iterator[bytes]:
    """The bytes of an array of which every process holds a part, in all of them.

    They come in pieces, since no process may have room for all. Together they are
    those of the whole array, unless it is cut along other axes than the first.
    """
    owners: dict[tuple[int, ...], int] = {}
    for device, index in x.sharding.devices_indices_map(x.shape).items():
        corner, owner = _corner(index), device.process_index or 0
        owners[corner] = min(owner, owners.get(corner, owner))
    mine = {_corner(part.index): part.data for part in x.addressable_shards}
    size = math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for corner, owner in sorted(owners.items()):
        is_mine = owner == jax.process_index()
        data = np.asarray(mine[corner]).tobytes() if is_mine else b"\0" * size
        for start in range(0, size, PIECE):
            yield from_one(data[start : start + PIECE], is_mine)


def _corner(index: tuple[slice, ...]) -> tuple[int, ...]:
    return tuple(each.start or 0 for each in index)


def from_one(data: bytes, is_mine: bool) -> bytes:
    """The bytes of one process in all of them; the others give as many."""
    piece = np.frombuffer(data, np.uint8)
    told = multihost_utils.broadcast_one_to_all(piece, is_source=is_mine)
    return np.asarray(told).tobytes()


def check_agreement(
    said: str, error: Callable[[str], Exception], where: str = ""
) -> None:
    """Raises in every process unless all of them say the same.

    **Arguments:**

    - `said`: what must be the same, in words.
    - `error`: makes the exception, from what each process said.
    - `where`: what is being done, for the message if the others never come here.
    """
    if not several() or _ALONE.get():
        return
    digest = np.frombuffer(hashlib.sha256(said.encode()).digest(), np.uint8)
    rows = _patiently(lambda: _gathered(digest), where)
    if all(np.array_equal(row, rows[0]) for row in rows):
        return
    texts = _patiently(lambda: gathered(said.encode()), where)
    raise error(_told(texts))


def _told(texts: list[bytes]) -> str:
    """Who says what, with those together that say the same."""
    by_text: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        by_text.setdefault(text.decode(), []).append(i)
    return "; ".join(
        f"process{'es' if len(who) > 1 else ''} {_ranges(who)} {text}"
        for text, who in by_text.items()
    )


def _ranges(numbers: list[int]) -> str:
    if len(numbers) > 4:
        return f"{numbers[0]}, {numbers[1]}, ..., {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _gathered(row: np.ndarray) -> list[np.ndarray]:
    """Bytes of every process, as many in each."""
    rows = np.asarray(multihost_utils.process_allgather(row))
    return [np.ascontiguousarray(each) for each in rows]


def _patiently(ask: Callable[[], Any], where: str) -> Any:
    """What asking the others gives, also in the middle of a trace.

    **Raises:**

    `RuntimeError` if the others do not come.
    """
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(ask())
        except BaseException as error:  # raised where it was asked for
            answer.set_exception(error)

    # A thread of its own has no trace around it, and can be given up.
    threading.Thread(target=run, daemon=True).start()
    try:
        return answer.result(PATIENCE)
    except TimeoutError:
        if answer.done():
            raise
        raise RuntimeError(
            f"{where}: process {jax.process_index()} of {jax.process_count()} has "
            f"waited {PATIENCE:.0f} s for the others to come to the same place. Every "
            "process has to trace and run the same programs, in the same order; to "
            "look at one in a single process use a mesh of its own devices."
        ) from None
