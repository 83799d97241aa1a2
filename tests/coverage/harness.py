"""Traces, runs and compares the cases' programs, and records the vmaps they reach."""

import dataclasses
import functools
import re
from collections.abc import Callable
from typing import Any, final

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import batchkit as bk

from .cases import Case


Args = tuple[Any, ...]


def trace(
    case: Case, batcher: bk.AbstractBatcher | bk.AbstractPolicy | None
) -> tuple[Any, Args]:
    """The traced program of a case, upstream's without a batcher, and its arguments.

    An eager function comes back as it is.
    """
    api = getattr(blackjax, case.name)
    if batcher is not None:
        api = bk.rebuild_sampler(api, batcher=batcher)
    fun, args = case.program(api)
    return fun if case.eager else jax.jit(fun).trace(*args), args


@functools.cache
def upstream(case: Case) -> tuple[Any, Args]:
    return trace(case, None)


@functools.cache
def expected(case: Case) -> Any:
    """What upstream's program computes."""
    return run(*upstream(case))


# An alias in blackjax is the same program under another name.
_leaves_of: dict[tuple[Any, ...], list[Any]] = {}


def run(program: Any, args: Args) -> Any:
    """What a traced program, or an eager function, computes."""
    if not _is_traced(program):
        return jax.tree.map(jnp.asarray, program(*args))
    key = (*_fingerprint(program), *map(_bits, jax.tree.leaves(args)))
    if key not in _leaves_of:
        _leaves_of[key] = jax.tree.leaves(program.lower().compile()(*args))
    return jax.tree.unflatten(jax.tree.structure(program.out_info), _leaves_of[key])


def same_program(a: Any, b: Any) -> bool:
    """Whether two traced programs are one, so that their results are the same bits."""
    if not _is_traced(a) or not _is_traced(b):
        return False
    return a.out_info == b.out_info and _fingerprint(a) == _fingerprint(b)


def _is_traced(program: Any) -> bool:
    return isinstance(program, jax.stages.Traced)


def _fingerprint(traced: Any) -> tuple[Any, ...]:
    # What a program holds of Python, such as the rules of a derivative, is printed by
    # its address.
    text = re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))
    return text, *map(_bits, traced.jaxpr.consts)


def _bits(x: Any) -> bytes:
    return np.asarray(_plain(x)).tobytes()


def _plain(x: Any) -> Any:
    if jnp.issubdtype(jnp.asarray(x).dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    return x


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Asserts floats to a tolerance, and everything else, keys included, exactly.

    No tolerance asks for the same bits.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = jax.tree.leaves_with_path(expected)
    for a, (path, e) in zip(jax.tree.leaves(actual), leaves, strict=True):
        where = jax.tree_util.keystr(path)
        assert (a.shape, a.dtype) == (e.shape, e.dtype), where
        if tolerance and jnp.issubdtype(e.dtype, jnp.inexact):
            np.testing.assert_allclose(
                a, e, rtol=tolerance, atol=tolerance, err_msg=where
            )
        else:
            assert _bits(a) == _bits(e), where


def difference(actual: Any, expected: Any) -> float:
    """The largest difference of two floats, relative where they are large."""

    def of_leaf(a: Any, e: Any) -> float:
        if not jnp.issubdtype(e.dtype, jnp.inexact):
            return 0.0
        a, e = np.asarray(a), np.asarray(e)
        finite = np.isfinite(a) & np.isfinite(e)
        a, e = a[finite], e[finite]
        return float(np.max(np.abs(a - e) / (1 + np.abs(e)), initial=0.0))

    return max(jax.tree.leaves(jax.tree.map(of_leaf, actual, expected)), default=0.0)


@final
class _Recorded(bk.AbstractPolicy):
    """`Vmap()` for every site, each of which is recorded when it is reached."""

    record: Callable[[bk.Site], None] = eqx.field(static=True)

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        self.record(dataclasses.replace(site, phase=None))
        return bk.Vmap()


@functools.cache
def recorded(case: Case) -> tuple[Any, Args, set[bk.Site]]:
    """The program under `Vmap()`, its arguments, and every vmap that it calls.

    An eager function is run to find them, and its results are the program.
    """
    found: set[bk.Site] = set()
    program, args = trace(case, _Recorded(found.add))
    if case.eager:
        results = run(program, args)
        return (lambda *_: results), args, found
    return program, args, found
