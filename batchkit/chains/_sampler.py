"""What one chain does: where it starts, how it warms up, how it makes a step.

Two things come in, and one `Sampler` comes out: an API of blackjax together with a
log-density, whose step size and mass matrix the warm-up finds, or an algorithm that has
everything it needs. All functions are of one chain; nothing here knows how chains are
laid out.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import jax.numpy as jnp
from jaxtyping import PyTree

from ..batchers import expensive
from ..batchers._values import in_short
from ..run._extras import delayed


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
    """One chain as functions."""

    init: Callable[[Any, PyTree], Any]  # from a key and a position, a state
    warm: Callable[[Any, PyTree], tuple[Any, Tuned]] | None
    bind: Callable[[Tuned | None], Callable[[Any, Any], tuple[Any, Any]]]  # a step
    logdensity_fn: Callable[[PyTree], Any] | None = None
    max_tree_depth: int | None = None
    # The same chain with another log-density.
    with_logdensity: "Callable[[Callable[[PyTree], Any]], Sampler] | None" = None


@final
class _Kernel(NamedTuple):
    """What `window_adaptation` asks of an API, with the kernel's settings bound."""

    init: Callable[..., Any]
    build_kernel: Callable[..., Any]


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

    return Sampler(init, None, lambda _: algorithm.step)


def sampler_of_api(
    api: Any,
    logdensity_fn: Callable[[PyTree], Any],
    num_warmup: int,
    target_acceptance: Any,
    settings: Mapping[str, Any],
) -> Sampler:
    """The chain of an API that Stan's warm-up tunes.

    **Arguments:**

    - `api`: such as `blackjax.nuts`.
    - `logdensity_fn`: from one position to a scalar.
    - `num_warmup`: the number of transitions of the warm-up.
    - `target_acceptance`: the acceptance rate that the step size is tuned for; a
        float, or a scalar of a program.
    - `settings`: what the user gave by name, for the warm-up, for `build_kernel` and
        for the kernel.

    **Raises:**

    `TypeError` if this warm-up is not for the API, or for settings that nobody takes or
    that are missing.
    """
    building = _names(api.build_kernel)
    kernel = _kernel_of(api, building, settings)
    taken = [x for x in _names(kernel) if x not in _GIVEN]
    _check_settings(kernel, [*_ADAPTATION, *building, *taken], settings)
    for_adaptation = {k: v for k, v in settings.items() if k in _ADAPTATION}
    for_sampler = {k: v for k, v in settings.items() if k not in _ADAPTATION}
    for_kernel = {k: v for k, v in settings.items() if k in taken}
    marked = expensive(logdensity_fn)
    # Not in `warm`, which is traced: constants of blackjax would become tracers.
    window_adaptation: Any = delayed("blackjax").window_adaptation

    def init(key: Any, position: PyTree) -> Any:
        return api.init(position, marked)

    def warm(key: Any, position: PyTree) -> tuple[Any, Tuned]:
        warmup = window_adaptation(
            # It would give the kernel what only `build_kernel` takes.
            _Kernel(api.init, lambda *_: kernel),
            marked,
            target_acceptance_rate=target_acceptance,
            adaptation_info_fn=lambda *_: None,  # by default it keeps everything
            **for_adaptation,
            **for_kernel,
        )
        (state, parameters), _ = warmup.run(key, position, num_warmup)
        return state, Tuned(*(jnp.asarray(parameters[name]) for name in _TUNED))

    def bind(tuned: Tuned | None) -> Callable[[Any, Any], tuple[Any, Any]]:
        assert tuned is not None
        # Not the kernel: it would factorise a dense mass matrix in every transition.
        return api(marked, **tuned._asdict(), **for_sampler).step

    depth = inspect.signature(kernel).parameters.get("max_num_doublings")
    most = None if depth is None else settings.get("max_num_doublings", depth.default)

    def again(logdensity_fn: Callable[[PyTree], Any]) -> Sampler:
        return sampler_of_api(
            api, logdensity_fn, num_warmup, target_acceptance, settings
        )

    return Sampler(init, warm, bind, logdensity_fn, most, again)


def _kernel_of(api: Any, building: Iterable[str], settings: Mapping[str, Any]) -> Any:
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
            f"run_chains: there is no warm-up for {_name_of(api)}. Stan's warm-up "
            "finds `step_size` and `inverse_mass_matrix` for a sampler that takes "
            "both and starts at a position alone, such as blackjax.nuts, "
            "blackjax.hmc and blackjax.barker. Choose the parameters yourself and "
            "pass the algorithm: `run_chains(api(logdensity_fn, ...), rng_key, "
            "positions)`."
        )
    return kernel


def _check_settings(
    kernel: Any, known: Iterable[str], settings: Mapping[str, Any]
) -> None:
    for name in settings:
        if name in _TUNED:
            raise TypeError(
                f"run_chains({name}={in_short(settings[name])}): {name} is what the "
                f"warm-up finds. To begin from it use `initial_{name}`; to keep it "
                "pass the algorithm without a warm-up: `run_chains(api(logdensity_fn, "
                "...), rng_key, positions)`."
            )
        if name not in known:
            raise TypeError(
                f"run_chains({name}={in_short(settings[name])}): neither the warm-up "
                f"nor the sampler takes {name}. They take "
                f"{', '.join(dict.fromkeys(known))}."
            )
    missing = [x for x in _required(kernel) if x not in _GIVEN and x not in settings]
    if missing:
        raise TypeError(
            f"run_chains: the sampler needs {', '.join(missing)}, which the warm-up "
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
