"""Wrong arguments of `run_chains` are refused before anything is compiled."""

import math
import pickle
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import batchkit as bk
from batchkit.chains._chain_programs import all_alike, shapes_of_one
from batchkit.chains._sampler import sampler_of_api

from ..helpers import assert_refuses, counted, unchecked


KEY = jax.random.key(0)
STARTS = jnp.zeros((4, 2))


def logdensity(x: Any) -> jax.Array:
    return -0.5 * jnp.sum(jnp.array([jnp.sum(y**2) for y in jax.tree.leaves(x)]))


class Nothing(NamedTuple):
    logdensity_fn: Any
    init: Any = lambda x: (x,)
    step: Any = lambda key, state: (state, None)


ALGORITHM = blackjax.hmc(logdensity, 0.1, jnp.ones(2), 3)
OF_API: dict[str, tuple[dict[str, Any], type[Exception], tuple[str, ...]]] = {
    "num_warmup": ({"num_warmup": -1}, ValueError, ("num_warmup=-1", "at least 0")),
    "warmup": ({"num_warmup": 0.0}, TypeError, ("num_warmup=0.0", "an int")),
    "num_samples": ({"num_samples": 0}, ValueError, ("num_samples=0", "at least 1")),
    "thin": ({"thin": 0}, ValueError, ("thin=0", "1 keeps every draw")),
    "block": ({"block": -1}, ValueError, ("block=-1",)),
    "target": ({"target_acceptance": 1.0}, ValueError, ("=1.0", "between 0 and 1")),
    "batcher": ({"batcher": jax.vmap}, TypeError, ("batcher=", "`Vmap()`")),
    "class": (
        {"batcher": bk.Chunked},
        TypeError,
        ("got the class Chunked; make one: `Chunked(16)`.",),
    ),
    "checkpoint": ({"checkpoint": 3}, TypeError, ("checkpoint=3", "a path", "int")),
    "fresh": ({"fresh": 1}, TypeError, ("fresh=1", "True or False", "int")),
    "progress": ({"progress": "yes"}, TypeError, ("progress='yes'", "a function")),
    "rng_key": ({"rng_key": 3}, TypeError, ("rng_key=3", "jax.random.key(0)")),
    "keys": ({"rng_key": jax.random.split(KEY, 4)}, ValueError, ("(4,)", "one key")),
    "logdensity_fn": ({"logdensity_fn": 1.0}, TypeError, ("logdensity_fn=1.0",)),
    "no arrays": ({"positions": {}}, ValueError, ("no array",)),
    "no axis": ({"positions": {"a": jnp.ones(())}}, ValueError, ("['a']", "shape ()")),
    "no chains": ({"positions": jnp.ones((0, 2))}, ValueError, ("(0, 2)", "least 1")),
    "axes": (
        {"positions": {"a": jnp.ones((4, 2)), "b": jnp.ones(3)}},
        ValueError,
        ("['a'] has the shape (4, 2)", "['b'] has the shape (3,)", "axis 0"),
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
    "tuned": (
        {"step_size": 0.1},
        TypeError,
        ("step_size=0.1", "initial_step_size", "with `num_warmup=0`"),
    ),
    "not tuned": (
        {"num_warmup": 0, "step_size": 0.1},
        TypeError,
        ("num_warmup=0", "missing a required argument: 'inverse_mass_matrix'"),
    ),
    "no setting": (
        {
            **{"num_warmup": 0, "step_size": 0.1, "inverse_mass_matrix": jnp.ones(2)},
            "is_mass_matrix_diagonal": True,
        },
        TypeError,
        ("unexpected keyword argument", "which takes logdensity_fn, step_size"),
    ),
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
    "api",
    [
        blackjax.rmh,
        blackjax.mala,
        blackjax.elliptical_slice,
        blackjax.tempered_smc,
        blackjax.dhmc,
        blackjax.rmhmc,
        lambda _: ALGORITHM,
    ],
)
def test_apis_without_a_warmup_are_refused(api: Any) -> None:
    assert_refuses(
        lambda: bk.run_chains(api, logdensity, KEY, STARTS),
        TypeError,
        ("there is no warm-up for", "pass them by name, with `num_warmup=0`"),
    )


@pytest.mark.parametrize("num_warmup", [0, 100])
def test_nested_samplers_are_refused(num_warmup: int) -> None:
    given: Any = {"num_warmup": num_warmup}
    assert_refuses(
        lambda: bk.run_chains(blackjax.nss, logdensity, KEY, STARTS, **given),
        TypeError,
        ("is a nested sampler", "use `run_nested`"),
    )


def test_swapped_key_and_positions_are_named() -> None:
    swapped: Any = {"rng_key": STARTS, "positions": KEY}
    assert_refuses(
        lambda: bk.run_chains(blackjax.nuts, logdensity, **swapped),
        TypeError,
        ("rng_key must be a key of JAX", "Arrays like this one are `positions`."),
    )


def test_starts_of_another_dtype_name_the_dtypes() -> None:
    with jax.enable_x64(True):
        wide = lambda x: logdensity(x.astype(jnp.float64))
        starts = jnp.asarray(STARTS, jnp.float32)
        assert_refuses(
            lambda: bk.run_chains(blackjax.nuts, wide, KEY, starts),
            TypeError,
            ("positions is float32", "logdensity_fn returns float64", "switch it on"),
        )


def test_other_type_errors_keep_their_words() -> None:
    starts = STARTS.astype(jnp.bfloat16)
    run: Any = bk.run_chains
    with pytest.raises(TypeError) as found:
        run(blackjax.nuts, logdensity, KEY, starts, integrator=3)
    assert "mixes dtypes" not in str(found.value)


@pytest.mark.parametrize(
    "api",
    [
        blackjax.nuts,
        blackjax.barker,
        blackjax.gist_trajectory_length,
        bk.rebuild_sampler(blackjax.nuts, batcher=bk.Chunked(2)),
    ],
)
def test_apis_with_a_warmup_are_accepted(api: Any) -> None:
    samplers = all_alike(lambda f: sampler_of_api(api, f, 0.8, {}), logdensity, 4)
    chain, draw = shapes_of_one(samplers, KEY, STARTS)
    assert draw.position.shape == (2,)
    assert chain.tuned is not None
    assert chain.tuned.inverse_mass_matrix.shape == (2,)


def test_missing_setting_is_named() -> None:
    assert_refuses(
        lambda: bk.run_chains(blackjax.hmc, logdensity, KEY, STARTS),
        TypeError,
        ("needs num_integration_steps", "by name"),
    )


def test_algorithm_that_is_built_already_is_refused() -> None:
    run: Any = bk.run_chains
    words = (
        "run_chains(SamplingAlgorithm, ",
        "built already",
        "num_warmup=0, step_size",
    )
    for args in ((ALGORITHM, KEY, STARTS), (ALGORITHM, logdensity, KEY, STARTS)):
        assert_refuses(lambda args=args: run(*args), TypeError, words)
    assert_refuses(
        lambda: run(lambda f: f, logdensity, KEY, STARTS, num_warmup=0),
        TypeError,
        ("must return an algorithm, with `init` and `step`", "got function"),
    )


@pytest.mark.parametrize(
    ("fun", "word"),
    [
        (lambda x: -0.5 * x**2, "float32[2]. Sum over data"),
        (lambda x: (jnp.sum(x), x), "(float32[], float32[2]). Sum over data"),
        (lambda x: jnp.sum(x) > 0, "bool[]. Compute with floats"),
        (lambda x: -jnp.sum(x.astype(int)), "int32[]. Compute with floats"),
        (lambda x: 1, "int32[]. Compute with floats"),
    ],
)
def test_logdensity_that_is_no_scalar_is_refused(fun: Any, word: str) -> None:
    assert_refuses(
        lambda: bk.run_chains(blackjax.nuts, fun, KEY, STARTS),
        TypeError,
        ("logdensity_fn must return one real number", word),
    )


DICT = {"a": jnp.ones((4, 2)), "b": jnp.ones(4)}
ONE = "one position: {'a': float32[2], 'b': float32[]}"


@pytest.mark.parametrize(
    ("fun", "error", "note"),
    [
        (lambda x, y: jnp.sum(x["a"]), TypeError, ONE),
        (lambda x: x["c"], KeyError, ONE),
        (lambda x: x["a"] @ jnp.ones(3), TypeError, ONE),
        (lambda x: scipy.stats.norm.logpdf(x["b"]), TypeError, "`jax.pure_callback`"),
        (lambda x: jnp.sum(jnp.array(np.exp(x["a"]))), TypeError, "`jax.custom_vjp`"),
        (lambda x: math.exp(x["b"]), TypeError, "`jax.pure_callback`"),
        (lambda x: x["b"] if x["b"] > 0 else 0.0, TypeError, "`jnp.where`"),
    ],
)
def test_errors_of_a_logdensity_have_notes(
    fun: Any, error: type[Exception], note: str
) -> None:
    with unchecked(), pytest.raises(error) as info:
        bk.run_chains(blackjax.nuts, fun, KEY, DICT)
    # JAX has notes of its own.
    (note_of_run,) = [x for x in info.value.__notes__ if x.startswith("run_chains")]
    assert note_of_run.startswith("run_chains was tracing logdensity_fn")
    assert note in note_of_run


def test_error_of_a_gradient_has_a_note() -> None:
    def fun(x: Any) -> Any:
        return jax.pure_callback(np.sum, jax.ShapeDtypeStruct((), x["a"].dtype), x["a"])

    with unchecked(), pytest.raises(ValueError, match="JVP") as info:
        bk.run_chains(blackjax.nuts, fun, KEY, DICT)
    (note_of_run,) = [x for x in info.value.__notes__ if x.startswith("run_chains")]
    assert note_of_run.startswith("run_chains was tracing its log-density")


@pytest.mark.parametrize(
    ("positions", "fun"),
    [
        (jnp.zeros(3), lambda x: -(x[0] ** 2) - x[1:] @ x[1:]),
        ({"a": jnp.zeros(2), "b": jnp.zeros(2)}, lambda x: -x["a"] @ x["b"]),
    ],
)
def test_start_of_a_single_chain_is_explained(positions: Any, fun: Any) -> None:
    words = ("looks like the start of a single chain", "float32[", "(chains, ...)")
    assert_refuses(
        lambda: bk.run_chains(blackjax.nuts, fun, KEY, positions), ValueError, words
    )


def test_arrays_are_elided_in_messages() -> None:
    starts: Any = jnp.ones((60, 2))
    for args, words in (
        ((blackjax.nuts, starts, KEY, logdensity), ("logdensity_fn=float32[60,2])",)),
        ((blackjax.nuts, logdensity, starts, KEY), ("rng_key=float32[60,2])",)),
        ((starts, logdensity, KEY, STARTS), ("run_chains(api=float32[60,2])",)),
    ):
        assert_refuses(lambda args=args: bk.run_chains(*args), TypeError, words)
    assert_refuses(
        lambda: bk.run_chains(blackjax.nuts, logdensity, KEY, STARTS, batcher=starts),
        TypeError,
        ("run_chains(batcher=float32[60,2])",),
    )


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.jacobian])
def test_run_inside_a_transformation_is_refused(transform: Any) -> None:
    def run(starts: Any) -> Any:
        return bk.run_chains(blackjax.nuts, logdensity, KEY, starts).samples

    starts = jnp.zeros((2, 4, 2))
    words = ("run_chains was called inside `jax.jit`", "without `jax.jit`")
    assert_refuses(lambda: transform(run)(starts), TypeError, words)
    # Inside jit constants are traced too.
    assert_refuses(lambda: jax.jit(lambda: run(STARTS))(), TypeError, words)


def test_states_without_a_position_are_refused() -> None:
    assert_refuses(
        lambda: bk.run_chains(Nothing, logdensity, KEY, STARTS, num_warmup=0),
        TypeError,
        ("no field `position`",),
    )


def start_error(fun: Any, starts: Any) -> bk.StartError:
    with unchecked(), pytest.raises(bk.StartError) as info:
        bk.run_chains(blackjax.nuts, fun, KEY, starts, batcher=bk.Chunked(2))
    return info.value


def test_starts_outside_of_the_support_are_refused() -> None:
    error = start_error(
        lambda x: jnp.sum(jnp.log(x["a"])),
        {"a": jnp.array([[1.0, 2.0], [0.0, 2.0], [1.0, 1.0], [1.0, -1.0]])},
    )
    assert error.chains == (1, 3)
    assert error.parameters == ()
    words = "(-inf, nan), at the start of chains 1, 3 of 4; first at a[0] = 0. Start"
    assert words in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (again.chains, str(again)) == (error.chains, str(error))


def test_starts_without_a_gradient_are_refused() -> None:
    error = start_error(
        lambda x: -jnp.sum(jnp.sqrt(jnp.abs(x["a"]))) - jnp.sum(x["b"] ** 2),
        {"a": jnp.array([[1.0, 2.0], [1.0, 0.0], [1.0, 1.0]]), "b": np.ones(3)},
    )
    assert error.chains == (1,)
    assert error.parameters == ("a[1]",)
    words = "to a[1] is not, at the start of chain 1 of 3; first at a[1] = 0. Start"
    assert words in str(error)
