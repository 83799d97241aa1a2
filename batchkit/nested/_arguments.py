"""The arguments of `run_nested`, refused before the likelihood is compiled."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..run._arguments import check_scalar, in_short, kind_of, row_of
from ..run._names import columns, few
from ..run._program import Kept, Program
from ..run._saving import check_fresh
from ._guard import InvalidLikelihoodError
from ._stop import AbstractStop


def check_options(stop: Any, on_invalid: Any, fresh: Any) -> None:
    """Raises for what is no rule, no choice, no bool."""
    if not isinstance(stop, AbstractStop):
        raise TypeError(
            f"run_nested(stop={in_short(stop)}): stop must be a rule such as "
            f"bk.RemainingEvidence(1e-3); got {kind_of(stop)}."
        )
    if on_invalid not in ("raise", "reject"):
        raise ValueError(
            f"run_nested(on_invalid={in_short(on_invalid)}): on_invalid must be "
            "'raise' or 'reject', for likelihoods that are NaN or plus infinity."
        )
    check_fresh(fresh, "run_nested")


def live_points(positions: PyTree) -> PyTree:
    """The positions as arrays of JAX with a common leading axis, or an error."""
    leaves = jax.tree_util.tree_leaves_with_path(positions)
    if not leaves:
        raise ValueError(
            f"run_nested(positions={in_short(positions)}): there is no array in "
            "positions. Pass a pytree of arrays of shape (live points, ...), draws "
            "from the prior."
        )
    sizes: dict[str, int] = {}
    for path, leaf in leaves:
        name = f"positions{jax.tree_util.keystr(path)}"
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"run_nested(positions=...): {name} must be an array of floating-point "
                f"numbers; got {dtype or type(leaf).__name__}."
            )
        if leaf.ndim == 0:
            raise ValueError(
                f"run_nested(positions=...): {name} is a scalar, without an axis for "
                "the live points. Give it the shape (live points, ...)."
            )
        if leaf.shape[0] > 0 and leaf.size == 0:
            raise ValueError(
                f"run_nested(positions=...): {name} has no elements, its shape is "
                f"{leaf.shape}. Leave it out, there is nothing to sample in it."
            )
        sizes[name] = leaf.shape[0]
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(
            "run_nested(positions=...): every array must have one row for each live "
            f"point, but {told}. Stack the draws along axis 0."
        )
    if min(sizes.values()) < 2:
        raise ValueError(
            f"run_nested(positions=...): there are {min(sizes.values())} live points, "
            "and at least 2 are needed. Some hundreds are usual."
        )
    return jax.tree.map(jnp.asarray, positions)


def check_positions(positions: PyTree) -> None:
    """Raises if a number in a position is not finite."""
    bad = {
        name: np.flatnonzero(~np.isfinite(column))
        for name, column in columns(positions)
    }
    names = [name for name, rows in bad.items() if rows.size]
    if names:
        rows = np.unique(np.concatenate([bad[name] for name in names]))
        raise ValueError(
            f"run_nested(positions=...): {few(names)} is not finite in {len(rows)} of "
            f"{len(jax.tree.leaves(positions)[0])} live points, rows "
            f"{few(list(map(str, rows)))}. Draw every live point from the prior."
        )


def check_functions(
    functions: Mapping[str, Callable], positions: PyTree, kept: Kept
) -> None:
    """Raises if the prior or the likelihood does not return one real number.

    Then looks whether the prior is finite at each of the live points.

    **Arguments:**

    - `functions`: `logprior_fn` and `loglikelihood_fn`.
    - `positions`: the live points.
    - `kept`: what is kept for the functions.
    """
    row = row_of(positions)
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"run_nested({name}={in_short(function)}): {name} must be a function "
                f"of one position; got {kind_of(function)}. The order is run_nested("
                "api, logprior_fn, loglikelihood_fn, rng_key, positions)."
            )
        check_scalar("run_nested", name, function, row)
    prior = Program(jax.vmap(functions["logprior_fn"]), kept, "prior")
    check_prior(prior(positions), positions)


@contextlib.contextmanager
def refusing_mixed_dtypes(
    functions: Mapping[str, Callable], positions: PyTree
) -> Iterator[None]:
    """Names the dtypes if the body cannot trace a step because they are mixed.

    Mixed dtypes alone are no error: some algorithms do not mind.
    """
    try:
        yield
    except TypeError as error:
        dtypes = {
            f"positions{jax.tree_util.keystr(path)} is": str(leaf.dtype)
            for path, leaf in jax.tree_util.tree_leaves_with_path(positions)
        }
        for name, function in functions.items():
            out = jax.eval_shape(function, row_of(positions))
            dtypes[f"{name} returns"] = str(out.dtype)
        default = str(jnp.zeros(()).dtype)
        if set(dtypes.values()) == {default}:
            raise
        told = ", ".join(f"{what} {dtype}" for what, dtype in dtypes.items())
        raise TypeError(
            f"run_nested(positions={in_short(positions)}): a step of this algorithm "
            f"mixes dtypes: {told}, and random numbers are {default}. Make all of "
            f"them {default}: `jax.tree.map(lambda x: x.astype('{default}'), "
            "positions)`. If `jax_enable_x64` was switched on after positions were "
            "drawn, switch it on before."
        ) from error


def check_prior(logprior: Any, positions: PyTree) -> None:
    """Raises if a live point has a prior that is zero or no number."""
    logprior = np.asarray(logprior)
    bad = np.flatnonzero(~np.isfinite(logprior))
    if bad.size:
        raise ValueError(
            f"run_nested(positions=...): {bad.size} of {logprior.size} live points are "
            f"not in the prior: its log-density is {logprior[bad[0]]:g} at row "
            f"{bad[0]}{_where(positions, int(bad[0]))}. Draw every live point from the "
            "prior that `logprior_fn` describes."
        )


def check_counts(positions: PyTree, num_delete: int) -> None:
    """Raises if there are too few live points to replace some by others."""
    rows = np.stack([column for _, column in columns(positions)], axis=1)
    count, dim = rows.shape
    if num_delete >= count:
        raise ValueError(
            f"run_nested(positions=...): there are {count} live points, and the "
            f"algorithm replaces {num_delete} at once; some must stay, from which new "
            "ones begin. Use more live points, or a `num_delete` of at most half of "
            "them."
        )
    distinct = len(np.unique(rows, axis=0))
    needed = max(num_delete, dim) + 1
    if distinct < needed:
        raise ValueError(
            f"run_nested(positions=...): {distinct} of {count} live points are "
            f"distinct, and at least {needed} are needed, more than {dim} dimensions "
            f"and than the {num_delete} that are replaced at once. Draw each live "
            "point from the prior, with a key of its own."
        )


def check_first(particles: Any) -> None:
    """Raises if the likelihood of a live point is no number, or of all is zero."""
    loglikelihood = np.asarray(particles.loglikelihood)
    refuse_invalid(particles, "of the live points given")
    if np.all(np.isneginf(loglikelihood)):
        raise ValueError(
            "run_nested(positions=...): the log-likelihood is minus infinity at all "
            f"{loglikelihood.size} live points, so there is nothing to begin with. Use "
            "more live points, or a prior that is closer to the likelihood."
        )


def refuse_invalid(particles: Any, which: str, advice: str = "") -> None:
    """Raises `InvalidLikelihoodError` if a likelihood is no number.

    **Arguments:**

    - `particles`: those of a state of blackjax.
    - `which`: what they are, in words.
    - `advice`: what else can be done.
    """
    loglikelihood = np.asarray(particles.loglikelihood)
    logprior = np.asarray(particles.logdensity)
    # As `is_invalid_point`, which would be compiled for each number of points.
    bad = np.flatnonzero(
        np.isnan(loglikelihood) | np.isposinf(loglikelihood) | np.isposinf(logprior)
    )
    if not bad.size:
        return
    positions = jax.tree.map(lambda x: np.asarray(x)[bad], particles.position)
    what = "log-prior" if np.any(np.isposinf(logprior)) else "log-likelihood"
    raise InvalidLikelihoodError(
        f"run_nested: the {what} of {bad.size} of {loglikelihood.size} {which} "
        f"is NaN or plus infinity, the first{_where(positions, 0)}. The exception has "
        "all of them as `.positions`. Make the likelihood return minus infinity where "
        f"it cannot be computed, or use on_invalid='reject', which does that.{advice}",
        positions,
    )


def _where(positions: PyTree, row: int) -> str:
    """One position in words."""
    told = [f"{name} = {column[row]:.6g}" for name, column in columns(positions)]
    return f" at {few(told)}"
