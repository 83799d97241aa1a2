"""What one chain does: where it starts, how it warms up, how it makes a step.

Two things come in, and one `Sampler` comes out: an API of blackjax together with a
log-density, whose step size and mass matrix the warm-up finds, or an algorithm that has
everything it needs. All functions are of one chain, however chains are laid out.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

from jaxtyping import PyTree

from .._util._formats import format_value as in_short
from ..batchers import expensive
from ..run._extras import delayed
from ._warmup import Warmup


# The way around the warm-up, by the function that has one.
_ALGORITHM: Final = {
    "run_chains": " To choose the parameters yourself, pass the algorithm, which has "
    "no warm-up: `run_chains(api(logdensity_fn, ...), rng_key, positions)`."
}
# What the warm-up finds, and hands to the kernel.
_TUNED: Final = ("step_size", "inverse_mass_matrix")
_GIVEN: Final = ("rng_key", "state", "logdensity_fn", *_TUNED)
_ADAPTATION: Final = (
    "is_mass_matrix_diagonal",
    "initial_inverse_mass_matrix",
    "imm_shrinkage_to_previous",
    "initial_step_size",
)


@final
class Tuned(NamedTuple):
    """What a warm-up has found for one chain."""

    step_size: Any
    inverse_mass_matrix: Any


@final
@dataclass(frozen=True)
class Sampler:
    """One chain as functions.

    **Arguments:**

    - `init`: from a key and a position to a state.
    - `bind`: from an inverse mass matrix to a transition, from a key, a state and a
        step size to a state and an info. Of an algorithm both are None.
    - `warmup`: the adaptation of both; None for an algorithm.
    - `logdensity_fn`: from one position to a scalar; None if it is not known.
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
    """Whether it is an API such as `blackjax.nuts`, and no algorithm made by one."""
    parts = [getattr(sampler, name, None) for name in ("init", "build_kernel")]
    return callable(sampler) and all(map(callable, parts))


def is_algorithm(sampler: object) -> bool:
    """Whether it has the two functions of a `SamplingAlgorithm`."""
    return all(callable(getattr(sampler, name, None)) for name in ("init", "step"))


def sampler_of_algorithm(algorithm: Any) -> Sampler:
    """The chain of an algorithm, which has its log-density and parameters in it."""
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
    """The chain of an API that Stan's warm-up tunes.

    **Arguments:**

    - `api`: such as `blackjax.nuts`.
    - `logdensity_fn`: from one position to a scalar.
    - `target_acceptance`: the acceptance rate that the step size is tuned for; a
        float, or a scalar of a program.
    - `settings`: what the user gave by name, for the warm-up, for `build_kernel` and
        for the kernel.
    - `caller`: the function that the user called.

    **Raises:**

    `TypeError` if this warm-up is not for the API, or for settings that nobody takes or
    that are missing.
    """
    building = _names(api.build_kernel)
    kernel = _kernel_of(api, building, settings, caller)
    taken = [x for x in _names(kernel) if x not in _GIVEN]
    _check_settings(kernel, [*_ADAPTATION, *building, *taken], settings, caller)
    for_warmup = {k: v for k, v in settings.items() if k in _ADAPTATION}
    for_kernel = {k: v for k, v in settings.items() if k in taken}
    marked = expensive(logdensity_fn)
    # Imported before anything is traced; see `Warmup`.
    default_metric: Any = delayed("blackjax.mcmc.metrics").default_metric

    def init(key: Any, position: PyTree) -> Any:
        return api.init(position, marked)

    def bind(inverse_mass_matrix: Any) -> Callable[..., tuple[Any, Any]]:
        # A kernel would factorise a dense matrix anew in every transition.
        metric = default_metric(inverse_mass_matrix)

        def step(key: Any, state: Any, step_size: Any) -> tuple[Any, Any]:
            return kernel(key, state, marked, step_size, metric, **for_kernel)

        return step

    depth = inspect.signature(kernel).parameters.get("max_num_doublings")
    most = None if depth is None else settings.get("max_num_doublings", depth.default)

    def again(logdensity_fn: Callable[[PyTree], Any]) -> Sampler:
        return sampler_of_api(api, logdensity_fn, target_acceptance, settings, caller)

    warmup = Warmup(target_acceptance, **for_warmup)
    return Sampler(init, bind, warmup, logdensity_fn, most, again)


def _kernel_of(
    api: Any, building: Iterable[str], settings: Mapping[str, Any], caller: str
) -> Any:
    """The kernel of an API, or an error if this warm-up is not for it."""
    required = [
        x.name
        for x in inspect.signature(api.build_kernel).parameters.values()
        if x.default is x.empty and x.kind is x.POSITIONAL_OR_KEYWORD
    ]
    starts = len(_required(api.init)) == 2
    kernel: Any = None
    if not required and starts:
        kernel = api.build_kernel(**{k: settings[k] for k in building if k in settings})
    asked = [_names(kernel), _names(getattr(api, "differentiable", api))]
    if kernel is None or not all(set(_TUNED) <= set(names) for names in asked):
        raise TypeError(
            f"{caller}: there is no warm-up for {_name_of(api)}. Stan's warm-up "
            "finds `step_size` and `inverse_mass_matrix` for a sampler that takes "
            "both and starts at a position alone, such as blackjax.nuts, "
            f"blackjax.hmc and blackjax.barker.{_ALGORITHM.get(caller, '')}"
        )
    return kernel


def _check_settings(
    kernel: Any, known: Iterable[str], settings: Mapping[str, Any], caller: str
) -> None:
    for name in settings:
        if name in _TUNED:
            raise TypeError(
                f"{caller}({name}={in_short(settings[name])}): {name} is what the "
                f"warm-up finds. To begin from it use `initial_{name}`."
                f"{_ALGORITHM.get(caller, '')}"
            )
        if name not in known:
            raise TypeError(
                f"{caller}({name}={in_short(settings[name])}): neither the warm-up "
                f"nor the sampler takes {name}. They take "
                f"{', '.join(dict.fromkeys(known))}."
            )
    missing = [x for x in _required(kernel) if x not in _GIVEN and x not in settings]
    if missing:
        raise TypeError(
            f"{caller}: the sampler needs {', '.join(missing)}, which the warm-up "
            f"does not find. Pass {missing[0]}=... by name."
        )


def _name_of(api: Any) -> str:
    module = getattr(api.init, "__module__", "")
    return f"this API, of {module}" if module else repr(api)


def _names(function: Any) -> list[str]:
    if function is None:
        return []
    return list(inspect.signature(function).parameters)


def _positional(function: Any) -> list[inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    kinds = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    )
    return [x for x in parameters if x.kind in kinds]


def _required(function: Any) -> list[str]:
    return [x.name for x in _positional(function) if x.default is x.empty]
