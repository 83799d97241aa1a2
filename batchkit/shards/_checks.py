"""What can be wrong with draws combined from shards, and what to do."""

from collections.abc import Collection, Iterator, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, PyTree

from ..chains._chain_diagnostics import Remedies, diagnose_chains
from ..chains._convergence import Convergence
from ..run._diagnostic import Diagnostic
from ..run._extras import delayed
from ..run._names import few
from ._modes import VALLEY, is_bimodal
from ._stats import SamplingStats
from ._tries import DIVERGENCE_NOTE, DIVERGENCE_UNRELIABLE, DIVERGENCE_WARNING


# Of several shards the worst is looked at, of short chains, so some are above 1.01 by
# chance.
HIGHEST_SHARD_RHAT: Final = 1.05
# For a covariance to within about a tenth.
LOWEST_SHARD_ESS: Final = 200.0
# How seldom shards that agree may be said not to, in a whole run.
_CHANCE: Final = 0.01
_MOST_FOR_KDE: Final = 5
# In standard deviations; widths are off by a few per cent then.
FARTHEST_SHIFT: Final = 0.5
# With one of these, nothing can be relied on.
FATAL: Final = frozenset(
    {
        "draws not finite",
        "mean gradient",
        "integration by parts",
        "divergences: unreliable",
        "shards disagree",
        "modes",
        "few shards",
    }
)
# Below this part of the shards, what is left is the posterior of other data.
LOWEST_SUCCESS_RATE: Final = 0.5

_PLAN: Final = "(in `plan`, if you pass one)"
_REMEDIES: Final = Remedies(
    longer=f"`num_warmup` and `num_samples` {_PLAN}",
    draws=f"`num_samples` {_PLAN}",
    chains="raise `num_chains`",
)


def diagnose_shards(
    samples: PyTree,
    convergence: Convergence,
    shards: Float[np.ndarray, "shards chains draws dim"],
    names: Sequence[str],
    stats: Sequence[SamplingStats],
    used: Sequence[int],
    left_out: dict[int, str],
    combine: str,
    of_gradients: Sequence[Diagnostic] = (),
    shift: Float[np.ndarray, " dim"] | None = None,
    is_refined: bool = False,
) -> tuple[Diagnostic, ...]:
    """Looks for everything that may be wrong.

    **Arguments:**

    - `samples`: the combined draws, arrays of shape `(chains, draws, ...)`.
    - `convergence`: R-hat and effective sample sizes of them.
    - `shards`: the draws of the shards that were used.
    - `names`: of the numbers in a position.
    - `stats`: of all shards.
    - `used`: the indices of the shards that were used.
    - `left_out`: of the others, with reasons.
    - `combine`: how they were combined.
    - `of_gradients`: what the gradient of all data has shown; nothing by default.
    - `shift`: by how many standard deviations the combined draws were moved; None by
        default, if they were not.
    - `is_refined`: whether they were to be; False by default.

    **Returns:**

    What was found, the most serious first.
    """
    mine = [stats[shard] for shard in used]
    found = [
        *_left_out(left_out, len(stats)),
        *of_gradients,
        *_divergences(mine),
        *_disagree(shards, names, used),
        *_modes(shards, names, used),
        *_of_shards(mine),
        *diagnose_chains(samples, convergence, remedies=_REMEDIES),
        *_retried(stats),
        *_many_parameters(combine, names),
        *_moved(shift, is_refined, names),
    ]
    return tuple(sorted(found, key=lambda x: x.name not in FATAL))


def _left_out(left_out: dict[int, str], total: int) -> Iterator[Diagnostic]:
    rate = 1 - len(left_out) / total
    if rate < LOWEST_SUCCESS_RATE:
        yield Diagnostic(
            "few shards",
            rate,
            LOWEST_SUCCESS_RATE,
            f"only {rate:.0%} of the shards are in the result. That is no posterior of "
            "the data: mend what makes shards fail, or use fewer of them.",
        )
    if left_out:
        told = "; ".join(f"shard {s}: {why}" for s, why in left_out.items())
        yield Diagnostic(
            "shards left out",
            float(len(left_out)),
            0.0,
            f"{len(left_out)} of {total} shards are not in the result ({told}). It is "
            "the posterior of the rows of the others. Find out what is special about "
            "the rows of those, or use fewer shards.",
        )


def _divergences(stats: Sequence[SamplingStats]) -> Iterator[Diagnostic]:
    above = DIVERGENCE_UNRELIABLE, DIVERGENCE_WARNING, DIVERGENCE_NOTE
    levels = "unreliable", "warning", "note"
    highest = np.inf
    for level, threshold in zip(levels, above, strict=True):
        rates = {
            x.shard: x.divergence_rate
            for x in stats
            if threshold < x.divergence_rate <= highest
        }
        highest = threshold
        if rates:
            worst = max(rates.values())
            yield Diagnostic(
                f"divergences: {level}",
                worst,
                threshold,
                f"up to {worst:.1%} of the transitions diverged, in {_shards(rates)}: "
                "chains miss regions where the density is too curved. Raise "
                "`target_acceptance`, or choose other parameters for the same model.",
            )


def _disagree(
    shards: np.ndarray, names: Sequence[str], used: Sequence[int]
) -> Iterator[Diagnostic]:
    """Cochran's Q (1954, Biometrics 10(1), 101-129), for each parameter.

    If all shards are of one model, the mean of a shard lies about as far from the
    common one as the shard is wide; Monte Carlo adds its own error.
    """
    count = len(shards)
    if count < 2:
        return
    means, variances = _moments(shards)
    weights = 1 / variances
    center = np.sum(weights * means, axis=0) / np.sum(weights, axis=0)
    q = np.sum(weights * (means - center) ** 2, axis=0)
    stats = delayed("scipy.stats")
    limit = float(stats.chi2.isf(_CHANCE / len(names), count - 1))
    bad = np.flatnonzero(~(q <= limit))
    if bad.size:
        worst = int(np.argmax(np.nan_to_num(q, nan=np.inf)))
        ratio = float(np.sqrt(q[worst] / (count - 1)))
        far = int(np.argmax(weights[:, worst] * (means[:, worst] - center[worst]) ** 2))
        yield Diagnostic(
            "shards disagree",
            ratio,
            float(np.sqrt(limit / (count - 1))),
            f"the means of {few([names[int(i)] for i in bad])} are spread up to "
            f"{ratio:.1f} times as far as the widths of the shards predict, shard "
            f"{used[far]} farthest. The shards are not of one model: split the rows at "
            "random, stratify by what makes them differ, let the model have it vary, "
            "or use `combine='robust'` if few shards are spoilt.",
        )


def _moments(shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of shards, and how far each may lie from the truth, as a variance."""
    means = np.mean(shards, axis=(1, 2))
    widths = np.var(shards, axis=(1, 2))
    sizes = np.array([Convergence(x).ess_bulk for x in shards])
    return means, widths * (1 + 1 / np.maximum(sizes, 1.0))


def _modes(
    shards: np.ndarray, names: Sequence[str], used: Sequence[int]
) -> Iterator[Diagnostic]:
    found: dict[str, list[int]] = {}
    for shard, draws in zip(used, shards, strict=True):
        # Of each chain by itself: chains that stay in one mode each are worth next to
        # nothing together, and that is the way in which modes are mostly found.
        apart = [np.atleast_1d(Convergence(x[None]).ess_bulk) for x in draws]
        sizes = np.sum(apart, axis=0)
        for i, name in enumerate(names):
            if is_bimodal(draws[..., i].ravel(), float(sizes[i])):
                found.setdefault(name, []).append(shard)
    if found:
        some = {shard: 0 for shards in found.values() for shard in shards}
        yield Diagnostic(
            "modes",
            float(len(found)),
            0.0,
            f"{few(list(found))} has two modes, in {_shards(some)}: the density falls "
            f"below {VALLEY:.0%} of the lower one between them. A weighted mean of "
            "draws lies between modes, where there may be no probability. Use "
            "`combine='kde'` for few parameters, or all data at once with "
            "`sharded_logdensity`.",
        )


def _of_shards(stats: Sequence[SamplingStats]) -> Iterator[Diagnostic]:
    # Not `>`, since NaN says that nothing can be said.
    high = {x.shard: x.rhat for x in stats if not x.rhat <= HIGHEST_SHARD_RHAT}
    if high:
        yield Diagnostic(
            "R-hat of shards",
            float(np.max(list(high.values()))),
            HIGHEST_SHARD_RHAT,
            f"R-hat is above {HIGHEST_SHARD_RHAT}, or NaN, in {_shards(high)}, whose "
            "chains have not found the same distribution. Use more "
            f"{_REMEDIES.longer}; if that does not help, there may be several modes.",
        )
    low = {x.shard: x.ess for x in stats if not x.ess >= LOWEST_SHARD_ESS}
    if low:
        yield Diagnostic(
            "ESS of shards",
            float(np.min(list(low.values()))),
            LOWEST_SHARD_ESS,
            f"the draws are worth less than {LOWEST_SHARD_ESS:.0f} independent ones, "
            f"or nothing is known, in {_shards(low)}. The weights are computed from "
            f"their covariance. Use more {_REMEDIES.draws}.",
        )


def _retried(stats: Sequence[SamplingStats]) -> Iterator[Diagnostic]:
    again = {x.shard: len(x.tries) for x in stats if len(x.tries) > 1}
    if again:
        rate = 1 - len(again) / len(stats)
        yield Diagnostic(
            "tries",
            float(len(again)),
            0.0,
            f"{rate:.0%} of the shards succeeded at once; {_shards(again)} ran up to "
            f"{max(again.values())} times. Start with a higher `target_acceptance`, "
            "or use fewer shards: small ones have wilder posteriors.",
        )


def _many_parameters(combine: str, names: Sequence[str]) -> Iterator[Diagnostic]:
    if combine == "kde" and len(names) > _MOST_FOR_KDE:
        yield Diagnostic(
            "kernel densities",
            float(len(names)),
            float(_MOST_FOR_KDE),
            f"there are {len(names)} parameters, and kernel densities of so many are "
            "coarse: the result may be far too narrow where shards differ. Use "
            "`combine='consensus'`.",
        )


def _moved(
    shift: np.ndarray | None, is_refined: bool, names: Sequence[str]
) -> Iterator[Diagnostic]:
    if is_refined and shift is None:
        yield Diagnostic(
            "not refined",
            float("nan"),
            0.0,
            "no place was found where the gradient of all data is zero on average, so "
            "the draws are where combining has put them. Choose parameters without "
            "bounds, in which the posterior is closer to a Gaussian, or use fewer "
            "shards.",
        )
    if shift is None:
        return
    worst = int(np.argmax(np.abs(shift)))
    far = float(np.abs(shift[worst]))
    if far > FARTHEST_SHIFT:
        yield Diagnostic(
            "shift",
            far,
            FARTHEST_SHIFT,
            f"combining has put {names[worst]} {far:.1f} standard deviations from "
            "where the gradient of all data says that it is. It has been moved, but "
            "the shape of the draws is as uncertain. Use fewer shards.",
        )


def _shards(values: Collection[int]) -> str:
    word = "shard" if len(values) == 1 else "shards"
    return f"{word} {few(list(map(str, values)))}"
