"""The time left in the progress of a nested run."""

import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.nested import NestedStatus
from batchkit.nested._nested_loop import progress_of
from batchkit.nested._status import Count


EVIDENCE = bk.RemainingEvidence(1e-3)


@pytest.mark.parametrize(
    ("rule", "seconds"),
    [
        (bk.MaxSteps(50), 20 / 2),
        (bk.MaxSteps(10), 0.0),
        (bk.MaxEvaluations(10_000), 6000 / 300),
        (bk.MaxTime(60), 40.0),
        # The volume shrinks by a tenth of a nat in a step.
        (EVIDENCE, np.log(1000) * 10 / 2),
        (bk.EffectiveSize(100), np.nan),
        (bk.MaxSteps(50) | bk.MaxTime(60), 10.0),
        (bk.MaxSteps(50) & bk.MaxTime(60), 40.0),
        (bk.EffectiveSize(100) | bk.MaxTime(60), 40.0),
    ],
    ids=str,
)
def test_seconds_left(rule: bk.AbstractStop, seconds: float) -> None:
    # Since it was resumed: 3,000 likelihoods and 20 steps in 10 seconds.
    first = NestedStatus.first(jnp.zeros(100))
    since, status = (
        first._replace(step=step, evaluations=Count.of(count), seconds=seconds)
        for step, count, seconds in ((10, 1000, 10.0), (30, 4000, 20.0))
    )
    progress = progress_of(status, since, 100, 10, rule)
    assert progress.seconds_left == pytest.approx(seconds, nan_ok=True)
    assert (" left" in str(progress)) == np.isfinite(seconds)
