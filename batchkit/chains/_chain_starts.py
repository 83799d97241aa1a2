"""Starts of chains: arrays of one row a chain, where the log-density is finite."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._formats import format_value
from ..run._arguments import check_scalar, common_length, row_of
from ..run._names import join_few
from ..run._start_error import StartError, not_finite


def starts_from(positions: PyTree) -> PyTree:
    """Return the starts as arrays of JAX; raise unless they have one row a chain."""

    def check(name: str, leaf: Any) -> None:
        if not _is_real(leaf):
            raise TypeError(
                f"run_chains(positions=...): {name} must be an array of real numbers; "
                f"got {getattr(leaf, 'dtype', type(leaf).__name__)}."
            )
        if np.ndim(leaf) == 0:
            raise ValueError(
                f"run_chains(positions=...): {name} is a scalar, without an axis for "
                "the chains, as in the start of a single chain. Give every array the "
                "shape (chains, ...), one row a chain; four chains or more, started "
                "far from each other."
            )

    if common_length("run_chains", "positions", positions, "chains", check) == 0:
        raise ValueError(
            "run_chains(positions=...): there are no chains, because the leading axis "
            "has length 0. Pass one start for each chain, four or more."
        )
    return jax.tree.map(jnp.asarray, positions)


def _is_real(leaf: Any) -> bool:
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return isinstance(leaf, bool | int | float)
    return any(jnp.issubdtype(dtype, kind) for kind in kinds)


def check_logdensity(logdensity_fn: Callable[..., Any], positions: PyTree) -> Any:
    """Return the dtype of a log-density; raise without a gradient or a scalar."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(positions):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"run_chains(positions=...): positions{jax.tree_util.keystr(path)} is "
                f"of {leaf.dtype}, but the sampler takes gradients, which need "
                "floating-point numbers. Pass it as such, or sample it with another "
                "algorithm."
            )
    row = row_of(positions)
    try:
        return check_scalar("run_chains", "logdensity_fn", logdensity_fn, row)
    except Exception as error:
        if not _is_one_start(logdensity_fn, positions):
            raise
        raise ValueError(
            "run_chains(positions=...): positions looks like the start of a single "
            f"chain, {format_value(positions)}: logdensity_fn takes the whole of it, "
            f"and not one row, {format_value(row)}. Give every array the shape "
            "(chains, ...), one row a chain; four chains or more, started far from "
            "each other."
        ) from error


def _is_one_start(logdensity_fn: Callable[..., Any], positions: PyTree) -> bool:
    """Return True if a log-density accepts all positions as a single one."""
    try:
        check_scalar("", "", logdensity_fn, positions)
    except Exception:
        return False
    return True


def check_positions(
    positions: PyTree, owner: str = "run_chains", argument: str = "positions"
) -> None:
    """Raise `StartError` if a start in an argument of a function is not finite."""
    chains, names, total = not_finite(positions)
    if chains:
        raise StartError(
            f"{owner}({argument}=...): {join_few(names)} is not finite at the start of "
            f"{_of_chains(chains, total)}. Start every chain at finite numbers.",
            chains,
            names,
        )


def check_states(states: Any) -> None:
    """Raise `StartError` if the log-density or its gradient is not finite.

    States of a sampler that have neither are not checked.
    """
    logdensity = getattr(states, "logdensity", None)
    if logdensity is not None and jax.tree.structure(logdensity).num_leaves == 1:
        chains, _, total = not_finite(logdensity)
        if chains:
            values = [f"{x:g}" for x in np.asarray(logdensity)[chains]]
            raise StartError(
                "run_chains(positions=...): the log-density is not finite at the start "
                f"of {_of_chains(chains, total)} ({join_few(values)}). Start inside of "
                "the support, and not so far out that the log-density overflows; the "
                "exception has the indices as `.chains`.",
                chains,
            )
    chains, names, total = not_finite(getattr(states, "logdensity_grad", None))
    if chains:
        raise StartError(
            "run_chains(positions=...): the log-density is finite at the start of "
            f"{_of_chains(chains, total)}, but its gradient with respect to "
            f"{join_few(names)} is not. Start elsewhere, or look for a `jnp.where` "
            "whose branch not taken divides by zero: its NaN enters the gradient.",
            chains,
            names,
        )


def _of_chains(chains: Sequence[int], total: int) -> str:
    word = "chain" if len(chains) == 1 else "chains"
    return f"{word} {join_few(list(map(str, chains)))} of {total}"
