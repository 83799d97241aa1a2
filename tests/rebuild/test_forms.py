"""Every form in which a sampler can be handed over comes back in the same form."""

import functools
from types import FunctionType, ModuleType
from typing import Any, assert_type

import blackjax
import blackjax.ns.nss
import jax
import pytest

import batchkit as bk

from .problems import GAUSSIAN


SETTINGS = GAUSSIAN.settings(num_inner_steps=2, num_delete=6)
POSITIONS = GAUSSIAN.positions(1, n_live=24)


def chunks_of_init(init: Any) -> int | None:
    """In how many chunks `init` runs, or None for all at once."""
    for eqn in jax.make_jaxpr(init)(POSITIONS).jaxpr.eqns:
        if eqn.primitive.name == "scan":
            return eqn.params["length"]
    return None


def rebuild(api: Any, size: int = 5) -> Any:
    return bk.rebuild_sampler(api, batcher=bk.Chunked(size))


def test_an_api_object():
    nss = rebuild(blackjax.nss)
    assert type(nss) is type(blackjax.nss)
    assert chunks_of_init(nss(**SETTINGS).init) == 5
    assert chunks_of_init(nss.differentiable(**SETTINGS).init) == 5


def test_the_parts_of_an_api_object():
    nss = rebuild(blackjax.nss)
    init_state = functools.partial(
        blackjax.ns.nss.init_state_strategy,
        logprior_fn=SETTINGS["logprior_fn"],
        loglikelihood_fn=SETTINGS["loglikelihood_fn"],
    )
    kernel = nss.build_kernel(init_state, num_inner_steps=2, num_delete=6)
    state = jax.eval_shape(nss(**SETTINGS).init, POSITIONS)
    eqns = jax.make_jaxpr(kernel)(jax.random.key(0), state).jaxpr.eqns
    lengths = [eqn.params["length"] for eqn in eqns if eqn.primitive.name == "scan"]
    assert 2 in lengths  # 6 replacements, at most 5 at once

    # A vmap that users apply is theirs, also when it maps blackjax's function.
    def init(positions: Any) -> Any:
        return nss.init(positions, init_state_fn=jax.vmap(init_state))

    assert chunks_of_init(init) is None


def test_a_function():
    build = rebuild(blackjax.ns.nss.as_top_level_api)
    assert isinstance(build, FunctionType)
    assert build.__name__ == "as_top_level_api"
    assert chunks_of_init(build(**SETTINGS).init) == 5


def test_a_partial():
    build = rebuild(functools.partial(blackjax.nss.differentiable, **SETTINGS))
    assert isinstance(build, functools.partial)
    assert build.keywords["loglikelihood_fn"] is SETTINGS["loglikelihood_fn"]
    assert chunks_of_init(build().init) == 5


def test_a_bound_method():
    assert chunks_of_init(rebuild(blackjax.nss.__call__)(**SETTINGS).init) == 5


def test_a_module():
    module = rebuild(blackjax.ns.nss)
    assert isinstance(module, ModuleType)
    assert module.__name__ == "blackjax.ns.nss"
    assert chunks_of_init(module.as_top_level_api(**SETTINGS).init) == 5
    assert "build_swig_kernel" in dir(module)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_a_built_algorithm():
    upstream = blackjax.nss(**SETTINGS)
    algorithm = rebuild(upstream)
    assert type(algorithm) is blackjax.SamplingAlgorithm
    assert chunks_of_init(algorithm.init) == 5
    assert chunks_of_init(upstream.init) is None


def test_containers():
    family = rebuild({"nss": blackjax.nss, "all": [blackjax.nsswig]})
    assert chunks_of_init(family["nss"](**SETTINGS).init) == 5
    assert chunks_of_init(family["all"][0](**SETTINGS).init) == 5


@pytest.mark.parametrize("built", [False, True])
def test_something_rebuilt_takes_another_batcher(built):
    first = rebuild(blackjax.nss)
    if built:
        algorithm = rebuild(first(**SETTINGS), size=8)
    else:
        algorithm = rebuild(first, size=8)(**SETTINGS)
    assert chunks_of_init(algorithm.init) == 3
    assert chunks_of_init(first(**SETTINGS).init) == 5


def test_a_blackjax_function_handed_in_is_rebuilt():
    # The default strategy maps the replacements. Handed in as an argument, the
    # original must not bring upstream's vmap back.
    strategy = blackjax.ns.from_mcmc.update_with_mcmc_take_last  # pyright: ignore
    algorithm = rebuild(blackjax.nss)(**SETTINGS, update_strategy=strategy)
    state = jax.eval_shape(algorithm.init, POSITIONS)
    eqns = jax.make_jaxpr(algorithm.step)(jax.random.key(0), state).jaxpr.eqns
    assert 2 in [e.params["length"] for e in eqns if e.primitive.name == "scan"]


def test_functions_keep_their_identity():
    # blackjax asks `proposal is covariance_proposal` to choose its parameters.
    nss = rebuild(blackjax.nss)
    original = blackjax.ns.nss.covariance_proposal
    for proposal in (original, rebuild(blackjax.ns.nss).covariance_proposal):
        algorithm = nss(**SETTINGS, proposal=proposal)
        state = jax.eval_shape(algorithm.init, POSITIONS)
        assert set(state.inner_kernel_params) == {"covariance_factor"}


def test_the_users_functions_and_their_vmaps_stay():
    seen = []

    def loglikelihood_fn(x: Any) -> Any:
        return jax.vmap(lambda y: -(y**2))(x).sum()

    def inner_kernel_params(*args: Any) -> Any:
        seen.append(args)
        return blackjax.ns.nss.live_covariance_factor(*args)

    settings = {**SETTINGS, "loglikelihood_fn": loglikelihood_fn}
    algorithm = rebuild(blackjax.nss)(
        **settings, inner_kernel_params=inner_kernel_params
    )
    jaxpr = jax.make_jaxpr(algorithm.init)(POSITIONS)
    assert seen
    scans = [eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(scans) == 1
    nested = str(scans[0].params["jaxpr"])
    assert "scan" not in nested  # the user's own vmap is a batched computation


def test_the_type_is_that_of_the_argument():
    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Vmap())
    assert_type(nss, blackjax.GenerateSamplingAPI)  # this one is for pyright
    assert type(nss) is blackjax.GenerateSamplingAPI
