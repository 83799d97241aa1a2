"""One chain as functions: its start, its warm-up, its transition.

`Sampler` is made of an API of blackjax and a log-density, whose step size and mass
matrix the warm-up finds, or of an algorithm that has everything it needs. All functions
are of one chain, however chains are laid out.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

from jaxtyping import PyTree

from .._util._formats import format_value
from ..batchers import expensive
from ..run._extras import delayed
from ._warmup import Warmup


# How to avoid the warm-up, by the function that the user called.
_WITHOUT_WARMUP: Final = {
    "run_chains": " To choose the parameters yourself, pass the algorithm, which has "
    "no warm-up: `run_chains(api(logdensity_fn, ...), rng_key, positions)`."
}
# Arguments of a kernel that the warm-up finds, and all that do not come from settings.
_TUNED: Final = ("step_size", "inverse_mass_matrix")
_OWN: Final = ("rng_key", "state", "logdensity_fn", *_TUNED)
_ADAPTATION: Final = (
    "is_mass_matrix_diagonal",
    "initial_inverse_mass_matrix",
    "imm_shrinkage_to_previous",
    "initial_step_size",
)


@final
class Tuned(NamedTuple):
    """Parameters that the warm-up of a chain has found."""

    step_size: Any
    inverse_mass_matrix: Any


@final
@dataclass(frozen=True)
class Sampler:
    """One chain as functions.

    - `init`: from a key and a position to a state.
    - `bind`: from an inverse mass matrix to a transition, from a key, a state and a
        step size to a state and an info. For an algorithm both are None.
    - `warmup`: the adaptation of both; None for an algorithm.
    - `logdensity_fn`: from one position to a scalar; None if it is inside the others.
    - `max_tree_depth`: the depth at which trees are cut; None if there are none.
    - `with_logdensity`: from another log-density to the same chain with it.
    """

    init: Callable[[Any, PyTree], Any]
    bind: Callable[[Any], Callable[[Any, Any, Any], tuple[Any, Any]]]
    warmup: Warmup | None = None
    logdensity_fn: Callable[[PyTree], Any] | None = None
    max_tree_depth: int | None = None
    with_logdensity: "Callable[[Callable[[PyTree], Any]], Sampler] | None" = None


def is_api(sampler: object) -> bool:
    """Return True for an API such as `blackjax.nuts`, False for its algorithms."""
    parts = [getattr(sampler, name, None) for name in ("init", "build_kernel")]
    return callable(sampler) and all(map(callable, parts))


def is_algorithm(sampler: object) -> bool:
    """Return True if it has the two functions of a `SamplingAlgorithm`."""
    return all(callable(getattr(sampler, name, None)) for name in ("init", "step"))


def sampler_of_algorithm(algorithm: Any) -> Sampler:
    """Return the chain of an algorithm, which has its log-density and parameters."""
    takes_key = len(_positional(algorithm.init)) > 1

    def init(key: Any, position: PyTree) -> Any:
        return algorithm.init(position, key) if takes_key else algorithm.init(position)

    return Sampler(init, lambda _: lambda key, state, _: algorithm.step(key, state))


def sampler_of_api(
    api: Any,
    logdensity_fn: Callable[[PyTree], Any],
    target_acceptance: Any,
    settings: Mapping[str, Any],
    caller: str = "run_chains",
) -> Sampler:
    """Return the chain of an API, such as `blackjax.nuts`, that Stan's warm-up tunes.

    `settings` are arguments by name of the warm-up, of `build_kernel` and of the
    kernel. `target_acceptance` may be traced.

    **Raises:**

    `TypeError` if this warm-up is not for the API, or if settings are unknown or
    missing.
    """
    building = _names(api.build_kernel)
    kernel = _kernel_of(api, building, settings, caller)
    parameters = inspect.signature(kernel).parameters
    taken = [x for x in parameters if x not in _OWN]
    _check_settings(kernel, [*_ADAPTATION, *building, *taken], settings, caller)
    for_warmup = {k: v for k, v in settings.items() if k in _ADAPTATION}
    for_kernel = {k: v for k, v in settings.items() if k in taken}
    marked = expensive(logdensity_fn)
    # Imported outside of any trace; see `Warmup`.
    default_metric: Any = delayed("blackjax.mcmc.metrics").default_metric

    def init(key: Any, position: PyTree) -> Any:
        return api.init(position, marked)

    def bind(inverse_mass_matrix: Any) -> Callable[..., tuple[Any, Any]]:
        # A kernel would factorise a dense matrix anew in every transition.
        metric = default_metric(inverse_mass_matrix)

        def step(key: Any, state: Any, step_size: Any) -> tuple[Any, Any]:
            return kernel(key, state, marked, step_size, metric, **for_kernel)

        return step

    def with_logdensity(logdensity_fn: Callable[[PyTree], Any]) -> Sampler:
        return sampler_of_api(api, logdensity_fn, target_acceptance, settings, caller)

    depth = parameters.get("max_num_doublings")
    most = None if depth is None else settings.get("max_num_doublings", depth.default)
    warmup = Warmup(target_acceptance, **for_warmup)
    return Sampler(init, bind, warmup, logdensity_fn, most, with_logdensity)


def _kernel_of(
    api: Any, building: Iterable[str], settings: Mapping[str, Any], caller: str
) -> Any:
    """Return the kernel of an API; raise if this warm-up is not for it."""
    kernel = None
    starts_at_position = len(_positional(api.init, required=True)) == 2
    if starts_at_position and not _positional(api.build_kernel, required=True):
        kernel = api.build_kernel(**{k: settings[k] for k in building if k in settings})
    makers = (kernel, getattr(api, "differentiable", api))
    if kernel is None or not all(set(_TUNED) <= set(_names(x)) for x in makers):
        module = getattr(api.init, "__module__", "")
        name = f"this API, of {module}" if module else repr(api)
        raise TypeError(
            f"{caller}: there is no warm-up for {name}. Stan's warm-up finds "
            "`step_size` and `inverse_mass_matrix` for a sampler that takes both and "
            "starts at a position alone, such as blackjax.nuts, blackjax.hmc and "
            f"blackjax.barker.{_WITHOUT_WARMUP.get(caller, '')}"
        )
    return kernel


def _check_settings(
    kernel: Any, accepted: Iterable[str], settings: Mapping[str, Any], caller: str
) -> None:
    for name in settings:
        if name in _TUNED:
            raise TypeError(
                f"{caller}({name}={format_value(settings[name])}): {name} is what the "
                f"warm-up finds. To begin from it use `initial_{name}`."
                f"{_WITHOUT_WARMUP.get(caller, '')}"
            )
        if name not in accepted:
            raise TypeError(
                f"{caller}({name}={format_value(settings[name])}): neither the warm-up "
                f"nor the sampler takes {name}. They take "
                f"{', '.join(dict.fromkeys(accepted))}."
            )
    required = _positional(kernel, required=True)
    missing = [x for x in required if x not in _OWN and x not in settings]
    if missing:
        raise TypeError(
            f"{caller}: the sampler needs {', '.join(missing)}, which the warm-up "
            f"does not find. Pass {missing[0]}=... by name."
        )


def _names(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def _positional(function: Any, required: bool = False) -> list[str]:
    """Return the parameters that take positional arguments, or the required ones."""
    return [
        x.name
        for x in inspect.signature(function).parameters.values()
        if x.kind in (x.POSITIONAL_ONLY, x.POSITIONAL_OR_KEYWORD)
        and not (required and x.default is not x.empty)
    ]
