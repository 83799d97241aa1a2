"""Lengths of the chains of a shard, and its tries.

The draws of a try are accepted if all are finite and few transitions diverged. More may
diverge in a later try, since by then the step size has been tuned for fewer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import jax
import numpy as np

from .._util._checks import check_number
from ..chains._chain_programs import Draw
from ..run._result import Seconds
from ..run._trees import record_from


# The rows from which on a shard gets the whole warm-up and all draws.
_WHOLE: Final = 10_000
# The least of both for each parameter.
_WARMUP_EACH: Final = 20
_SAMPLES_EACH: Final = 50
# Rates of divergent transitions above which there is a note, a warning, and a verdict
# of "unreliable".
DIVERGENCE_NOTE: Final = 0.05
DIVERGENCE_WARNING: Final = 0.10
DIVERGENCE_UNRELIABLE: Final = 0.30
# The increase of the target acceptance rate after divergences, and its limit.
_TARGET_STEP: Final = 0.05
_HIGHEST_TARGET: Final = 0.95


@final
@dataclass(frozen=True)
class SamplingPlan:
    """Lengths of the warm-up and of the sampling of the chains of a shard.

    [`from_shard`][batchkit.SamplingPlan.from_shard] makes it from the size of a shard.

    ```python
    import batchkit as bk

    plan = bk.SamplingPlan.from_shard(5000, 7)
    assert (plan.num_warmup, plan.num_samples) == (250, 750)
    assert plan.was_adapted
    assert plan.total_samples == 3000
    ```

    **Arguments:**

    - `num_warmup`: transitions of the warm-up of each chain, at least 1.
    - `num_samples`: draws of each chain, at least 1.
    - `num_chains`: chains of each shard, at least 1; 4 by default.
    - `shard_size`: the rows of the shards that the plan was made for; None by default,
        for any.
    - `num_params`: the numbers in a position; None by default, for any.
    - `was_adapted`: whether the plan is shorter than what was asked for; False by
        default.

    **Raises:**

    `TypeError` or `ValueError` if a number is no int of at least 1.
    """

    num_warmup: int
    num_samples: int
    num_chains: int = 4
    shard_size: int | None = None
    num_params: int | None = None
    was_adapted: bool = False

    def __post_init__(self) -> None:
        for name in ("num_warmup", "num_samples", "num_chains"):
            check_number("SamplingPlan", name, getattr(self, name))
        for name in ("shard_size", "num_params"):
            if getattr(self, name) is not None:
                check_number("SamplingPlan", name, getattr(self, name))

    @classmethod
    def from_shard(
        cls,
        shard_size: int,
        num_params: int,
        *,
        num_warmup: int = 500,
        num_samples: int = 1500,
        num_chains: int = 4,
        min_warmup: int = 100,
        min_samples: int = 200,
        adaptive: bool = True,
    ) -> "SamplingPlan":
        """Return a plan for shards of some size: small ones are sampled for less long.

        A shard of 10,000 rows or more gets `num_warmup` and `num_samples`. A smaller
        one gets its share of both, but not less than `min_warmup` and `min_samples`,
        nor than 20 transitions and 50 draws for each parameter; and never more than
        was asked for:

            s       = min(1, shard_size / 10000)
            warm-up = max(min(max(min_warmup, 20 num_params), num_warmup),
                          floor(num_warmup s))
            draws   = max(min(max(min_samples, 50 num_params), num_samples),
                          floor(num_samples s))

        **Arguments:**

        - `shard_size`: the rows of a shard.
        - `num_params`: the numbers in a position.
        - `num_warmup`, `num_samples`: what a large shard gets; 500 and 1,500 by
            default.
        - `num_chains`: chains of each shard; 4 by default.
        - `min_warmup`, `min_samples`: what the smallest shard gets; 100 and 200 by
            default.
        - `adaptive`: False keeps `num_warmup` and `num_samples` whatever the size; True
            by default.

        **Returns:**

        A `SamplingPlan`, with `was_adapted` if it is shorter.

        **Raises:**

        `TypeError` or `ValueError` if a number is no int of at least 1.
        """
        for name, value in (
            ("shard_size", shard_size),
            ("num_params", num_params),
            ("num_warmup", num_warmup),
            ("num_samples", num_samples),
            ("num_chains", num_chains),
            ("min_warmup", min_warmup),
            ("min_samples", min_samples),
        ):
            check_number("SamplingPlan.from_shard", name, value)
        warmup, samples = num_warmup, num_samples
        if adaptive:
            size = min(shard_size, _WHOLE)
            least_warmup = max(min_warmup, _WARMUP_EACH * num_params)
            least_samples = max(min_samples, _SAMPLES_EACH * num_params)
            # In integers: a product of floats may fall below a whole number.
            warmup = max(min(least_warmup, warmup), warmup * size // _WHOLE)
            samples = max(min(least_samples, samples), samples * size // _WHOLE)
        return cls(
            warmup,
            samples,
            num_chains,
            shard_size,
            num_params,
            (warmup, samples) != (num_warmup, num_samples),
        )

    @property
    def total_samples(self) -> int:
        """The draws of all chains of a shard together."""
        return self.num_samples * self.num_chains


@final
@dataclass(frozen=True)
class ShardTry:
    """One try of a shard: whether its draws were accepted, and why not.

    - `number`: counted from 0.
    - `target_acceptance`: the acceptance rate that the step size was tuned for.
    - `divergence_rate`: of all transitions after the warm-up.
    - `is_finite`: whether all draws and log-densities were.
    - `accepted`: whether the draws can be used.
    - `reason`: why not; empty if they can.
    - `seconds`: of the call that ran the shard together with others: to compile, to
      warm up, to sample.

    ```python
    import batchkit as bk
    from batchkit.run import Seconds
    from batchkit.shards import ShardTry

    first = ShardTry(0, 0.8, 0.01, True, True, "", Seconds(3.0, 0.5, 1.0))
    assert first.accepted
    ```
    """

    number: int
    target_acceptance: float
    divergence_rate: float
    is_finite: bool
    accepted: bool
    reason: str
    seconds: Seconds


def is_accepted(tries: Sequence[ShardTry]) -> bool:
    """Return True if the last try of a shard succeeded."""
    return bool(tries) and tries[-1].accepted


def judge_draws(number: int, target: float, draws: Draw, seconds: Seconds) -> ShardTry:
    """Return the record of try `number` of one shard, which made these draws."""
    values = [*jax.tree.leaves(draws.position), *jax.tree.leaves(draws.logdensity)]
    is_finite = all(bool(np.all(np.isfinite(x))) for x in values)
    rate = 0.0 if draws.diverging is None else float(np.mean(draws.diverging > 0))
    reasons = [] if is_finite else ["draws are not finite"]
    if rate > _allowed_rate(number):
        reasons.append(
            f"{rate:.1%} of the transitions diverged, more than "
            f"{_allowed_rate(number):.0%}"
        )
    return ShardTry(
        number,
        target,
        rate,
        is_finite,
        not reasons,
        "; ".join(reasons),
        seconds,
    )


def next_target(tries: Sequence[ShardTry], first: float) -> float:
    """Return the target acceptance rate of the next try: higher after divergences."""
    target = first
    for each in tries:
        if each.divergence_rate > _allowed_rate(each.number):
            # A user's target above the limit is not lowered.
            target = max(target, min(target + _TARGET_STEP, _HIGHEST_TARGET))
    return target


def _allowed_rate(number: int) -> float:
    return DIVERGENCE_NOTE if number == 0 else DIVERGENCE_WARNING


def tries_as_json(tries: Sequence[ShardTry]) -> list[dict[str, Any]]:
    return [{**vars(each), "seconds": list(each.seconds)} for each in tries]


def tries_from_json(saved: Sequence[Mapping[str, Any]]) -> list[ShardTry]:
    """Return the tries of one shard in a file; raise `ValueError` if damaged."""
    tries = record_from({"tries": saved}, "tries", list[ShardTry])
    if [each.number for each in tries] != list(range(len(tries))):
        raise ValueError(f"its tries are {tries!r}")
    return tries
