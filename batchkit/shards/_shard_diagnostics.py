"""Diagnostics of draws combined from shards, and what to do about them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, PyTree

from ..chains import ChainRun
from ..chains._convergence import Convergence, Remedies, diagnose_chains
from ..run._names import join_few, named_numbers
from ..run._packages import delayed
from ..run._result import Diagnostic
from ._combine import as_matrix
from ._shard_tries import (
    DIVERGENCE_NOTE,
    DIVERGENCE_UNRELIABLE,
    DIVERGENCE_WARNING,
    ShardTry,
)


# The worst of many shards with short chains is above 1.01 by chance.
HIGHEST_SHARD_RHAT: Final = 1.05
# For a covariance to within about a tenth.
LOWEST_SHARD_ESS: Final = 200.0
# The chance, in a whole run, of a warning that shards disagree though they do not.
_CHANCE: Final = 0.01
_MOST_FOR_KDE: Final = 5
# In standard deviations; widths are off by a few per cent then.
FARTHEST_SHIFT: Final = 0.5
# With one of these, the verdict is "unreliable".
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
# With a smaller part of the shards, the result is the posterior of other data.
LOWEST_SUCCESS_RATE: Final = 0.5
# A valley between two modes counts if the density falls below this part of the lower
# mode, if this part of all draws lies beyond it, and if its depth is more than so many
# standard deviations of noise.
VALLEY: Final = 0.6
SMALLEST_MODE: Final = 0.05
SURE: Final = 4.0
_GRID: Final = 512
# Fewer independent draws show no modes.
_FEWEST_FOR_MODES: Final = 50

_PLAN: Final = "(in `plan`, if you pass one)"
_REMEDIES: Final = Remedies(
    longer=f"`num_warmup` and `num_samples` {_PLAN}",
    draws=f"`num_samples` {_PLAN}",
    chains="raise `num_chains`",
)


def diagnose_shards(
    samples: PyTree,
    convergence: Convergence,
    shards: Sequence[ChainRun],
    tries: Sequence[Sequence[ShardTry]],
    names: Sequence[str],
    left_out: dict[int, str],
    combine: str,
    of_gradients: Sequence[Diagnostic] = (),
    shift: Float[np.ndarray, " dim"] | None = None,
    is_refined: bool = False,
) -> tuple[Diagnostic, ...]:
    """Return everything that may be wrong, the most serious first.

    `shift` is by how many standard deviations the combined draws were moved, None if
    they were not, and `is_refined` whether they were to be.
    """
    used = {i: x for i, x in enumerate(shards) if i not in left_out}
    draws = {i: as_matrix(x.samples, 2)[0] for i, x in used.items()}
    diagnostics = [
        *_left_out(left_out, len(shards)),
        *of_gradients,
        *_divergences(used),
        *_disagree(used, draws, names),
        *_modes(draws, names),
        *_of_shards(used),
        *diagnose_chains(samples, convergence, remedies=_REMEDIES),
        *_retried(tries),
        *_many_parameters(combine, names),
        *_moved(shift, is_refined, names),
    ]
    return tuple(sorted(diagnostics, key=lambda x: x.name not in FATAL))


def _left_out(left_out: dict[int, str], total: int) -> Iterator[Diagnostic]:
    if not left_out:
        return
    rate = 1 - len(left_out) / total
    if rate < LOWEST_SUCCESS_RATE:
        yield Diagnostic(
            "few shards",
            rate,
            LOWEST_SUCCESS_RATE,
            f"only {rate:.0%} of the shards are in the result. That is no posterior of "
            "the data: mend what makes shards fail, or use fewer of them.",
        )
    reasons = "; ".join(f"shard {s}: {why}" for s, why in left_out.items())
    yield Diagnostic(
        "shards left out",
        float(len(left_out)),
        0.0,
        f"{len(left_out)} of {total} shards are not in the result ({reasons}). It is "
        "the posterior of the rows of the others. Find out what is special about the "
        "rows of those, or use fewer shards.",
    )


def _divergences(shards: Mapping[int, ChainRun]) -> Iterator[Diagnostic]:
    all_rates = {
        shard: float(np.mean(run.diverging > 0))
        for shard, run in shards.items()
        if run.diverging is not None
    }
    highest = np.inf
    for level, threshold in (
        ("unreliable", DIVERGENCE_UNRELIABLE),
        ("warning", DIVERGENCE_WARNING),
        ("note", DIVERGENCE_NOTE),
    ):
        rates = {i: x for i, x in all_rates.items() if threshold < x <= highest}
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
    runs: Mapping[int, ChainRun], draws: Mapping[int, np.ndarray], names: Sequence[str]
) -> Iterator[Diagnostic]:
    """Apply Cochran's Q (1954, Biometrics 10(1), 101-129) to each parameter.

    If all shards are of one model, the mean of a shard lies about as far from the
    common one as the shard is wide; Monte Carlo adds its own error.
    """
    count = len(runs)
    if count < 2:
        return
    shards = np.stack(list(draws.values()))
    means = np.mean(shards, axis=(1, 2))
    sizes = np.array([_numbers(x.ess_bulk) for x in runs.values()])
    weights = 1 / (np.var(shards, axis=(1, 2)) * (1 + 1 / np.maximum(sizes, 1.0)))
    center = np.sum(weights * means, axis=0) / np.sum(weights, axis=0)
    each = weights * (means - center) ** 2
    q = np.sum(each, axis=0)
    stats = delayed("scipy.stats")
    limit = float(stats.chi2.isf(_CHANCE / len(names), count - 1))
    bad = np.flatnonzero(~(q <= limit))
    if bad.size:
        worst = int(np.argmax(np.nan_to_num(q, nan=np.inf)))
        ratio = float(np.sqrt(q[worst] / (count - 1)))
        farthest = list(runs)[int(np.argmax(each[:, worst]))]
        yield Diagnostic(
            "shards disagree",
            ratio,
            float(np.sqrt(limit / (count - 1))),
            f"the means of {join_few([names[int(i)] for i in bad])} are spread up to "
            f"{ratio:.1f} times as far as the widths of the shards predict, shard "
            f"{farthest} farthest. The shards are not of one model: split the rows at "
            "random, stratify by what makes them differ, let the model have it vary, "
            "or use `combine='robust'` if few shards are spoilt.",
        )


def _modes(
    shards: Mapping[int, np.ndarray], names: Sequence[str]
) -> Iterator[Diagnostic]:
    bimodal: dict[str, list[int]] = {}
    for shard, draws in shards.items():
        # Of each chain by itself. Together, chains that stay in one mode each have next
        # to no effective sample size, and that is how most modes are found.
        of_chains = [np.atleast_1d(Convergence(x[None]).ess_bulk) for x in draws]
        sizes = np.sum(of_chains, axis=0)
        for i, name in enumerate(names):
            if is_bimodal(draws[..., i].ravel(), float(sizes[i])):
                bimodal.setdefault(name, []).append(shard)
    if bimodal:
        where = list(dict.fromkeys(shard for x in bimodal.values() for shard in x))
        yield Diagnostic(
            "modes",
            float(len(bimodal)),
            0.0,
            f"{join_few(list(bimodal))} has two modes, in {_shards(where)}: the "
            f"density falls below {VALLEY:.0%} of the lower one between them. A "
            "weighted mean of draws lies between modes, where there may be no "
            "probability. Use `combine='kde'` for few parameters, or all data at once "
            "with `sharded_logdensity`.",
        )


def is_bimodal(draws: Float[np.ndarray, " draws"], ess: float) -> bool:
    """Return True if there is a valley between two modes of draws of one number.

    Coefficients of skewness and kurtosis take a skewed density for a bimodal one, and
    ratios to the mean see modes in anything centred at zero. So the valley is looked
    for in a kernel density, wide enough that the noise of `ess` independent draws makes
    no valley of its own.
    """
    if not np.all(np.isfinite(draws)) or not ess >= _FEWEST_FOR_MODES:
        return False
    low, high = np.quantile(draws, [0.001, 0.999])
    width = min(np.std(draws), np.subtract(*np.quantile(draws, [0.75, 0.25])) / 1.349)
    if not (high > low and width > 0):
        return False
    # Silverman (1986, Density Estimation for Statistics and Data Analysis, 3.31).
    kernel = 0.9 * width * min(ess, len(draws)) ** -0.2
    grid = np.linspace(low - 3 * kernel, high + 3 * kernel, _GRID)
    half = (grid[1] - grid[0]) / 2
    edges = np.append(grid - half, grid[-1] + half)
    counts = np.histogram(draws, bins=edges)[0].astype(np.float64)
    offsets = grid - grid[_GRID // 2]
    density = np.convolve(counts, np.exp(-0.5 * (offsets / kernel) ** 2), "same")
    # At each place the lower of the highest modes on both sides of it.
    lower = np.minimum(
        np.maximum.accumulate(density), np.maximum.accumulate(density[::-1])[::-1]
    )
    below = np.cumsum(counts) / max(np.sum(counts), 1.0)
    is_between = (below > SMALLEST_MODE) & (below < 1 - SMALLEST_MODE)
    # In long tails a mode is a few draws. The variance of a sum of kernels is its
    # height over the root of two.
    share = min(ess, len(draws)) / len(draws)
    noise = np.sqrt((lower + density) / 2**0.5 / share)
    is_deep = (density < VALLEY * lower) & (lower - density > SURE * noise)
    return bool(np.any(is_between & is_deep))


def _of_shards(shards: Mapping[int, ChainRun]) -> Iterator[Diagnostic]:
    # NaN wins over every number in NumPy, and not `>`, so that it counts as high.
    rhats = {i: float(np.max(_numbers(x.rhat))) for i, x in shards.items()}
    high = {i: rhat for i, rhat in rhats.items() if not rhat <= HIGHEST_SHARD_RHAT}
    if high:
        yield Diagnostic(
            "R-hat of shards",
            float(np.max(list(high.values()))),
            HIGHEST_SHARD_RHAT,
            f"R-hat is above {HIGHEST_SHARD_RHAT}, or NaN, in {_shards(high)}, whose "
            "chains have not found the same distribution. Use more "
            f"{_REMEDIES.longer}; if that does not help, there may be several modes.",
        )
    sizes = {i: float(np.min(_numbers(x.ess_bulk))) for i, x in shards.items()}
    low = {i: size for i, size in sizes.items() if not size >= LOWEST_SHARD_ESS}
    if low:
        yield Diagnostic(
            "ESS of shards",
            float(np.min(list(low.values()))),
            LOWEST_SHARD_ESS,
            f"the effective sample size is below {LOWEST_SHARD_ESS:.0f}, or NaN, in "
            f"{_shards(low)}. The weights are computed from the covariance of the "
            f"draws. Use more {_REMEDIES.draws}.",
        )


def _retried(tries: Sequence[Sequence[ShardTry]]) -> Iterator[Diagnostic]:
    again = {shard: len(x) for shard, x in enumerate(tries) if len(x) > 1}
    if again:
        rate = 1 - len(again) / len(tries)
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
    if shift is None:
        if is_refined:
            yield Diagnostic(
                "not refined",
                float("nan"),
                0.0,
                "no place was found where the gradient of all data is zero on average, "
                "so the draws are where combining has put them. Choose parameters "
                "without bounds, in which the posterior is closer to a Gaussian, or "
                "use fewer shards.",
            )
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


def _numbers(tree: PyTree) -> list[float]:
    return [value for _, value in named_numbers(tree)]


def _shards(values: Collection[int]) -> str:
    word = "shard" if len(values) == 1 else "shards"
    return f"{word} {join_few(list(map(str, values)))}"
