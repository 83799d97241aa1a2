"""One chain as functions: its start, its warm-up, its transition, and its statistics.

`Sampler` is made of an API of blackjax and a log-density. The warm-up finds its step
size and its mass matrix, or the API is given all its parameters. All functions are of
one chain, however chains are laid out.

The warm-up is Stan's, a transition at a time. Its schedule, the dual averaging of the
step size (Hoffman and Gelman 2014, Journal of Machine Learning Research 15, section
3.2) and the regularised covariance are blackjax's. `blackjax.window_adaptation` runs
them as one loop over all transitions, with its own copy of the sampler's kernel. Here a
transition of the warm-up and one of the draws are the same program: a gradient-based
kernel takes seconds to compile, and is compiled once; and a run can be saved and
resumed inside its warm-up.

The mass matrix changes at the end of a window and nowhere else. Blocks of transitions
(`Segment`) end there too, so a dense matrix is factorised once a block, outside the
loop over transitions.
"""

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._formats import format_type, format_value
from ..batchers import expensive
from ..run._arguments import is_algorithm
from ..run._packages import delayed


# How to avoid the warm-up, by the function that the user called.
_WITHOUT_WARMUP: Final = {
    "run_chains": " To choose the parameters yourself, pass them by name, with "
    "`num_warmup=0`."
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
# The fields of blackjax's `HMCInfo`. GIST samplers have fewer, and an acceptance rate
# that is not that of the energies alone.
_OF_HMC: Final = {
    "momentum",
    "acceptance_rate",
    "is_accepted",
    "is_divergent",
    "energy",
    "proposal",
    "num_integration_steps",
}


@final
class Adaptation(NamedTuple):
    """State of the warm-up of one chain."""

    step_size: Any  # of the next transition, as the matrix
    inverse_mass_matrix: Any
    averaging: Any  # the state of the dual averaging of the step size
    moments: Any  # the state of the running covariance of the window


@final
class Segment(NamedTuple):
    """Transitions of one window of the warm-up, or draws: all of them or a part."""

    first: Any  # the number of transitions of the warm-up, or of draws, before them
    count: Any
    end: Any  # the number of the first transition after the window
    is_warmup: Any = False
    # Positions enter the estimate of the mass matrix, which changes at the end.
    is_slow: Any = False
    ends_warmup: Any = False  # the step size becomes its average at the end


def windows_of(num_warmup: int) -> list[Segment]:
    """Return the windows of a warm-up: fast, slow of growing length, fast."""
    if num_warmup == 0:
        return []
    build_schedule = delayed("blackjax.adaptation.window_adaptation").build_schedule
    is_slow, ends_window = np.asarray(build_schedule(num_warmup)).astype(bool).T
    # A window ends where the mass matrix is updated, or where the kind changes.
    changes = np.append(is_slow[1:] != is_slow[:-1], True)
    ends = [int(i) + 1 for i in np.flatnonzero(changes | ends_window)]
    return [
        Segment(first, end - first, end, True, bool(is_slow[first]), end == num_warmup)
        for first, end in zip([0, *ends[:-1]], ends, strict=True)
    ]


def draws_segment(first: int, count: int) -> Segment:
    """Return the segment of `count` draws from number `first` on."""
    return Segment(first, count, first + count)


@final
class Warmup:
    """Functions of one chain that adapt its step size and its mass matrix."""

    def __init__(
        self,
        target_acceptance: Any,
        *,
        is_mass_matrix_diagonal: bool = True,
        initial_inverse_mass_matrix: Any = None,
        imm_shrinkage_to_previous: float = 0.0,
        initial_step_size: Any = 1.0,
    ) -> None:
        """**Arguments:** as `blackjax.window_adaptation`; the target may be traced."""
        # Imported outside of any trace: the arrays that blackjax makes while it is
        # imported would be tracers, and leak.
        step_size = delayed("blackjax.adaptation.step_size")
        mass_matrix = delayed("blackjax.adaptation.mass_matrix")
        averaging = step_size.dual_averaging_adaptation(target_acceptance)
        covariance = mass_matrix.mass_matrix_adaptation(
            is_mass_matrix_diagonal, imm_shrinkage_to_previous
        )
        self._start_averaging, self._average, self._mean_step_size = averaging
        self._start_covariance, self._accumulate, self._new_matrix = covariance
        self._is_diagonal = is_mass_matrix_diagonal
        self._matrix = initial_inverse_mass_matrix
        self._step_size = initial_step_size

    def init(self, position: PyTree) -> Adaptation:
        """Return the adaptation before the first transition."""
        size = sum(jnp.size(x) for x in jax.tree.leaves(position))
        shape = (size,) if self._is_diagonal else (size, size)
        if self._matrix is not None and jnp.shape(self._matrix) != shape:
            raise ValueError(
                f"initial_inverse_mass_matrix={format_value(self._matrix)}: "
                f"with is_mass_matrix_diagonal={self._is_diagonal} it must have the "
                f"shape {shape}, for the {size} numbers of a position; it has "
                f"{jnp.shape(self._matrix)}."
            )
        moments = self._start_covariance(size, self._matrix)
        return _adaptation(self._start_averaging(self._step_size), moments)

    def adapt(
        self, adaptation: Adaptation, position: PyTree, acceptance: Any, is_slow: Any
    ) -> Adaptation:
        """Return the adaptation after a transition to a position."""
        moments = jax.lax.cond(
            is_slow,
            lambda moments: self._accumulate(moments, position),
            lambda moments: moments,
            adaptation.moments,
        )
        return _adaptation(self._average(adaptation.averaging, acceptance), moments)

    def end_window(self, adaptation: Adaptation) -> Adaptation:
        """Take the mass matrix of the window, and restart the step size's average."""
        mean = self._mean_step_size(adaptation.averaging)
        return _adaptation(
            self._start_averaging(mean), self._new_matrix(adaptation.moments)
        )

    def end(self, adaptation: Adaptation) -> Adaptation:
        """Take the mean step size of the last window, which draws are made with."""
        return adaptation._replace(step_size=self._mean_step_size(adaptation.averaging))


def _adaptation(averaging: Any, moments: Any) -> Adaptation:
    step_size = jnp.exp(averaging.log_step_size)
    return Adaptation(step_size, moments.inverse_mass_matrix, averaging, moments)


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
        step size to a state and an info. Without a warm-up both are None.
    - `warmup`: the adaptation of both; None if there is none.
    - `max_tree_depth`: the depth at which trees are cut; None if there are none.
    """

    init: Callable[[Any, PyTree], Any]
    bind: Callable[[Any], Callable[[Any, Any, Any], tuple[Any, Any]]]
    warmup: Warmup | None
    max_tree_depth: int | None


def is_api(sampler: object) -> bool:
    """Return True for an API such as `blackjax.nuts`, False for its algorithms."""
    parts = [getattr(sampler, name, None) for name in ("init", "build_kernel")]
    return callable(sampler) and all(map(callable, parts))


def sampler_without_warmup(
    api: Any, logdensity_fn: Callable[[PyTree], Any], settings: Mapping[str, Any]
) -> Sampler:
    """Return the chain of an API that is called with all its parameters.

    Raise `TypeError` if they are unknown or missing, or if it returns no algorithm.
    """
    signature = inspect.signature(getattr(api, "differentiable", api))
    _refuse_nested(api, "this API", "run_chains")
    try:
        signature.bind(logdensity_fn, **settings)
    except TypeError as error:
        raise TypeError(
            f"run_chains(num_warmup=0): {error}. Without a warm-up the log-density and "
            "all settings are arguments of the API, which takes "
            f"{', '.join(signature.parameters)}."
        ) from error
    algorithm = api(expensive(logdensity_fn), **settings)
    if not is_algorithm(algorithm):
        raise TypeError(
            f"run_chains(api={format_value(api)}): api must return an algorithm, with "
            f"`init` and `step`, from a log-density; got {format_type(algorithm)}."
        )
    takes_key = len(_positional(algorithm.init)) > 1

    def init(key: Any, position: PyTree) -> Any:
        return algorithm.init(position, key) if takes_key else algorithm.init(position)

    def bind(_: Any) -> Callable[..., tuple[Any, Any]]:
        return lambda key, state, _: algorithm.step(key, state)

    return Sampler(init, bind, None, _max_tree_depth(signature.parameters, settings))


def sampler_of_api(
    api: Any,
    logdensity_fn: Callable[[PyTree], Any],
    target_acceptance: Any,
    settings: Mapping[str, Any],
    caller: str = "run_chains",
) -> Sampler:
    """Return the chain of an API, such as `blackjax.nuts`, that Stan's warm-up tunes.

    `settings` are arguments of the warm-up, of `build_kernel` and of the kernel;
    `target_acceptance` may be traced. Raise `TypeError` if this warm-up is not for the
    API, or if settings are unknown or missing.
    """
    building = _names(api.build_kernel) if is_api(api) else []
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

    warmup = Warmup(target_acceptance, **for_warmup)
    return Sampler(init, bind, warmup, _max_tree_depth(parameters, settings))


def _max_tree_depth(
    parameters: Mapping[str, inspect.Parameter], settings: Mapping[str, Any]
) -> int | None:
    depth = parameters.get("max_num_doublings")
    return None if depth is None else settings.get("max_num_doublings", depth.default)


def _kernel_of(
    api: Any, building: Iterable[str], settings: Mapping[str, Any], caller: str
) -> Any:
    """Return the kernel of an API; raise if this warm-up is not for it."""
    kernel = None
    if (
        is_api(api)
        and len(_positional(api.init, required=True)) == 2
        and not _positional(api.build_kernel, required=True)
    ):
        kernel = api.build_kernel(**{k: settings[k] for k in building if k in settings})
    makers = (kernel, getattr(api, "differentiable", api))
    if kernel is None or not all(set(_TUNED) <= set(_names(x)) for x in makers):
        module = getattr(getattr(api, "init", None), "__module__", "")
        name = f"this API, of {module}" if module else format_value(api)
        _refuse_nested(api, name, caller)
        raise TypeError(
            f"{caller}: there is no warm-up for {name}. Stan's warm-up finds "
            "`step_size` and `inverse_mass_matrix` for a sampler that takes both and "
            "starts at a position alone, such as blackjax.nuts, blackjax.hmc and "
            f"blackjax.barker.{_WITHOUT_WARMUP.get(caller, '')}"
        )
    return kernel


def _refuse_nested(api: Any, name: str, caller: str) -> None:
    """Raise if an API is a nested sampler."""
    try:
        parameters = _names(getattr(api, "differentiable", api))
    except (TypeError, ValueError):  # it has no signature
        return
    if {"logprior_fn", "loglikelihood_fn", "num_delete"} <= set(parameters):
        raise TypeError(
            f"{caller}: {name} is a nested sampler, which takes `logprior_fn` and "
            "`loglikelihood_fn`. For nested samplers use `run_nested`."
        )


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


@final
class Statistics(NamedTuple):
    """Scalars of one transition, or of all on the way to one draw; None if unknown."""

    diverging: Any  # how many transitions diverged
    acceptance: Any  # the mean acceptance rate
    num_integration_steps: Any  # of all transitions
    tree_depth: Any  # of the deepest tree
    energy: Any  # of the last transition, at the state that it drew

    def mean_over(self, turns: Any) -> "Statistics":
        """Return the statistics of a draw from the sums over its transitions."""
        rate = self.acceptance
        return self._replace(acceptance=None if rate is None else rate / turns)


def statistics_of(info: Any) -> Statistics:
    """Return the statistics of a transition, from the info that blackjax returns."""

    def scalar(name: str, dtype: Any) -> Any:
        value = getattr(info, name, None)
        if value is None or jnp.ndim(value) > 0:
            return None
        return jnp.asarray(value, dtype)

    return Statistics(
        scalar("is_divergent", jnp.int32),
        scalar("acceptance_rate", None),
        scalar("num_integration_steps", jnp.int32),
        scalar("num_trajectory_expansions", jnp.int32),
        _energy(info, scalar("energy", None)),
    )


def no_statistics(like: Statistics) -> Statistics:
    """Return the statistics of no transition, with the shapes of others."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)


def added(before: Statistics, last: Statistics) -> Statistics:
    """Return the sum of statistics: the greater tree depth, the last energy."""

    def plus(one: Any, other: Any) -> Any:
        return None if one is None else one + other

    depths = before.tree_depth, last.tree_depth
    return Statistics(
        plus(before.diverging, last.diverging),
        plus(before.acceptance, last.acceptance),
        plus(before.num_integration_steps, last.num_integration_steps),
        None if None in depths else jnp.maximum(*depths),
        last.energy,
    )


def _energy(info: Any, energy: Any) -> Any:
    """Compute the energy at the state that was drawn.

    NUTS reports it. Samplers that accept or reject report the energy of the proposal,
    also if it was rejected. At the state before it the energy is smaller by
    `-log(acceptance rate)`; if the rate underflowed to zero, it is unknown.
    """
    accepted = getattr(info, "is_accepted", None)
    if energy is None or accepted is None:
        return energy
    if set(getattr(info, "_fields", ())) != _OF_HMC or jnp.ndim(accepted) > 0:
        return None
    rate = info.acceptance_rate
    before = jnp.where(rate > 0, energy + jnp.log(rate), jnp.nan)
    return jax.lax.select(jnp.asarray(accepted), energy, before.astype(energy.dtype))
