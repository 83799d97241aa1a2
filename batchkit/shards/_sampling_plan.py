"""Lengths of the chains of a shard."""

from dataclasses import dataclass
from typing import Final, final

from ..run._arguments import check_count


# The rows from which on a shard gets the whole warm-up and all draws.
_WHOLE: Final = 10_000
# The least of both for each parameter.
_WARMUP_EACH: Final = 20
_SAMPLES_EACH: Final = 50


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
            check_count("SamplingPlan", name, getattr(self, name))
        for name in ("shard_size", "num_params"):
            if getattr(self, name) is not None:
                check_count("SamplingPlan", name, getattr(self, name))

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
            check_count("SamplingPlan.from_shard", name, value)
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
