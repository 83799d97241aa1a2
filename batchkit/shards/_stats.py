"""What happened to each shard."""

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import jax
import numpy as np

from ..chains import ChainSeconds, Convergence
from ..chains._chain_programs import Draw
from ..chains._draws import named_numbers
from ._plan import SamplingPlan


@final
class Spread(NamedTuple):
    """The median of some numbers, the smallest and the largest.

    ```python
    from batchkit.shards import Spread

    assert Spread(0.2, 0.1, 0.4).median == 0.2
    ```
    """

    median: float
    min: float
    max: float


@final
@dataclass(frozen=True)
class ShardTry:
    """One try of a shard: whether its draws were accepted, and why not.

    - `number`: counted from 0.
    - `target_acceptance`: what the step size was tuned for.
    - `divergence_rate`: of all transitions after the warm-up.
    - `is_finite`: whether all draws and log-densities were.
    - `accepted`: whether the draws can be used.
    - `reason`: why not; empty if they can.
    - `seconds`: of the call that ran the shard together with others: to compile, to
      warm up, to sample.

    ```python
    import batchkit as bk
    from batchkit.shards import ShardTry

    first = ShardTry(0, 0.8, 0.01, True, True, "", bk.ChainSeconds(3.0, 0.5, 1.0))
    assert first.accepted
    ```
    """

    number: int
    target_acceptance: float
    divergence_rate: float
    is_finite: bool
    accepted: bool
    reason: str
    seconds: ChainSeconds


@final
@dataclass(frozen=True)
class SamplingStats:
    """How the chains of one shard went; what the sampler does not tell is None.

    - `shard`, `num_rows`: which it is, and how many rows it has.
    - `plan`: how long its chains ran.
    - `tries`: a [`ShardTry`][batchkit.shards.ShardTry] for each time it ran. All else
      is of the last.
    - `divergences`: how many transitions diverged.
    - `acceptance`: the mean acceptance rate.
    - `step_size`: its median over chains, smallest and largest.
    - `tree_depth`: the same over all draws.
    - `inverse_mass_matrix`: the same over the diagonals of all chains.
    - `rhat`: the largest of all parameters; NaN if one of them is.
    - `ess`: the smallest bulk effective sample size; NaN if one of them is.
    - `seconds`: the wall time of the call that the shard was part of, for all shards in
      it together: to compile, to warm up, to sample.

    ```python
    import batchkit as bk

    plan = bk.SamplingPlan.from_shard(500, 3)
    stats = bk.SamplingStats(0, 500, plan, ())
    assert stats.divergence_rate == 0.0
    ```
    """

    shard: int
    num_rows: int
    plan: SamplingPlan
    tries: tuple[ShardTry, ...]
    divergences: int | None = None
    acceptance: float | None = None
    step_size: Spread | None = None
    tree_depth: Spread | None = None
    inverse_mass_matrix: Spread | None = None
    rhat: float = np.nan
    ess: float = np.nan

    @property
    def divergence_rate(self) -> float:
        """The rate of divergent transitions in the last try."""
        return self.tries[-1].divergence_rate if self.tries else 0.0

    @property
    def accepted(self) -> bool:
        """Whether there are draws that can be used."""
        return bool(self.tries) and self.tries[-1].accepted

    @property
    def seconds(self) -> ChainSeconds:
        """The wall time of the call of which the last try was part."""
        return self.tries[-1].seconds if self.tries else ChainSeconds(0.0, 0.0, 0.0)


def stats_of(
    shard: int,
    num_rows: int,
    plan: SamplingPlan,
    tries: list[dict[str, Any]],
    arrays: tuple[Any, Draw],
) -> SamplingStats:
    """What is to be told of one shard.

    **Arguments:**

    - `tries`: what is known of each try.
    - `arrays`: what the warm-up found, arrays of shape `(chains, ...)`, and the draws,
        of shape `(chains, draws, ...)`.
    """
    tuned, draws = arrays
    found = Convergence(draws.position)
    mass = np.asarray(tuned.inverse_mass_matrix)
    if mass.ndim == 3:
        mass = np.diagonal(mass, axis1=1, axis2=2)
    told = [
        ShardTry(**{**each, "seconds": ChainSeconds(*each["seconds"])})
        for each in tries
    ]
    rate = draws.acceptance
    return SamplingStats(
        shard,
        num_rows,
        plan,
        tuple(told),
        None if draws.diverging is None else int(np.sum(draws.diverging)),
        None if rate is None else float(np.mean(rate)),
        _spread(tuned.step_size),
        None if draws.tree_depth is None else _spread(draws.tree_depth),
        _spread(mass),
        float(np.max(_numbers(found.rhat))),
        float(np.min(_numbers(found.ess_bulk))),
    )


def _numbers(tree: Any) -> list[float]:
    # NaN must win over every number, which it does in NumPy.
    return [value for _, value in named_numbers(jax.tree.map(np.asarray, tree))]


def _spread(values: Any) -> Spread:
    values = np.asarray(values, np.float64)
    return Spread(*(float(f(values)) for f in (np.median, np.min, np.max)))
