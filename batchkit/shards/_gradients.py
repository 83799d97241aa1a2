"""A check of combined draws by the gradient of all data: integration by parts.

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

The plain matrix would not do for correlated parameters: entries that do no harm may be
large, and where all widths are off together its entries are small. Of parameters with
strong correlations, a difference may be off while each of them is right. So both are
computed a second time for decorrelated parameters, by the inverse root of the
correlation matrix, which changes them least of all such transforms (Kessy, Lewin and
Strimmer 2018, The American Statistician 72(4), 309-314). Principal axes would not do,
since those of few draws are where their covariance is most wrong by chance.

Gradients are computed at few draws, and covariances of all. Where p is Gaussian, the
second predict the first; so the mean over few draws is taken only of the rest (a
control variate), and standard errors become those of all draws. They come from batch
means (Flegal and Jones 2010, Annals of Statistics 38(2), 1034-1070), with Student's t
for the few batches.
"""

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, final

import numpy as np
from jaxtyping import Float

from .._util._formats import table
from ..run._names import join_few
from ..run._packages import delayed
from ..run._result import Diagnostic


# The chance, in a whole run, of a warning for draws of the posterior.
_CHANCE: Final = 0.01
# In standard deviations; the noise of 100 independent draws.
LARGEST_SHIFT: Final = 0.1
# Of a variance, as a part of it: a width that is off by 12 %.
LARGEST_EXCESS: Final = 0.25
# Two standard errors of either, above which the check is useless.
_COARSEST: Final = 0.5
_BATCHES: Final = 32
_FEWEST: Final = 4  # for two batches
_ROWS: Final = 60
_REMEDY: Final = (
    "Use fewer shards, or all data at once with `sharded_logdensity`: shards of this "
    "model are far from Gaussian, as those of hierarchical models mostly are."
)
_DECORRELATED: Final = " (decorrelated)"
# The names of all warnings of this file.
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
    import numpy as np
    import batchkit as bk

    # Draws of N(0, 1 / 3), for a posterior that is N(0.2, 1 / 3).
    draws = np.random.default_rng(0).normal(size=(3, 4, 500))
    run = bk.ShardRun(
        [bk.ChainRun({"x": x}) for x in draws],
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
        return table(_HEAD, [self._row(i) for i in range(len(self.names))], _ROWS)

    def _row(self, i: int) -> tuple[str, ...]:
        away = np.abs(self.matrix[i]) / self.matrix_err[i]
        away[i] = -1.0
        j = int(np.argmax(away))
        pair = _pm(self.matrix[i, j], self.matrix_err[i, j])
        return (
            self.names[i],
            _pm(self.mean_gradient[i], self.mean_gradient_err[i]),
            _pm(self.shift[i], self.shift_err[i]),
            _pm(self.matrix[i, i], self.matrix_err[i, i]),
            f"{pair} ({self.names[j]})" if j != i else "",
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
    """Estimate both identities, if possible, and return warnings; see `Refined`."""
    is_finite = np.isfinite(gradients)
    if not np.all(is_finite):
        where = [names[i] for i in np.flatnonzero(~np.all(is_finite, axis=0))]
        warning = Diagnostic(
            "gradients not finite",
            float(np.mean(~np.all(is_finite, axis=1))),
            0.0,
            f"the gradient of all data in {join_few(where)} is not finite at some "
            "combined draws, so means and widths cannot be checked. Choose parameters "
            "without bounds, and look for a `jnp.where` whose branch not taken divides "
            "by zero.",
        )
        return None, (warning,)
    if len(some) < _FEWEST:
        warning = Diagnostic(
            "gradients too noisy",
            float("nan"),
            _COARSEST,
            f"{len(some)} draws are too few to check means and widths by the gradient "
            "of all data. Use a `plan` with more draws.",
        )
        return None, (warning,)
    center, width = np.mean(draws, axis=0), np.std(draws, axis=0)
    x, y = (draws - center) / width, (some - center) / width
    slopes = gradients * width
    count = len(x)
    batches = min(_BATCHES, len(some) // 2)
    of_draws = np.arange(count) * batches // count
    products = functools.partial(_products, of_draws, of_draws[places], batches)

    def vectors(x: np.ndarray, y: np.ndarray) -> _Estimate:
        mean, error = products(np.ones((len(x), 1)), x, np.ones((len(y), 1)), y)
        return mean[0], error[0]

    correlation = x.T @ x / count
    root, inverse = _root(correlation), np.linalg.pinv(correlation, hermitian=True)
    steps = slopes @ correlation

    # Of draws that are right and Gaussian, `x @ inverse` is the negative gradient.
    gradient = vectors(-x @ inverse, slopes + y @ inverse)
    matrix = products(x, x @ inverse, y, -slopes - y @ inverse)
    shift = vectors(-x, steps + y)
    covariance = products(x, x, y, -steps - y)
    # The same of decorrelated parameters.
    x_apart, y_apart = x @ inverse @ root, y @ inverse @ root
    rest = slopes @ root + y_apart
    shift_apart = vectors(-x_apart, rest)
    variance_apart = vectors(x_apart**2, -y_apart * rest)

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
    warnings = (
        _shifted(check, shift_apart, batches),
        _wide_or_narrow(check, excess_apart, batches),
    )
    if not any(warnings):
        warnings = (_coarse(check),)
    return check, tuple(x for x in warnings if x is not None)


def _products(
    of_draws: np.ndarray,
    of_some: np.ndarray,
    batches: int,
    x: np.ndarray,
    z: np.ndarray,
    y: np.ndarray,
    rest: np.ndarray,
) -> _Estimate:
    """Estimate the mean of `x_i z_j` over all draws, plus `y_i rest_j` over some.

    Standard errors are those of means over batches of neighbouring draws, whose indices
    `of_draws` and `of_some` are.
    """

    def mean_of(batch: int) -> np.ndarray:
        a, b = of_draws == batch, of_some == batch
        return x[a].T @ z[a] / np.sum(a) + y[b].T @ rest[b] / np.sum(b)

    # Less the first, since squares of large numbers cancel. One batch at a time, as all
    # would be large for many parameters.
    first = mean_of(0)
    total = squares = np.zeros_like(first)
    for batch in range(1, batches):
        value = mean_of(batch) - first
        total, squares = total + value, squares + value**2
    mean = total / batches
    variance = np.maximum(squares / batches - mean**2, 0.0) / (batches - 1)
    return first + mean, np.sqrt(variance)


def _shifted(check: GradientCheck, apart: _Estimate, batches: int) -> Diagnostic | None:
    """Return a warning if the mean gradient is not zero."""
    names = check.names
    failing = _failing(
        (
            ((check.shift, check.shift_err), "", lambda i: names[i]),
            (apart, "", lambda i: names[i] + _DECORRELATED),
        ),
        LARGEST_SHIFT,
        2 * len(names),
        batches,
    )
    if failing is None:
        return None
    value, error, where, _ = failing
    return Diagnostic(
        "mean gradient",
        abs(value),
        LARGEST_SHIFT,
        "over draws of the posterior the mean gradient of all data is zero. Over these "
        "it is not: times their covariance, which is how far off means are, it is "
        f"{_pm(value, error)} standard deviations of {where[0]}, and more than "
        f"{LARGEST_SHIFT} in {join_few(where)}. `refine=True` moves the draws until it "
        f"is zero, if it can. {_REMEDY}",
    )


def _wide_or_narrow(
    check: GradientCheck, apart: _Estimate, batches: int
) -> Diagnostic | None:
    """Return a warning if the matrix is not the identity."""
    names, dim = check.names, len(check.names)
    own = np.diag(check.excess), np.diag(check.excess_err)
    pairs = (check.excess - np.diag(own[0])).ravel(), check.excess_err.ravel()

    def name_of_pair(i: int) -> str:
        return " with ".join(names[j] for j in sorted(divmod(i, dim)))

    failing = _failing(
        (
            (own, "variance", lambda i: names[i]),
            (pairs, "covariance", name_of_pair),
            (apart, "variance", lambda i: names[i] + _DECORRELATED),
        ),
        LARGEST_EXCESS,
        dim**2 + dim,
        batches,
    )
    if failing is None:
        return None
    value, error, where, kind = failing
    size = "large" if value > 0 else "small"
    return Diagnostic(
        "integration by parts",
        abs(value),
        LARGEST_EXCESS,
        "over draws of the posterior E[-(x_i - mean_i) d_j log p] is 1 for i = j and 0 "
        f"for other pairs. Over these it is not. To first order the {kind} of "
        f"{where[0]} is too {size} by {_pm(abs(value), error)}, as a part of that of "
        f"the draws, and more than {LARGEST_EXCESS} off are {join_few(where)}. "
        f"{_REMEDY}",
    )


def _coarse(check: GradientCheck) -> Diagnostic | None:
    """Return a warning if errors are so large that the check is useless."""
    shift = 2 * float(np.max(check.shift_err))
    variance = 2 * float(np.max(np.diag(check.excess_err)))
    if max(shift, variance) <= _COARSEST:
        return None
    return Diagnostic(
        "gradients too noisy",
        max(shift, variance),
        _COARSEST,
        f"the gradient of all data at {check.num_draws} draws gives their means to "
        f"{shift:.2f} standard deviations and their variances to {variance:.0%}, two "
        "standard errors, which is too coarse to say whether they are right. Use a "
        "`plan` with more draws; if that does not help, the density is far from a "
        "Gaussian, for which combining is not made.",
    )


def _failing(
    estimates: Iterable[tuple[_Estimate, str, Callable[[int], str]]],
    level: float,
    tests: int,
    batches: int,
) -> tuple[float, float, list[str], str] | None:
    """Return the worst number of the first that fails, its error, names and kind."""
    # Half of the chance is for means, half for covariances, each to both sides.
    limit = float(delayed("scipy.stats").t.isf(_CHANCE / 4 / tests, batches - 1))
    for (values, errors), kind, name in estimates:
        size = np.abs(values)
        bad = np.flatnonzero((size > level) & (size > limit * errors))
        if bad.size:
            bad = bad[np.argsort(-size[bad])]
            where = list(dict.fromkeys(name(int(i)) for i in bad))
            return float(values[bad[0]]), float(errors[bad[0]]), where, kind
    return None


def _root(matrix: np.ndarray) -> np.ndarray:
    """Return the symmetric root of a positive semidefinite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _pm(value: float, error: float) -> str:
    return f"{value:.2f} +- {error:.2f}"
