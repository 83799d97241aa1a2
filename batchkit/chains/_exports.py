"""Chains as ArviZ has them."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from jaxtyping import PyTree

from ..run._datatree import datatree, variables
from ..run._over_draws import log_likelihood_over_draws, over_draws


_DIMS: Final = ("chain", "draw")


def to_arviz(
    samples: PyTree,
    sample_stats: Mapping[str, Any],
    log_likelihood: Any,
    transform: Any,
    seconds: float,
    caller: str,
) -> Any:
    """Return draws of several chains as ArviZ has them; see `ChainRun.to_arviz`.

    **Arguments:**

    - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
    - `sample_stats`: statistics of each draw, by the names of ArviZ; None is left out.
    - `log_likelihood`, `transform`: functions of the user's, or None.
    - `seconds`: the time for sampling.
    - `caller`: the method that the user called.
    """
    stats = {name: x for name, x in sample_stats.items() if x is not None}
    shown = samples if transform is None else over_draws(transform, samples, caller)
    groups = {"posterior": variables(shown, _DIMS, caller)}
    if stats:
        groups["sample_stats"] = variables(stats, _DIMS, caller)
    if log_likelihood is not None:
        found = log_likelihood_over_draws(log_likelihood, samples, caller)
        groups["log_likelihood"] = variables(found, _DIMS, caller)
    return datatree(groups, {"sampling_time": seconds}, caller)


def sample_stats_of(run: Any) -> dict[str, Any]:
    """Return the statistics of each draw of a `ChainRun`, by the names of ArviZ."""
    shape = (run.num_chains, run.num_samples)
    diverging, depth, step = run.diverging, run.tree_depth, run.step_size
    return {
        "lp": run.logdensity,
        "diverging": None if diverging is None else np.asarray(diverging) > 0,
        "acceptance_rate": run.acceptance_rate,
        "n_steps": run.num_integration_steps,
        "tree_depth": depth,
        "energy": run.energy,
        "reached_max_treedepth": None
        if depth is None or run.max_tree_depth is None
        else np.asarray(depth) >= run.max_tree_depth,
        "step_size": None
        if step is None
        else np.broadcast_to(np.asarray(step)[:, None], shape),
    }
