"""What is about to be run: in words, before it compiles, and as a fingerprint."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import jax
import jax.extend as jex
import numpy as np
from jaxtyping import PyTree

from .._util._formats import format_bytes
from ..explain._explain import ReachedSite
from ..run._fingerprint import (
    Part,
    digests,
    of_arrays,
    of_function,
    of_words,
    rounding_of_function,
)
from ..run._names import parameter_names, qualified_name, setting_as_json
from ..run._processes import check_same, is_multiprocess, speaker
from ..run._same_run import Compare, Values, some_of, state_in
from ..run._store import Saved
from ..run._trees import to_host, tree_of
from ._guard import is_invalid
from ._programs import Dying, NestedPrograms


_log: Final = logging.getLogger("batchkit")

_WORDS: Final = {"logprior_fn": "prior", "loglikelihood_fn": "likelihood"}


def layout_of(programs: NestedPrograms) -> list[str]:
    """Each site of a run, its number of tasks and its batcher, in words."""
    return [
        f"{x.site.module}:{x.site.qualname} {x.tasks} tasks, "
        f"{x.batcher or 'jax.vmap'}, {x.layout}"
        for x in programs.sites
        if "only moves data" not in x.note
    ]


def settings_in_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings as JSON has them: functions by name, arrays by shape."""
    return {name: setting_as_json(value) for name, value in sorted(settings.items())}


def say_what_is_run(
    settings: Mapping[str, Any],
    functions: Mapping[str, Callable[..., Any]],
    positions: PyTree,
    programs: NestedPrograms,
) -> None:
    """Logs it in one line."""
    dtypes = {str(x.dtype) for x in jax.tree.leaves(positions)}
    told = ", ".join(f"{name}={value}" for name, value in settings.items())
    speaker(_log).info(
        "run_nested: %d live points of %d numbers (%s), %d replaced in a step; %s; "
        "%s; %s",
        programs.num_live,
        len(parameter_names(positions)),
        ", ".join(sorted(dtypes)),
        programs.num_delete,
        told or "no settings",
        "; ".join(layout_of(programs)),
        _expected(functions, positions, programs.sites),
    )


def check_processes(
    functions: Mapping[str, Callable[..., Any]],
    rng_key: Any,
    positions: PyTree,
    **options: Any,
) -> None:
    """Raises in all processes unless they were asked for the same run."""
    if is_multiprocess():
        parts = {
            "key": of_arrays(rng_key),
            "first live points": of_arrays(positions),
            **_functions(functions, positions),
        }
        check_same("run_nested", digests(parts), **options)


def identity_of(
    api: Any,
    functions: Mapping[str, Callable[..., Any]],
    programs: NestedPrograms,
    settings: Mapping[str, Any],
    rng_key: Any,
    positions: PyTree,
) -> dict[str, Part]:
    """Fingerprint of the run, by parts; see `batchkit.run._same_run`."""
    counts = {"live points": programs.num_live, "num_delete": programs.num_delete}
    arrays = {name: x for name, x in settings.items() if hasattr(x, "dtype")}
    return {
        **_functions(functions, positions),
        "sampler": of_words(qualified_name(getattr(api, "differentiable", api))),
        "settings": of_words(
            settings_in_words(settings),
            *counts.values(),
            shown={**settings_in_words(settings), **counts},
        ),
        **{name: of_arrays(x) for name, x in arrays.items()},
        "first live points": of_arrays(positions),
        "key": of_arrays(rng_key),
    }


def values_of(
    functions: Mapping[str, Callable[..., Any]], programs: NestedPrograms
) -> Compare:
    """Return the comparison of a checkpoint with functions, see `_same_run.py`.

    The functions are evaluated at a few of its points, from the prior to the highest
    likelihoods.
    """

    def values(saved: Saved, parts: Sequence[str]) -> list[Values]:
        state = state_in(saved, "state", programs.state_shapes)
        live = Dying.of(state.sampler.particles)
        found: list[Values] = []
        dead_shapes = programs.dead_shapes(int(state.status.step))
        points = _some_points(tree_of("dead", saved.arrays, dead_shapes), live)
        before = {"prior": points.logprior, "likelihood": points.loglikelihood}
        for name, function in functions.items():
            if (part := _WORDS[name]) in parts:
                now = _at(function, points.positions)
                if part == "likelihood":  # as points of a run have it
                    now = np.where(is_invalid(now), -np.inf, now)
                row = jax.tree.map(lambda x: x[0], points.positions)
                rounding = rounding_of_function(function, row)
                found.append(Values.of_logdensity((part,), before[part], now, rounding))
        return found

    return values


def _some_points(dead: Dying, live: Dying) -> Dying:
    """A few points, in the order in which they die; of likelihood zero only if all."""
    points = jax.tree.map(
        lambda *x: np.concatenate(list(map(np.asarray, x))), dead, live
    )
    finite = np.flatnonzero(np.isfinite(points.loglikelihood))
    rows = finite if finite.size else np.arange(len(points.loglikelihood))
    return jax.tree.map(lambda x: x[rows[some_of(len(rows))]], points)


def _at(function: Callable[..., Any], positions: PyTree) -> np.ndarray:
    """Values at some positions, one after the other: each may need much memory."""
    jitted = jax.jit(function)
    count = len(jax.tree.leaves(positions)[0])
    rows = [jax.tree.map(lambda x, i=i: x[i], positions) for i in range(count)]
    return np.array([to_host(jitted(row)) for row in rows])


def _functions(
    functions: Mapping[str, Callable[..., Any]], positions: PyTree
) -> dict[str, Part]:
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), positions)
    return {
        _WORDS[name]: of_function(function, row) for name, function in functions.items()
    }


def _expected(
    functions: Mapping[str, Callable[..., Any]],
    positions: PyTree,
    sites: Iterable[ReachedSite],
) -> str:
    """The largest array that one likelihood makes, times those at the same time."""
    row = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), positions)
    largest = _largest(jax.make_jaxpr(functions["loglikelihood_fn"])(row).jaxpr)
    at_once = max((_most_at_once(x) for x in sites if x.functions), default=1)
    return (
        f"at least {format_bytes(largest * at_once)} expected: {at_once} likelihoods "
        f"at once, each with an array of {format_bytes(largest)}"
    )


def _most_at_once(site: ReachedSite) -> int:
    return max([site.at_once, *(_most_at_once(x) for x in site.inside if x.functions)])


def _largest(jaxpr: Any) -> int:
    """The bytes of the largest array that a jaxpr computes."""
    largest = 0
    for eqn in jaxpr.eqns:
        for out in eqn.outvars:
            size = getattr(out.aval, "size", 0)
            width = getattr(getattr(out.aval, "dtype", None), "itemsize", 0)
            largest = max(largest, int(size) * int(width))
        for inner in _jaxprs(eqn.params):
            largest = max(largest, _largest(inner))
    return largest


def _jaxprs(params: Mapping[str, Any]) -> Iterator[Any]:
    for value in jax.tree.leaves(
        list(params.values()),
        is_leaf=lambda x: isinstance(x, jex.core.ClosedJaxpr | jex.core.Jaxpr),
    ):
        if isinstance(value, jex.core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, jex.core.Jaxpr):
            yield value
