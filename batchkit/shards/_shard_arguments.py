"""Arguments of `run_shards`, and starts, that are refused before shards are sampled."""

from collections.abc import Callable
from typing import Any, Final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._checks import check_flag, check_number, check_type
from ..chains._sampler import is_api
from ..run._arguments import checked_starts
from ..run._program import Program, program_cache
from ._shard_tries import SamplingPlan
from ._sharded_logdensity import check_likelihood


# Relative to the likelihoods of single rows, which are sums over many numbers.
_ROUNDING: Final = 1e-3


def check_options(api: object, on_failure: object, refine: object) -> None:
    rule = "an API whose step size and mass matrix a warm-up finds, such as "
    check_type(is_api(api), "run_shards", "api", api, f"{rule}blackjax.nuts")
    if on_failure not in ("raise", "drop"):
        raise ValueError(
            f"run_shards(on_failure={on_failure!r}): on_failure must be 'raise', or "
            "'drop' to go on without the shards that fail."
        )
    check_flag("run_shards", "refine", refine)


def check_split(num_shards: Any, strata: Any, rows: int) -> None:
    """Raise unless every shard gets a row, and every row has a stratum, if any has."""
    check_number("run_shards", "num_shards", num_shards)
    if num_shards > rows:
        raise ValueError(
            f"run_shards(num_shards={num_shards}): there are only {rows} rows, and "
            f"every shard needs one. Use {rows} shards or fewer; a shard should have "
            "many more rows than there are parameters."
        )
    if strata is not None and (shape := np.shape(strata)) != (rows,):
        raise ValueError(
            f"run_shards(strata=...): strata must be one label for each of {rows} "
            f"rows; got the shape {shape}."
        )


def check_lengths(
    plan: Any, num_chains: int | None, lengths: dict[str, int | None]
) -> int:
    """Check the settings that a plan may have, and return the number of chains."""
    is_right = isinstance(plan, SamplingPlan | None)
    remedy = "Make one with `SamplingPlan.from_shard(...)`."
    check_type(is_right, "run_shards", "plan", plan, "a SamplingPlan", remedy)
    if num_chains is not None:
        check_number("run_shards", "num_chains", num_chains)
        if plan is not None and plan.num_chains != num_chains:
            raise ValueError(
                f"run_shards(num_chains={num_chains}): the plan has {plan.num_chains} "
                "chains. Leave num_chains out, or make a plan with as many."
            )
    for name, value in lengths.items():
        if value is None:
            continue
        check_number("run_shards", name, value)
        if plan is not None:
            raise TypeError(
                f"run_shards({name}={value}, plan=...): the plan has a {name} of its "
                f"own. Leave {name} out, or leave plan out and pass num_warmup and "
                "num_samples."
            )
    return num_chains or (4 if plan is None else plan.num_chains)


def plan_for(
    shard_size: int, num_params: int, num_chains: int, lengths: dict[str, int | None]
) -> SamplingPlan:
    """Return the plan for shards of some size, with lengths that are not None kept."""
    # A length is not shortened where its minimum is as large.
    fixed: dict[str, Any] = {
        name: value
        for length, value in lengths.items()
        if value is not None
        for name in (length, length.replace("num", "min"))
    }
    return SamplingPlan.from_shard(
        shard_size, num_params, num_chains=num_chains, **fixed
    )


def starts_of(
    positions: Any,
    prior_sample_fn: Callable[[Any], PyTree] | None,
    rng_key: Any,
    shards: int,
    chains: int,
) -> PyTree:
    """Return the starts of all chains, arrays of shape `(shards, chains, ...)`."""
    if (positions is None) == (prior_sample_fn is None):
        passed = "neither" if positions is None else "both"
        raise TypeError(
            f"run_shards: got {passed} of positions and prior_sample_fn. Pass one: "
            "positions of shape (chains, ...), or a function from a key to a position."
        )
    if prior_sample_fn is not None:
        check_type(
            callable(prior_sample_fn),
            "run_shards",
            "prior_sample_fn",
            prior_sample_fn,
            "a function from a key to a position",
        )
        keys = jax.random.split(rng_key, (shards, chains))
        kept = program_cache("starts", prior_sample_fn)
        starts = Program(jax.vmap(jax.vmap(prior_sample_fn)), kept)(keys)
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), starts)
        checked_starts(
            "run_shards", flat, argument="prior_sample_fn", shards=range(shards)
        )
        return jax.tree.map(np.asarray, starts)
    positions = jax.tree.map(np.asarray, checked_starts("run_shards", positions))
    if (count := len(jax.tree.leaves(positions)[0])) != chains:
        raise ValueError(
            f"run_shards(positions=...): there are starts of {count} chains, but "
            f"{chains} chains in every shard, which all begin there. Stack as many "
            f"along axis 0, or pass num_chains={count}."
        )
    return jax.tree.map(lambda x: np.broadcast_to(x, (shards, *x.shape)), positions)


def check_additive(
    loglikelihood_fn: Callable[[PyTree, PyTree], Any], position: PyTree, rows: PyTree
) -> None:
    """Raise unless the likelihood of two rows is the sum of those of each."""
    position, rows = jax.tree.map(jnp.asarray, (position, rows))

    def of(begin: int, end: int) -> float:
        value = loglikelihood_fn(position, jax.tree.map(lambda x: x[begin:end], rows))
        check_likelihood(value)
        return float(value)

    both, first, second = of(0, 2), of(0, 1), of(1, 2)
    if abs(both - first - second) > _ROUNDING * (1 + abs(first) + abs(second)):
        raise ValueError(
            f"run_shards(loglikelihood_fn=...): the log-likelihood of two rows, "
            f"{both:.6g}, is not the sum of those of each, {first:.6g} and "
            f"{second:.6g}. Shards need a sum over rows: no mean, nothing that is "
            "counted once for all rows (that belongs in the prior), and nothing that "
            "rows have in common."
        )
