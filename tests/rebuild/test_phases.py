"""Sites of `init` and of `step` get different batchers, in whatever form they come."""

import functools
from collections.abc import Callable
from types import FunctionType, MethodType, ModuleType
from typing import Any, assert_type, final

import blackjax
import blackjax.ns.nss
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import batchkit as bk

from .problems import GAUSSIAN


INNER_STEPS = 4
SETTINGS = GAUSSIAN.settings(num_inner_steps=INNER_STEPS, num_delete=6)
POSITIONS = jax.ShapeDtypeStruct((24, 5), jnp.float32)
KEY = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
ROWS = jnp.arange(24.0).reshape(12, 2)

UPDATE = "blackjax.ns.from_mcmc:update_with_mcmc_take_last.<locals>.update_function"
INIT = "blackjax.ns.nss:as_top_level_api.<locals>.init_fn"


@final
class Lambda(bk.AbstractPolicy):
    """A policy of a user's own, from a function."""

    rule: Callable[[bk.Site], Any] = eqx.field(static=True)

    def choose(self, site: bk.Site) -> bk.AbstractBatcher:
        return self.rule(site)


def chunks(fun: Callable[..., Any], *args: Any) -> int | None:
    """In how many chunks the first site that is cut at all runs."""
    for eqn in jax.make_jaxpr(fun)(*args).jaxpr.eqns:
        # The chains of all replacements at once are a scan over their steps.
        if eqn.primitive.name == "scan" and eqn.params["length"] != INNER_STEPS:
            return eqn.params["length"]
    return None


def layout(algorithm: Any) -> tuple[int | None, int | None]:
    """The chunks of 24 points in `init`, and of 6 replacements in `step`."""
    state = jax.eval_shape(algorithm.init, POSITIONS)
    return chunks(algorithm.init, POSITIONS), chunks(algorithm.step, KEY, state)


def rebuild(policy: Any, api: Any = blackjax.nss) -> Any:
    return bk.rebuild_sampler(api, batcher=policy)


# 24 points in chunks of 8, of 5 and of 12 are 3, 5 and 2 chunks; 6 replacements in
# chunks of 3, of 2 and of 8 are 2 and 3 chunks, and all at once.
LAYOUTS: dict[str, tuple[Any, tuple[int | None, int | None]]] = {
    "phases": (bk.ByPhase(init=bk.Chunked(8), step=bk.Chunked(3)), (3, 2)),
    "mapping": ({"init": bk.Chunked(8), "step": bk.Chunked(3)}, (3, 2)),
    "init alone": ({"init": bk.Chunked(8)}, (3, None)),
    "step alone": ({"step": bk.Chunked(2)}, (None, 3)),
    "default": ({"init": bk.Chunked(8), "default": bk.Chunked(2)}, (3, 3)),
    "site": (bk.BySite({UPDATE: bk.Chunked(2)}), (None, 3)),
    "pattern": (bk.BySite({"*.init_fn": bk.Chunked(8)}, bk.Chunked(2)), (3, 3)),
    "site before phase": (
        {"init": bk.Chunked(5), "step": bk.Chunked(3), INIT: bk.Chunked(8)},
        (3, 2),
    ),
    "pattern before phase": (
        {"blackjax.ns.from_*": bk.Chunked(2), "step": bk.Chunked(3)},
        (None, 3),
    ),
    "site in a phase": (
        bk.ByPhase(init=bk.BySite({INIT: bk.Chunked(8)}), step=bk.Chunked(2)),
        (3, 3),
    ),
    "one's own": (
        Lambda(lambda site: bk.Chunked(8 if site.phase == "init" else 2)),
        (3, 3),
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_phase_of_nested_sampling_has_its_layout(name):
    policy, expected = LAYOUTS[name]
    assert layout(rebuild(policy)(**SETTINGS)) == expected


POLICY, EXPECTED = LAYOUTS["phases"]


# What is handed over, its type, and how the rebuilt form builds an algorithm.
FORMS: dict[str, tuple[Any, Any, Any]] = {
    "API": (blackjax.nss, type(blackjax.nss), lambda x: x(**SETTINGS)),
    "method": (
        blackjax.nss,
        type(blackjax.nss),
        lambda x: x.differentiable(**SETTINGS),
    ),
    "bound method": (blackjax.nss.__call__, MethodType, lambda x: x(**SETTINGS)),
    "function": (
        blackjax.ns.nss.as_top_level_api,
        FunctionType,
        lambda x: x(**SETTINGS),
    ),
    "partial": (
        functools.partial(blackjax.nss.differentiable, **SETTINGS),
        functools.partial,
        lambda x: x(),
    ),
    "module": (
        blackjax.ns.nss,
        ModuleType,
        lambda x: x.as_top_level_api(**SETTINGS),
    ),
    "algorithm": (blackjax.nss(**SETTINGS), blackjax.SamplingAlgorithm, lambda x: x),
    "container": ({"all": [blackjax.nss]}, dict, lambda x: x["all"][0](**SETTINGS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_form_comes_back_rebuilt_and_takes_another_policy(form: str):
    api, kind, build = FORMS[form]
    assert layout(build(api)) == (None, None)
    first = rebuild(POLICY, api)
    assert isinstance(first, kind)
    assert layout(build(first)) == EXPECTED
    for policy in (bk.Chunked(12), LAYOUTS["site"][0], bk.ByPhase(bk.Vmap())):
        before = rebuild(policy, api)
        for again in (build(rebuild(POLICY, before)), rebuild(POLICY, build(before))):
            assert layout(again) == EXPECTED
    assert layout(build(first)) == EXPECTED


def test_part_of_a_module_has_the_phase_of_its_name(make_package):
    module = make_package(init=PAIR)
    policy = {"init": bk.Chunked(4), "step": bk.Chunked(2)}
    whole = bk.rebuild_sampler(module, batcher=policy, packages=("toy",))
    assert chunks(whole.init, ROWS) == 3
    assert chunks(whole.build_kernel(), ROWS) == 6
    assert chunks(whole.total, ROWS) is None
    # A function by itself has no phase.
    single = bk.rebuild_sampler(module.init, batcher=policy, packages=("toy",))
    assert chunks(single, ROWS) is None


PAIR = """
    import typing, jax
    class Pair(typing.NamedTuple):
        init: typing.Any
        step: typing.Any
    def total(x): return jax.vmap(lambda r: r.sum())(x)
    def init(x): return total(x)
    def build_kernel(): return lambda x: total(x)
    """


def rebuilt(module: Any, policy: Any = None) -> Any:
    if policy is None:
        policy = bk.ByPhase(bk.Chunked(4), bk.Chunked(2), bk.Chunked(6))
    return bk.rebuild_sampler(module.build, batcher=policy, packages=("toy",))


def test_function_that_both_phases_call_has_the_layout_of_each(make_package):
    module = make_package(
        init=PAIR
        + """
    def build(): return Pair(init, build_kernel())
    """
    )
    pair = rebuilt(module)()
    assert (chunks(pair.init, ROWS), chunks(pair.step, ROWS)) == (3, 6)


def test_phases_share_the_data_in_their_closures(make_package):
    module = make_package(
        init=PAIR
        + """
    def build():
        shapes = {}
        def init(x):
            shapes["rows"] = x.shape
            return total(x)
        def step(x): return total(x) * shapes["rows"][0]
        return Pair(init, step)
    """
    )
    pair = rebuilt(module)()
    np.testing.assert_array_equal(12 * pair.init(ROWS), pair.step(ROWS))


MAPPED_BEFORE = {
    "and returned": """
    def build(f):
        mapped = jax.vmap(f)
        return Pair(mapped, mapped)
    """,
    "in a closure": """
    def build(f):
        mapped = jax.vmap(f)
        def init(x): return mapped(x)
        def step(x): return mapped(x)
        return Pair(init, step)
    """,
    "in a partial": """
    import functools
    def call(mapped, x): return mapped(x)
    def build(f):
        both = functools.partial(call, jax.vmap(f))
        return Pair(lambda x: both(x), lambda x: both(x))
    """,
    "twice": """
    def build(f):
        mapped = jax.vmap(f)
        twice = jax.vmap(lambda x: mapped(x[None])[0])
        return Pair(lambda x: twice(x), lambda x: twice(x))
    """,
}


@pytest.mark.parametrize("where", MAPPED_BEFORE)
def test_function_mapped_while_building_is_laid_out_by_its_phase(where, make_package):
    module = make_package(init=PAIR + MAPPED_BEFORE[where])
    pair = rebuilt(module)(jnp.sum)
    assert (chunks(pair.init, ROWS), chunks(pair.step, ROWS)) == (3, 6)
    np.testing.assert_array_equal(pair.init(ROWS), pair.step(ROWS))
    again = bk.rebuild_sampler(pair, batcher=bk.Chunked(6), packages=("toy",))
    assert (chunks(again.init, ROWS), chunks(again.step, ROWS)) == (2, 2)


@pytest.mark.parametrize("answer", [None, 16, jax.vmap, bk.Chunked, bk.ByPhase()])
def test_policy_that_returns_no_batcher_is_named(answer, make_package):
    module = make_package(init=PAIR)
    run = bk.rebuild_sampler(
        module.total, batcher=Lambda(lambda _: answer), packages=("toy",)
    )
    with pytest.raises(TypeError, match=r"Lambda.choose\(toy:total:6\) returned") as e:
        run(ROWS)
    got = "the class Chunked" if answer is bk.Chunked else type(answer).__name__
    assert f"got {got}" in str(e.value)
    assert "`Vmap()` to leave the site as it is" in str(e.value)


# Functions inside of an API, and functions of the user


def chunked(api: Any) -> Any:
    return rebuild(bk.Chunked(5), api)


def test_parts_of_an_api_are_rebuilt():
    nss = chunked(blackjax.nss)
    init_state = functools.partial(
        blackjax.ns.nss.init_state_strategy,
        logprior_fn=SETTINGS["logprior_fn"],
        loglikelihood_fn=SETTINGS["loglikelihood_fn"],
    )
    kernel = nss.build_kernel(init_state, num_inner_steps=INNER_STEPS, num_delete=6)
    state = jax.eval_shape(nss(**SETTINGS).init, POSITIONS)
    assert chunks(kernel, KEY, state) == 2  # of at most 5 replacements

    # A user's own vmap stays, also around a function of blackjax.
    def init(positions: Any) -> Any:
        return nss.init(positions, init_state_fn=jax.vmap(init_state))

    assert chunks(init, POSITIONS) is None


def test_names_of_a_rebuilt_module_are_those_of_the_original():
    module = chunked(blackjax.ns.nss)
    assert module.__name__ == "blackjax.ns.nss"
    assert "build_swig_kernel" in dir(module)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_blackjax_function_handed_in_is_rebuilt():
    # The default strategy maps the replacements. Handed in as an argument, the
    # original must not bring upstream's vmap back.
    strategy = blackjax.ns.from_mcmc.update_with_mcmc_take_last  # pyright: ignore
    algorithm = chunked(blackjax.nss)(**SETTINGS, update_strategy=strategy)
    assert layout(algorithm) == (5, 2)


def test_functions_keep_their_identity():
    # blackjax asks `proposal is covariance_proposal` to choose its parameters.
    nss = chunked(blackjax.nss)
    original = blackjax.ns.nss.covariance_proposal
    for proposal in (original, chunked(blackjax.ns.nss).covariance_proposal):
        algorithm = nss(**SETTINGS, proposal=proposal)
        state = jax.eval_shape(algorithm.init, POSITIONS)
        assert set(state.inner_kernel_params) == {"covariance_factor"}


def test_type_is_that_of_the_argument():
    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Vmap())
    assert_type(nss, blackjax.GenerateSamplingAPI)  # this one is for pyright
    assert type(nss) is blackjax.GenerateSamplingAPI
