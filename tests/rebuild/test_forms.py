"""Every form in which a sampler can be handed over comes back in the same form."""

import functools
from types import FunctionType, MethodType, ModuleType
from typing import Any, assert_type

import blackjax
import blackjax.ns.nss
import jax
import pytest

import batchkit as bk

from .problems import GAUSSIAN


SETTINGS = GAUSSIAN.settings(num_inner_steps=2, num_delete=6)
POSITIONS = GAUSSIAN.positions(1, n_live=24)


def scans(fun: Any, *args: Any) -> list[int]:
    """The lengths of the outermost scans: 24 points in chunks of 5 are 5 chunks."""
    eqns = jax.make_jaxpr(fun)(*args).jaxpr.eqns
    return [eqn.params["length"] for eqn in eqns if eqn.primitive.name == "scan"]


def rebuild(api: Any, size: int = 5) -> Any:
    return bk.rebuild_sampler(api, batcher=bk.Chunked(size))


# What is handed over, its type, and how the rebuilt form builds an algorithm.
FORMS: dict[str, tuple[Any, Any, Any]] = {
    "API": (blackjax.nss, type(blackjax.nss), lambda x: x(**SETTINGS)),
    "method": (
        blackjax.nss,
        type(blackjax.nss),
        lambda x: x.differentiable(**SETTINGS),
    ),
    "bound method": (
        blackjax.nss.__call__,
        MethodType,
        lambda x: x(**SETTINGS),
    ),
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
    "container": (
        {"all": [blackjax.nsswig]},
        dict,
        lambda x: x["all"][0](**SETTINGS),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_form_comes_back_rebuilt_and_takes_another_batcher(form: str):
    api, kind, build = FORMS[form]
    first = rebuild(api)
    assert isinstance(first, kind)
    assert scans(build(first).init, POSITIONS)[0] == 5
    for again in (rebuild(first, size=8), rebuild(build(first), size=8)):
        algorithm = again if hasattr(again, "step") else build(again)
        assert scans(algorithm.init, POSITIONS)[0] == 3
    assert scans(build(first).init, POSITIONS)[0] == 5
    assert scans(build(api).init, POSITIONS) == []


def test_parts_of_an_api_are_rebuilt():
    nss = rebuild(blackjax.nss)
    init_state = functools.partial(
        blackjax.ns.nss.init_state_strategy,
        logprior_fn=SETTINGS["logprior_fn"],
        loglikelihood_fn=SETTINGS["loglikelihood_fn"],
    )
    kernel = nss.build_kernel(init_state, num_inner_steps=2, num_delete=6)
    state = jax.eval_shape(nss(**SETTINGS).init, POSITIONS)
    # 6 replacements, at most 5 at once.
    assert 2 in scans(kernel, jax.random.key(0), state)

    # A user's own vmap stays, also around a function of blackjax.
    def init(positions: Any) -> Any:
        return nss.init(positions, init_state_fn=jax.vmap(init_state))

    assert scans(init, POSITIONS) == []


def test_names_of_a_rebuilt_module_are_those_of_the_original():
    module = rebuild(blackjax.ns.nss)
    assert module.__name__ == "blackjax.ns.nss"
    assert "build_swig_kernel" in dir(module)
    with pytest.raises(AttributeError, match="no_such_name"):
        module.no_such_name  # noqa: B018


def test_blackjax_function_handed_in_is_rebuilt():
    # The default strategy maps the replacements. Handed in as an argument, the
    # original must not bring upstream's vmap back.
    strategy = blackjax.ns.from_mcmc.update_with_mcmc_take_last  # pyright: ignore
    algorithm = rebuild(blackjax.nss)(**SETTINGS, update_strategy=strategy)
    state = jax.eval_shape(algorithm.init, POSITIONS)
    assert 2 in scans(algorithm.step, jax.random.key(0), state)


def test_functions_keep_their_identity():
    # blackjax asks `proposal is covariance_proposal` to choose its parameters.
    nss = rebuild(blackjax.nss)
    original = blackjax.ns.nss.covariance_proposal
    for proposal in (original, rebuild(blackjax.ns.nss).covariance_proposal):
        algorithm = nss(**SETTINGS, proposal=proposal)
        state = jax.eval_shape(algorithm.init, POSITIONS)
        assert set(state.inner_kernel_params) == {"covariance_factor"}


def test_users_functions_and_their_vmaps_stay():
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
    (scan,) = (eqn for eqn in jaxpr.jaxpr.eqns if eqn.primitive.name == "scan")
    assert "scan" not in str(scan.params["jaxpr"])  # but a batched computation


def test_type_is_that_of_the_argument():
    nss = bk.rebuild_sampler(blackjax.nss, batcher=bk.Vmap())
    assert_type(nss, blackjax.GenerateSamplingAPI)  # this one is for pyright
    assert type(nss) is blackjax.GenerateSamplingAPI
