"""R-hat and effective sample sizes, against ArviZ and theory."""

import warnings
from typing import Any

import numpy as np
import pytest

from batchkit.chains import Convergence


def chains(num: int, draws: int, correlation: float, numbers: int = 3) -> np.ndarray:
    """Autoregressive chains of order one, each draw standard normal."""
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
def test_results_are_those_of_arviz(draws: np.ndarray) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        az: Any = pytest.importorskip("arviz")
    result = Convergence({"x": draws})
    data = az.convert_to_dataset(draws.astype(np.float64))
    for ours, reference in (
        (result.rhat, az.rhat(data)),
        (result.ess_bulk, az.ess(data, method="bulk")),
        # The default of ArviZ 1 is another one.
        (result.ess_tail, az.ess(data, method="tail", prob=(0.05, 0.95))),
    ):
        np.testing.assert_allclose(ours["x"], reference.x, rtol=1e-12)


def test_ess_of_an_autoregression_is_its_theoretical_one() -> None:
    # The autocorrelation time of one of order one is (1 + r) / (1 - r).
    draws = chains(8, 4000, 0.8, 10)
    sizes = Convergence(draws).ess_bulk * (1 + 0.8) / (1 - 0.8) / (8 * 4000)
    assert np.all(np.abs(sizes - 1) < 0.1)


def test_drift_within_one_chain_raises_rhat() -> None:
    steady, drifting = chains(1, 400, 0.0), chains(1, 400, 0.0)
    drifting += np.linspace(0, 2, 400)[:, None]
    assert np.all(Convergence(steady).rhat < 1.02)
    assert np.all(Convergence(drifting).rhat > 1.1)


def test_numbers_of_a_position_are_independent() -> None:
    draws = chains(4, 100, 0.0, 4)
    expected = Convergence(draws)
    changed = draws.copy()
    changed[2, 50, 0] = np.nan
    changed[0, 0, 1] = np.inf
    changed[:, :, 2] = 7.0
    result = Convergence(changed)
    for value, clean in (
        (result.rhat, expected.rhat),
        (result.ess_bulk, expected.ess_bulk),
        (result.ess_tail, expected.ess_tail),
    ):
        assert np.isnan(value[:2]).all()
        assert value[3] == clean[3]
    assert np.isnan(result.rhat[2])
    assert result.ess_bulk[2] == result.ess_tail[2] == 0


def test_chains_that_never_move_have_infinite_rhat() -> None:
    result = Convergence(np.broadcast_to(np.arange(4.0)[:, None], (4, 50)))
    assert result.rhat == np.inf
    assert result.ess_bulk < 10


def test_results_have_the_structure_of_a_position() -> None:
    samples = {"a": np.zeros((4, 3)), "b": [chains(2, 8, 0.0).reshape(2, 8, 3, 1)]}
    result = Convergence(samples)
    for tree in (result.rhat, result.ess_bulk, result.ess_tail):
        assert np.shape(tree["a"]) == ()
        assert tree["b"][0].shape == (3, 1)
        assert np.isnan(tree["a"])  # three draws are too few
    assert Convergence(np.zeros((4, 10, 0))).rhat.shape == (0,)
