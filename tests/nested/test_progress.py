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
    status = NestedStatus.first(jnp.zeros(100))._replace(
        step=jnp.asarray(30), evaluations=Count.of(4000), seconds=jnp.asarray(20.0)
    )
    # Since it was resumed: 3,000 likelihoods in 10 seconds; of late 2 steps a second.
    progress = progress_of(status, 100, 10, rule, (1000, 10.0), 2.0)
    assert progress.seconds_left == pytest.approx(seconds, nan_ok=True)
    assert (" left" in str(progress)) == np.isfinite(seconds)
