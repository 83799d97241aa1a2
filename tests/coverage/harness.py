"""Traces, runs and compares the cases' programs, and records the vmaps they reach."""

import functools
import re
import sys
from collections.abc import Callable
from typing import Any, final

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import batchkit as bk
from batchkit.batchers._call import Call

from .cases import Case


def trace(case: Case, batcher: bk.AbstractBatcher | None) -> tuple[Any, tuple[Any, ...]]:
    """The traced program of a case, upstream's without a batcher, and its arguments."""
    api = getattr(blackjax, case.name)
    if batcher is not None:
        api = bk.rebuild_sampler(api, batcher=batcher)
    fun, args = case.program(api)
    return fun if case.eager else jax.jit(fun).trace(*args), args


@functools.cache
def upstream(case: Case) -> tuple[Any, tuple[Any, ...]]:
    return trace(case, None)


@functools.cache
def expected(case: Case) -> Any:
    """What upstream's program computes."""
    return run(*upstream(case))


def run(program: Any, args: tuple[Any, ...]) -> Any:
    """What a traced program, or an eager function, computes."""
    if isinstance(program, jax.stages.Traced):
        program = program.lower().compile()
    return jax.tree.map(jnp.asarray, program(*args))


def same_program(a: Any, b: Any) -> bool:
    """Whether two traced programs are one, so that their results are the same bits."""
    if not isinstance(a, jax.stages.Traced):
        return False
    if _text(a) != _text(b) or a.out_info != b.out_info:
        return False
    pairs = zip(a.jaxpr.consts, b.jaxpr.consts, strict=True)
    return all(_bits(x) == _bits(y) for x, y in pairs)


def _text(traced: Any) -> str:
    # What a program holds of Python, such as the rules of a derivative, is printed by
    # its address.
    return re.sub(r"0x[0-9a-f]+", "", str(traced.jaxpr))


def _bits(x: Any) -> bytes:
    return np.asarray(_plain(x)).tobytes()


def _plain(x: Any) -> Any:
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(x)
    return x


def assert_close(actual: Any, expected: Any, tolerance: float) -> None:
    """Asserts floats to a tolerance, and everything else, keys included, exactly."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    leaves = jax.tree.leaves_with_path(expected)
    for a, (path, e) in zip(jax.tree.leaves(actual), leaves, strict=True):
        assert (a.shape, a.dtype) == (e.shape, e.dtype), jax.tree_util.keystr(path)
        a, e = np.asarray(_plain(a)), np.asarray(_plain(e))
        where = jax.tree_util.keystr(path)
        if tolerance and np.issubdtype(e.dtype, np.inexact):
            np.testing.assert_allclose(
                a, e, rtol=tolerance, atol=tolerance, err_msg=where
            )
        else:
            np.testing.assert_array_equal(a, e, err_msg=where)


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
class _Recorder(bk.AbstractBatcher):
    """Does what `Vmap()` does, and tells from where it was called."""

    record: Callable[[str, str, int], None] = eqx.field(static=True)

    def batch(self, call: Call) -> Any:
        return call.vmap()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        frame = sys._getframe(1)
        while not frame.f_globals["__name__"].startswith("blackjax"):
            assert frame.f_back is not None
            frame = frame.f_back
        code = frame.f_code
        self.record(frame.f_globals["__name__"], code.co_qualname, frame.f_lineno)
        return super().__call__(*args, **kwargs)


def reached(case: Case) -> set[tuple[str, str, int]]:
    """Module, qualified name and line of every vmap that a case's program calls."""
    found: set[tuple[str, str, int]] = set()
    program, args = trace(case, _Recorder(lambda *site: found.add(site)))
    if case.eager:
        run(program, args)
    return found
