"""The arguments of `run_shards`, refused before anything is compiled."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..chains._sampler import is_api
from ..run._arguments import check_acceptance, check_batcher, check_count
from ..run._kept import kept_for
from ..run._keys import check_key
from ..run._program import Program
from ._plan import SamplingPlan


ON_FAILURE = ("raise", "drop")


def check_settings(
    algorithm: object, batcher: object, rng_key: Any, target: object, on_failure: object
) -> None:
    """Raises if one of them cannot be right."""
    if not is_api(algorithm):
        raise TypeError(
            f"run_shards(algorithm={algorithm!r}): algorithm must be an API whose step "
            "size and mass matrix a warm-up finds, such as blackjax.nuts; got "
            f"{type(algorithm).__name__}."
        )
    check_batcher("run_shards", batcher)
    check_key(rng_key, "run_shards")
    check_acceptance("run_shards", target)
    if on_failure not in ON_FAILURE:
        raise ValueError(
            f"run_shards(on_failure={on_failure!r}): on_failure must be 'raise', or "
            "'drop' to go on without the shards that fail."
        )


def check_ending(refine: object, profile: object) -> None:
    """Raises if one of them cannot be right."""
    if not isinstance(refine, bool):
        raise TypeError(
            f"run_shards(refine={refine!r}): refine must be True or False; got "
            f"{type(refine).__name__}."
        )
    if profile is not None and not isinstance(profile, str | Path):
        raise TypeError(
            f"run_shards(profile={profile!r}): profile must be a directory, as a str "
            f"or a Path, or None; got {type(profile).__name__}."
        )


def check_shards(num_shards: object, rows: int) -> int:
    """The number of shards, each of which gets a row, or an error."""
    count = check_count("run_shards", "num_shards", num_shards)
    if count > rows:
        raise ValueError(
            f"run_shards(num_shards={count}): there are only {rows} rows, and every "
            f"shard needs one. Use {rows} shards or fewer; a shard should have many "
            "more rows than there are parameters."
        )
    return count


def check_strata(strata: Any, rows: int) -> None:
    """Raises if there is not one label for each row."""
    if strata is None:
        return
    rule = f"strata must be one label for each of {rows} rows"
    try:
        labels = np.asarray(strata)
    except ValueError as error:
        raise ValueError(
            f"run_shards(strata=...): {rule}, but it is no array: {error}."
        ) from None
    if labels.shape != (rows,):
        raise ValueError(
            f"run_shards(strata=...): {rule}; got the shape {labels.shape}."
        )
    try:
        np.unique(labels)
    except TypeError as error:
        raise TypeError(
            f"run_shards(strata=...): {rule}, all of one kind, numbers or words; got "
            f"labels that cannot be sorted: {error}. Give what is missing a label of "
            "its own."
        ) from None


def chains_of(num_chains: int | None, plan: Any) -> int:
    """The number of chains, which the plan may tell."""
    if plan is not None and not isinstance(plan, SamplingPlan):
        raise TypeError(
            f"run_shards(plan={plan!r}): plan must be a SamplingPlan; got "
            f"{type(plan).__name__}. Make one with `SamplingPlan.from_shard(...)`."
        )
    if num_chains is None:
        return 4 if plan is None else plan.num_chains
    if plan is not None and plan.num_chains != num_chains:
        raise ValueError(
            f"run_shards(num_chains={num_chains}): the plan has {plan.num_chains} "
            "chains. Leave num_chains out, or make a plan with as many."
        )
    return check_count("run_shards", "num_chains", num_chains)


def starts_of(
    initial: Any,
    prior_sample_fn: Callable[[Any], PyTree] | None,
    rng_key: Any,
    shards: int,
    chains: int,
) -> PyTree:
    """Where chains start, arrays of shape `(shards, chains, ...)` on the host."""
    if (initial is None) == (prior_sample_fn is None):
        given = "neither" if initial is None else "both"
        raise TypeError(
            f"run_shards: got {given} of initial and prior_sample_fn. Pass one: "
            "positions of shape (chains, ...), or a function from a key to a position."
        )
    if prior_sample_fn is not None:
        if not callable(prior_sample_fn):
            raise TypeError(
                f"run_shards(prior_sample_fn={prior_sample_fn!r}): prior_sample_fn "
                "must be a function from a key to a position; got "
                f"{type(prior_sample_fn).__name__}."
            )
        keys = jax.random.split(rng_key, (shards, chains))
        kept = kept_for("starts", prior_sample_fn)
        starts = Program(jax.vmap(jax.vmap(prior_sample_fn)), kept)(keys)
        _check_positions("prior_sample_fn", starts)
        return jax.tree.map(np.asarray, starts)
    _check_positions("initial", initial)
    leaves = jax.tree_util.tree_leaves_with_path(initial)
    for path, leaf in leaves:
        shape = np.shape(leaf)
        if not shape or shape[0] != chains:
            raise ValueError(
                f"run_shards(initial=...): initial{jax.tree_util.keystr(path)} has the "
                f"shape {shape}, but its first axis must be that of the {chains} "
                "chains. Stack one start for each chain along axis 0; every shard "
                "begins there."
            )
    return jax.tree.map(
        lambda x: np.broadcast_to(np.asarray(jnp.asarray(x)), (shards, *np.shape(x))),
        initial,
    )


def _check_positions(name: str, positions: PyTree) -> None:
    leaves = jax.tree_util.tree_leaves_with_path(positions)
    if not leaves:
        raise ValueError(
            f"run_shards({name}=...): there is no array in the positions. Pass a "
            "pytree of arrays."
        )
    for path, leaf in leaves:
        is_number = isinstance(leaf, float | np.ndarray | jax.Array)
        if not is_number or not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            raise TypeError(
                f"run_shards({name}=...): positions{jax.tree_util.keystr(path)} must "
                "be floating-point numbers, since the sampler takes gradients; got "
                f"{getattr(leaf, 'dtype', type(leaf).__name__)}."
            )
