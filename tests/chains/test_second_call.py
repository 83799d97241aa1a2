"""A second call of `run_chains` compiles nothing and makes the same draws."""

from typing import Any

import blackjax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_same, counted
from ..run.compilations import compilations


HMC: dict[str, Any] = {"num_integration_steps": 2, "num_warmup": 20, "progress": False}


def starts(seed: int, chains: int = 3) -> Any:
    return jax.random.normal(jax.random.key(seed), (chains, 2))


def logdensity(x: Any) -> Any:
    return -0.5 * jnp.sum(x**2) - 0.1 * jnp.sum(x) ** 2


class Normal(eqx.Module):
    scales: Any

    def __call__(self, x: Any) -> Any:
        return -0.5 * jnp.sum((x / self.scales) ** 2)


def call(fun: Any, seed: int, chains: int = 3, **options: Any) -> bk.ChainRun:
    options = {"num_samples": 10, **HMC, **options}
    key, positions = jax.random.key(seed), starts(seed, chains)
    return bk.run_chains(blackjax.hmc, fun, key, positions, **options)


@pytest.mark.parametrize("batcher", [bk.Vmap(), bk.Continuous(2)], ids=repr)
def test_another_key_compiles_nothing(batcher: bk.AbstractBatcher) -> None:
    fun, traces = counted(logdensity)
    first = call(fun, 0, batcher=batcher)
    before = len(traces)
    with compilations() as names:
        second = call(fun, 1, batcher=batcher)
    again = call(fun, 0, batcher=batcher)
    assert names == []
    assert len(traces) == before
    assert second.seconds.compile == 0.0
    assert not np.any(second.samples == first.samples)
    # Cached and new programs give the same bits.
    assert_same(again.samples, first.samples, ulps=0)
    new = call(lambda x: logdensity(x), 1, batcher=batcher)
    assert_same(second.samples, new.samples, ulps=0)


def test_more_draws_compile_nothing() -> None:
    first = walk(0, num_samples=10)
    with compilations() as names:
        second = walk(0, num_samples=17)
    assert names == []
    assert_same(second.samples[:, :10], first.samples, ulps=0)


def walk(
    seed: int, chains: int = 3, fun: Any = logdensity, **options: Any
) -> bk.ChainRun:
    """Chains that compile fast."""
    api, key = blackjax.additive_step_random_walk, jax.random.key(seed)
    options = {"num_warmup": 0, "num_samples": 10, "progress": False, **options}
    options["random_step"] = step
    return bk.run_chains(api, fun, key, starts(seed, chains), **options)


def step(key: Any, x: Any) -> Any:
    return 0.5 * jax.random.normal(key, x.shape, x.dtype)


@pytest.mark.parametrize(
    "changed",
    [{"chains": 4}, {"thin": 2}, {"block": 5}, {"batcher": bk.Chunked(2)}],
    ids=str,
)
def test_other_settings_do_not_reuse_a_program(changed: dict[str, Any]) -> None:
    walk(0)
    found = walk(0, **changed)
    new = walk(0, fun=lambda x: logdensity(x), **changed)
    assert_same(found.samples, new.samples, ulps=0)


def test_other_precision_does_not_reuse_a_program() -> None:
    assert walk(0).samples.dtype == np.float32
    with jax.enable_x64(True):
        assert walk(0).samples.dtype == np.float64
    assert walk(0).samples.dtype == np.float32


def test_pytrees_share_programs_but_not_arrays() -> None:
    wide, narrow = Normal(jnp.ones(2)), Normal(jnp.full(2, 0.001))
    first = call(wide, 0)
    call(narrow, 0)
    assert_same(call(wide, 0).samples, first.samples, ulps=0)
    with compilations() as names:
        call(narrow, 1)
    assert names == []


def test_equal_parameters_compile_nothing() -> None:
    def run(step_size: float, seed: int) -> None:
        matrix = np.ones(2)
        options = {"step_size": step_size, "inverse_mass_matrix": matrix}
        call(logdensity, seed, num_warmup=0, **options)

    run(0.3, 0)
    with compilations() as names:
        run(0.3, 1)
    assert names == []
    with compilations() as names:
        run(0.4, 1)
    assert names != []
