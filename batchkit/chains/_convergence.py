"""Convergence of chains, in NumPy: split R-hat, effective sample sizes, and warnings.

The formulas are those of Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021,
Bayesian Analysis 16(2), 667-718, arXiv:1903.08008). The programs of blackjax compile
for seconds for each number of chains and draws, to run for milliseconds on arrays that
are on the host by then. The results are those of ArviZ to rounding, except that draws
that are all equal have an effective sample size of 0.
"""

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, final

import jax
import numpy as np
from jaxtyping import Float, PyTree

from ..run._names import join_few, named_numbers
from ..run._packages import delayed
from ..run._result import Diagnostic


# Half a chain must have a variance.
FEWEST_DRAWS: Final = 4
_TAILS: Final = (0.05, 0.95)
# Recommended by Vehtari et al. (2021, arXiv:1903.08008).
_HIGHEST_RHAT: Final = 1.01
_LOWEST_ESS: Final = 100  # for each chain
_FEWEST_CHAINS: Final = 4

_MOVE: Final = (
    "Use a smaller step size, or start where the log-density is finite all around."
)


@final
class Convergence:
    """Split R-hat, bulk and tail effective sample size of each number of a position.

    Each is a pytree like one position, of float64. A number is NaN where a draw is not
    finite and where there are fewer than four draws. Where all draws are equal, R-hat
    is NaN and both sizes are 0.

    ```python
    import numpy as np
    from batchkit.chains import Convergence

    draws = np.random.default_rng(0).normal(size=(4, 1000, 2))
    found = Convergence({"x": draws})
    assert np.all(found.rhat["x"] < 1.01)
    assert np.all(found.ess_bulk["x"] > 3000)
    ```
    """

    def __init__(self, samples: PyTree) -> None:
        """**Arguments:**

        - `samples`: a pytree of arrays of shape `(chains, draws, ...)`.
        """
        leaves, treedef = jax.tree.flatten(samples)
        results = [_of_leaf(np.asarray(leaf)) for leaf in leaves]
        self.rhat, self.ess_bulk, self.ess_tail = (
            jax.tree.unflatten(treedef, [values[i] for values in results])
            for i in range(3)
        )


def _of_leaf(leaf: np.ndarray) -> np.ndarray:
    chains, draws, *shape = leaf.shape
    columns = leaf.reshape(chains, draws, -1).transpose(2, 0, 1).astype(np.float64)
    values = np.array([_of_column(x) for x in columns]).reshape(-1, 3)
    return values.T.reshape(3, *shape)


def _of_column(x: Float[np.ndarray, "chains draws"]) -> tuple[float, float, float]:
    """Return R-hat, bulk and tail effective sample size of one number."""
    if x.shape[1] < FEWEST_DRAWS or not np.all(np.isfinite(x)):
        return np.nan, np.nan, np.nan
    if np.all(x == x[0, 0]):
        return np.nan, 0.0, 0.0
    scores = _scores(_halves(x))
    below = [_halves(x <= np.quantile(x, p)) for p in _TAILS]
    tails = [_ess(half.astype(np.float64)) for half in below]
    folded = np.abs(_halves(x) - np.median(_halves(x)))
    rhat = max(_rhat(scores), _rhat(_scores(folded)))
    return float(rhat), _ess(scores), min(tails)


def _halves(x: np.ndarray) -> np.ndarray:
    """Split each chain in two halves; a draw in the middle is left out."""
    half = x.shape[1] // 2
    return np.concatenate([x[:, :half], x[:, -half:]])


def _scores(x: Float[np.ndarray, "chains draws"]) -> Float[np.ndarray, "chains draws"]:
    """Return normal scores of the ranks, `ndtri((rank - 3/8) / (S + 1/4))`.

    Equal draws have the mean of their ranks. The offset is Blom's (1958, Statistical
    Estimates and Transformed Beta-Variables).
    """
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place.reshape(x.shape)]
    return delayed("scipy.special").ndtri((ranks - 3 / 8) / (x.size + 1 / 4))


def _rhat(x: Float[np.ndarray, "chains draws"]) -> float:
    """Return `sqrt((B / W + n - 1) / n)`.

    `W` is the mean of the variances within chains, `B` is `n` times the variance of
    their means and `n` the number of draws (Gelman and Rubin 1992, Statistical Science
    7(4), 457-472).
    """
    n = x.shape[1]
    within = np.mean(np.var(x, axis=1, ddof=1))
    between = n * np.var(np.mean(x, axis=1), ddof=1)
    # Chains that never move, each at another place, never agree.
    return float(np.sqrt((between / within + n - 1) / n)) if within > 0 else np.inf


def _ess(x: Float[np.ndarray, "chains draws"]) -> float:
    """Return `S / tau`, with `S` draws and the autocorrelation time `tau`.

    `tau = -1 + 2 sum P_k`, where `P_k` are sums of the autocorrelations, over all
    chains, at the lags `2k` and `2k + 1`: as far as they are positive, and made
    monotone (Geyer 1992, Statistical Science 7(4), 473-483). The even lag after those
    is added once, which helps antithetic chains. `S / tau` is at most `S log10(S)`.
    """
    n = x.shape[1]
    if np.all(x == x[0, 0]):  # no draw is beyond a quantile, since many are equal
        return float(x.size)
    rho = _autocorrelations(x)
    even, odd = rho[0 : n - 1 : 2], rho[1:n:2]
    pairs = even + odd
    # The longest lags are estimated from few draws, so they are not used.
    last = max((n - 3) // 2, 0)
    ended = np.flatnonzero(pairs[: last + 1] <= 0)
    end = int(ended[0]) if ended.size else last
    after = even[end] if even[end] > 0 or pairs[end] >= 0 else 0.0
    tau = -1 + 2 * np.sum(np.minimum.accumulate(pairs[:end])) + after
    return float(x.size / max(tau, 1 / np.log10(x.size)))


def _autocorrelations(x: Float[np.ndarray, "chains draws"]) -> np.ndarray:
    """Return the autocorrelation at each lag, over all chains.

    `1 - (W - mean_m(c_m)) / V`, with `c_m` the autocovariance of chain `m`, by FFT, and
    `V` the variance of all draws, estimated within and between chains.
    """
    chains, n = x.shape
    centered = x - np.mean(x, axis=1, keepdims=True)
    size = 2 ** (2 * n - 1).bit_length()
    power = np.abs(np.fft.rfft(centered, size, axis=1)) ** 2
    covariance = np.mean(np.fft.irfft(power, size, axis=1)[:, :n], axis=0) / n
    within = covariance[0] * n / (n - 1)
    total = covariance[0]
    if chains > 1:
        total = total + np.var(np.mean(x, axis=1), ddof=1)
    rho = 1 - (within - covariance) / total
    rho[0] = 1.0
    return rho


@final
class Remedies(NamedTuple):
    """Advice of warnings, in settings of the call that made the draws."""

    longer: str = "`num_warmup` and `num_samples`"
    draws: str = "`num_samples`"
    chains: str = "pass more `positions`"
    steps: str = "Raise `target_acceptance`, towards 0.99"


WITH_WARMUP: Final = Remedies()
WITHOUT_WARMUP: Final = Remedies(longer="`num_samples`", steps="Use smaller steps")


def diagnose_chains(
    samples: PyTree,
    convergence: Convergence,
    *,
    logdensity: Any = None,
    diverging: Any = None,
    tree_depth: Any = None,
    max_tree_depth: int | None = None,
    remedies: Remedies = WITH_WARMUP,
) -> tuple[Diagnostic, ...]:
    """Return warnings about chains, the most serious first; None is not checked."""
    rows = _rows(samples)
    chains = len(rows[0])
    warnings = [
        *_not_finite([*rows, *_rows(logdensity)]),
        *_not_converged(rows, convergence, remedies),
    ]
    if diverging is not None and (count := int(np.sum(diverging))):
        # Betancourt (2017, arXiv:1701.02434) explains what divergences show.
        where = np.flatnonzero(np.sum(np.asarray(diverging), axis=1))
        message = (
            f"{count:,} transitions diverged, in chains {_listed(where)}: somewhere "
            "the density is too curved for the step size, and chains miss that "
            f"region. {remedies.steps}; if that does not help, choose other parameters "
            "for the same model, such as centred ones instead of offsets."
        )
        warnings.append(Diagnostic("divergences", float(count), 0.0, message))
    if tree_depth is not None and max_tree_depth is not None:
        cut = np.asarray(tree_depth) >= max_tree_depth
        if count := int(np.sum(cut)):
            message = (
                f"{count:,} of {cut.size:,} draws have a trajectory that was cut off "
                f"at {max_tree_depth} doublings. The draws are right, but more alike "
                "than they could be. Raise `max_num_doublings`, use more "
                "`num_warmup`, or scale the parameters such that all are about as wide."
            )
            warnings.append(Diagnostic("tree depth", float(count), 0.0, message))
    if chains < _FEWEST_CHAINS:
        message = (
            f"there {'is 1 chain' if chains == 1 else f'are {chains} chains'}. Whether "
            "chains agree is seen reliably with "
            f"{_FEWEST_CHAINS} or more, started far from each other: {remedies.chains}."
        )
        warnings.append(
            Diagnostic("chains", float(chains), float(_FEWEST_CHAINS), message)
        )
    return tuple(warnings)


def _not_finite(arrays: list[np.ndarray]) -> Iterator[Diagnostic]:
    finite = [np.isfinite(x.astype(np.float64)).all(axis=-1) for x in arrays]
    bad = ~np.all(finite, axis=0)
    if count := int(np.sum(bad)):
        where = np.flatnonzero(np.any(bad, axis=1))
        yield Diagnostic(
            "draws not finite",
            float(count),
            0.0,
            f"{count:,} of {bad.size:,} draws, in chains {_listed(where)}, have a "
            "position or a log-density that is not finite. Do not use this run. Make "
            "the log-density return minus infinity, never NaN, where there is no "
            "probability.",
        )


def _not_converged(
    rows: list[np.ndarray], convergence: Convergence, remedies: Remedies
) -> Iterator[Diagnostic]:
    chains, draws = rows[0].shape[:2]
    if draws < FEWEST_DRAWS:
        yield Diagnostic(
            "draws",
            float(draws),
            float(FEWEST_DRAWS),
            f"nothing can be said about convergence from {draws} draws a chain. Use "
            f"{remedies.draws} of at least {FEWEST_DRAWS}, or better hundreds.",
        )
        return
    rhat = dict(named_numbers(convergence.rhat))
    bulk = dict(named_numbers(convergence.ess_bulk))
    # Parameters whose draws are all equal, and chains in which nothing ever moved.
    equal = [x for x in rhat if np.isnan(rhat[x]) and not np.isnan(bulk[x])]
    still = np.all([np.all(x == x[:, :1], axis=(1, 2)) for x in rows], axis=0)
    if np.any(still):
        names = join_few(list(map(str, np.flatnonzero(still))))
        yield Diagnostic(
            "unmoved",
            float(np.sum(still)),
            0.0,
            f"chains {names} of {chains} are in one place in all {draws:,} draws: "
            f"every proposal was rejected. {_MOVE}",
        )
    elif equal:
        yield Diagnostic(
            "unmoved",
            float(len(equal)),
            0.0,
            f"all draws of {join_few(equal)} are equal, in all chains: nothing moves "
            f"there. {_MOVE}",
        )
    high = {x: value for x, value in rhat.items() if value > _HIGHEST_RHAT}
    if high:
        worst = max(high, key=lambda name: high[name])
        yield Diagnostic(
            "R-hat",
            high[worst],
            _HIGHEST_RHAT,
            f"R-hat of {worst} is {high[worst]:.3f}, and {len(high)} of {len(rhat)} "
            f"are above {_HIGHEST_RHAT}: the chains have not found the same "
            f"distribution. Use more {remedies.longer}; if that does not help, there "
            "may be several modes, or a parametrisation in which steps are small "
            "against the width.",
        )
    needed = _LOWEST_ESS * chains
    for name, tree, of in (
        ("bulk ESS", convergence.ess_bulk, "means and medians"),
        ("tail ESS", convergence.ess_tail, "the 5 % and 95 % quantiles"),
    ):
        sizes = {x: size for x, size in named_numbers(tree) if x not in equal}
        low = {x: size for x, size in sizes.items() if size < needed}
        if low:
            worst = min(low, key=lambda name: low[name])
            yield Diagnostic(
                name,
                low[worst],
                float(needed),
                f"the effective sample size of {worst} is {low[worst]:,.0f} for {of}, "
                f"and that of {len(low)} of {len(rhat)} is below {needed:,}, 100 a "
                "chain. Below that R-hat and the sizes themselves are not reliable. "
                f"Use more {remedies.draws}.",
            )


def _rows(tree: PyTree) -> list[np.ndarray]:
    """Return the arrays with shape `(chains, draws, numbers)`."""
    leaves = [np.asarray(x) for x in jax.tree.leaves(tree)]
    return [x.reshape(*x.shape[:2], -1) for x in leaves]


def _listed(indices: np.ndarray) -> str:
    return ", ".join(map(str, indices))
