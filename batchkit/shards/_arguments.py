"""The arguments of `run_shards`, refused before anything is compiled."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..chains._chain_starts import check_positions
from ..chains._sampler import is_api
from ..run._arguments import (
    check_acceptance,
    check_batcher,
    check_count,
    in_short,
    kind_of,
)
from ..run._kept import kept_for
from ..run._keys import check_key
from ..run._program import Program
from ._plan import SamplingPlan


ON_FAILURE = ("raise", "drop")


def check_settings(
    api: object, batcher: object, rng_key: Any, target: object, on_failure: object
) -> None:
    """Raises if one of them cannot be right."""
    if not is_api(api):
        raise TypeError(
            f"run_shards(api={in_short(api)}): api must be an API whose step size and "
            "mass matrix a warm-up finds, such as blackjax.nuts; got "
            f"{kind_of(api)}."
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


def check_lengths(plan: Any, **lengths: int | None) -> dict[str, int]:
    """Return the lengths of chains that were given; raise if a plan has them too."""
    asked = {name: x for name, x in lengths.items() if x is not None}
    for name, value in asked.items():
        check_count("run_shards", name, value)
        if plan is not None:
            raise TypeError(
                f"run_shards({name}={value}, plan=...): the plan has a {name} of its "
                f"own. Leave {name} out, or leave plan out and pass num_warmup and "
                "num_samples."
            )
    return asked


def plan_for(
    shard_size: int, num_params: int, chains: int, asked: Mapping[str, int]
) -> SamplingPlan:
    """Return the plan for shards of some size, with the lengths that were given.

    **Arguments:**

    - `shard_size`: the rows of the largest shard.
    - `num_params`: the numbers in a position.
    - `chains`: the number of chains of each shard.
    - `asked`: `num_warmup` and `num_samples`, or one of them, which are kept; the
        other is that of `SamplingPlan.from_shard`.
    """
    lengths = {"num_warmup", "num_samples"} - asked.keys()
    whole, adapted = (
        SamplingPlan.from_shard(
            shard_size, num_params, num_chains=chains, adaptive=adaptive
        )
        for adaptive in (False, True)
    )
    was_adapted = any(getattr(whole, x) != getattr(adapted, x) for x in lengths)
    return dataclasses.replace(adapted, **asked, was_adapted=was_adapted)


def starts_of(
    positions: Any,
    prior_sample_fn: Callable[[Any], PyTree] | None,
    rng_key: Any,
    shards: int,
    chains: int,
) -> PyTree:
    """Return the starts of all chains, arrays of shape `(shards, chains, ...)`."""
    if (positions is None) == (prior_sample_fn is None):
        given = "neither" if positions is None else "both"
        raise TypeError(
            f"run_shards: got {given} of positions and prior_sample_fn. Pass one: "
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
        _check_numbers("prior_sample_fn", starts)
        starts = jax.tree.map(np.asarray, starts)
        for each in range(shards):
            of_shard = jax.tree.map(lambda x, each=each: x[each], starts)
            check_positions(of_shard, "run_shards", "prior_sample_fn")
        return starts
    _check_numbers("positions", positions)
    leaves = jax.tree_util.tree_leaves_with_path(positions)
    for path, leaf in leaves:
        shape = np.shape(leaf)
        if not shape or shape[0] != chains:
            raise ValueError(
                f"run_shards(positions=...): positions{jax.tree_util.keystr(path)} has "
                f"the shape {shape}, but its first axis must be that of the {chains} "
                "chains. Stack one start for each chain along axis 0; every shard "
                "begins there."
            )
    positions = jax.tree.map(lambda x: np.asarray(jnp.asarray(x)), positions)
    check_positions(positions, "run_shards")
    return jax.tree.map(lambda x: np.broadcast_to(x, (shards, *x.shape)), positions)


def _check_numbers(name: str, positions: PyTree) -> None:
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
