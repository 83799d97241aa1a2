"""Identity of a run of chains: its fingerprint, its layout, and older checkpoints.

Only the same run resumes from a checkpoint. The log-density is identified by what it
computes and by its data. The sampler is identified by what a transition computes for a
stand-in log-density; settings that are values also each by its name, so that the
message can name the one that differs. Of an algorithm there is only the transition.

A checkpoint that other versions wrote is compared by values. It has the states of
chains, with the log-density there and mostly its gradient: states that are made anew at
these positions must have the same. That does not cover the step of an algorithm, which
has its parameters inside. There the first draw is made again, from the same starts with
the same key. A chain amplifies rounding, and may accept what it rejected before; most
chains make the same draw.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..batchers._trace_log import LogEntry, leave, start_log
from ..explain._explain import reached_sites
from ..run._arguments import row_of
from ..run._names import parameter_names, qualified_name, setting_as_json
from ..run._same_run import Compare, Part, Values, of_arrays, of_function, of_words
from ..run._store import Saved
from ..run._trees import to_host, tree_from_arrays
from ._chain_programs import Chains
from ._sampler import Sampler, Tuned, draws_segment


ALGORITHM: Final = "algorithm"


@final
@dataclass(frozen=True)
class Plan:
    """The sampler of one chain, with what identifies it."""

    sampler: Sampler  # for the log-density of the user
    stand_in: Sampler | None  # for a stand-in log-density; None for an algorithm
    settings: Mapping[str, Any]  # arguments by name, with defaults
    names: Mapping[str, Any]  # the API and the functions among the settings, by name


def names_of(api: Any, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of an API and of the functions among its settings."""
    functions = {name: x for name, x in settings.items() if callable(x)}
    functions = {"api": api.build_kernel, **functions}
    return {name: qualified_name(x) for name, x in functions.items()}


def layout_of(chains: Chains) -> list[str]:
    """Trace chains, and describe how they are laid out."""

    def traced() -> list[str]:
        token = start_log(root := LogEntry(None))
        try:
            chains.trace_advance()
        finally:
            leave(token)
        return [
            f"{x.batcher}: {x.tasks} tasks, {x.layout}" for x in reached_sites(root)
        ]

    layout = list(chains.keep("layout", traced))
    if chains.blocks.is_fixed:
        layout.append(f"blocks of {chains.blocks.most} draws")
    return layout


def about(settings: Mapping[str, Any], positions: PyTree) -> dict[str, Any]:
    """Return header entries that describe a run to readers of its file."""
    return {
        "settings": {name: setting_as_json(x) for name, x in settings.items()},
        "parameters": list(parameter_names(positions)),
        "arrays": "of shape (chains, draws, ...)",
    }


def identity_of(
    plan: Plan, rng_key: Any, positions: PyTree, tuned: Tuned | None
) -> dict[str, Part]:
    """Return the fingerprint of the run, by parts; see `batchkit.run._same_run`."""
    row = row_of(positions)
    logdensity_fn, words = plan.sampler.logdensity_fn, plan.names
    parts: dict[str, Part] = {}
    if plan.stand_in is None:
        name, sampler, words = ALGORITHM, plan.sampler, None
    else:
        name, sampler = "sampler", plan.stand_in
        if logdensity_fn is not None:
            parts["log-density"] = of_function(logdensity_fn, row)

    def transition(rng_key: Any, position: PyTree, tuned: Tuned | None) -> Any:
        step_size, matrix = tuned or (None, None)
        state = sampler.init(rng_key, position)
        return sampler.bind(matrix)(rng_key, state, step_size)

    parts[name] = of_function(transition, rng_key, row, tuned, words=words)
    for name, value in plan.settings.items():
        if value is None or isinstance(value, str):
            parts[name] = of_words(value)
        elif not callable(value):
            parts[name] = of_arrays(value, setting_as_json(value))
    return {**parts, "positions": of_arrays(positions), "key": of_arrays(rng_key)}


def stand_in_for(dtype: Any) -> Callable[[PyTree], Any]:
    """Return a log-density with results of a dtype, the same for every user."""

    def logdensity(position: PyTree) -> Any:
        leaves = jax.tree.leaves(position)
        squares = [jnp.sum(jnp.square(x)).astype(dtype) for x in leaves]
        return -jnp.sum(jnp.stack(squares))

    return logdensity


def values_of(
    chains: Chains,
    starts: PyTree,
    parts: tuple[str, ...],
    rounding: Callable[[], float],
) -> Compare:
    """Return the comparison of a checkpoint with chains; see `batchkit.run._same_run`.

    `parts` make up the log-density, `ALGORITHM` for an algorithm; `rounding` is its
    precision.
    """

    def compare(saved: Saved, changed: Sequence[str]) -> list[Values]:
        before = tree_from_arrays("state", saved.arrays, chains.chain_shapes).states
        which = tuple(part for part in parts if part in changed)
        if not which:
            return []
        values = _of_states(chains, before, which, rounding())
        if ALGORITHM in which and saved.header["at"] > 0:
            values += _of_first_draw(chains, starts, saved, rounding())
        return values

    return compare


def _of_states(
    chains: Chains, before: Any, which: tuple[str, ...], rounding: float
) -> list[Values]:
    if len(jax.tree.leaves(getattr(before, "logdensity", None))) != 1:
        return []  # a state of another layout
    now = to_host(chains.start(before.position).states)
    ((old,), (new,)) = (jax.tree.leaves(x.logdensity) for x in (before, now))
    values = [Values.of_logdensity(which, old, new, rounding)]
    slopes = [getattr(x, "logdensity_grad", None) for x in (before, now)]
    for old, new in zip(*map(jax.tree.leaves, slopes), strict=True):
        # A gradient is near zero in some chains, but not in all of them.
        scale = np.max(np.abs(old), axis=0, initial=0.0)
        values.append(Values(which, np.asarray(old), np.asarray(new), scale, rounding))
    return values


def _of_first_draw(
    chains: Chains, starts: PyTree, saved: Saved, rounding: float
) -> list[Values]:
    like = chains.shapes_of_draws(saved.header["draws"]).position
    draws = tree_from_arrays("draws/position", saved.arrays, like)
    before = _rows(jax.tree.map(lambda x: x[:, 0], draws))
    _, made = chains.advance(chains.start(), draws_segment(0, 1))
    assert made is not None
    now = _rows(jax.tree.map(lambda x: x[:, 0], made.position))
    first = _rows(starts)
    scale = np.max(np.maximum(np.abs(before), np.abs(now)), axis=0)
    # Chains that stay where they start, to rounding, do not test the step.
    step = np.maximum(np.abs(before - first), np.abs(now - first))
    moved = np.any(step > rounding * scale, axis=1)
    if not np.any(moved):
        return []
    before, now = before[moved], now[moved]
    far = np.max(np.abs(before - now) / np.where(scale > 0, scale, 1.0), axis=1)
    most = np.argsort(far)[: len(far) // 2 + 1]
    return [Values((ALGORITHM,), before[most], now[most], scale, rounding)]


def _rows(positions: PyTree) -> np.ndarray:
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(positions)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)
