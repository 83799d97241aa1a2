"""Fingerprint of a nested run, by parts; see `batchkit.run._same_run`."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import jax
import numpy as np
from jaxtyping import PyTree

from ..run._arguments import row_of
from ..run._fingerprint import (
    Part,
    digests,
    of_arrays,
    of_function,
    of_words,
    rounding_of_function,
)
from ..run._names import qualified_name, setting_as_json
from ..run._processes import check_same_arguments, is_multiprocess
from ..run._same_run import Compare, Values, evenly_spaced_indices
from ..run._store import Saved
from ..run._trees import to_host, tree_from_arrays
from ._dead import Points, concatenated, points_of
from ._nested_programs import NestedPrograms


# The names of the functions in fingerprints and messages.
_NAMES: Final = {"logprior_fn": "prior", "loglikelihood_fn": "likelihood"}


def settings_as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings for JSON: functions by name, arrays by shape."""
    return {name: setting_as_json(value) for name, value in sorted(settings.items())}


def check_processes(
    functions: Mapping[str, Callable[..., Any]],
    rng_key: Any,
    positions: PyTree,
    **options: Any,
) -> None:
    """Raise in all processes unless they were called for one run."""
    if is_multiprocess():  # tracing and hashing cost time
        parts = {
            "key": of_arrays(rng_key),
            "first live points": of_arrays(positions),
            **_functions(functions, positions),
        }
        check_same_arguments("run_nested", digests(parts), **options)


def identity_of(
    api: Any,
    functions: Mapping[str, Callable[..., Any]],
    programs: NestedPrograms,
    settings: Mapping[str, Any],
    rng_key: Any,
    positions: PyTree,
) -> dict[str, Part]:
    """Return the fingerprint of a run, by parts."""
    counts = {"live points": programs.num_live, "num_delete": programs.num_delete}
    shown = settings_as_json(settings)
    return {
        **_functions(functions, positions),
        "sampler": of_words(qualified_name(getattr(api, "differentiable", api))),
        "settings": of_words(shown, *counts.values(), shown={**shown, **counts}),
        **{name: of_arrays(x) for name, x in settings.items() if hasattr(x, "dtype")},
        "first live points": of_arrays(positions),
        "key": of_arrays(rng_key),
    }


def comparison_of(
    functions: Mapping[str, Callable[..., Any]], programs: NestedPrograms
) -> Compare:
    """Return the comparison of a checkpoint of other versions with functions.

    The functions are evaluated at a few points of the checkpoint, in the order in which
    they die, from the prior to the highest likelihoods.
    """

    def compare(saved: Saved, parts: Sequence[str]) -> list[Values]:
        state = tree_from_arrays("state", saved.arrays, programs.state_shapes)
        shapes = programs.dead_shapes(int(state.status.step))
        dead = tree_from_arrays("dead", saved.arrays, shapes)
        points = _some_points(dead, points_of(state.sampler))
        before = {"prior": points.logprior, "likelihood": points.loglikelihood}
        found: list[Values] = []
        for argument, function in functions.items():
            if (name := _NAMES[argument]) in parts:
                now = _at(function, points.positions)
                if name == "likelihood":  # rejected likelihoods were saved as zero
                    is_invalid = np.isnan(now) | np.isposinf(now)
                    now = np.where(is_invalid, -np.inf, now)
                rounding = rounding_of_function(function, row_of(points.positions))
                found.append(Values.of_logdensity((name,), before[name], now, rounding))
        return found

    return compare


def _functions(
    functions: Mapping[str, Callable[..., Any]], positions: PyTree
) -> dict[str, Part]:
    row = row_of(positions)
    return {_NAMES[name]: of_function(fun, row) for name, fun in functions.items()}


def _some_points(dead: Points, live: Points) -> Points:
    """Select a few points, of zero likelihood only if all are."""
    points: Points = concatenated([jax.tree.map(np.asarray, x) for x in (dead, live)])
    finite = np.flatnonzero(np.isfinite(points.loglikelihood))
    rows = finite if finite.size else np.arange(len(points.loglikelihood))
    return jax.tree.map(lambda x: x[rows[evenly_spaced_indices(len(rows))]], points)


def _at(function: Callable[..., Any], positions: PyTree) -> np.ndarray:
    """Evaluate at one position after the other: each may need much memory."""
    jitted = jax.jit(function)
    count = len(jax.tree.leaves(positions)[0])
    rows = [jax.tree.map(lambda x, i=i: x[i], positions) for i in range(count)]
    return np.array([to_host(jitted(row)) for row in rows])
