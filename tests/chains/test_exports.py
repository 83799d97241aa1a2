"""Chains in the hands of ArviZ."""

import sys
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import batchkit as bk
from batchkit.run import _over_draws

from ..helpers import assert_refuses, counted


RNG = np.random.default_rng(0)
SHAPE = (4, 200)
X = np.cumsum(RNG.normal(size=(*SHAPE, 2)), axis=1)


def value(found: Any, name: str) -> np.ndarray:
    """What a function of ArviZ says of a parameter, before 1.0 and after."""
    return getattr(found, "posterior", found)[name].to_numpy()


def test_arviz_finds_the_same() -> None:
    run = bk.ChainRun({"x": X, "deep": {"y": X[..., 0]}})
    data = run.to_arviz()
    assert set(data.posterior.data_vars) == {"x", "deep.y"}
    np.testing.assert_allclose(value(arviz.rhat(data), "x"), run.rhat["x"])
    for method, prob, ours in (
        ("bulk", None, run.ess_bulk),
        ("tail", (0.05, 0.95), run.ess_tail),
    ):
        found = arviz.ess(data, method=method, prob=prob)
        np.testing.assert_allclose(value(found, "x"), ours["x"])
        np.testing.assert_allclose(value(found, "deep.y"), ours["deep"]["y"])


def test_what_the_sampler_told() -> None:
    depth = RNG.integers(0, 4, SHAPE)
    diverging = RNG.integers(0, 3, SHAPE)
    rate, lp = RNG.uniform(size=SHAPE), RNG.normal(size=SHAPE)
    energy = np.cumsum(RNG.normal(size=SHAPE), axis=1)
    step = RNG.uniform(size=4)
    run = bk.ChainRun(
        X,
        logdensity=lp,
        diverging=diverging,
        acceptance_rate=rate,
        num_integration_steps=2**depth,
        tree_depth=depth,
        energy=energy,
        step_size=step,
        max_tree_depth=3,
        seconds=(1.0, 2.0, 3.0),
    )
    data = run.to_arviz()
    expected = {
        "lp": lp,
        "diverging": diverging > 0,
        "acceptance_rate": rate,
        "n_steps": 2**depth,
        "tree_depth": depth,
        "energy": energy,
        "reached_max_treedepth": depth == 3,
        "step_size": np.repeat(step[:, None], 200, axis=1),
    }
    assert set(data.sample_stats.data_vars) == set(expected)
    for name, array in expected.items():
        assert data.sample_stats[name].dims == ("chain", "draw")
        np.testing.assert_array_equal(data.sample_stats[name], array)
    assert data.sample_stats["diverging"].dtype == bool
    assert data.posterior.attrs["sampling_time"] == 3.0
    # Betancourt 2016, arXiv:1604.00695, equation 5.
    moved, spread = np.diff(energy, axis=1), energy - energy.mean(1, keepdims=True)
    expected = np.sum(moved**2, axis=1) / np.sum(spread**2, axis=1)
    found = arviz.bfmi(data)
    found = found["energy"].to_numpy() if hasattr(found, "data_vars") else found
    np.testing.assert_allclose(found, expected, rtol=0.02)


Y = RNG.normal(size=7)


def pointwise(position: Any) -> jax.Array:
    return jax.scipy.stats.norm.logpdf(Y, position["x"][0], 1.5)


def by_name(position: Any) -> dict[str, jax.Array]:
    first = pointwise(position)
    return {"first": first[:2], "rest": first[2:].reshape(1, 5)}


def loo(data: Any, name: str) -> Any:
    found = arviz.loo(data, var_name=name)
    return found.elpd_loo if hasattr(found, "elpd_loo") else found.elpd


def test_loo_of_pointwise_loglikelihoods() -> None:
    x = RNG.normal(Y.mean(), 0.5, size=(*SHAPE, 2))
    table = scipy.stats.norm.logpdf(Y, x[..., :1], 1.5)
    run = bk.ChainRun({"x": x})
    data = run.to_arviz(log_likelihood=pointwise)
    group = data.log_likelihood["y"]
    assert group.dims == ("chain", "draw", "y_dim_0")
    np.testing.assert_allclose(group, table, rtol=1e-5)
    groups = {"posterior": {"x": x}, "log_likelihood": {"y": table}}
    by_hand: Any = (
        arviz.from_dict(**groups)
        if "InferenceData" in vars(arviz)
        else arviz.from_dict(groups)
    )
    assert loo(data, "y") == pytest.approx(loo(by_hand, "y"), rel=1e-4)
    named = run.to_arviz(log_likelihood=by_name).log_likelihood
    assert set(named.data_vars) == {"first", "rest"}
    np.testing.assert_allclose(named["first"], table[..., :2], rtol=1e-5)
    np.testing.assert_allclose(named["rest"][..., 0, :], table[..., 2:], rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 3, 799, 800])
def test_loglikelihoods_in_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bk.ChainRun({"x": X})
    whole = run.to_arviz(log_likelihood=pointwise).log_likelihood["y"]
    monkeypatch.setattr(_over_draws, "_BYTES", rows * 4 * len(Y))
    counting, traces = counted(pointwise)
    parts = run.to_arviz(log_likelihood=counting).log_likelihood["y"]
    np.testing.assert_allclose(parts, whole, rtol=1e-5)
    assert len(traces) == 2  # for its shapes, and for all chunks


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (3, ("to_arviz(log_likelihood=3)", "must be a function", "got int")),
        (lambda x: jnp.sum(x["x"]), ("got float32[]", "Do not sum")),
        (lambda x: {}, ("got {}",)),
        (lambda x: x["x"] > 0, ("got bool[2]",)),
    ],
)
def test_loglikelihoods_that_are_refused(function: Any, words: Any) -> None:
    run = bk.ChainRun({"x": X})
    refused = lambda: run.to_arviz(log_likelihood=function)
    assert_refuses(refused, TypeError, words)


def test_an_error_in_a_loglikelihood_has_a_note() -> None:
    with pytest.raises(KeyError) as info:
        bk.ChainRun({"x": X}).to_arviz(log_likelihood=lambda x: x["z"])
    assert any("log_likelihood" in x and "'x':" in x for x in info.value.__notes__)


def test_draws_and_nothing_else() -> None:
    data = bk.ChainRun(X).to_arviz()
    assert not hasattr(data, "sample_stats")
    np.testing.assert_array_equal(data.posterior["x"], X)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    words = ("ChainRun.to_arviz needs arviz", "pip install 'batchkit-jax[arviz]'")
    assert_refuses(bk.ChainRun(X).to_arviz, ImportError, words)
