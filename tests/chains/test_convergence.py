"""R-hat and effective sample sizes, against two libraries and what is known."""

import warnings
from typing import Any

import blackjax
import jax
import numpy as np
import pytest

from batchkit.chains import Convergence


def chains(num: int, draws: int, correlation: float, numbers: int = 3) -> np.ndarray:
    """Autoregressive chains of order one, with the standard normal as their law."""
    noise = np.random.default_rng(num + draws).normal(size=(num, draws, numbers))
    x = noise.copy()
    for t in range(1, draws):
        x[:, t] = correlation * x[:, t - 1] + (1 - correlation**2) ** 0.5 * noise[:, t]
    return x


CASES = {
    "independent": chains(4, 1000, 0.0),
    "slow": chains(4, 1000, 0.95),
    "antithetic": chains(4, 200, -0.95),
    "an odd number of draws": chains(3, 101, 0.5),
    "hardly any": chains(4, 5, 0.3),
    "the fewest": chains(2, 4, 0.0),
    "apart": chains(4, 300, 0.3) + np.arange(4)[:, None, None],
    "different widths": chains(4, 300, 0.3) * np.arange(1, 5)[:, None, None],
    "heavy tails": chains(4, 500, 0.0)
    / chains(4, 499, 0.0, 500)[:, :3, :].swapaxes(1, 2),
    "ties": np.round(chains(4, 500, 0.5), 1),
    "far from zero, in float32": chains(4, 500, 0.5).astype(np.float32) + 1000,
}
every_case = pytest.mark.parametrize("draws", CASES.values(), ids=CASES)


@every_case
def test_against_arviz(draws: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        az: Any = pytest.importorskip("arviz")
    found = Convergence({"x": draws})
    data = az.convert_to_dataset(draws.astype(np.float64))
    for mine, theirs in (
        (found.rhat, az.rhat(data)),
        (found.ess_bulk, az.ess(data, method="bulk")),
        (found.ess_tail, az.ess(data, method="tail")),
    ):
        np.testing.assert_allclose(mine["x"], theirs.x, rtol=1e-12)


def test_against_blackjax() -> None:
    # It treats the last lag that is looked at in another way.
    draws = CASES["different widths"][..., 0]
    found = Convergence(draws)
    with jax.enable_x64(True):
        for mine, theirs, tolerance in (
            (found.rhat, blackjax.rhat(draws), 1e-6),
            (found.ess_bulk, blackjax.ess_bulk(draws), 0.03),
            (found.ess_tail, blackjax.ess_tail(draws), 0.03),
        ):
            np.testing.assert_allclose(mine, theirs, rtol=tolerance)


def test_the_size_of_an_autoregression() -> None:
    # The autocorrelation time of one of order one is (1 + r) / (1 - r).
    draws = chains(8, 4000, 0.8, 10)
    sizes = Convergence(draws).ess_bulk * (1 + 0.8) / (1 - 0.8) / (8 * 4000)
    assert np.all(np.abs(sizes - 1) < 0.1)


def test_one_chain_that_drifts() -> None:
    steady, drifting = chains(1, 400, 0.0), chains(1, 400, 0.0)
    drifting += np.linspace(0, 2, 400)[:, None]
    assert np.all(Convergence(steady).rhat < 1.02)
    assert np.all(Convergence(drifting).rhat > 1.1)


def test_numbers_do_not_see_each_other() -> None:
    draws = chains(4, 100, 0.0, 4)
    expected = Convergence(draws)
    spoilt = draws.copy()
    spoilt[2, 50, 0] = np.nan
    spoilt[0, 0, 1] = np.inf
    spoilt[:, :, 2] = 7.0
    found = Convergence(spoilt)
    for mine, clean in (
        (found.rhat, expected.rhat),
        (found.ess_bulk, expected.ess_bulk),
        (found.ess_tail, expected.ess_tail),
    ):
        assert np.isnan(mine[:2]).all()
        assert mine[3] == clean[3]
    assert np.isnan(found.rhat[2])
    assert found.ess_bulk[2] == found.ess_tail[2] == 0


def test_chains_that_stay_each_at_its_own_place() -> None:
    found = Convergence(np.broadcast_to(np.arange(4.0)[:, None], (4, 50)))
    assert found.rhat == np.inf
    assert found.ess_bulk < 10


def test_shapes() -> None:
    samples = {"a": np.zeros((4, 3)), "b": [chains(2, 8, 0.0).reshape(2, 8, 3, 1)]}
    found = Convergence(samples)
    for tree in (found.rhat, found.ess_bulk, found.ess_tail):
        assert np.shape(tree["a"]) == ()
        assert tree["b"][0].shape == (3, 1)
        assert np.isnan(tree["a"])  # of three draws there is nothing to say
    assert Convergence(np.zeros((4, 10, 0))).rhat.shape == (0,)
