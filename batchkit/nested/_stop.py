"""Rules to stop a nested sampling run.

A rule is evaluated after every step, inside the compiled loop, so it is written in JAX.
Its limits are leaves of its pytree: a stricter rule does not compile anew.
"""

import abc
from typing import Any, ClassVar, final

import equinox as eqx

from .._util._checks import check_number
from ._status import Count, NestedStatus


class AbstractStop(eqx.Module):
    """A rule that ends a nested sampling run.

    Rules combine: `a | b` ends a run when one of them is met, `a & b` when both are. A
    rule of your own has these two methods, and a class variable `is_convergence`: True
    if a run that it ends has converged.

    ```python
    import jax.numpy as jnp
    import batchkit as bk

    class SmallVolume(bk.AbstractStop):
        log_volume: float
        is_convergence = False

        def met(self, status):
            return status.log_volume < self.log_volume

        def reason(self, status):
            return f"the log-volume is {status.log_volume:.1f}"

    rule = SmallVolume(-20.0) | bk.RemainingEvidence(1e-3)
    assert isinstance(rule, bk.AbstractStop)
    ```
    """

    is_convergence: ClassVar[bool]

    @abc.abstractmethod
    def met(self, status: NestedStatus) -> Any:
        """Return True if the run should end.

        **Arguments:**

        - `status`: a `batchkit.nested.NestedStatus` of scalars, under `jax.jit`.

        **Returns:**

        A boolean scalar.
        """

    @abc.abstractmethod
    def reason(self, status: NestedStatus) -> str:
        """Return why the run has ended, a text without a full stop.

        **Arguments:**

        - `status`: the last status, with values.
        """

    def __or__(self, other: "AbstractStop") -> "AbstractStop":
        return Combined(self, _checked(other), needs_both=False)

    def __and__(self, other: "AbstractStop") -> "AbstractStop":
        return Combined(self, _checked(other), needs_both=True)


def rules_met(rule: AbstractStop, status: NestedStatus) -> tuple[AbstractStop, ...]:
    """Return the single rules that end a run, or none if it does not end."""
    if not rule.met(status):
        return ()
    if isinstance(rule, Combined):
        return rules_met(rule.first, status) + rules_met(rule.second, status)
    return (rule,)


@final
class Combined(AbstractStop):
    """One of two rules, as `a | b` makes it, or both, as `a & b` does."""

    first: AbstractStop
    second: AbstractStop
    needs_both: bool = eqx.field(static=True)
    is_convergence = False

    def __repr__(self) -> str:
        return f"({self.first} {'&' if self.needs_both else '|'} {self.second})"

    def met(self, status: NestedStatus) -> Any:
        first, second = self.first.met(status), self.second.met(status)
        return first & second if self.needs_both else first | second

    def reason(self, status: NestedStatus) -> str:
        return ", and ".join(x.reason(status) for x in rules_met(self, status))


@final
class RemainingEvidence(AbstractStop):
    """End a run when the live points hold little of the evidence.

    The live points hold `mean(L) X`; their share of the evidence of all points is
    compared (Skilling 2006, Bayesian Analysis 1(4), 833-859). A narrow peak that no
    live point has found yet is not seen by this or any other rule.

    ```python
    import batchkit as bk

    assert bk.RemainingEvidence().fraction == 1e-3
    ```
    """

    fraction: int | float
    is_convergence = True

    def __init__(self, fraction: int | float = 1e-3) -> None:
        """**Arguments:**

        - `fraction`: the share of the evidence, between 0 and 1; 0.001 by default.

        **Raises:**

        `TypeError` if it is no number, `ValueError` if it is not between 0 and 1.
        """
        meaning = "the share of the evidence that may be left, such as 1e-3"
        check_number(
            "RemainingEvidence", "fraction", fraction, meaning, kind=float, below=1
        )
        self.fraction = fraction

    def met(self, status: NestedStatus) -> Any:
        return status.remaining < self.fraction

    def reason(self, status: NestedStatus) -> str:
        return (
            f"the live points hold {float(status.remaining):.1e} of the evidence, less "
            f"than {self.fraction:g}"
        )


@final
class EffectiveSize(AbstractStop):
    """End a run when its points reach an effective sample size.

    That is Kish's, `(sum w)^2 / sum w^2` over all points, once the
    dead ones hold half of the evidence. It grows with the number of live points, and
    not much after the bulk of the posterior has been passed, so combine it:
    `EffectiveSize(5000) | RemainingEvidence(1e-4)`.

    ```python
    import batchkit as bk

    rule = bk.EffectiveSize(5000) | bk.RemainingEvidence(1e-4)
    ```
    """

    size: int | float
    is_convergence = True

    def __init__(self, size: int | float) -> None:
        """**Arguments:**

        - `size`: the number of draws, above 0.

        **Raises:**

        `TypeError` if it is no number, `ValueError` if it is not above 0.
        """
        check_number("EffectiveSize", "size", size, "such as 5000", kind=float)
        self.size = size

    def met(self, status: NestedStatus) -> Any:
        # Earlier it is that of the live points alone, before they reach the bulk.
        return (status.ess >= self.size) & (status.remaining < 0.5)

    def reason(self, status: NestedStatus) -> str:
        return f"the effective sample size is {float(status.ess):,.0f}"


@final
class MaxSteps(AbstractStop):
    """End a run after a number of steps.

    ```python
    import batchkit as bk

    rule = bk.RemainingEvidence() | bk.MaxSteps(10_000)
    ```
    """

    steps: int
    is_convergence = False

    def __init__(self, steps: int) -> None:
        """**Arguments:**

        - `steps`: how many, at least 1. Those before a run was resumed count.

        **Raises:**

        `TypeError` if it is no int, `ValueError` if it is below 1.
        """
        check_number("MaxSteps", "steps", steps)
        self.steps = steps

    def met(self, status: NestedStatus) -> Any:
        return status.step >= self.steps

    def reason(self, status: NestedStatus) -> str:
        return f"{int(status.step):,} steps were made"


@final
class MaxEvaluations(AbstractStop):
    """End a run after a number of likelihoods.

    ```python
    import batchkit as bk

    rule = bk.RemainingEvidence() | bk.MaxEvaluations(10**7)
    ```
    """

    # An operand of a program, so a count of two numbers: one may outgrow 32 bits.
    count: Count
    is_convergence = False

    def __init__(self, evaluations: int) -> None:
        """**Arguments:**

        - `evaluations`: how many, at least 1. A step is not cut short, so there will be
            a few more.

        **Raises:**

        `TypeError` if it is no int, `ValueError` if it is below 1.
        """
        check_number("MaxEvaluations", "evaluations", evaluations)
        self.count = Count.of(evaluations)

    @property
    def evaluations(self) -> int:
        """The number of likelihoods."""
        return int(self.count)

    def __repr__(self) -> str:
        return f"MaxEvaluations(evaluations={self.evaluations})"

    def met(self, status: NestedStatus) -> Any:
        return status.evaluations.at_least(self.count)

    def reason(self, status: NestedStatus) -> str:
        return f"{int(status.evaluations):,} likelihoods were evaluated"


@final
class MaxTime(AbstractStop):
    """End a run after a number of seconds.

    The clock is read about once a second, and a step is not cut short. So this is the
    one rule after which two runs differ. The seconds before a run was resumed count,
    those to compile do not.

    ```python
    import batchkit as bk

    rule = bk.RemainingEvidence() | bk.MaxTime(3600)
    ```
    """

    seconds: int | float
    is_convergence = False

    def __init__(self, seconds: int | float) -> None:
        """**Arguments:**

        - `seconds`: how many, above 0.

        **Raises:**

        `TypeError` if it is no number, `ValueError` if it is not above 0.
        """
        check_number("MaxTime", "seconds", seconds, "such as 3600", kind=float)
        self.seconds = seconds

    def met(self, status: NestedStatus) -> Any:
        return status.seconds >= self.seconds

    def reason(self, status: NestedStatus) -> str:
        return f"{float(status.seconds):,.0f} seconds have passed"


def _checked(other: Any) -> AbstractStop:
    if isinstance(other, AbstractStop):
        return other
    raise TypeError(
        f"a rule to stop combines with another rule, such as bk.MaxSteps(1000); got "
        f"{other!r} of type {type(other).__name__}."
    )
