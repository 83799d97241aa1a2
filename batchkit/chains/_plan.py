"""What is about to be run: in words, before it compiles, and as a fingerprint.

Only the same chains go on with a checkpoint. The log-density is known by what it
computes and by its data. The sampler is known by what a transition computes for a
log-density of ours; the settings that are values also each by its name, for the sake of
the message if one differs. Of an algorithm there is only the transition as a whole.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..batchers._trace_log import LogEntry, leave, start_log
from ..explain._explain import records_of
from ..run._fingerprint import Part, of_arrays, of_function, of_words
from ..run._names import parameter_names, qualified_name, setting_as_json
from ..run._processes import speaker
from ._arguments import check_logdensity
from ._programs import Chains
from ._sampler import Sampler, Tuned, sampler_of_algorithm, sampler_of_api


_log: Final = logging.getLogger("batchkit")


@final
@dataclass(frozen=True)
class Plan:
    """What one chain does, and what it is known by.

    **Arguments:**

    - `sampler`: what one chain does.
    - `stand_in`: the same for a log-density of ours; None for an algorithm.
    - `settings`: what was given by name, or is so by default.
    - `names`: what the sampler was made of that is no value, in words.
    """

    sampler: Sampler
    stand_in: Sampler | None
    settings: Mapping[str, Any]
    names: Mapping[str, Any]


def plan_of_algorithm(algorithm: Any, thin: int) -> Plan:
    """The plan for chains that sample at once."""
    sampler = sampler_of_algorithm(algorithm)
    return Plan(sampler, None, {"thin": thin}, {})


def plan_of_api(
    api: Any,
    logdensity_fn: Callable[[PyTree], Any],
    positions: PyTree,
    num_warmup: int,
    target_acceptance: float,
    thin: int,
    settings: Mapping[str, Any],
) -> Plan:
    """The plan for chains that warm up.

    **Raises:**

    `TypeError` if it cannot be, see `sampler_of_api` and `check_logdensity`.
    """

    def sampler_for(logdensity: Callable[[PyTree], Any]) -> Sampler:
        return sampler_of_api(api, logdensity, target_acceptance, settings)

    sampler = sampler_for(logdensity_fn)
    dtype = check_logdensity(logdensity_fn, positions)
    ours = {"num_warmup": num_warmup, "target_acceptance": target_acceptance}
    stand_in = sampler_for(stand_in_for(dtype))
    ours |= {"thin": thin, **settings}
    return Plan(sampler, stand_in, ours, names_of(api, settings))


def names_of(api: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """The names of an API and of the functions among its settings."""
    functions = {name: x for name, x in settings.items() if callable(x)}
    return {
        name: qualified_name(x)
        for name, x in {"api": api.build_kernel, **functions}.items()
    }


def say_what_is_run(
    plan: Plan, chains: Chains, positions: PyTree, num_samples: int
) -> list[str]:
    """Logs it in one line, and returns how the chains are laid out, in words."""
    layout = layout_of(chains)
    dtypes = {str(x.dtype) for x in jax.tree.leaves(positions)}
    told = ", ".join(
        f"{name}={setting_as_json(x)}" for name, x in plan.settings.items()
    )
    speaker(_log).info(
        "run_chains: %d chains of %d numbers (%s), %d draws of each; %s; %s",
        chains.num_chains,
        len(parameter_names(positions)),
        ", ".join(sorted(dtypes)),
        num_samples,
        told,
        "; ".join(layout),
    )
    return layout


def layout_of(chains: Chains) -> list[str]:
    """How chains are laid out, in words; it traces them."""

    def traced() -> list[str]:
        token = start_log(root := LogEntry(None))
        try:
            chains.trace_advance()
        finally:
            leave(token)
        return [f"{x.batcher}: {x.tasks} tasks, {x.layout}" for x in records_of(root)]

    layout = list(chains.keep("layout", traced))
    if chains.blocks.is_fixed:
        layout.append(f"blocks of {chains.blocks.most} draws")
    return layout


def about(settings: Mapping[str, Any], positions: PyTree) -> dict[str, Any]:
    """What a file tells its readers of a run, besides the draws."""
    return {
        "settings": {name: setting_as_json(x) for name, x in settings.items()},
        "parameters": list(parameter_names(positions)),
        "arrays": "of shape (chains, draws, ...)",
    }


def identity_of(
    plan: Plan, rng_key: Any, positions: PyTree, tuned: Tuned | None
) -> dict[str, Part]:
    """Fingerprint of the run, by parts; see `batchkit.run._same_run`.

    **Arguments:**

    - `plan`: what one chain does.
    - `rng_key`: the key of the run.
    - `positions`: where chains start.
    - `tuned`: the shapes of what the warm-up finds for one chain.
    """
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), positions)
    known: dict[str, Part] = {}
    if plan.stand_in is None:
        transition = _transition(plan.sampler)
        known["algorithm"] = of_function(transition, rng_key, row, tuned)
    else:
        transition = _transition(plan.stand_in)
        if plan.sampler.logdensity_fn is not None:
            known["log-density"] = of_function(plan.sampler.logdensity_fn, row)
        known["sampler"] = of_function(
            transition, rng_key, row, tuned, words=plan.names
        )
    for name, value in plan.settings.items():
        if value is None or isinstance(value, str):
            known[name] = of_words(value)
        elif not callable(value):
            known[name] = of_arrays(value, setting_as_json(value))
    return {**known, "positions": of_arrays(positions), "key": of_arrays(rng_key)}


def stand_in_for(dtype: Any) -> Callable[[PyTree], Any]:
    """A log-density of ours, with results of one type."""

    def logdensity(position: PyTree) -> Any:
        leaves = jax.tree.leaves(position)
        squares = [jnp.sum(jnp.square(x)).astype(dtype) for x in leaves]
        return -jnp.sum(jnp.stack(squares))

    return logdensity


def _transition(sampler: Sampler) -> Callable[..., Any]:
    def transition(rng_key: Any, position: PyTree, tuned: Tuned | None) -> Any:
        step_size, matrix = (None, None) if tuned is None else tuned
        state = sampler.init(rng_key, position)
        return sampler.bind(matrix)(rng_key, state, step_size)

    return transition
