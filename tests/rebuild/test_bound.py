"""What an algorithm was given, and the same algorithm with something else."""

import functools
from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.rebuild._bound import bound_names, exchanged
from batchkit.rebuild._ownership import Packages


PACKAGES = Packages(("blackjax",))
POSITIONS = jax.random.normal(jax.random.key(0), (20, 2))


def logprior(x: Any) -> Any:
    return -0.5 * jnp.sum(x**2)


def loglikelihood(x: Any) -> Any:
    return -jnp.sum((x - 1) ** 2)


def other(x: Any) -> Any:
    return -jnp.sum((x - 2) ** 2)


def built(api: Any, likelihood: Any = loglikelihood) -> Any:
    return api(
        logprior_fn=logprior,
        loglikelihood_fn=likelihood,
        num_inner_steps=3,
        num_delete=4,
    )


def swapped(algorithm: Any) -> tuple[Any, int]:
    """With the other likelihood, wherever the first is."""

    def change(x: Any) -> Any:
        wrapped = getattr(x, "__wrapped__", x)
        return other if loglikelihood in (x, wrapped) else x

    return exchanged(algorithm, change, PACKAGES)


APIS = {
    "upstream": blackjax.nss,
    "swig": blackjax.nsswig,
    "chunked": bk.rebuild_sampler(blackjax.nss, batcher=bk.Chunked(3)),
    "by phase": bk.rebuild_sampler(
        blackjax.nss, batcher=bk.ByPhase(init=bk.Chunked(3), step=bk.Continuous(2))
    ),
}


@pytest.mark.parametrize("name", APIS)
def test_the_same_as_if_it_had_been_built_so(name: str) -> None:
    algorithm = built(APIS[name])
    new, count = swapped(algorithm)
    assert count >= 1
    assert type(new) is type(algorithm)
    expected = built(APIS[name], other)
    for each in (new, expected):
        assert each.init is not algorithm.init
    states = [jax.jit(x.init)(POSITIONS) for x in (new, expected, algorithm)]
    steps = [
        jax.jit(x.step)(jax.random.key(1), state)[0].particles
        for x, state in zip((new, expected), states, strict=False)
    ]
    jax.tree.map(np.testing.assert_array_equal, states[0], states[1])
    jax.tree.map(np.testing.assert_array_equal, *steps)
    # The old one is as it was.
    alive = jax.vmap(loglikelihood)(POSITIONS)
    np.testing.assert_allclose(states[2].particles.loglikelihood, alive, rtol=1e-6)


def test_nothing_to_exchange() -> None:
    algorithm = built(blackjax.nss)
    same, count = exchanged(algorithm, lambda x: x, PACKAGES)
    assert same is algorithm
    assert count == 0


def test_cells_stay_shared_and_cycles_end() -> None:
    def make() -> Any:
        calls = []

        def even(n: int) -> Any:
            calls.append(n)
            return target if n == 0 else odd(n - 1)

        def odd(n: int) -> Any:
            calls.append(n)
            return None if n == 0 else even(n - 1)

        target = loglikelihood
        return even, odd, lambda: len(calls)

    functions = make()
    (even, odd, count), exchanges = exchanged(
        functions, lambda x: other if x is loglikelihood else x, PACKAGES
    )
    assert exchanges == 1
    assert even(4) is other
    assert odd(3) is other
    assert functions[0](4) is loglikelihood
    assert count() == functions[2]() == 5 + 4 + 5


def test_what_is_bound_by_name() -> None:
    names: dict[str, list[Any]] = {}
    for name, value in bound_names(built(blackjax.nss), PACKAGES):
        names.setdefault(name, []).append(value)
    assert names["num_delete"] == [4] * len(names["num_delete"])
    assert names["num_mcmc_steps"] == [3]
    assert names["loglikelihood_fn"] == [loglikelihood]
    # The user's own functions are not looked into.
    secret = functools.partial(lambda hidden, x: x, 3)
    assert "hidden" not in dict(bound_names(built(blackjax.nss, secret), PACKAGES))
