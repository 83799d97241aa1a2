"""`NestedRun`: what it holds, draws and prints."""

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.run import Diagnostic, Summary, parameter_names

from ..helpers import unchecked
from .perfect import peak, result, sample


def with_positions(make: Any) -> bk.NestedRun:
    """A run whose positions are `make(radius)`."""
    dead = sample(peak(), 0, 40, num_delete=4)
    radius = dead.positions["u"] ** (1 / 5)
    return result(
        bk.DeadPoints(
            make(radius), dead.loglikelihood, dead.loglikelihood_birth, dead.logprior
        )
    )


def test_repr() -> None:
    warning = Diagnostic("inner steps", 4.0, 10.0, "use more <steps>")
    run = result(
        sample(peak(), 0), warnings=(warning,), seconds=(1.25, 20.0), converged=False
    )
    lines = repr(run).splitlines()
    assert len(lines) == 9
    heads = ["log-evidence", "information", "effective size", "steps", "likelihoods"]
    assert [line.split("  ")[0] for line in lines[1:6]] == heads
    assert f"{run.log_evidence:.2f} +/- {run.log_evidence_err:.2f}" in lines[1]
    assert "no: the live points hold little of the evidence" in lines[6]
    assert "1.2 to compile, 20.0 to run" in lines[7]
    assert "inner steps: use more <steps>" in lines[8]
    assert "&lt;steps&gt;" in run._repr_html_()
    assert "unknown" in repr(result(sample(peak(), 0), num_evaluations=None))


def test_the_same_numbers_from_the_same_key() -> None:
    dead = sample(peak(), 0)
    first, second, other = result(dead, 1), result(dead, 1), result(dead, 2)
    assert first.log_evidence == second.log_evidence
    assert first.log_evidence != other.log_evidence
    old_style = result(dead, key=jax.random.PRNGKey(1))
    assert old_style.log_evidence == first.log_evidence


def test_settings_and_warnings_are_those_given() -> None:
    settings = {"num_delete": 5}
    run = result(sample(peak(), 0), settings=settings, seconds=(1.0, 2.0))
    settings["num_delete"] = 6
    assert run.settings == {"num_delete": 5}
    assert run.warnings == ()
    assert (run.seconds.compile, run.seconds.run) == (1.0, 2.0)


def test_no_likelihood_anywhere() -> None:
    nothing = np.full(5, -np.inf)
    dead = bk.DeadPoints(np.zeros(5), nothing, nothing, np.zeros(5))
    with pytest.raises(ValueError, match=r"the evidence is zero.*Begin with more"):
        result(dead)


def test_posterior() -> None:
    run = with_positions(lambda r: {"r": r, "more": np.stack([r, -r], axis=1)})
    draws = run.posterior(jax.random.key(0), 5000)
    assert draws["more"].shape == (5000, 2)
    assert isinstance(draws["r"], jax.Array)
    np.testing.assert_array_equal(draws["r"], draws["more"][:, 0])
    mean = run.weights @ run.dead.positions["r"]
    assert np.mean(draws["r"]) == pytest.approx(mean, abs=1e-3)
    again = run.posterior(jax.random.key(0), 5000)
    np.testing.assert_array_equal(draws["r"], again["r"])
    other = run.posterior(jax.random.key(1), 5000)
    assert np.any(draws["r"] != other["r"])


@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Chunked(64)])
def test_derived(batcher: bk.AbstractBatcher) -> None:
    run = with_positions(lambda r: {"r": r})
    draws = run.posterior(
        jax.random.key(0), 100, lambda p: {"squared": p["r"] ** 2}, batcher=batcher
    )
    assert set(draws) == {"r", "squared"}
    np.testing.assert_allclose(draws["squared"], draws["r"] ** 2, rtol=1e-6)
    _, alone = run.posterior(jax.random.key(0), 100, lambda p: p["r"] ** 2)
    np.testing.assert_array_equal(alone, draws["squared"])


def test_derived_may_not_replace_a_parameter() -> None:
    run = with_positions(lambda r: {"r": r, "s": r})
    with pytest.raises(ValueError, match="r would replace the parameters"):
        run.posterior(jax.random.key(0), 3, lambda p: {"r": p["s"]})
    with pytest.raises(ValueError, match="n must be at least 1"):
        run.posterior(jax.random.key(0), 0)


def test_a_seed_in_place_of_a_key_is_refused() -> None:
    run = with_positions(lambda r: {"r": r})
    with (
        unchecked(),
        pytest.raises(TypeError, match=r"posterior\(key=0\): key"),
    ):
        run.posterior(cast(Any, 0), 10)


def test_names() -> None:
    n = np.zeros(3)
    vector, matrix = np.zeros((3, 2)), np.zeros((3, 1, 2))
    assert parameter_names(n) == ("x",)
    assert parameter_names(vector) == ("x[0]", "x[1]")
    assert parameter_names((n, vector)) == ("x[0]", "x[1][0]", "x[1][1]")
    assert parameter_names({"a": {"b": n}, "c": [n]}) == ("a.b", "c[0]")
    assert parameter_names({"m": matrix}) == ("m[0, 0]", "m[0, 1]")
    assert parameter_names({1: n}) == ("x[1]",)
    stats = bk.LaneStats(jnp.zeros(3, int), jnp.zeros(3, int))
    assert parameter_names({"lanes": stats}) == ("lanes.made", "lanes.needed")


def test_summary() -> None:
    run = with_positions(lambda r: {"b": {"c": np.stack([r, 2 * r], 1)}, "a": -r})
    summary = run.summary()
    assert list(summary.values) == ["a", "b.c[0]", "b.c[1]"]
    # As if each point stood there as often as its weight says.
    times = np.rint(run.weights * 1e6).astype(int)
    rows = np.repeat(run.dead.positions["a"], times)
    row = summary["a"]
    assert row["mean"] == pytest.approx(rows.mean(), rel=1e-3)
    assert row["std"] == pytest.approx(rows.std(), rel=1e-3)
    for name, q in (("5 %", 5), ("50 %", 50), ("95 %", 95)):
        assert row[name] == pytest.approx(np.percentile(rows, q), rel=1e-2)
        assert summary["b.c[1]"][name] == pytest.approx(2 * summary["b.c[0]"][name])
    lines = repr(summary).splitlines()
    assert lines[0].split() == [
        "parameter",
        "mean",
        "std",
        "5",
        "%",
        "50",
        "%",
        "95",
        "%",
    ]
    assert [line.split()[0] for line in lines[1:]] == ["a", "b.c[0]", "b.c[1]"]
    assert summary._repr_html_().count("<tr>") == 4


def test_a_long_summary_is_cut() -> None:
    summary = Summary(np.zeros((3, 70)), np.full(3, 1 / 3))
    lines = repr(summary).splitlines()
    assert len(lines) == 62
    assert lines[-1] == "... and 10 more"
    assert len(summary.values) == 70
