"""Splitting a batch: whether its tasks allow it, and padding of the last part.

A layout that splits the tasks must know whether their random numbers depend on the
batch, whether an output is equal for all of them, and whether they compute anything.
The rules of `jax.vmap` are not imitated: it maps the jaxpr by abstract evaluation.

Padded rows repeat real ones: zeros could give NaN or a loop that never ends. In reverse
mode a plain slice gives padded rows a cotangent of zero, and zero times an infinite
derivative is NaN, which would spread to the gradient of every array that the rows
share. So the derivative of the slice splits each cotangent evenly over the copies of
its row. The derivative is linear, so the copies add up to the gradient of the row.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

import jax
import jax.extend as jex
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Shaped

from .._util._jaxprs import (
    equations,
    evaluate,
    inner_equations,
    inner_jaxprs,
    is_literal,
)


# Under `jax.vmap` the rbg generators draw one block for the whole batch, from its first
# key; with "unsafe_rbg" ("urbg") so do `split` and `fold_in`.
# https://docs.jax.dev/en/latest/jax.random.html#more-prng-implementations
_BATCH_DEPENDENT: Final = {
    "key<rbg>": {"random_bits"},
    "key<urbg>": {"random_bits", "random_split", "random_fold_in"},
}

# Primitives that only move data: under `jax.vmap` they take hardly any time, and no
# memory besides their result.
MOVES_DATA: Final = frozenset(
    {
        "bitcast_convert_type",
        "broadcast_in_dim",
        "concatenate",
        "convert_element_type",
        "copy",
        "copy_p",
        "dynamic_slice",
        "dynamic_update_slice",
        "expand_dims",
        "gather",
        "iota",
        "pad",
        "random_unwrap",
        "random_wrap",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "stack",
        "tile",
        "transpose",
    }
)
# Equinox's reductions over all tasks of a batch: `all`, `any` and `max`.
UNVMAP: Final = ("unvmap_all", "unvmap_any", "unvmap_max")

# Their callers allow for any batch, so chunks may reduce over each. `nonbatchable`
# returns the one value of a batch that has one.
_REDUCES_ANY_BATCH: Final = frozenset({*UNVMAP, "nonbatchable"})
JAX_PRIMITIVES: Final = frozenset(
    x for x in vars(jex.core.primitives).values() if isinstance(x, jex.core.Primitive)
)

_CALLS: Final = frozenset({"closed_call", "core_call", "jit", "pjit"})


def only_moves_data(jaxpr: Any) -> bool:
    """Return True if every equation only copies or rearranges its inputs."""
    return all(
        eqn.primitive.name in MOVES_DATA
        or (
            eqn.primitive.name in _CALLS
            and all(map(only_moves_data, inner_jaxprs(eqn)))
        )
        for eqn in jaxpr.eqns
    )


def batch_dependent_draws(
    eqns: Sequence[Any], run: Callable[..., Any], row: Sequence[Any]
) -> str | None:
    """Name a generator whose draws under `jax.vmap` depend on the batch, if any."""
    every = [x for eqn in eqns for x in (eqn, *inner_equations(eqn))]
    if not any(map(_generator, every)):
        return None
    # A draw depends on the batch if `jax.vmap` batches it. To recognise batched
    # variables, choose a batch size that is larger than every size in the program.
    lengths = [
        length
        for eqn in every
        for x in (*eqn.invars, *eqn.outvars)
        for length in getattr(x.aval, "shape", ())
    ]
    size = 1 + max(lengths, default=0)
    rows = [jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in row]
    try:
        batched = jax.make_jaxpr(jax.vmap(run, axis_size=size))(*rows)
    except (NotImplementedError, ValueError):
        return None  # jax.vmap cannot run it, so there are no draws to differ from
    for eqn in equations(batched.jaxpr):
        generator = _generator(eqn)
        if generator and any(size in x.aval.shape for x in (*eqn.invars, *eqn.outvars)):
            return generator
    return None


def _generator(eqn: Any) -> str | None:
    """Name the generator of an equation, if its draws may depend on the batch."""
    if eqn.primitive.name == "rng_bit_generator":
        return "rng_bit_generator"
    for x in eqn.invars:
        key_type = str(getattr(x.aval, "dtype", ""))
        if eqn.primitive.name in _BATCH_DEPENDENT.get(key_type, ()):
            return f"PRNG keys of type {key_type}"
    return None


def batch_reduction(jaxpr: Any) -> str | None:
    """Name a primitive that reduces over the batch under `jax.vmap`, if any."""
    # JAX has none, except for collectives. Others are mapped, by abstract evaluation,
    # to see if their results have lost the axis.
    for eqn in equations(jaxpr):
        primitive = eqn.primitive
        if primitive in JAX_PRIMITIVES or primitive.name in _REDUCES_ANY_BATCH:
            continue
        # A primitive that holds a jaxpr is judged by its equations, but for one whose
        # batch is a function of the user.
        inner = list(inner_jaxprs(eqn))
        is_opaque = not inner or primitive.name == "custom_vmap_call"
        if not is_opaque or all(map(is_literal, eqn.invars)):
            continue
        types = [jax.ShapeDtypeStruct(x.aval.shape, x.aval.dtype) for x in eqn.invars]
        rows = [jax.ShapeDtypeStruct((2, *x.shape), x.dtype) for x in types]
        try:
            one = jax.make_jaxpr(functools.partial(evaluate, eqn))(*types)
            every = [True] * len(one.out_avals)
            # The function of a `custom_vmap` may return a constant.
            varies = all(_depend_on_inputs(x, every) for x in inner)
            if varies and not all(batched_outputs(one, rows, every)):
                return primitive.name
        except Exception:  # of a batching rule, which may refuse in any way
            continue
    return None


def batched_outputs(
    jaxpr: jex.core.ClosedJaxpr,
    rows: Sequence[Any],
    outputs: Sequence[bool],
    **options: Any,
) -> list[bool]:
    """Find which of the selected outputs of one row `jax.vmap` batches over `rows`."""
    batched = [False] * len(outputs)
    # First by the dependencies, without `jax.vmap`: the function may call what has no
    # batching rule.
    if not _depend_on_inputs(jaxpr.jaxpr, outputs):
        return batched

    # Dependencies between equations are not enough: an output of a loop may not vary
    # although another one does. The rule of a `custom_vmap` gets `jax.vmap`'s answer.
    @custom_vmap
    def observe(outs: list[Any]) -> list[Any]:
        return outs

    @observe.def_vmap
    def _(axis_size: int, in_batched: Any, outs: list[Any]) -> tuple[Any, Any]:
        batched[:] = in_batched[0]
        return outs, in_batched[0]

    def run(*row: Any) -> list[Any]:
        return observe(jex.core.jaxpr_as_fun(jaxpr)(*row))

    jax.eval_shape(jax.vmap(run, **options), *rows)
    return [x and y for x, y in zip(batched, outputs, strict=True)]


def _depend_on_inputs(jaxpr: Any, outputs: Sequence[bool]) -> bool:
    """Return True if one of the selected outputs depends on an input."""
    needed = {
        x
        for x, selected in zip(jaxpr.outvars, outputs, strict=True)
        if selected and not isinstance(x, jex.core.Literal)
    }
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            needed.update(x for x in eqn.invars if not isinstance(x, jex.core.Literal))
    return bool(needed.intersection(jaxpr.invars))


def pad_rows(rows: Shaped[Array, "n ..."], total: int) -> Shaped[Array, "total ..."]:
    """Append copies of the first rows, as often as needed, up to `total` rows."""
    size = rows.shape[0]
    if total == size:
        return rows
    # Slicing and concatenating is cheaper than a gather, but reaches one copy only.
    if total <= 2 * size:
        return jnp.concatenate([rows, rows[: total - size]])
    return rows[np.arange(total) % size]


def cut_rows(padded: Shaped[Array, "total ..."], size: int) -> Shaped[Array, "n ..."]:
    """Return the first `size` rows of a result computed from `pad_rows`."""
    if padded.shape[0] == size:
        return padded
    # Other dtypes have no derivative; typed keys have no arithmetic either.
    if jnp.issubdtype(padded.dtype, jnp.inexact):
        return _cut_inexact_rows(padded, size)
    return padded[:size]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _cut_inexact_rows(padded: Array, size: int) -> Array:
    return padded[:size]


@_cut_inexact_rows.defjvp
def _(size: int, primals: Any, tangents: Any) -> tuple[Array, Array]:
    (padded,), (tangent,) = primals, tangents
    row_of = np.arange(padded.shape[0]) % size
    copies = np.bincount(row_of)[row_of].reshape(-1, *[1] * (padded.ndim - 1))
    share = tangent / copies.astype(tangent.dtype)
    return padded[:size], share[:size].at[row_of[size:]].add(share[size:])
