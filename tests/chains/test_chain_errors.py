"""What `run_chains` refuses, and that nothing was compiled for it."""

import pickle
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk
from batchkit.chains._sampler import sampler_of_api

from ..helpers import assert_refuses, counted, unchecked


KEY = jax.random.key(0)
STARTS = jnp.zeros((4, 2))


def logdensity(x: Any) -> jax.Array:
    return -0.5 * jnp.sum(jnp.array([jnp.sum(y**2) for y in jax.tree.leaves(x)]))


class Nothing(NamedTuple):
    init: Any = lambda x: (x,)
    step: Any = lambda key, state: (state, None)


ALGORITHM = blackjax.hmc(logdensity, 0.1, jnp.ones(2), 3)
OF_API: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "num_warmup": ({"num_warmup": 0}, ValueError, ("num_warmup=0", "without a warm")),
    "num_warmup of floats": ({"num_warmup": 1.5}, TypeError, ("an int", "float")),
    "num_samples": ({"num_samples": 0}, ValueError, ("num_samples=0", "at least 1")),
    "num_samples of bools": ({"num_samples": True}, TypeError, ("an int", "bool")),
    "thin": ({"thin": 0}, ValueError, ("thin=0", "1 keeps every draw")),
    "block": ({"block": -1}, ValueError, ("block=-1",)),
    "target": ({"target_acceptance": 1.0}, ValueError, ("=1.0", "between 0 and 1")),
    "target of strings": ({"target_acceptance": "high"}, TypeError, ("'high'", "str")),
    "batcher": ({"batcher": jax.vmap}, TypeError, ("batcher=", "`Vmap()`")),
    "rng_key": ({"rng_key": 3}, TypeError, ("rng_key=3", "jax.random.key(0)")),
    "keys": ({"rng_key": jax.random.split(KEY, 4)}, ValueError, ("(4,)", "one key")),
    "logdensity_fn": ({"logdensity_fn": 1.0}, TypeError, ("logdensity_fn=1.0",)),
    "no arrays": ({"positions": {}}, ValueError, ("no array",)),
    "no axis": ({"positions": {"a": jnp.ones(())}}, ValueError, ("['a']", "scalar")),
    "no chains": ({"positions": jnp.ones((0, 2))}, ValueError, ("no chains",)),
    "axes": (
        {"positions": {"a": jnp.ones((4, 2)), "b": jnp.ones(3)}},
        ValueError,
        ("positions['a'] has 4", "positions['b'] has 3", "axis 0"),
    ),
    "strings": ({"positions": ["here", "there"]}, TypeError, ("positions[0]", "str")),
    "complex": ({"positions": jnp.ones((4, 2), complex)}, TypeError, ("complex64",)),
    "integers": ({"positions": jnp.ones((4, 2), int)}, TypeError, ("int32", "gradien")),
    "nan": (
        {"positions": {"a": jnp.ones((4, 2)).at[2, 1].set(jnp.nan)}},
        bk.StartError,
        ("a[1] is not finite", "chain 2 of 4"),
    ),
    "unknown": ({"num_steps": 3}, TypeError, ("num_steps=3", "max_num_doublings")),
    "tuned": ({"step_size": 0.1}, TypeError, ("step_size=0.1", "initial_step_size")),
}


@pytest.mark.parametrize("case", OF_API.values(), ids=OF_API)
def test_refused_before_tracing(case: Any) -> None:
    given, error, words = case
    fun, traces = counted(logdensity)
    usual = {"logdensity_fn": fun, "rng_key": KEY, "positions": STARTS}
    settings: Any = {**usual, **given}
    assert_refuses(lambda: bk.run_chains(blackjax.nuts, **settings), error, words)
    assert traces == []


@pytest.mark.parametrize(
    "api", [blackjax.rmh, blackjax.mala, blackjax.nss, blackjax.dhmc, blackjax.rmhmc]
)
def test_apis_that_this_warmup_is_not_for(api: Any) -> None:
    assert_refuses(
        lambda: bk.run_chains(api, logdensity, KEY, STARTS),
        TypeError,
        ("there is no warm-up for", "run_chains(api(logdensity_fn, ...)"),
    )


@pytest.mark.parametrize(
    "api",
    [
        blackjax.nuts,
        blackjax.barker,
        blackjax.gist_trajectory_length,
        bk.rebuild_sampler(blackjax.nuts, batcher=bk.Chunked(2)),
    ],
)
def test_apis_that_it_is_for(api: Any) -> None:
    sampler = sampler_of_api(api, logdensity, 10, 0.8, {})

    def chain(key: jax.Array, x: jax.Array) -> Any:
        assert sampler.warm is not None
        state, tuned = sampler.warm(key, x)
        return sampler.bind(tuned)(key, state)[0].position

    assert jax.eval_shape(chain, KEY, STARTS[0]).shape == (2,)


def test_a_setting_that_is_missing() -> None:
    assert_refuses(
        lambda: bk.run_chains(blackjax.hmc, logdensity, KEY, STARTS),
        TypeError,
        ("needs num_integration_steps", "by name"),
    )


@pytest.mark.parametrize(
    "settings",
    [{"num_warmup": 10}, {"target_acceptance": 0.9}, {"max_num_doublings": 3}],
)
def test_a_warmup_of_an_algorithm(settings: dict[str, Any]) -> None:
    (name,) = settings
    assert_refuses(
        lambda: bk.run_chains(ALGORITHM, KEY, STARTS, **settings),
        TypeError,
        (f"run_chains({name}=", "no warm-up", "blackjax.nuts, logdensity_fn"),
    )


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((logdensity, KEY, STARTS), ("first argument", "blackjax.nuts", "function")),
        ((blackjax.nuts, KEY, STARTS), ("logdensity_fn, rng_key, positions", "got 2")),
        ((ALGORITHM, logdensity, KEY, STARTS), ("come rng_key, positions; got 3",)),
    ],
)
def test_arguments_in_the_wrong_places(args: Any, words: tuple[str, ...]) -> None:
    assert_refuses(lambda: bk.run_chains(*args), TypeError, words)


@pytest.mark.parametrize(
    ("fun", "word"),
    [
        (lambda x: -0.5 * x**2, "float32 of shape (2,)"),
        (lambda x: (jnp.sum(x), x), "tuple"),
        (lambda x: jnp.sum(x) > 0, "bool"),
    ],
)
def test_a_logdensity_that_is_no_scalar(fun: Any, word: str) -> None:
    assert_refuses(
        lambda: bk.run_chains(blackjax.nuts, fun, KEY, STARTS),
        TypeError,
        ("logdensity_fn must return one real number", word, "jnp.sum"),
    )


def test_states_without_a_position() -> None:
    assert_refuses(
        lambda: bk.run_chains(Nothing(), KEY, STARTS), TypeError, ("`position`",)
    )


def start_error(fun: Any, starts: Any) -> bk.StartError:
    with unchecked(), pytest.raises(bk.StartError) as info:
        bk.run_chains(blackjax.nuts, fun, KEY, starts, batcher=bk.Chunked(2))
    return info.value


def test_starts_outside_of_the_support() -> None:
    error = start_error(
        lambda x: jnp.sum(jnp.log(x["a"])),
        {"a": jnp.array([[1.0, 2.0], [0.0, 2.0], [1.0, 1.0], [1.0, -1.0]])},
    )
    assert error.chains == (1, 3)
    assert error.parameters == ()
    assert "chains 1, 3 of 4 (-inf, nan)" in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.chains, str(again)) == (error.chains, str(error))


def test_starts_without_a_gradient() -> None:
    error = start_error(
        lambda x: -jnp.sum(jnp.sqrt(jnp.abs(x["a"]))) - jnp.sum(x["b"] ** 2),
        {"a": jnp.array([[1.0, 2.0], [1.0, 0.0], [1.0, 1.0]]), "b": np.ones(3)},
    )
    assert error.chains == (1,)
    assert error.parameters == ("a[1]",)
    assert "with respect to a[1]" in str(error)
