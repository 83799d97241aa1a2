"""A nested run in the hands of ArviZ and anesthetic."""

import sys
from typing import Any

import anesthetic
import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_refuses
from .perfect import Problem, peak, plateau, result, sample


def run_of(positions: Any) -> bk.NestedRun:
    """A run whose positions are `positions(radius)`."""
    dead = sample(peak(), 0, 100, num_delete=4)
    points = positions(dead.positions["u"] ** (1 / 5))
    parts = (dead.loglikelihood, dead.loglikelihood_birth, dead.logprior - 3.0)
    return result(bk.DeadPoints(points, *parts))


def lens(r: np.ndarray) -> Any:
    return {"lens": {"mass": r, "shear": np.stack([r, -r], 1)}, "ring": [r > 0.3]}


def test_arviz_has_draws_of_equal_weight() -> None:
    run = run_of(lens)
    data = run.to_arviz()
    assert set(data.posterior.data_vars) == {"lens.mass", "lens.shear", "ring[0]"}
    draws = round(run.ess)
    assert data.posterior["lens.shear"].shape == (1, draws, 2)
    assert data.posterior["lens.shear"].dims[2] == "lens.shear_dim_0"
    # Draws that are in no order are worth their number, and have the posterior's mean.
    size: Any = arviz.ess(data, var_names=["lens.mass"])
    size = getattr(size, "posterior", size)["lens.mass"]
    assert 0.6 * draws < float(size) < 1.7 * draws
    mean = float(data.posterior["lens.mass"].mean())
    spread = run.summary()["lens.mass"]
    assert mean == pytest.approx(spread["mean"], abs=0.2 * spread["std"])


def test_arviz_keeps_what_belongs_to_a_draw_together() -> None:
    run = run_of(lens)
    data = run.to_arviz(50, jax.random.key(4))
    points = data.sample_stats["point"].to_numpy()[0]
    assert points.shape == (50,)
    np.testing.assert_array_equal(
        data.posterior["lens.mass"][0], run.dead.positions["lens"]["mass"][points]
    )
    for name in ("loglikelihood", "logprior"):
        np.testing.assert_array_equal(
            data.sample_stats[name][0], getattr(run.dead, name)[points]
        )
    total = data.sample_stats["loglikelihood"] + data.sample_stats["logprior"]
    np.testing.assert_array_equal(data.sample_stats["lp"], total)


def test_arviz_keeps_the_points_and_their_weights() -> None:
    run = run_of(lens)
    data = run.to_arviz()
    stats = data.dead_stats
    np.testing.assert_array_equal(stats["weight"], run.weights)
    np.testing.assert_array_equal(stats["num_live"], run.dead.num_live)
    np.testing.assert_array_equal(
        stats["loglikelihood_birth"], run.dead.loglikelihood_birth
    )
    assert data.dead_points["lens.shear"].dims == ("point", "lens.shear_dim_0")
    assert float(data.constant_data["log_evidence"]) == run.log_evidence
    assert float(data.constant_data["log_evidence_err"]) == run.log_evidence_err
    assert data.posterior.attrs["inference_library"] == "batchkit"


def test_arviz_says_the_same_twice_and_else_with_another_key() -> None:
    run = run_of(lens)
    first, second = (run.to_arviz().posterior["lens.mass"] for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = run.to_arviz(key=jax.random.key(3)).posterior["lens.mass"]
    assert np.any(first.to_numpy() != other.to_numpy())


def test_arviz_has_no_narrow_types_and_no_slashes() -> None:
    run = run_of(lambda r: {"a/b": r.astype(jnp.bfloat16), "c": r.astype(np.float32)})
    posterior = run.to_arviz().posterior
    assert posterior["a_b"].dtype == posterior["c"].dtype == np.float32
    assert "chain" in run_of(lambda r: r).to_arviz().posterior["x"].dims


@pytest.mark.parametrize("name", ["chain", "draw"])
def test_arviz_refuses_names(name: str) -> None:
    run = run_of(lambda r: {name: r})
    words = (f"{name!r} has the name of an axis", "other names")
    assert_refuses(run.to_arviz, ValueError, words)
    twice = run_of(lambda r: {"a.b": r, "a": {"b": r}})
    assert_refuses(twice.to_arviz, ValueError, ("'a.b'", "of another parameter"))
    assert_refuses(lambda: run.to_arviz(0), ValueError, ("n=0", "at least 1"))


@pytest.mark.parametrize(
    "problem", [peak(), peak(3, 0.5), plateau(-np.inf), plateau(1.0)]
)
@pytest.mark.parametrize("num_delete", [1, 20])
def test_anesthetic_agrees_on_the_evidence(problem: Problem, num_delete: int) -> None:
    run = result(sample(problem, 3, 100, num_delete=num_delete))
    samples: Any = run.to_anesthetic()
    assert issubclass(type(samples), anesthetic.NestedSamples)
    assert len(samples) == len(run.dead)
    np.testing.assert_array_equal(samples["nlive"], run.dead.num_live)
    np.random.seed(0)
    logz, information = samples.logZ(1000), samples.D_KL(1000)
    # Both simulate the same volumes, but anesthetic leaves the last of them out.
    error = run.log_evidence_err
    assert abs(logz.mean() - run.log_evidence) < 0.2 * error + 0.01
    assert logz.std() == pytest.approx(error, rel=0.15)
    assert abs(information.mean() - run.information) < 0.2 * information.std() + 0.01
    assert abs(run.log_evidence - problem.log_evidence) < 4 * error


def test_anesthetic_has_every_number_under_its_name() -> None:
    run = run_of(lens)
    samples: Any = run.to_anesthetic()
    names = ["lens.mass", "lens.shear[0]", "lens.shear[1]", "ring[0]"]
    assert list(samples.columns[:4]) == names
    for name in names:
        row = run.summary()[name]
        assert samples[name].mean() == pytest.approx(row["mean"], rel=0.02)


def test_anesthetic_refuses_names() -> None:
    run = run_of(lambda r: {"logL": r, "a.b": r, "a": {"b": r}})
    assert_refuses(run.to_anesthetic, ValueError, ("a.b, logL cannot name",))


@pytest.mark.parametrize("name", ["arviz", "anesthetic"])
def test_without_the_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    run = run_of(lens)
    words = (f"NestedRun.to_{name} needs {name}", f"pip install 'batchkit-jax[{name}]'")
    assert_refuses(getattr(run, f"to_{name}"), ImportError, words)
