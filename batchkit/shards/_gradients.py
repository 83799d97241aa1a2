"""Integration by parts: a check of combined draws by the gradient of all data.

Over draws x of a density p that vanishes in its tails, for all i and j,

    E[d_j log p(x)] = 0    and    E[-(x_i - mean_i) d_j log p(x)] = 1 if i = j, else 0

(Stein 1972; Gorham and Mackey 2015, NeurIPS, arXiv:1506.03039, measure samples by it).
Over draws of another density q neither holds. If both are Gaussian, the second is the
product of the covariance of q and the inverse covariance of p, and the mean gradient
times the covariance of q is how far q lies from p. So the rule is in those units, with
`n(x) = covariance @ gradient(x)`, the Newton step from a draw:

- the mean of `n`, in standard deviations, is by how much the draws are off;
- `E[-(x_i - mean_i) n_j]`, less the covariance of the draws, is by how much their
  covariance is too large.

The plain matrix alone would not do for correlated parameters. The entries of a harmless
one may be large there, and where all widths are off together its entries are small.
Of parameters that are strongly correlated, a difference may be off and none of them
alone. So the same is looked at once more for parameters of which the correlations have
been taken out, by the inverse root of their correlation matrix: of all such
transforms it changes them least (Kessy, Lewin and Strimmer 2018, The American
Statistician 72(4), 309-314). Principal axes would not do, since those of few draws are
where their covariance is most wrong by chance.

Gradients are known at few draws, and covariances of all. Where p is Gaussian, the first
can be foretold from the second; so the mean over few draws is taken only of what is
left (a control variate), and error bars become those of all draws. They are the
standard errors of batch means (Flegal and Jones 2010, Annals of Statistics 38(2),
1034-1070), with Student's t for the few batches.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from jaxtyping import Float, Int

from .._util._table import table
from ..run._diagnostic import Diagnostic
from ..run._extras import delayed
from ..run._names import few


# How seldom draws of the posterior may be said not to be, in a whole run.
_CHANCE: Final = 0.01
# In standard deviations; the noise of 100 independent draws.
LARGEST_SHIFT: Final = 0.1
# Of a variance, as a part of it: a width that is off by 12 %.
LARGEST_EXCESS: Final = 0.25
# Two standard errors above which nothing is known, for both.
_COARSEST: Final = 0.5
_BATCHES: Final = 32
_FEWEST: Final = 4  # for two batches
_ROWS: Final = 60
_REMEDY: Final = (
    "Use fewer shards, or all data at once with `sharded_logdensity`: shards of this "
    "model are far from Gaussian, as those of hierarchical models mostly are."
)
_APART: Final = " (decorrelated)"
# What may fail, in the words of the report.
GRADIENT_WARNINGS: Final = frozenset(
    {
        "mean gradient",
        "integration by parts",
        "gradients too noisy",
        "gradients not finite",
    }
)
# Numbers and their standard errors.
_Estimate = tuple[np.ndarray, np.ndarray]


@final
@dataclass(frozen=True, eq=False, repr=False)
class GradientCheck:
    """Estimates from the gradient of all data at the combined draws.

    Draws of the posterior have a mean gradient of zero, and the identity for `matrix`,
    both within their errors. All is in units of the standard deviations of the draws.

    ```python
    import jax
    import numpy as np
    import batchkit as bk

    # Draws of N(0, 1 / 3), for a posterior that is N(0.2, 1 / 3).
    draws = np.random.default_rng(0).normal(size=(3, 4, 500))
    run = bk.ShardRun(
        {"x": draws},
        [bk.SamplingStats(s, 9, bk.SamplingPlan(9, 500), ()) for s in range(3)],
        gradients_fn=lambda used: lambda position: {"x": -3 * (position["x"] - 0.2)},
        refine=False,
    )
    assert abs(run.gradient_check.shift[0] - 0.2 * 3**0.5) < 0.1
    assert abs(run.gradient_check.matrix[0, 0] - 1) < 0.1
    assert run.verdict == "unreliable"
    ```

    - `names`: of the numbers in a position.
    - `num_draws`: at how many draws gradients were computed.
    - `mean_gradient`, `mean_gradient_err`: of the log-density of all data, and the
        standard error, of shape `(dim,)`.
    - `matrix`, `matrix_err`: `E[-(x_i - mean_i) d_j log p]`, of shape `(dim, dim)`.
    - `shift`, `shift_err`: how far a step of Newton's method would move the draws: the
        covariance of the draws times the mean gradient, of shape `(dim,)`.
    - `excess`, `excess_err`: the covariance of the draws, less that of the posterior,
        to first order: `(matrix - identity)` times the correlation of the draws, of
        shape `(dim, dim)`. On the diagonal, 0.2 is a variance that is 20 % too large.
    """

    names: tuple[str, ...]
    num_draws: int
    mean_gradient: Float[np.ndarray, " dim"]
    mean_gradient_err: Float[np.ndarray, " dim"]
    matrix: Float[np.ndarray, "dim dim"]
    matrix_err: Float[np.ndarray, "dim dim"]
    shift: Float[np.ndarray, " dim"]
    shift_err: Float[np.ndarray, " dim"]
    excess: Float[np.ndarray, "dim dim"]
    excess_err: Float[np.ndarray, "dim dim"]

    @property
    def bounds(self) -> tuple[float, float]:
        """The largest shift, and error of a variance, that two standard errors allow.

        The first is in standard deviations, the second a part of the variance.
        """
        shift = np.abs(self.shift) + 2 * self.shift_err
        variance = np.abs(np.diag(self.excess)) + 2 * np.diag(self.excess_err)
        return float(np.max(shift)), float(np.max(variance))

    def __repr__(self) -> str:
        text = table(_HEAD, [self._row(i) for i in range(len(self.names))[:_ROWS]])
        hidden = len(self.names) - _ROWS
        return f"{text}\n... and {hidden:,} more" if hidden > 0 else text

    def _row(self, i: int) -> tuple[str, ...]:
        away = np.abs(self.matrix[i]) / self.matrix_err[i]
        away[i] = -1.0
        j = int(np.argmax(away))
        pair = ""
        if j != i:
            pair = f"{_pm(self.matrix[i, j], self.matrix_err[i, j])}"
            pair += f" ({self.names[j]})"
        return (
            self.names[i],
            _pm(self.mean_gradient[i], self.mean_gradient_err[i]),
            _pm(self.shift[i], self.shift_err[i]),
            _pm(self.matrix[i, i], self.matrix_err[i, i]),
            pair,
        )


_HEAD: Final = (
    "parameter",
    "mean gradient (0)",
    "shift (0)",
    "matrix (1)",
    "worst pair (0)",
)


def check_gradients(
    draws: Float[np.ndarray, "draws dim"],
    places: np.ndarray,
    some: Float[np.ndarray, "few dim"],
    gradients: Float[np.ndarray, "few dim"],
    names: tuple[str, ...],
) -> tuple[GradientCheck | None, tuple[Diagnostic, ...]]:
    """Estimate both identities, and find where they fail.

    **Arguments:**

    - `draws`: all combined draws, chain by chain.
    - `places`: the indices of those near which gradients were computed.
    - `some`: where that was, with the mean of all draws.
    - `gradients`: of the log-density of all data there.
    - `names`: of the numbers in a position.

    **Returns:**

    What was found, None if a gradient is not finite or there are too few draws, and the
    warnings.
    """
    bad = np.flatnonzero(~np.all(np.isfinite(gradients), axis=0))
    if bad.size:
        return None, (_not_finite(gradients, [names[i] for i in bad]),)
    if len(some) < _FEWEST:
        return None, (_too_few(len(some)),)
    center, width = np.mean(draws, axis=0), np.std(draws, axis=0)
    x, y = (draws - center) / width, (some - center) / width
    slopes = gradients * width
    count = len(x)
    batches = min(_BATCHES, len(some) // 2)
    edges = np.arange(count) * batches // count
    means = _BatchMeans(edges, edges[places], batches)
    correlation = x.T @ x / count
    root, inverse = _root(correlation), np.linalg.pinv(correlation, hermitian=True)
    steps = slopes @ correlation

    # Of draws that are right and Gaussian, `x @ inverse` is the negative gradient.
    gradient = means.of_vectors(-x @ inverse, slopes + y @ inverse)
    matrix = means.of_products(x, x @ inverse, y, -slopes - y @ inverse)
    shift = means.of_vectors(-x, steps + y)
    covariance = means.of_products(x, x, y, -steps - y)
    x_apart, y_apart = x @ inverse @ root, y @ inverse @ root
    rest = slopes @ root + y_apart
    shift_apart = means.of_vectors(-x_apart, rest)
    variance_apart = means.of_vectors(x_apart**2, -y_apart * rest)

    check = GradientCheck(
        names,
        len(some),
        *gradient,
        *matrix,
        *shift,
        covariance[0] - correlation,
        covariance[1],
    )
    excess_apart = variance_apart[0] - 1, variance_apart[1]
    found = [*_shifted(check, shift_apart, batches)]
    found += _wide_or_narrow(check, excess_apart, batches)
    return check, tuple(found or _coarse(check))


@final
@dataclass(frozen=True)
class _BatchMeans:
    """Means with standard errors, from batches of neighbouring draws.

    **Arguments:**

    - `of_all`: for each draw the index of its batch.
    - `of_some`: the same for those with gradients.
    - `count`: how many batches there are.
    """

    of_all: np.ndarray
    of_some: np.ndarray
    count: int

    def of_vectors(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The mean over all draws of `x`, plus that of `y` over some."""
        of_ones = np.ones((len(x), 1)), np.ones((len(y), 1))
        mean, error = self.of_products(of_ones[0], x, of_ones[1], y)
        return mean[0], error[0]

    def of_products(
        self, x: np.ndarray, z: np.ndarray, y: np.ndarray, rest: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The mean of `x_i z_j` over all draws, plus that of `y_i rest_j` over some."""
        total, squares = 0.0, 0.0
        first = None
        for batch in range(self.count):
            a, b = self.of_all == batch, self.of_some == batch
            value = x[a].T @ z[a] / np.sum(a) + y[b].T @ rest[b] / np.sum(b)
            # One batch at a time, as all would be large for many parameters; less the
            # first, since squares of large numbers cancel.
            first = value if first is None else first
            total = total + (value - first)
            squares = squares + (value - first) ** 2
        assert first is not None
        mean = total / self.count
        variance = np.maximum(squares / self.count - mean**2, 0.0) / (self.count - 1)
        return first + mean, np.sqrt(variance)


def _shifted(
    check: GradientCheck, apart: _Estimate, batches: int
) -> Iterator[Diagnostic]:
    """The mean gradient, where it is not zero."""
    names, tests = check.names, 2 * len(check.names)
    for found, kind in (
        ((check.shift, check.shift_err), "{}"),
        (apart, f"{{}}{_APART}"),
    ):
        bad = _failing(found, LARGEST_SHIFT, tests, batches)
        if bad.size:
            value, error = (float(x[bad[0]]) for x in found)
            where = [kind.format(names[i]) for i in bad]
            yield Diagnostic(
                "mean gradient",
                float(np.abs(value)),
                LARGEST_SHIFT,
                "over draws of the posterior the mean gradient of all data is zero. "
                "Over these it is not: times their covariance, which is how far off "
                f"means are, it is {_pm(value, error)} standard deviations of "
                f"{where[0]}, and more than {LARGEST_SHIFT} in {few(where)}. "
                f"`refine=True` moves the draws until it is zero, if it can. {_REMEDY}",
            )
            return


def _wide_or_narrow(
    check: GradientCheck, apart: _Estimate, batches: int
) -> Iterator[Diagnostic]:
    """The matrix, where it is not the identity."""
    names, dim = check.names, len(check.names)
    own = np.diag(check.excess), np.diag(check.excess_err)
    pairs = (check.excess - np.diag(own[0])).ravel(), check.excess_err.ravel()
    for found, kind, name in (
        (own, "variance", lambda i: names[i]),
        (
            pairs,
            "covariance",
            lambda i: " with ".join(names[j] for j in sorted(divmod(i, dim))),
        ),
        (apart, "variance", lambda i: names[i] + _APART),
    ):
        bad = _failing(found, LARGEST_EXCESS, dim**2 + dim, batches)
        if bad.size:
            value, error = (float(x[bad[0]]) for x in found)
            where = list(dict.fromkeys(name(int(i)) for i in bad))
            size = "large" if value > 0 else "small"
            yield Diagnostic(
                "integration by parts",
                float(np.abs(value)),
                LARGEST_EXCESS,
                "over draws of the posterior E[-(x_i - mean_i) d_j log p] is 1 for "
                "i = j and 0 for other pairs. Over these it is not. To first order the "
                f"{kind} of {where[0]} is too {size} by {_pm(abs(value), error)}, as a "
                f"part of that of the draws, and more than {LARGEST_EXCESS} off are "
                f"{few(where)}. {_REMEDY}",
            )
            return


def _not_finite(gradients: np.ndarray, where: list[str]) -> Diagnostic:
    return Diagnostic(
        "gradients not finite",
        float(np.mean(~np.all(np.isfinite(gradients), axis=1))),
        0.0,
        f"the gradient of all data in {few(where)} is not finite at some combined "
        "draws, so nothing is known of means and widths. Choose parameters without "
        "bounds, and look for a `jnp.where` whose branch not taken divides by zero.",
    )


def _too_few(draws: int) -> Diagnostic:
    return Diagnostic(
        "gradients too noisy",
        float("nan"),
        _COARSEST,
        f"{draws} draws are too few to check means and widths by the gradient of all "
        "data. Use a `plan` with more draws.",
    )


def _coarse(check: GradientCheck) -> Iterator[Diagnostic]:
    """Errors so large that nothing is known."""
    shift = 2 * float(np.max(check.shift_err))
    variance = 2 * float(np.max(np.diag(check.excess_err)))
    if not max(shift, variance) <= _COARSEST:
        yield Diagnostic(
            "gradients too noisy",
            max(shift, variance),
            _COARSEST,
            f"the gradient of all data at {check.num_draws} draws tells their means to "
            f"{shift:.2f} standard deviations and their variances to {variance:.0%}, "
            "two standard errors, which is too coarse to say whether they are right. "
            "Use a `plan` with more draws; if that does not help, the density is far "
            "from a Gaussian, for which combining is not made.",
        )


def _failing(
    found: _Estimate, level: float, tests: int, batches: int
) -> Int[np.ndarray, " failing"]:
    """Indices of numbers neither small nor zero within errors, largest first."""
    value, error = np.abs(found[0]), found[1]
    # Half of the chance is for means, half for covariances, each to both sides.
    stats = delayed("scipy.stats")
    errors = float(stats.t.isf(_CHANCE / 4 / tests, batches - 1))
    bad = np.flatnonzero((value > level) & (value > errors * error))
    return bad[np.argsort(-value[bad])]


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _pm(value: float, error: float, digits: int = 2) -> str:
    return f"{value:.{digits}f} +- {error:.{digits}f}"
