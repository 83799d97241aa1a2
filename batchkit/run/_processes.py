"""A run in several processes: the first one decides, reads, writes and logs.

Every process runs the same loop on the host, and must do the same next, or they wait
for each other for ever. So what does not follow from the state of the run, that is the
clock and the disk, is read by the first process and sent to the others; a signal counts
in whichever process it arrives. What the first process raises is raised in all. With
one process there is no communication.

A process that is lost ends the others, see `batchkit.hosts`.
"""

import json
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from .._util._multihost import (
    MAX_MESSAGE,
    allgather_bytes,
    allgather_numbers,
    broadcast_bytes,
    check_agreement,
    is_first_process as is_first_process,
    is_multiprocess as is_multiprocess,
)
from ._checkpoint import CheckpointError
from ._packages import versions, versions_in_words


@final
class SafeLog(logging.LoggerAdapter[logging.Logger]):
    """A log of the first process that does not raise because `sys.stderr` is closed.

    Warnings go there by default. `logging` catches errors of its handlers and reports
    them on `sys.stderr`, which then raises once more.
    """

    def isEnabledFor(self, level: int) -> bool:
        return super().isEnabledFor(level) and is_first_process()

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        kwargs["stacklevel"] = kwargs.get("stacklevel", 1) + 1
        try:
            super().log(level, msg, *args, **kwargs)
        except ValueError:
            if sys.stderr is None or not sys.stderr.closed:
                raise


log: Final = SafeLog(logging.getLogger("batchkit"), {})


def check_same_versions(caller: str) -> None:
    """Raise `RuntimeError` unless all processes have the same packages and Python."""
    found = versions()
    words = versions_in_words(found, [name for name in found if name != "platform"])

    def error(differing: str) -> Exception:
        return RuntimeError(
            f"{caller}: {jax.process_count()} processes take part in one program, and "
            f"their versions differ: {differing}. Install the same in each of them."
        )

    check_agreement(f"has {words}", error, caller)


def check_same_arguments(
    caller: str, digests: Mapping[str, str], **options: Any
) -> None:
    """Raise `ValueError` unless all processes passed the same arguments.

    `digests` has a digest of each argument by its name in words; `options` are compared
    by their text, as is JAX's precision.
    """
    if not is_multiprocess():
        return
    check_same_versions(caller)
    parts = {name: str(value) for name, value in options.items()}
    parts |= {**digests, "precision": str(jnp.zeros(()).dtype)}
    every = [json.loads(x) for x in allgather_bytes(json.dumps(parts).encode())]
    names = dict.fromkeys([*parts, *(name for each in every for name in each)])
    differ = [x for x in names if len({each.get(x) for each in every}) > 1]
    if differ:
        raise ValueError(
            f"{caller}: {len(every)} processes take part in one run, and do not agree "
            f"on its {', '.join(differ)}. Call it with the same arguments in each of "
            "them, made from the same keys. For runs of their own leave out "
            "`connect_processes`."
        )


def run_in_first_process(make: Callable[[], Any]) -> Any:
    """Return what a function returns, or raises, in the first process: a JSON value."""
    return json.loads(bytes_of_first_process(lambda: json.dumps(make()).encode()))


def bytes_of_first_process(make: Callable[[], bytes]) -> bytes:
    """Call a function in the first process, and return its bytes in all processes."""
    if not is_multiprocess():
        return make()
    data, error = b"", None
    if is_first_process():
        try:
            data = make()
        except Exception as raised:
            error = raised
            parts: dict[str, Any] = {"type": type(error).__name__, "text": str(error)}
            if isinstance(error, CheckpointError):
                parts["args"] = error.reason, error.remedy, error.damaged
            data = json.dumps(parts).encode()
    size, failed = map(int, allgather_numbers(len(data), error is not None)[0])
    # The others pass as many bytes of their own, which nothing reads.
    message = data if is_first_process() else b"\0" * size
    received = b"".join(
        broadcast_bytes(message[start : start + MAX_MESSAGE], is_first_process())
        for start in range(0, size, MAX_MESSAGE)
    )
    if error is not None:
        raise error
    if failed:
        parts = json.loads(received)
        if "args" in parts:
            raise CheckpointError(*parts["args"])
        raise RuntimeError(f"process 0 raised {parts['type']}: {parts['text']}")
    return data if is_first_process() else received


def gather_to_host(tree: PyTree) -> PyTree:
    """Replace arrays that span processes by the whole arrays, in every process."""

    def whole(x: Any) -> Any:
        if not _spans_processes(x):
            return x
        if x.is_fully_replicated:
            return x.addressable_data(0)
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = whole(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        return multihost_utils.process_allgather(x, tiled=True)

    return jax.tree.map(whole, tree)


def put(x: Any, sharding: Any) -> Any:
    """Put an array, equal in every process, where a program reads it, if it does."""
    if sharding is None:
        return x
    if _spans_processes(x):
        if x.sharding.is_equivalent_to(sharding, x.ndim):
            return x
        x = gather_to_host(x)
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = jnp.asarray(x)
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        data = put(jax.random.key_data(x), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
    # `jax.device_put` would compare the values in all processes first.
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda i: host[i])


def _spans_processes(x: Any) -> bool:
    return isinstance(x, jax.Array) and not x.is_fully_addressable
