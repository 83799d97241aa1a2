"""Results for ArviZ, before version 1.0 and after."""

import sys
from typing import Any

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import batchkit as bk
from batchkit.nested import DeadPoints
from batchkit.run import _over_draws

from ..helpers import assert_refuses, counted
from ..nested.perfect import peak, result, sample
from .results import MAKERS, SHAPE, chains, full_chains, nested, shards


RNG = np.random.default_rng(0)
X = np.cumsum(RNG.normal(size=(*SHAPE, 2)), axis=1)
Y = RNG.normal(size=7)
RUN = bk.ChainRun({"x": X, "deep": {"y": X[..., 0]}})


def value(found: Any, name: str) -> np.ndarray:
    """Return what a function of ArviZ computes for a parameter."""
    return getattr(found, "posterior", found)[name].to_numpy()


@pytest.mark.parametrize("run", [RUN, shards(lambda x: {"x": x})], ids=["c", "s"])
def test_draws_and_their_convergence_are_those_of_arviz(run: Any) -> None:
    data = run.to_arviz()
    assert not hasattr(data, "sample_stats")
    np.testing.assert_array_equal(data.posterior["x"], run.samples["x"])
    np.testing.assert_allclose(value(arviz.rhat(data), "x"), run.rhat["x"])
    for method, prob, ours in (
        ("bulk", None, run.ess_bulk),
        ("tail", (0.05, 0.95), run.ess_tail),
    ):
        found = arviz.ess(data, method=method, prob=prob)
        np.testing.assert_allclose(value(found, "x"), ours["x"])
    assert data.posterior.attrs["sampling_time"] == run.seconds.sampling
    assert data.posterior.attrs["inference_library"] == "batchkit"


def test_statistics_of_the_sampler_have_the_names_of_arviz() -> None:
    run = full_chains()
    assert run.diverging is not None
    assert run.tree_depth is not None
    assert run.step_size is not None
    assert run.energy is not None
    data = run.to_arviz()
    expected = {
        "lp": run.logdensity,
        "diverging": run.diverging > 0,
        "acceptance_rate": run.acceptance_rate,
        "n_steps": run.num_integration_steps,
        "tree_depth": run.tree_depth,
        "energy": run.energy,
        "reached_max_treedepth": run.tree_depth == 4,
        "step_size": np.repeat(run.step_size[:, None], SHAPE[1], axis=1),
    }
    assert set(data.sample_stats.data_vars) == set(expected)
    for name, array in expected.items():
        assert data.sample_stats[name].dims == ("chain", "draw")
        np.testing.assert_array_equal(data.sample_stats[name], array)
    assert data.sample_stats["diverging"].dtype == bool
    assert data.posterior.attrs["sampling_time"] == 3.0
    # Betancourt 2016, arXiv:1604.00695, equation 5.
    energy = run.energy
    moved, spread = np.diff(energy, axis=1), energy - energy.mean(1, keepdims=True)
    expected = np.sum(moved**2, axis=1) / np.sum(spread**2, axis=1)
    found = arviz.bfmi(data)
    found = found["energy"].to_numpy() if hasattr(found, "data_vars") else found
    np.testing.assert_allclose(found, expected, rtol=0.05)


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


@pytest.mark.parametrize("rows", [1, 3, 239])
def test_loglikelihoods_in_chunks(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = RUN.to_arviz(log_likelihood=pointwise).log_likelihood["y"]
    monkeypatch.setattr(_over_draws, "_BYTES", rows * 4 * len(Y))
    counting, traces = counted(pointwise)
    parts = RUN.to_arviz(log_likelihood=counting).log_likelihood["y"]
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
    refused = lambda: RUN.to_arviz(log_likelihood=function)
    assert_refuses(refused, TypeError, words)


def test_an_error_in_a_loglikelihood_has_a_note() -> None:
    with pytest.raises(KeyError) as info:
        RUN.to_arviz(log_likelihood=lambda x: x["z"])
    assert any("log_likelihood" in x and "'x':" in x for x in info.value.__notes__)


def natural(position: Any) -> Any:
    return {"twice": 2 * position["x"]}


def test_transform_changes_the_posterior_and_not_the_loglikelihoods() -> None:
    run = shards(lambda x: {"x": x})
    data = run.to_arviz(
        transform=natural, log_likelihood=lambda p: p["x"] * jnp.ones(2)
    )
    found = data.log_likelihood["y"][..., 1]
    np.testing.assert_allclose(found, run.samples["x"], rtol=1e-6)
    assert set(data.posterior.data_vars) == {"twice"}
    np.testing.assert_allclose(data.posterior["twice"], 2 * run.samples["x"], rtol=1e-6)


def lens(r: np.ndarray) -> Any:
    return {"lens": {"mass": r, "shear": np.stack([r, -r], 1)}, "ring": [r > 0.3]}


NESTED = result(
    DeadPoints(
        lens((dead := sample(peak(), 0, 100, num_delete=4)).positions["u"] ** (1 / 5)),
        dead.loglikelihood,
        dead.loglikelihood_birth,
        dead.logprior - 3.0,
    )
)


def test_nested_runs_have_draws_of_equal_weight() -> None:
    data = NESTED.to_arviz()
    assert set(data.posterior.data_vars) == {"lens.mass", "lens.shear", "ring[0]"}
    draws = round(NESTED.ess)
    assert data.posterior["lens.shear"].shape == (1, draws, 2)
    assert data.posterior["lens.shear"].dims[2] == "lens.shear_dim_0"
    # Draws in no order have an effective size of their number.
    size = float(value(arviz.ess(data, var_names=["lens.mass"]), "lens.mass"))
    assert 0.6 * draws < size < 1.7 * draws
    row = NESTED.summary()["lens.mass"]
    mean = float(data.posterior["lens.mass"].mean())
    assert mean == pytest.approx(row["mean"], abs=0.2 * row["std"])
    again = NESTED.to_arviz().posterior["lens.mass"]
    np.testing.assert_array_equal(again, data.posterior["lens.mass"])
    other = NESTED.to_arviz(key=jax.random.key(3)).posterior["lens.mass"]
    assert np.any(again.to_numpy() != other.to_numpy())


def test_draws_of_nested_runs_keep_their_likelihoods() -> None:
    data = NESTED.to_arviz(50, jax.random.key(4))
    points = data.sample_stats["point"].to_numpy()[0]
    assert points.shape == (50,)
    np.testing.assert_array_equal(
        data.posterior["lens.mass"][0], NESTED.dead.positions["lens"]["mass"][points]
    )
    for name in ("loglikelihood", "logprior"):
        np.testing.assert_array_equal(
            data.sample_stats[name][0], getattr(NESTED.dead, name)[points]
        )
    total = data.sample_stats["loglikelihood"] + data.sample_stats["logprior"]
    np.testing.assert_array_equal(data.sample_stats["lp"], total)


def test_nested_runs_keep_all_points_and_their_weights() -> None:
    data = NESTED.to_arviz(9)
    stats = data.dead_stats
    np.testing.assert_array_equal(stats["weight"], NESTED.weights)
    np.testing.assert_array_equal(stats["num_live"], NESTED.dead.num_live)
    np.testing.assert_array_equal(
        stats["loglikelihood_birth"], NESTED.dead.loglikelihood_birth
    )
    assert data.dead_points["lens.shear"].dims == ("point", "lens.shear_dim_0")
    for name in ("log_evidence", "log_evidence_err", "information", "ess"):
        assert float(data.constant_data[name]) == getattr(NESTED, name)
    mass = NESTED.dead.positions["lens"]["mass"]
    found = NESTED.to_arviz(9, transform=lambda p: {"root": p["lens"]["mass"] ** 0.5})
    np.testing.assert_allclose(found.dead_points["root"], np.sqrt(mass), rtol=1e-5)
    drawn = data.posterior["lens.mass"]
    np.testing.assert_allclose(found.posterior["root"] ** 2, drawn, rtol=1e-5)


def test_narrow_types_and_slashes_are_replaced() -> None:
    run = nested(lambda u: {"a/b": u.astype(jnp.bfloat16), "c": u.astype(np.float32)})
    posterior = run.to_arviz().posterior
    assert posterior["a_b"].dtype == posterior["c"].dtype == np.float32


@pytest.mark.parametrize("make", [nested, chains])
def test_names_of_axes_and_equal_names_are_refused(make: Any) -> None:
    for axis in ("chain", "draw"):
        words = (f"{axis!r} has the name of an axis", "other names")
        run = make(lambda x, axis=axis: {axis: x})
        assert_refuses(run.to_arviz, ValueError, words)
    twice = make(lambda x: {"a.b": x, "a": {"b": x}})
    assert_refuses(twice.to_arviz, ValueError, ("'a.b'", "of another parameter"))


def test_no_draws_are_refused() -> None:
    assert_refuses(lambda: NESTED.to_arviz(0), ValueError, ("n=0", "at least 1"))


@pytest.mark.parametrize("kind", MAKERS)
def test_missing_arviz_is_named(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "arviz", None)
    run = MAKERS[kind]()
    words = (
        f"{type(run).__name__}.to_arviz needs arviz",
        "pip install 'batchkit-jax[arviz]'",
    )
    assert_refuses(run.to_arviz, ImportError, words)
