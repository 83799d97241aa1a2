"""Chains as ArviZ has them."""

from typing import Any

import numpy as np

from ..run._datatree import datatree, variables
from ..run._over_draws import log_likelihood_over_draws


def to_arviz(run: Any, log_likelihood: Any) -> Any:
    """See `ChainRun.to_arviz`."""
    caller = "ChainRun.to_arviz"
    both = ("chain", "draw")
    shape = (run.num_chains, run.num_samples)
    diverging, depth, step = run.diverging, run.tree_depth, run.step_size
    told = {
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
    stats = variables({k: x for k, x in told.items() if x is not None}, both, caller)
    groups = {"posterior": variables(run.samples, both, caller)}
    if stats:
        groups["sample_stats"] = stats
    if log_likelihood is not None:
        found = log_likelihood_over_draws(log_likelihood, run.samples, caller)
        groups["log_likelihood"] = variables(found, both, caller)
    return datatree(groups, {"sampling_time": run.seconds.sampling}, caller)
