"""`blackjax.nss` and `nsswig` through a batcher, against the originals."""

import functools
from typing import Any

import blackjax
import jax
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_same
from .problems import GAUSSIAN, PLATEAU, log_evidence, run


assert_same_bits = functools.partial(assert_same, ulps=0)


def rebuilt(name: str, batcher: bk.AbstractBatcher) -> Any:
    return bk.rebuild_sampler(getattr(blackjax, name), batcher=batcher)


SETTINGS = GAUSSIAN.settings(num_inner_steps=3, num_delete=6)
KEY_SEED = 2


NAMES = ["nss", pytest.param("nsswig", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def upstream() -> dict[str, Any]:
    """The positions, and the original's final state and infos of fifty steps."""
    with jax.enable_x64(True):
        positions = GAUSSIAN.positions(1, n_live=24)
        return {
            "positions": positions,
            "nss": run(blackjax.nss(**SETTINGS), positions, KEY_SEED, 50),
            "nsswig": run(blackjax.nsswig(**SETTINGS), positions, KEY_SEED, 50),
        }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Chunked(24)], ids=str)
def test_fifty_steps_at_full_width_have_upstreams_bits(name, batcher, upstream):
    with jax.enable_x64(True):
        algorithm = rebuilt(name, batcher)(**SETTINGS)
        actual = run(algorithm, upstream["positions"], KEY_SEED, 50)
    assert_same_bits(actual, upstream[name])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "batcher",
    [bk.Chunked(4), bk.Sequential(), bk.Sharded(inner=bk.Chunked(1))],
    ids=["Chunked", "Sequential", "Sharded"],
)
def test_steps_in_other_layouts_are_upstreams_to_rounding(name, batcher, upstream):
    with jax.enable_x64(True):
        algorithm = rebuilt(name, batcher)(**SETTINGS)
        _, infos = run(algorithm, upstream["positions"], KEY_SEED, 50)
    # Slice sampling is chaotic in the long run; what died in the first ten steps was
    # born in them, or was there before.
    actual, expected = jax.tree.map(lambda x: x[:10], (infos, upstream[name][1]))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11),
        actual,
        expected,
    )


@pytest.mark.slow
def test_run_in_chunks_has_upstreams_evidence_and_the_exact_one():
    settings = GAUSSIAN.settings(num_inner_steps=10, num_delete=50)
    with jax.enable_x64(True):
        positions = GAUSSIAN.positions(3, n_live=500)
        expected = log_evidence(*run(blackjax.nss(**settings), positions, 4, 170))
        algorithm = rebuilt("nss", bk.Chunked(16))(**settings)
        state, infos = run(algorithm, positions, 4, 170)
        actual, error = log_evidence(state, infos)
    # The live points hold less than a thousandth of the evidence at the end.
    assert float(state.integrator.logZ_live - state.integrator.logZ) < np.log(1e-3)
    assert abs(actual - expected[0]) < 1e-9
    assert GAUSSIAN.log_evidence is not None
    assert abs(actual - GAUSSIAN.log_evidence) < 3 * error


def test_plateaus_keep_upstreams_birth_contours():
    # With one inner step whole chains are rejected; a replica of the sampler that
    # leaves the contour of such a point stale reports another evidence.
    settings = PLATEAU.settings(num_inner_steps=1, num_delete=10)
    with jax.enable_x64(True):
        positions = PLATEAU.positions(5, n_live=100)
        expected = run(blackjax.nss(**settings), positions, 6, 80)
        algorithm = rebuilt("nss", bk.Chunked(4))(**settings)
        actual = run(algorithm, positions, 6, 80)
        evidences = log_evidence(*actual), log_evidence(*expected)
    stayed = ~np.asarray(actual[1].update_info.is_accepted)
    assert stayed.any(), "the problem no longer rejects whole chains"
    for state, _ in (actual, expected):
        particles = state.particles
        # A stale contour would lie above the likelihood of a point that stayed. The
        # birth of the first live points is NaN.
        assert not (particles.loglikelihood_birth > particles.loglikelihood).any()
    assert_same_bits(
        actual[0].particles.loglikelihood_birth,
        expected[0].particles.loglikelihood_birth,
    )
    assert_same_bits(
        actual[1].particles.loglikelihood_birth,
        expected[1].particles.loglikelihood_birth,
    )
    # Positions are sums of numbers of size one, to whose rounding they are equal.
    np.testing.assert_allclose(
        actual[0].particles.position, expected[0].particles.position, rtol=0, atol=1e-14
    )
    assert evidences[0] == pytest.approx(evidences[1], abs=1e-9)


def test_states_pass_freely_between_rebuilt_and_original():
    upstream = blackjax.nss(**SETTINGS)
    chunked = rebuilt("nss", bk.Chunked(4))(**SETTINGS)
    state = jax.jit(chunked.init)(GAUSSIAN.positions(1, n_live=24))
    state, _ = jax.jit(upstream.step)(jax.random.key(0), state)
    state, info = chunked.step(jax.random.key(1), state)  # without jit as well
    assert type(state) is blackjax.ns.adaptive.AdaptiveNSState  # pyright: ignore
    assert type(info) is blackjax.ns.base.NSInfo  # pyright: ignore
