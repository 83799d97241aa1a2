"""Arguments that `run_nested` refuses before it compiles the likelihood."""

from typing import Any

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from ..helpers import assert_refuses
from .problems import gaussian


PROBLEM = gaussian(2)
GOOD = PROBLEM.positions(100)
KEY = jax.random.key(0)


def attempt(**changed: Any) -> Any:
    def start() -> Any:
        given = {**PROBLEM.arguments(20), "rng_key": KEY, "positions": GOOD}
        return bk.run_nested(**{**given, "progress": False, **changed})

    return start


CASES: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "an algorithm": (
        {"api": PROBLEM.algorithm(20)},
        TypeError,
        ("built already", "`run_nested(blackjax.nss, logprior_fn, loglikelihood_fn"),
    ),
    "no api": ({"api": 3}, TypeError, ("api=3", "blackjax.nss", "The order is")),
    "no function": ({"loglikelihood_fn": GOOD}, TypeError, ("float32[100,2]", "order")),
    "unknown": ({"num_steps": 3}, TypeError, ("num_steps=3", "num_inner_steps")),
    "no key": ({"rng_key": 0}, TypeError, ("rng_key=0", "jax.random.key(0)")),
    "keys": ({"rng_key": jax.random.split(KEY)}, ValueError, ("one key", "(2,)")),
    "no rule": ({"stop": 1e-3}, TypeError, ("stop=0.001", "RemainingEvidence")),
    "no choice": ({"on_invalid": "skip"}, ValueError, ("'skip'", "'reject'")),
    "fresh": ({"fresh": 1}, TypeError, ("fresh=1", "True or False")),
    "progress": ({"progress": 3}, TypeError, ("progress=3",)),
    "checkpoint": ({"checkpoint": 3}, TypeError, ("checkpoint=3", "'run.h5'")),
    "no array": ({"positions": {}}, ValueError, ("no array",)),
    "ints": ({"positions": jnp.arange(9)}, TypeError, ("int32", "floating")),
    "a list": ({"positions": [1.0, 2.0]}, TypeError, ("positions[0]", "float")),
    "scalar": ({"positions": jnp.array(1.0)}, ValueError, ("shape ()", "at least 2")),
    "lengths": (
        {"positions": {"a": jnp.ones(9), "b": jnp.ones(8)}},
        ValueError,
        ("['a'] has the shape (9,)", "['b'] has the shape (8,)"),
    ),
    "zero": ({"positions": GOOD[:0]}, ValueError, ("shape (0, 2)", "at least 2")),
    "few": ({"positions": GOOD[:20]}, ValueError, ("20 live", "replaces 20")),
    "none": ({"num_delete": 0}, ValueError, ("num_delete must be", "at least 1")),
    "same": ({"positions": GOOD[:1].repeat(100, 0)}, ValueError, ("1 of 100", "21")),
    "nan": (
        {"positions": GOOD.at[3, 1].set(jnp.nan)},
        bk.StartError,
        ("x[1] is not finite in live point 3 of 100", "the prior"),
    ),
    "outside": (
        {"positions": GOOD.at[7].set(6.0)},
        bk.StartError,
        ("1 of 100 live points are not in the prior", "-inf at row 7", "x[0] = 6"),
    ),
    "vector": (
        {"loglikelihood_fn": lambda x: x},
        TypeError,
        ("loglikelihood_fn", "float32[2]", "jnp.sum"),
    ),
    "tuple": (
        {"loglikelihood_fn": lambda x: (x[0], 1)},
        TypeError,
        ("loglikelihood_fn", "(float32[], int32[])"),
    ),
    "an int": (
        {"loglikelihood_fn": lambda x: 1},
        TypeError,
        ("loglikelihood_fn", "int32[]", "jnp.asarray(value, float)"),
    ),
    "chains": (
        {"api": blackjax.nuts},
        TypeError,
        ("nested sampler", "logdensity_fn", "run_chains"),
    ),
    "an API of chains in disguise": (
        {
            "api": lambda logprior_fn, loglikelihood_fn, **_: blackjax.nuts(
                logprior_fn, 0.1, jnp.ones(2)
            )
        },
        TypeError,
        ("nested sampler", "HMCState with position", "run_chains"),
    ),
    "swapped": (
        {"rng_key": GOOD, "positions": KEY},
        TypeError,
        ("rng_key=float32[100,2]", "jax.random.key(0)"),
    ),
    "first": ({"api": GOOD}, TypeError, ("float32[100,2]", "The order is")),
    "no elements": (
        {"positions": {"a": GOOD, "b": jnp.ones((100, 0))}},
        ValueError,
        ("positions['b'] has no elements", "(100, 0)"),
    ),
    "more than live": (
        {"num_delete": 101},
        ValueError,
        ("100 live points", "replaces 101", "num_delete"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_wrong_arguments_are_refused(name: str) -> None:
    changed, error, words = CASES[name]
    assert_refuses(attempt(**changed), error, words)


def test_positions_are_refused_before_the_likelihood_is_compiled() -> None:
    calls: list[Any] = []

    def loglikelihood(x: Any) -> Any:
        jax.debug.callback(calls.append, x)
        return PROBLEM.loglikelihood(x)

    with pytest.raises(ValueError, match="not in the prior"):
        attempt(loglikelihood_fn=loglikelihood, positions=GOOD.at[7].set(6.0))()
    assert not calls


def test_a_likelihood_of_zero_everywhere_is_refused() -> None:
    nowhere = PROBLEM._replace(loglikelihood=lambda x: -jnp.inf + 0 * x[0])
    # Zero times a number is a number, so this is minus infinity and legal.
    with pytest.raises(ValueError, match="minus infinity at all 100"):
        nowhere.run()


def test_mixed_dtypes_are_refused_with_their_names() -> None:
    with jax.enable_x64(True):
        assert_refuses(
            attempt(),
            TypeError,
            ("positions is float32", "random numbers are float64", "astype('float64')"),
        )


def test_a_call_inside_jit_is_refused() -> None:
    jitted = jax.jit(lambda x: attempt(positions=x)().log_evidence)
    assert_refuses(
        lambda: jitted(GOOD), TypeError, ("run_nested", "`jax.jit`", "outside")
    )


LIKELIHOODS: dict[str, tuple[Any, type[Exception], tuple[str, ...]]] = {
    "two arguments": (
        lambda x, y: x[0] + y,
        TypeError,
        ("loglikelihood_fn", "one argument", "one position: float32[2]"),
    ),
    "another key": (
        lambda x: x["mass"],
        TypeError,
        ("loglikelihood_fn", "one position: float32[2]"),
    ),
    "NumPy": (
        lambda x: np.sum(np.asarray(x)),
        jax.errors.TracerArrayConversionError,
        ("loglikelihood_fn", "jax.pure_callback"),
    ),
    "a branch": (
        lambda x: x[0] if x[0] > 0 else -x[0],
        jax.errors.TracerBoolConversionError,
        ("loglikelihood_fn", "jnp.where"),
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_errors_of_a_likelihood_have_notes_on_its_argument(name: str) -> None:
    likelihood, error, words = LIKELIHOODS[name]
    with pytest.raises(error) as info:
        attempt(loglikelihood_fn=likelihood)()
    notes = " ".join(info.value.__notes__)
    for word in words:
        assert word in notes


def test_a_missing_setting_is_named() -> None:
    given = PROBLEM.arguments(20)
    del given["num_inner_steps"]
    assert_refuses(
        lambda: bk.run_nested(**given, rng_key=KEY, positions=GOOD),
        TypeError,
        ("needs num_inner_steps", "by name"),
    )
