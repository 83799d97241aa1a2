"""Which shards run again, and what is known after each try.

A round runs all shards that have no draws to be trusted yet, and tries left. After it
all that is known is in one `Known`: a header of plain values, which JSON can hold, and
a pytree of arrays. What a round needs is in there, with the key of the run and the
data, so a run can stop between two rounds and go on later.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np

from ..chains._chain_programs import Draw
from ..run._result_file import numbers, typed


# A rate of divergent transitions above it is to be noted, to be warned of, and such
# that nothing can be relied on.
DIVERGENCE_NOTE: Final = 0.05
DIVERGENCE_WARNING: Final = 0.10
DIVERGENCE_UNRELIABLE: Final = 0.30

# How much closer to one the acceptance rate is tuned after divergences, and how far.
TARGET_STEP: Final = 0.05
HIGHEST_TARGET: Final = 0.95


@final
class Known(NamedTuple):
    """All that is known after a round.

    - `header`: for each shard, in `header["shards"]`, the list of its tries.
    - `arrays`: what the warm-up found and the draws of the last try of each shard, of
      shape `(shards, chains, ...)` and `(shards, chains, draws, ...)`; None before the
      first round.
    """

    header: dict[str, Any]
    arrays: Any


def nothing_known(num_shards: int) -> Known:
    """What is known before the first round."""
    return Known({"shards": [[] for _ in range(num_shards)]}, None)


def known_from(header: Mapping[str, Any], num_shards: int) -> Known:
    """Read the tries from the header of a checkpoint, without the arrays.

    **Raises:**

    `LookupError`, `TypeError` or `ValueError` if it makes no sense.
    """
    shards = typed(header, "shards", list)
    for tries in shards:
        for number, each in enumerate(tries):
            if typed(each, "number", int) != number:
                raise ValueError(f"its try {number} is {each!r}")
            typed(each, "target_acceptance", float)
            typed(each, "divergence_rate", float)
            typed(each, "is_finite", bool)
            typed(each, "accepted", bool)
            typed(each, "reason", str)
            numbers(each, "seconds", 3)
    running = typed(header, "running", list)
    if len(shards) != num_shards or len({len(shards[i]) for i in running}) != 1:
        raise ValueError(f"its shards are {shards!r}, of which {running!r} run")
    return Known({"shards": shards}, None)


def to_run(known: Known, max_tries: int) -> list[int]:
    """The shards that run next."""
    return [
        shard
        for shard, tries in enumerate(known.header["shards"])
        if len(tries) < max_tries and not has_draws(tries)
    ]


def failed(known: Known) -> list[int]:
    """The shards without draws to be trusted."""
    tries = known.header["shards"]
    return [shard for shard, mine in enumerate(tries) if not has_draws(mine)]


def has_draws(tries: list[dict[str, Any]]) -> bool:
    """Whether the last try of a shard succeeded."""
    return bool(tries) and tries[-1]["accepted"]


def target_of(tries: list[dict[str, Any]], asked: float) -> float:
    """The acceptance rate that the next try of a shard is tuned for.

    After divergences it is raised by 0.05, but not above 0.95 unless more was asked
    for, and never lowered.
    """
    target = asked
    for each in tries:
        if each["divergence_rate"] > allowed_rate(each["number"]):
            target = max(target, min(target + TARGET_STEP, HIGHEST_TARGET))
    return target


def allowed_rate(number: int) -> float:
    """The rate of divergences up to which a try of some number succeeds."""
    return DIVERGENCE_NOTE if number == 0 else DIVERGENCE_WARNING


def after_round(
    known: Known,
    which: list[int],
    made: tuple[Any, Draw],
    targets: list[float],
    seconds: tuple[float, float, float],
) -> Known:
    """What is known after a round.

    **Arguments:**

    - `known`: what was known before.
    - `which`: the shards that ran.
    - `made`: what they found, arrays of shape `(shards that ran * chains, ...)`.
    - `targets`: what each was tuned for.
    - `seconds`: how long the round took to compile, to warm up and to sample.
    """
    arrays = jax.tree.map(lambda x: x.reshape(len(which), -1, *x.shape[1:]), made)
    shards = [list(tries) for tries in known.header["shards"]]
    draws: Draw = arrays[1]
    for place, shard in enumerate(which):
        mine = jax.tree.map(lambda x, place=place: x[place], draws)
        shards[shard].append(
            _told_of_try(len(shards[shard]), mine, targets[place], seconds)
        )
    if known.arrays is not None:

        def put(old: np.ndarray, new: np.ndarray) -> np.ndarray:
            old = old.copy()
            old[which] = new
            return old

        arrays = jax.tree.map(put, known.arrays, arrays)
    return Known({**known.header, "shards": shards}, arrays)


def _told_of_try(
    number: int, draws: Draw, target: float, seconds: tuple[float, float, float]
) -> dict[str, Any]:
    kept = [*jax.tree.leaves(draws.position), *jax.tree.leaves(draws.logdensity)]
    is_finite = all(bool(np.all(np.isfinite(x))) for x in kept)
    diverging = draws.diverging
    rate = 0.0 if diverging is None else float(np.mean(diverging > 0))
    reasons = []
    if not is_finite:
        reasons.append("draws are not finite")
    if rate > allowed_rate(number):
        reasons.append(
            f"{rate:.1%} of the transitions diverged, more than "
            f"{allowed_rate(number):.0%}"
        )
    return {
        "number": number,
        "target_acceptance": target,
        "divergence_rate": rate,
        "is_finite": is_finite,
        "accepted": not reasons,
        "reason": "; ".join(reasons),
        "seconds": list(seconds),
    }
