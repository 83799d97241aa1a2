"""Progress of a nested sampling run."""

import math
from typing import NamedTuple, final

from ..run._progress import format_duration
from ._status import NestedStatus
from ._stop import (
    AbstractStop,
    Combined,
    MaxEvaluations,
    MaxSteps,
    MaxTime,
    RemainingEvidence,
)


@final
class NestedProgress(NamedTuple):
    """Progress of a nested sampling run, the argument of `progress=callable`.

    ```python
    from batchkit.nested import NestedProgress

    progress = NestedProgress(
        step=12,
        log_evidence=-11.51,
        log_evidence_err=0.08,
        remaining=0.02,
        goal=1e-3,
        efficiency=0.13,
        evaluations=40_000,
        evaluations_per_second=5e4,
        seconds=61.0,
        seconds_left=12.0,
    )
    print(progress)
    ```

    - `step`: the number of steps so far.
    - `log_evidence`: the running estimate, dead and live points together.
    - `log_evidence_err`: its error, `sqrt(information / live points)` (Skilling 2006,
        Bayesian Analysis 1(4), 833-859).
    - `remaining`: the share of the evidence that the live points hold.
    - `goal`: the share at which the run ends; None if it ends otherwise.
    - `efficiency`: new points for each likelihood; NaN if those are not counted.
    - `evaluations`: the number of likelihoods evaluated so far.
    - `evaluations_per_second`: how many in a second, since the run was started or
        resumed.
    - `seconds`: the duration of the run so far, without compiling.
    - `seconds_left`: an estimate, NaN if there is none. If the run ends by the
        remaining evidence, it is too low before the bulk of the posterior is reached,
        which cannot be foreseen.
    """

    step: int
    log_evidence: float
    log_evidence_err: float
    remaining: float
    goal: float | None
    efficiency: float
    evaluations: int
    evaluations_per_second: float
    seconds: float
    seconds_left: float

    def __str__(self) -> str:
        goal = "" if self.goal is None else f" of {self.goal:.0e}"
        parts = [
            f"log-evidence {self.log_evidence:.2f} +/- {self.log_evidence_err:.2f}",
            f"remaining {self.remaining:.1e}{goal}",
        ]
        if not math.isnan(self.efficiency):
            parts.append(f"efficiency {self.efficiency:.1%}")
            parts.append(f"{self.evaluations_per_second:,.0f} likelihoods/s")
        if not math.isnan(self.seconds_left):
            parts.append(f"{format_duration(self.seconds_left)} left")
        return ", ".join(parts)


def progress_of(
    status: NestedStatus,
    num_live: int,
    num_delete: int,
    rule: AbstractStop,
    since: tuple[int, float],
    steps_per_second: float,
) -> NestedProgress:
    """Return the progress of a run with some status.

    `since` are the evaluations and the seconds when it was started or resumed, and
    `steps_per_second` is its present speed.
    """
    evaluations, seconds = int(status.evaluations), float(status.seconds)
    replaced = int(status.step) * num_delete
    is_counted = evaluations > num_live or replaced == 0
    elapsed = seconds - since[1]
    speed = (evaluations - since[0]) / elapsed if elapsed > 0 else math.nan

    def seconds_left(rule: AbstractStop) -> float:
        """Estimate when a rule is met; NaN if that is unknown."""
        match rule:
            case Combined():
                both = seconds_left(rule.first), seconds_left(rule.second)
                select = max if rule.needs_both else min
                return select((x for x in both if not math.isnan(x)), default=math.nan)
            case RemainingEvidence() if steps_per_second > 0 and status.remaining > 0:
                # The live evidence shrinks with the volume, by `num_delete / num_live`
                # a step.
                nats = max(math.log(float(status.remaining) / rule.fraction), 0.0)
                return nats * num_live / num_delete / steps_per_second
            case MaxSteps() if steps_per_second > 0:
                return max(rule.steps - int(status.step), 0) / steps_per_second
            case MaxEvaluations() if is_counted and speed > 0:
                return max(rule.evaluations - evaluations, 0) / speed
            case MaxTime():
                return max(rule.seconds - seconds, 0.0)
        return math.nan

    return NestedProgress(
        step=int(status.step),
        log_evidence=float(status.log_evidence),
        log_evidence_err=math.sqrt(float(status.information) / num_live),
        remaining=float(status.remaining),
        goal=_goal_of(rule),
        efficiency=replaced / evaluations if is_counted else math.nan,
        evaluations=evaluations,
        evaluations_per_second=speed,
        seconds=seconds,
        seconds_left=seconds_left(rule),
    )


def _goal_of(rule: AbstractStop) -> float | None:
    """Return the share of the evidence at which a rule, or a part of it, is met."""
    if isinstance(rule, RemainingEvidence):
        return float(rule.fraction)
    if isinstance(rule, Combined):
        first = _goal_of(rule.first)
        return _goal_of(rule.second) if first is None else first
    return None
