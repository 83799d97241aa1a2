"""From an API and the user's functions to a nested sampler that can be looked into.

The user's functions are guarded before the API gets them. APIs of blackjax also take
the function by which chains make new points, `update_strategy`, as an argument. It is
given one step of a chain, which is wrapped on its way: to stop where a likelihood is
invalid (`_guard`), and to return how far the chain has moved (`_chains_moved`). So
everything goes through arguments of the API, and nothing in it is changed.
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

from ..rebuild import rebuild_sampler
from ..run._arguments import in_short, kind_of
from ._chains_moved import recorded
from ._guard import Rejected, rejecting, revealing, stopping


_P = ParamSpec("_P")
_T = TypeVar("_T")

# The argument by which an API takes the function that makes new points.
_STRATEGY: Final = "update_strategy"
_FUNCTIONS: Final = ("logprior_fn", "loglikelihood_fn")


def refusing_algorithms(run: Callable[_P, _T]) -> Callable[_P, _T]:
    """Refuse an algorithm in place of an API before Python misses the arguments."""

    @functools.wraps(run)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        first = args[0] if args else kwargs.get("api")
        if all(callable(getattr(first, name, None)) for name in ("init", "step")):
            others = ", ".join(map(in_short, args[1:]))
            raise TypeError(
                f"run_nested({type(first).__name__}, {others}): the nested sampler is "
                "built already. Pass its API, with the functions and settings that it "
                "was built with: `run_nested(blackjax.nss, logprior_fn, "
                "loglikelihood_fn, rng_key, positions, num_inner_steps=..., "
                "num_delete=...)`."
            )
        return run(*args, **kwargs)

    return checked


def check_api(api: Any, settings: Mapping[str, Any]) -> None:
    """Raises unless it is the API of a nested sampler, with the settings it takes."""
    if not callable(api):
        raise TypeError(
            f"run_nested(api={in_short(api)}): api must be a nested sampler such as "
            f"blackjax.nss; got {kind_of(api)}. The order is run_nested(api, "
            "logprior_fn, loglikelihood_fn, rng_key, positions)."
        )
    parameters = _parameters(api)
    if parameters is None:
        return
    missing = [name for name in _FUNCTIONS if name not in parameters]
    if missing:
        raise TypeError(
            f"run_nested(api={in_short(api)}): api must be a nested sampler, which "
            f"takes logprior_fn and loglikelihood_fn, such as blackjax.nss; this takes "
            f"{', '.join(parameters)}. For Markov chains use `run_chains`."
        )
    known = [name for name in parameters if name not in _FUNCTIONS]
    for name, value in settings.items():
        if name not in known:
            raise TypeError(
                f"run_nested({name}={in_short(value)}): the sampler has no setting "
                f"{name}. It takes {', '.join(known)}."
            )
    for name in known:
        if parameters[name].default is inspect.Parameter.empty and name not in settings:
            raise TypeError(
                f"run_nested: the sampler needs {name}. Pass {name}=... by name."
            )


def built(
    api: Any,
    functions: Mapping[str, Callable[..., Any]],
    settings: Mapping[str, Any],
    batcher: Any,
    rejected: Rejected | None,
) -> Any:
    """Return the algorithm of an API for guarded functions.

    **Arguments:**

    - `api`: such as `blackjax.nss`, rebuilt or not.
    - `functions`: `logprior_fn` and `loglikelihood_fn`.
    - `settings`: what else the API is called with.
    - `batcher`: the layout that the API is rebuilt with; None leaves it as it is.
    - `rejected`: counts the invalid likelihoods, which are taken for minus infinity;
        None makes them visible, so that the run can end there.
    """
    if batcher is not None:
        api = rebuild_sampler(api, batcher=batcher)
    if rejected is None:
        guarded = revealing(functions["loglikelihood_fn"])
    else:
        logprior_fn, loglikelihood_fn = (functions[name] for name in _FUNCTIONS)
        guarded = rejecting(logprior_fn, loglikelihood_fn, rejected)
    given = {**functions, "loglikelihood_fn": guarded, **settings}
    parameters = _parameters(api) or {}
    if _STRATEGY in parameters:
        strategy = settings.get(_STRATEGY, parameters[_STRATEGY].default)
        given[_STRATEGY] = _observed(strategy)
    return api(**given)


def _observed(strategy: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(strategy)
    def observed(step: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return strategy(recorded(stopping(step)), *args, **kwargs)

    return observed


def _parameters(api: Any) -> Mapping[str, inspect.Parameter] | None:
    """The parameters of an API; None if it takes anything, or does not say."""
    try:
        parameters = inspect.signature(getattr(api, "differentiable", api)).parameters
    except (TypeError, ValueError):
        return None
    kinds = {x.kind for x in parameters.values()}
    return None if inspect.Parameter.VAR_KEYWORD in kinds else parameters
