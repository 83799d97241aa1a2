"""A nested run as other packages have it."""

from typing import Any, Final

import jax
import numpy as np

from ..run._datatree import datatree, variables
from ..run._extras import extra
from ..run._names import columns
from ..run._over_draws import over_draws
from ._volumes import generator, resample


# anesthetic leaves points out that are born and die at minus infinity, which are those
# of the prior with a likelihood of zero. So a zero is a low number for it.
_ZERO: Final = -1e30
_TAKEN: Final = ("logL", "logL_birth", "nlive", "insertion")


def to_arviz(run: Any, n: int | None, key: Any, transform: Any) -> Any:
    """See `NestedRun.to_arviz`."""
    caller = "NestedRun.to_arviz"
    n = max(1, round(run.ess)) if n is None else n
    if n < 1:
        raise ValueError(f"{caller}(n={n}): n must be at least 1, a number of draws.")
    key = jax.random.fold_in(run.key, n) if key is None else key
    chosen = resample(run.weights, n, generator(key))
    dead = run.dead
    positions = dead.positions
    if transform is not None:
        positions = over_draws(transform, positions, caller, dims=1)
    at_points = {
        "loglikelihood": dead.loglikelihood,
        "logprior": dead.logprior,
        "lp": dead.loglikelihood + dead.logprior,
        "point": np.arange(len(dead)),
    }
    draws = jax.tree.map(lambda x: x[chosen][None], (positions, at_points))
    points = {
        "weight": run.weights,
        "loglikelihood": dead.loglikelihood,
        "loglikelihood_birth": dead.loglikelihood_birth,
        "logprior": dead.logprior,
        "num_live": dead.num_live,
    }
    numbers = {
        "log_evidence": run.log_evidence,
        "log_evidence_err": run.log_evidence_err,
        "information": run.information,
        "ess": run.ess,
    }
    chain, point = ("chain", "draw"), ("point",)
    groups = {
        "posterior": variables(draws[0], chain, caller),
        "sample_stats": {name: (chain, x) for name, x in draws[1].items()},
        "constant_data": {name: ((), np.asarray(x)) for name, x in numbers.items()},
        "dead_points": variables(positions, point, caller),
        "dead_stats": {name: (point, x) for name, x in points.items()},
    }
    return datatree(groups, {"sampling_time": run.seconds.run}, caller)


def to_anesthetic(run: Any) -> Any:
    """See `NestedRun.to_anesthetic`."""
    caller = "NestedRun.to_anesthetic"
    anesthetic = extra("anesthetic", "anesthetic", caller)
    named = [(name, x.astype(np.float64)) for name, x in columns(run.dead.positions)]
    names = [name for name, _ in named]
    taken = {x for x in names if x in _TAKEN or names.count(x) > 1}
    if taken:
        raise ValueError(
            f"{caller}: {', '.join(sorted(taken))} cannot name a parameter: it names "
            "two, or is a name that anesthetic gives. Make a result whose positions "
            "have other names."
        )
    logl = run.dead.loglikelihood.astype(np.float64)
    birth = run.dead.loglikelihood_birth.astype(np.float64)
    lowest = np.min(logl, where=np.isfinite(logl), initial=0.0)
    zero = min(_ZERO, 2 * lowest)
    # Every contour is the likelihood of a point, but for that of what is above zero.
    above_zero = (birth < lowest) & ~np.isneginf(birth)
    return anesthetic.NestedSamples(
        data=np.stack([x for _, x in named], axis=1),
        columns=names,
        logL=np.where(np.isneginf(logl), zero, logl),
        logL_birth=np.where(above_zero, zero, birth),
        logzero=-np.inf,
    )
