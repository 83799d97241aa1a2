"""The table of batchers, exact comparison with an oracle, and readers of programs."""

import contextlib
import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import jax
import jax.extend as jex
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.sharding import Mesh

import batchkit as bk
from batchkit.explain._explain import reached_sites, recording, trace_uncached


# Seven tasks are cut unevenly by every batcher of the table that cuts at all.
TASKS = 7


@functools.cache
def mesh(devices: int) -> Mesh:
    """The first host devices as a mesh with one axis, `tasks`."""
    if len(jax.devices()) < devices:
        pytest.skip(f"needs {devices} devices", allow_module_level=True)
    return Mesh(np.array(jax.devices()[:devices]), ("tasks",))


# Those that run the tasks apart from each other: what `jax.vmap` can do and they cannot
# is refused.
SPLITTING: dict[str, bk.AbstractBatcher] = {
    "Sequential()": bk.Sequential(),
    "Chunked(3)": bk.Chunked(3),
    "Chunked(4, remat)": bk.Chunked(4, remat=True),
    "Continuous(3)": bk.Continuous(3),
}
# On one accelerator all others are tested.
if len(jax.devices()) >= 4:
    SPLITTING["Sharded(4)"] = bk.Sharded(mesh(4))
    SPLITTING["Sharded(3, Chunked(2))"] = bk.Sharded(mesh(3), inner=bk.Chunked(2))


class Batchers(dict[str, bk.AbstractBatcher]):
    """The batchers by name; one that needs more devices than there are skips."""

    def __missing__(self, name: str) -> NoReturn:
        pytest.skip(f"{name} needs 4 devices")


BATCHERS = Batchers(
    {
        "Vmap()": bk.Vmap(),
        "Chunked(100)": bk.Chunked(100),
        "Sharded(1)": bk.Sharded(mesh(1)),
        **SPLITTING,
    }
)

every_batcher = pytest.mark.parametrize("batcher", BATCHERS.values(), ids=BATCHERS)
every_splitting_batcher = pytest.mark.parametrize(
    "batcher", SPLITTING.values(), ids=SPLITTING
)


def start_module(module: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Start a module of the tests in a process of its own, with a folder and options.

    Its errors go to a file: XLA may write more of them than a pipe holds, and the
    process would wait for a reader.
    """
    folder.mkdir(exist_ok=True)
    with (folder / "errors.txt").open("w") as errors:
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", module, folder, json.dumps(options)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )


def errors_of(folder: Path) -> str:
    """The errors that the last process of a folder has written."""
    return (folder / "errors.txt").read_text()


def run_module(module: str, folder: Path, **options: Any) -> str:
    """Run a module to its end, and return its errors."""
    process = start_module(module, folder, **options)
    process.communicate(timeout=300)
    assert process.returncode == 0, errors_of(folder)
    return errors_of(folder)


def same_layout(batcher: bk.AbstractBatcher) -> bool:
    """Whether the batcher runs `TASKS` tasks as `jax.vmap` does."""
    return batcher not in SPLITTING.values()


def is_optimized() -> bool:
    """Return True where XLA optimizes as it does for users: in `make matrix`."""
    # The root conftest.py sets it, as JAX reads it.
    return os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"].lower() in ("0", "false")


def assert_bits(actual: Any, expected: Any) -> None:
    """Assert that two different programs give the same bits where XLA optimizes.

    Without optimization XLA rounds one operation otherwise in each program.
    """
    if is_optimized():
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    else:
        assert_close(actual, expected)


def assert_close(actual: Any, expected: Any) -> None:
    """Assert that two programs in float32 give the same numbers to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    jax.tree.map(close, actual, expected)


def assert_same(actual: Any, expected: Any, ulps: int = 4) -> None:
    """Asserts equal structure, shapes, dtypes and weak types, and values to some ulp.

    Zero `ulps` ask for the same bits.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in pairs:
        _assert_same_leaf(a, e, ulps)


def assert_all_same(
    actual: dict[str, Any], expected: dict[str, Any], ulps: int = 4
) -> None:
    """Asserts `assert_same` for each item, and names the one that differs."""
    assert list(actual) == list(expected)
    for name, value in expected.items():
        try:
            assert_same(actual[name], value, ulps)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def _assert_same_leaf(a: Any, e: Any, ulps: int) -> None:
    if not hasattr(e, "dtype"):
        assert a == e
        return
    assert a.shape == e.shape
    assert a.dtype == e.dtype
    assert getattr(a, "weak_type", False) == getattr(e, "weak_type", False)
    if e.dtype == jax.dtypes.float0:
        return
    if jnp.issubdtype(e.dtype, jax.dtypes.prng_key):
        a, e = jax.random.key_data(a), jax.random.key_data(e)
    if not jnp.issubdtype(e.dtype, jnp.inexact) or ulps == 0:
        np.testing.assert_array_equal(_bits(a), _bits(e))
        return
    rtol = ulps * float(jnp.finfo(e.dtype).eps)
    wide = np.complex128 if jnp.issubdtype(e.dtype, jnp.complexfloating) else np.float64
    np.testing.assert_allclose(
        np.asarray(a).astype(wide), np.asarray(e).astype(wide), rtol=rtol
    )


def _bits(x: Any) -> np.ndarray:
    return np.ascontiguousarray(np.asarray(x)).reshape(-1).view(np.uint8)


def counted(fun: Callable[..., Any]) -> tuple[Callable[..., Any], list[int]]:
    """The function, and a list that grows by one item whenever it is traced."""
    traces: list[int] = []

    @functools.wraps(fun)
    def counting(*args: Any, **kwargs: Any) -> Any:
        traces.append(len(traces))
        return fun(*args, **kwargs)

    return counting, traces


def equations(jaxpr: Any) -> Iterator[Any]:
    """Every equation of a jaxpr, also of those nested in its equations."""
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield eqn
        for leaf in jax.tree.leaves(eqn.params, is_leaf=_is_jaxpr):
            if _is_jaxpr(leaf):
                yield from equations(leaf)


def _is_jaxpr(x: Any) -> bool:
    return isinstance(x, jex.core.Jaxpr | jex.core.ClosedJaxpr)


def primitives(fun: Callable[..., Any], *args: Any) -> list[str]:
    """The name of every primitive in the jaxpr of a function, in order."""
    return [eqn.primitive.name for eqn in equations(jax.make_jaxpr(fun)(*args))]


def outputs_of(fun: Callable[..., Any], primitive: str, *args: Any) -> list[Any]:
    """The shapes that a primitive computes in the jaxpr of a function."""
    return [
        eqn.outvars[0].aval.shape
        for eqn in equations(jax.make_jaxpr(fun)(*args))
        if eqn.primitive.name == primitive
    ]


def temp_bytes(fun: Callable[..., Any], *args: Any) -> int:
    """The bytes of temporary memory of the compiled function on one device."""
    stats = jax.jit(fun).lower(*args).compile().memory_analysis()
    assert stats is not None
    return stats.temp_size_in_bytes


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Without the checks of types that the tests add, to see the package's own."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def assert_refuses(
    make: Callable[[], Any], error: type[Exception], words: tuple[str, ...]
) -> None:
    """Asserts that just this error is raised, with these words in its message."""
    with unchecked(), pytest.raises(error) as info:
        make()
    assert type(info.value) is error
    for word in words:
        assert word in str(info.value)


def explained(fun: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The sites that `explain` lists, without compiling the program for its memory.

    A profiler sees every call; checking the types of each takes longer than all else.
    """
    with unchecked(), recording() as root:
        trace_uncached(fun, args, kwargs)
    return reached_sites(root)


_COLLECTIVE = re.compile(
    r" (all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast"
    r"|reduce-scatter|ragged-all-to-all)(?:-start)?\("
)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*\{$")
_CALLED = re.compile(
    r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def collectives(fun: Callable[..., Any], *args: Any) -> tuple[list[str], list[str]]:
    """The collectives of the compiled program: all of them, and those inside loops."""
    text = jax.jit(fun).lower(*args).compile().as_text()
    assert text is not None
    bodies: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
        if start := _COMPUTATION.match(line):
            name = start.group(1)
            bodies[name] = []
        elif name:
            bodies[name].append(line)
    assert sum(len(lines) for lines in bodies.values()) > 0

    def called(line: str) -> list[str]:
        branches = ",".join(_BRANCHES.findall(line)).replace("%", "").split(",")
        return [*_CALLED.findall(line), *(b.strip() for b in branches if b.strip())]

    lines = [(line, " while(" in line) for body in bodies.values() for line in body]
    todo = [name for line, is_loop in lines if is_loop for name in called(line)]
    looped: set[str] = set()
    while todo:
        name = todo.pop()
        if name not in looped:
            looped.add(name)
            todo += [other for line in bodies[name] for other in called(line)]
    found = [match for line, _ in lines for match in _COLLECTIVE.findall(line)]
    inside = [
        m for n in looped for line in bodies[n] for m in _COLLECTIVE.findall(line)
    ]
    return found, inside


def shard_samples(run: bk.ShardRun) -> Any:
    """The draws of all shards, arrays of shape `(shards, chains, draws, ...)`."""
    return jax.tree.map(lambda *x: np.stack(x), *(each.samples for each in run.shards))
