"""A run in several processes: the first one decides, reads, writes and speaks.

Every process runs the same loop on the host, and what it does next must be the same in
all of them, or they wait for each other for ever. So whatever is not computed from the
state of the run, that is the clock, the signals and the disk, is looked at by the first
process and told to the others; only a signal counts wherever it arrives. What goes
wrong in the first process alone is raised in all. With one process nothing is asked and
nothing is told.

A process that is killed ends the others: their next collective fails, or JAX ends them
when its heartbeat is missing (`heartbeat_timeout_seconds` of
`jax.distributed.initialize`).
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .._util._multihost import (
    MAX_MESSAGE as PIECE,
    allgather_bytes as gathered,
    allgather_numbers as numbers_of_all,
    broadcast_bytes as from_one,
    is_first_process as is_first,
    is_multiprocess as several,
)
from ._checkpoint import CheckpointError
from ._safe_log import SafeLog


_SILENT: Final = logging.Logger("batchkit.silent")
_SILENT.disabled = True


def speaker(log: logging.Logger) -> SafeLog:
    """The log in the first process, and one that says nothing in the others."""
    return SafeLog(log if is_first() else _SILENT, {})


def first_says(*numbers: int | float) -> tuple[float, ...]:
    """The numbers of the first process, exactly."""
    return tuple(map(float, numbers_of_all(*numbers)[0]))


def first_and_largest(
    first: tuple[int | float, ...], any_: int | float
) -> tuple[float, ...]:
    """Some numbers of the first process, and the largest one of all processes."""
    rows = numbers_of_all(*first, any_)
    return (*map(float, rows[0, :-1]), float(rows[:, -1].max()))


def summed(number: int) -> int:
    """The sum of a number over all processes."""
    return int(numbers_of_all(number).sum())


def check_same(caller: str, digests: Mapping[str, str], **options: Any) -> None:
    """Raises unless all processes were called with the same.

    **Arguments:**

    - `caller`: the function that they called.
    - `digests`: a digest of each thing by its name in words.
    - `options`: values that are compared by their text, as is JAX's precision.

    **Raises:**

    `ValueError` in every process, which names what differs.
    """
    if not several():
        return
    parts = {name: str(value) for name, value in options.items()}
    parts |= {**digests, "precision": str(jnp.zeros(()).dtype)}
    every = [json.loads(x) for x in gathered(json.dumps(parts).encode())]
    names = [*parts, *(x for each in every for x in each if x not in parts)]
    differ = [
        name
        for name in dict.fromkeys(names)
        if any(each.get(name) != every[0].get(name) for each in every)
    ]
    if differ:
        raise ValueError(
            f"{caller}: {len(every)} processes take part in one run, and do not agree "
            f"on its {', '.join(differ)}. Call it with the same arguments in each of "
            "them, made from the same keys. For runs of their own do not connect the "
            "processes: leave out `jax.distributed.initialize`."
        )


def in_first(make: Callable[[], Any]) -> Any:
    """Runs a function in the first process, and tells the others what it returns.

    **Arguments:**

    - `make`: returns something that JSON has, or None.

    **Raises:**

    In every process what it raises in the first one.
    """
    data = bytes_from_first(lambda: json.dumps(make()).encode())
    return json.loads(data)


def bytes_from_first(make: Callable[[], bytes]) -> bytes:
    """The same for bytes of any number, which the others get in pieces."""
    if not several():
        return make()
    data, error = b"", None
    if is_first():
        try:
            data = make()
        except Exception as raised:
            error, data = raised, _as_bytes(raised)
    size, failed = map(int, first_says(len(data), error is not None))
    if not is_first():
        data = b"\0" * size
    pieces = [
        from_one(data[start : start + PIECE], is_first())
        for start in range(0, size, PIECE)
    ]
    if error is not None:
        raise error
    if failed:
        raise _from_bytes(b"".join(pieces))
    return data if is_first() else b"".join(pieces)


def raised_by_first(error: Exception | None) -> NoReturn:
    """Raises in every process what the first one has caught."""

    def again() -> bytes:
        assert error is not None
        raise error

    bytes_from_first(again)
    raise AssertionError


def on_host(tree: PyTree) -> PyTree:
    """Arrays of which other processes hold a part, as whole arrays in every process.

    Keys stay keys, and arrays that this process has stay as they are.
    """
    leaves, treedef = jax.tree.flatten(tree)
    places = [i for i, x in enumerate(leaves) if _is_elsewhere(x)]
    for i in places:
        if not leaves[i].is_fully_replicated:
            leaves[i] = _replicated(leaves[i])
        leaves[i] = leaves[i].addressable_data(0)
    return jax.tree.unflatten(treedef, leaves)


def put(x: Any, sharding: Any) -> Any:
    """An array where a program wants it; every process gives the same one.

    Where it does not read the array, and has no place for it, the array stays.
    """
    if sharding is None:
        return x
    if _is_elsewhere(x):
        if x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        x = on_host(x)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    # `jax.device_put` would compare the values in all processes first.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def spans_processes(compiled: Any) -> bool:
    """Whether a compiled program runs on devices of several processes."""
    shardings = jax.tree.leaves((compiled.input_shardings, compiled.output_shardings))
    return not all(x.is_fully_addressable for x in shardings)


@contextlib.contextmanager
def explaining_loss(caller: str, path: str | None) -> Iterator[None]:
    """Adds what to do to an error of JAX's that the loss of a process may be behind.

    **Arguments:**

    - `caller`: the function that the user called.
    - `path`: where the run is saved, or None.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if several():
            goes_on = "" if path is None else f": the run goes on from {path!r}"
            error.add_note(
                f"{caller}: if another of the {jax.process_count()} processes has "
                f"ended, this is why. Start all of them again{goes_on}."
            )
        raise


def _is_elsewhere(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable


def _replicated(x: jax.Array) -> jax.Array:
    if isinstance(x.sharding, NamedSharding):
        mesh = x.sharding.mesh
    else:
        # What a compiled program returns may know devices, in their order, and no mesh.
        devices = x.sharding.devices_indices_map(x.shape)
        mesh = Mesh(np.array(list(devices)), ("devices",))
    whole = NamedSharding(mesh, PartitionSpec())
    return jax.jit(_as_it_is, out_shardings=whole)(x)


def _as_it_is(x: jax.Array) -> jax.Array:
    # One function, so that JAX traces and compiles it once for arrays of a kind.
    return x


def _as_bytes(error: Exception) -> bytes:
    parts = {"type": type(error).__name__, "text": str(error)}
    if isinstance(error, CheckpointError):
        parts |= {"reason": error.reason, "remedy": error.remedy}
        parts["damaged"] = "yes" if error.damaged else ""
    return json.dumps(parts).encode()


def _from_bytes(data: bytes) -> Exception:
    parts = json.loads(data)
    if parts["type"] == CheckpointError.__name__:
        damaged = bool(parts["damaged"])
        return CheckpointError(parts["reason"], parts["remedy"], damaged)
    return RuntimeError(f"process 0 raised {parts['type']}: {parts['text']}")
