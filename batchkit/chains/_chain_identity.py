"""Identity of a run of chains: its fingerprint, and older checkpoints.

Only the same run resumes from a checkpoint. The log-density is identified by what it
computes and by its data. The sampler is identified by what a transition computes for a
stand-in log-density; settings that are values also each by its name, so that the
message can name the one that differs.

A checkpoint that other versions wrote is compared by values. It has the states of
chains, with the log-density there and mostly its gradient: states that are made anew at
these positions must have the same. The sampler is compared by its name and settings.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ..run._arguments import row_of
from ..run._names import parameter_names, qualified_name, setting_as_json
from ..run._same_run import Compare, Part, Values, of_arrays, of_function, of_words
from ..run._store import Saved
from ..run._trees import to_host, tree_from_arrays
from ._chain_programs import Chains
from ._sampler import Sampler, Tuned


def about(settings: Mapping[str, Any], positions: PyTree) -> dict[str, Any]:
    """Return header entries that describe a run to readers of its file."""
    return {
        "settings": {name: setting_as_json(x) for name, x in settings.items()},
        "parameters": list(parameter_names(positions)),
        "arrays": "of shape (chains, draws, ...)",
    }


def identity_of(
    sampler: Sampler,
    api: Any,
    settings: Mapping[str, Any],
    rng_key: Any,
    positions: PyTree,
    tuned: Tuned | None,
) -> dict[str, Part]:
    """Return the fingerprint of the run, by parts; see `batchkit.run._same_run`.

    It has all but the log-density: the `sampler` is one of a stand-in.
    """

    def transition(rng_key: Any, position: PyTree, tuned: Tuned | None) -> Any:
        step_size, matrix = tuned or (None, None)
        state = sampler.init(rng_key, position)
        return sampler.bind(matrix)(rng_key, state, step_size)

    names = {"api": qualified_name(getattr(api, "build_kernel", api))}
    values: dict[str, Part] = {}
    for name, value in settings.items():
        if value is None or isinstance(value, str):
            values[name] = of_words(value)
        elif callable(value):
            names[name] = qualified_name(value)
        elif not any(map(callable, jax.tree.leaves(value))):
            values[name] = of_arrays(value, setting_as_json(value))
    row = row_of(positions)
    return {
        "sampler": of_function(transition, rng_key, row, tuned, words=names),
        **values,
        "positions": of_arrays(positions),
        "key": of_arrays(rng_key),
    }


def stand_in_for(dtype: Any) -> Callable[[PyTree], Any]:
    """Return a log-density with results of a dtype, the same for every user."""

    def logdensity(position: PyTree) -> Any:
        leaves = jax.tree.leaves(position)
        squares = [jnp.sum(jnp.square(x)).astype(dtype) for x in leaves]
        return -jnp.sum(jnp.stack(squares))

    return logdensity


def values_of(
    chains: Chains, parts: tuple[str, ...], rounding: Callable[[], float]
) -> Compare:
    """Return the comparison of a checkpoint with chains; see `batchkit.run._same_run`.

    `parts` make up the log-density, and `rounding` is its precision.
    """

    def compare(saved: Saved, changed: Sequence[str]) -> list[Values]:
        before = tree_from_arrays("state", saved.arrays, chains.chain_shapes).states
        which = tuple(part for part in parts if part in changed)
        return _of_states(chains, before, which, rounding()) if which else []

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
