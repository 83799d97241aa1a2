"""Running estimates of a nested sampling run, for rules to stop and for progress.

They are computed after every step, on the device, by running sums over the points that
have died. The result of a run comes from all points at its end, see `_dead.py`.

When one of `n_i` live points dies, the volume shrinks on average by
`log(X_(i-1) / X_i) = 1 / n_i`, and the evidence grows by `L_i (X_(i-1) - X_i)`. The
live points hold `mean(L) X` (Skilling 2006, Bayesian Analysis 1(4), 833-859).
"""

import dataclasses
from typing import Any, Final, NamedTuple, final

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float, Int


_LOW_BITS: Final = 30
_LOW: Final = 2**_LOW_BITS - 1


@final
class Count(NamedTuple):
    """A number that may outgrow 32 bits, exact on every device.

    ```python
    from batchkit.nested import Count

    count = Count.of(5_000_000_000)
    assert int(count.add(7)) == 5_000_000_007
    assert count.at_least(5_000_000_000)
    ```

    - `high`: the number without its lowest 30 bits.
    - `low`: its lowest 30 bits.
    """

    high: Int[Array, ""]
    low: Int[Array, ""]

    @staticmethod
    def of(number: int) -> "Count":
        """Return the count of a number."""
        high, low = divmod(number, _LOW + 1)
        return Count(jnp.asarray(high, jnp.int32), jnp.asarray(low, jnp.int32))

    def add(self, number: Any) -> "Count":
        """Add a number below 2^30."""
        low = self.low + jnp.asarray(number, jnp.int32)
        return Count(self.high + (low >> _LOW_BITS), low & _LOW)

    def at_least(self, number: "int | Count") -> Any:
        """Return True if the count has reached a number."""
        other = number if isinstance(number, Count) else Count.of(number)
        equal = (self.high == other.high) & (self.low >= other.low)
        return (self.high > other.high) | equal

    def __int__(self) -> int:
        return (int(self.high) << _LOW_BITS) + int(self.low)


@final
class NestedStatus(eqx.Module):
    """Running estimates of a nested sampling run after a step.

    Rules to stop get it with tracers, `progress=function` with scalars of NumPy. Then
    its text, `str(status)`, is the line that a bar shows.

    ```python
    import jax.numpy as jnp
    from batchkit.nested import NestedStatus

    def show(status: NestedStatus) -> None:  # for run_nested(..., progress=show)
        print(f"step {status.step}: {status}")

    # 100 live points of one likelihood, before the first step.
    status = NestedStatus.first(jnp.zeros(100))
    assert status.remaining == 1.0
    assert status.log_evidence == 0.0
    show(status)
    ```

    - `step`: the number of steps so far.
    - `evaluations`: the number of likelihoods evaluated so far, those of the first live
        points among them.
    - `seconds`: the duration of the run without compiling, for rules up to a second
        ago.
    - `log_volume`: the logarithm of the share of the prior that is left.
    - `log_evidence_dead`: the logarithm of the evidence of the points that have died.
    - `log_evidence_live`: that of the live points.
    - `mean_dead`, `mean_live`: the means of the log-likelihood over both, by weight.
    - `log_squares_dead`, `log_squares_live`: the logarithms of the sums of squares of
        the weights of both.
    - `exhausted`: True if no more points can be replaced, because there is no
        likelihood above theirs.
    - `num_live`: the number of live points, an int.
    - `num_delete`: the number of points that a step replaces, an int.
    """

    step: Int[Array | np.ndarray, ""]
    evaluations: Count
    seconds: Float[Array | np.ndarray, ""]
    log_volume: Float[Array | np.ndarray, ""]
    log_evidence_dead: Float[Array | np.ndarray, ""]
    log_evidence_live: Float[Array | np.ndarray, ""]
    mean_dead: Float[Array | np.ndarray, ""]
    mean_live: Float[Array | np.ndarray, ""]
    log_squares_dead: Float[Array | np.ndarray, ""]
    log_squares_live: Float[Array | np.ndarray, ""]
    exhausted: Bool[Array | np.ndarray, ""]
    num_live: int = eqx.field(static=True)
    num_delete: int = eqx.field(static=True)

    @staticmethod
    def first(live: Float[Array, " live"], num_delete: int = 1) -> "NestedStatus":
        """Return the status of live points before the first step.

        **Arguments:**

        - `live`: the log-likelihoods of the live points.
        - `num_delete`: the number of points that a step replaces; 1 by default.
        """
        zero = jnp.zeros((), live.dtype)
        status = NestedStatus(
            step=jnp.zeros((), jnp.int32),
            evaluations=Count.of(0).add(live.shape[0]),
            seconds=jnp.zeros((), jnp.float32),
            log_volume=zero,
            log_evidence_dead=zero - jnp.inf,
            log_evidence_live=zero,
            mean_dead=zero,
            mean_live=zero,
            log_squares_dead=zero - jnp.inf,
            log_squares_live=zero,
            exhausted=jnp.zeros((), bool),
            num_live=live.shape[0],
            num_delete=num_delete,
        )
        return status._of_live(live)

    def after(
        self,
        dead: Float[Array, " dead"],
        live: Float[Array, " live"],
        evaluations: Any,
    ) -> "NestedStatus":
        """Return the status after a step.

        **Arguments:**

        - `dead`: the log-likelihoods of the points that died in it, ascending.
        - `live`: those of the points that are alive after it.
        - `evaluations`: the number of likelihoods evaluated in it.
        """
        # The points of a batch die one after the other, so the number alive falls.
        shrinkage = 1.0 / (live.shape[0] - jnp.arange(dead.shape[0], dtype=live.dtype))
        after = self.log_volume - jnp.cumsum(shrinkage)
        # X_(i-1) - X_i, from the volume before it.
        log_weights = dead + after + jnp.log(jnp.expm1(shrinkage))
        log_z = jnp.logaddexp(self.log_evidence_dead, logsumexp(log_weights))
        share = _exp(self.log_evidence_dead - log_z)
        mean = share * self.mean_dead + jnp.sum(_times(_exp(log_weights - log_z), dead))
        status = dataclasses.replace(
            self,
            step=self.step + 1,
            evaluations=self.evaluations.add(evaluations),
            log_volume=after[-1],
            log_evidence_dead=log_z,
            mean_dead=jnp.where(jnp.isneginf(log_z), 0.0, mean),
            log_squares_dead=jnp.logaddexp(
                self.log_squares_dead, logsumexp(2 * log_weights)
            ),
        )
        return status._of_live(live)

    def _of_live(self, live: Float[Array, " live"]) -> "NestedStatus":
        log_n = jnp.log(jnp.asarray(self.num_live, live.dtype))
        total, squares = logsumexp(live), logsumexp(2 * live)
        # If the next batch has the highest likelihood, nothing lies above its contour.
        lowest = jax.lax.top_k(-live, self.num_delete)[0]
        return dataclasses.replace(
            self,
            log_evidence_live=total + self.log_volume - log_n,
            mean_live=jnp.sum(_times(_exp(live - total), live)),
            log_squares_live=squares + 2 * (self.log_volume - log_n),
            exhausted=-lowest[-1] >= jnp.max(live),
        )

    @property
    def log_evidence(self) -> Any:
        """The logarithm of the evidence, of dead and live points together."""
        return jnp.logaddexp(self.log_evidence_dead, self.log_evidence_live)

    @property
    def log_evidence_err(self) -> Any:
        """The error of `log_evidence`: `sqrt(information / num_live)`.

        This is the estimate of Skilling 2006, Bayesian Analysis 1(4), 833-859.
        """
        return jnp.sqrt(self.information / self.num_live)

    @property
    def remaining(self) -> Any:
        """The share of the evidence that the live points hold, from 0 to 1."""
        share = jnp.exp(self.log_evidence_live - self.log_evidence)
        return jnp.where(jnp.isneginf(self.log_evidence), 1.0, share)

    @property
    def information(self) -> Any:
        """The divergence of the posterior from the prior, in nats."""
        live = self.remaining
        mean = live * self.mean_live + (1 - live) * self.mean_dead
        is_zero = jnp.isneginf(self.log_evidence)
        return jnp.where(is_zero, 0.0, jnp.maximum(mean - self.log_evidence, 0.0))

    @property
    def ess(self) -> Any:
        """The effective sample size of all points, dead and alive."""
        squares = jnp.logaddexp(self.log_squares_dead, self.log_squares_live)
        size = jnp.exp(2 * self.log_evidence - squares)
        return jnp.where(jnp.isneginf(self.log_evidence), 0.0, size)

    def __str__(self) -> str:
        parts = [
            f"log-evidence {self.log_evidence:.2f} +/- {self.log_evidence_err:.2f}",
            f"remaining {self.remaining:.1e}",
        ]
        count = int(self.evaluations)
        # Not in the first status, nor where the sampler does not count them.
        if count > self.num_live and self.seconds > 0:
            made = int(self.step) * self.num_delete
            parts.append(f"efficiency {made / count:.1%}")
            parts.append(f"{count / float(self.seconds):,.0f} likelihoods/s")
        return ", ".join(parts)


def _exp(x: Any) -> Any:
    # Minus infinity minus itself, NaN, is the logarithm of a weight of zero.
    return jnp.where(jnp.isnan(x), 0.0, jnp.exp(x))


def _times(weight: Any, x: Any) -> Any:
    # Zero times minus infinity would be NaN.
    return jnp.where(jnp.isneginf(x), 0.0, weight * x)
