"""Statistics of transitions, as samplers of blackjax report them."""

import functools
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from batchkit.chains._sampler import added, no_statistics, statistics_of


KEYS = jax.random.split(jax.random.key(0), 400)
MASS = jnp.array([1.0, 4.0])


def logdensity(x: jax.Array) -> jax.Array:
    return -0.5 * jnp.sum(x**2) - 0.1 * jnp.sum(x**4)


def kinetic(momentum: jax.Array) -> jax.Array:
    return 0.5 * jnp.sum(momentum**2 / MASS)


def transitions(algorithm: Any) -> Any:
    """States before, states after and infos of independent transitions."""
    start = lambda key: algorithm.init(jax.random.normal(key, (2,)))
    before = jax.vmap(start)(KEYS)
    after, infos = jax.jit(jax.vmap(algorithm.step))(KEYS, before)
    return before, after, infos


@pytest.mark.parametrize("step_size", [0.6, 1.5])
def test_energy_is_that_of_the_state_that_was_drawn(step_size: float) -> None:
    algorithm = blackjax.hmc(logdensity, step_size, 1 / MASS, 3)
    before, after, infos = transitions(algorithm)
    accepted = np.asarray(infos.is_accepted)
    assert 5 < np.sum(~accepted) < 395
    momentum = jnp.where(accepted[:, None], infos.proposal.momentum, infos.momentum)
    expected = -after.logdensity + jax.vmap(kinetic)(momentum)
    found = jax.vmap(lambda info: statistics_of(info).energy)(infos)
    known = np.isfinite(found)
    # The rest were rejected so surely that the rate is zero in float32.
    np.testing.assert_array_equal(known, accepted | (infos.acceptance_rate > 0))
    np.testing.assert_allclose(found[known], expected[known], rtol=1e-4, atol=1e-4)
    assert np.all(before.logdensity[~accepted] == after.logdensity[~accepted])


def test_samplers_without_an_energy_of_draws() -> None:
    gist = blackjax.gist_trajectory_length(
        logdensity, step_size=0.3, inverse_mass_matrix=1 / MASS
    )
    for algorithm in (blackjax.mala(logdensity, 0.1), gist):
        _, _, infos = transitions(algorithm)
        assert jax.vmap(lambda info: statistics_of(info))(infos).energy is None


def test_a_draw_has_the_energy_of_its_last_transition() -> None:
    algorithm = blackjax.nuts(logdensity, 0.5, 1 / MASS)
    _, _, infos = transitions(algorithm)
    each = jax.vmap(statistics_of)(infos)
    np.testing.assert_array_equal(each.energy, infos.energy)
    rows = [type(each)(*row) for row in zip(*each, strict=True)]
    together = functools.reduce(added, rows, no_statistics(rows[0]))
    rate = together.mean_over(len(each.energy)).acceptance
    np.testing.assert_allclose(rate, np.mean(infos.acceptance_rate), rtol=1e-6)
    assert together.energy == infos.energy[-1]
    assert together.num_integration_steps == np.sum(infos.num_integration_steps)
    assert together.tree_depth == np.max(infos.num_trajectory_expansions)
