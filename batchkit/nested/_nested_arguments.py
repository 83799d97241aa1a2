"""Checks of the arguments of `run_nested`, before the likelihood is compiled."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .._util._formats import format_type, format_value
from ..run._arguments import check_scalar, common_length, row_of
from ..run._names import columns, join_few
from ..run._program import Program, ProgramCache
from ..run._start_error import StartError, not_finite
from ._dead import Points
from ._guard import InvalidLikelihoodError, parameters_of
from ._stop import AbstractStop


_P = ParamSpec("_P")
_T = TypeVar("_T")

_FUNCTIONS: Final = ("logprior_fn", "loglikelihood_fn")
_ORDER: Final = (
    "The order is run_nested(api, logprior_fn, loglikelihood_fn, rng_key, positions)."
)


def refusing_algorithms(run: Callable[_P, _T]) -> Callable[_P, _T]:
    """Refuse an algorithm in place of an API before Python misses the arguments."""

    @functools.wraps(run)
    def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        first = args[0] if args else kwargs.get("api")
        if all(callable(getattr(first, name, None)) for name in ("init", "step")):
            others = ", ".join(map(format_value, args[1:]))
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
    """Raise unless `api` is that of a nested sampler that takes the settings."""
    if not callable(api):
        raise TypeError(
            f"run_nested(api={format_value(api)}): api must be a nested sampler such "
            f"as blackjax.nss; got {format_type(api)}. {_ORDER}"
        )
    parameters = parameters_of(api)
    if parameters is None:
        return
    if not parameters.keys() >= set(_FUNCTIONS):
        raise TypeError(
            f"run_nested(api={format_value(api)}): api must be a nested sampler, which "
            f"takes logprior_fn and loglikelihood_fn, such as blackjax.nss; this takes "
            f"{', '.join(parameters)}. For Markov chains use `run_chains`."
        )
    taken = {name: x for name, x in parameters.items() if name not in _FUNCTIONS}
    for name, value in settings.items():
        if name not in taken:
            raise TypeError(
                f"run_nested({name}={format_value(value)}): the sampler has no setting "
                f"{name}. It takes {', '.join(taken)}."
            )
    for name, parameter in taken.items():
        if parameter.default is inspect.Parameter.empty and name not in settings:
            raise TypeError(
                f"run_nested: the sampler needs {name}. Pass {name}=... by name."
            )


def check_options(stop: Any, on_invalid: Any) -> None:
    """Raise unless `stop` is a rule and `on_invalid` a choice."""
    if not isinstance(stop, AbstractStop):
        raise TypeError(
            f"run_nested(stop={format_value(stop)}): stop must be a rule such as "
            f"bk.RemainingEvidence(1e-3); got {format_type(stop)}."
        )
    if on_invalid not in ("raise", "reject"):
        raise ValueError(
            f"run_nested(on_invalid={format_value(on_invalid)}): on_invalid must be "
            "'raise' or 'reject', for likelihoods that are NaN or plus infinity."
        )


def live_points(positions: PyTree) -> PyTree:
    """Return the positions as arrays of JAX with a common leading axis, all finite."""

    def check(name: str, leaf: Any) -> None:
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(
                f"run_nested(positions=...): {name} must be an array of floating-point "
                f"numbers; got {dtype or type(leaf).__name__}."
            )
        if leaf.ndim == 0:
            raise ValueError(
                f"run_nested(positions=...): {name} is a scalar, without an axis for "
                "the live points. Give it the shape (live points, ...)."
            )
        if leaf.shape[0] > 0 and leaf.size == 0:
            raise ValueError(
                f"run_nested(positions=...): {name} has no elements, its shape is "
                f"{leaf.shape}. Leave it out, there is nothing to sample in it."
            )

    count = common_length("run_nested", "positions", positions, "live points", check)
    if count < 2:
        raise ValueError(
            f"run_nested(positions=...): there are {count} live points, and at least 2 "
            "are needed. Some hundreds are usual."
        )
    rows, names, total = not_finite(positions)
    if rows:
        raise StartError(
            f"run_nested(positions=...): {join_few(names)} is not finite in "
            f"{len(rows)} of {total} live points, rows "
            f"{join_few(list(map(str, rows)))}. Draw every live point from the prior.",
            rows,
            names,
        )
    return jax.tree.map(jnp.asarray, positions)


def check_functions(
    functions: Mapping[str, Callable], positions: PyTree, kept: ProgramCache
) -> None:
    """Raise unless both functions return a real number, and the prior a finite one."""
    row = row_of(positions)
    for name, function in functions.items():
        if not callable(function):
            raise TypeError(
                f"run_nested({name}={format_value(function)}): {name} must be a "
                f"function of one position; got {format_type(function)}. {_ORDER}"
            )
        check_scalar("run_nested", name, function, row)
    prior = Program(jax.vmap(functions["logprior_fn"]), kept, "prior")
    logprior = np.asarray(prior(positions))
    bad = np.flatnonzero(~np.isfinite(logprior))
    if bad.size:
        raise StartError(
            f"run_nested(positions=...): {bad.size} of {logprior.size} live points are "
            f"not in the prior: its log-density is {logprior[bad[0]]:g} at row "
            f"{bad[0]}{_at_row(positions, bad[0])}. Draw every live point from the "
            "prior that `logprior_fn` describes.",
            bad.tolist(),
        )


def check_counts(positions: PyTree, num_delete: int) -> None:
    """Raise if there are too few live points to replace `num_delete` of them."""
    rows = np.stack([column for _, column in columns(positions)], axis=1)
    count, dim = rows.shape
    if num_delete >= count:
        raise ValueError(
            f"run_nested(positions=...): there are {count} live points, and the "
            f"algorithm replaces {num_delete} at once; some must stay, from which new "
            "ones begin. Use more live points, or a `num_delete` of at most half of "
            "them."
        )
    distinct = len(np.unique(rows, axis=0))
    needed = max(num_delete, dim) + 1
    if distinct < needed:
        raise ValueError(
            f"run_nested(positions=...): {distinct} of {count} live points are "
            f"distinct, and at least {needed} are needed, more than {dim} dimensions "
            f"and than the {num_delete} that are replaced at once. Draw each live "
            "point from the prior, with a key of its own."
        )


@contextlib.contextmanager
def refusing_mixed_dtypes(
    functions: Mapping[str, Callable], positions: PyTree
) -> Iterator[None]:
    """Name the dtypes if the body cannot trace a step because they are mixed.

    Mixed dtypes are refused only then, since some algorithms accept them.
    """
    try:
        yield
    except TypeError as error:
        dtypes = {
            f"positions{jax.tree_util.keystr(path)} is": str(leaf.dtype)
            for path, leaf in jax.tree_util.tree_leaves_with_path(positions)
        }
        for name, function in functions.items():
            out = jax.eval_shape(function, row_of(positions))
            dtypes[f"{name} returns"] = str(out.dtype)
        default = str(jnp.zeros(()).dtype)
        if set(dtypes.values()) == {default}:
            raise
        found = ", ".join(f"{what} {dtype}" for what, dtype in dtypes.items())
        raise TypeError(
            f"run_nested(positions={format_value(positions)}): a step of this "
            f"algorithm mixes dtypes: {found}, and random numbers are {default}. Make "
            f"all of them {default}: `jax.tree.map(lambda x: x.astype('{default}'), "
            "positions)`. If `jax_enable_x64` was switched on after positions were "
            "drawn, switch it on before."
        ) from error


def refuse_zero_likelihood(loglikelihood: np.ndarray) -> None:
    """Raise if the likelihood is zero at all of the first live points."""
    if np.all(np.isneginf(loglikelihood)):
        raise ValueError(
            "run_nested(positions=...): the log-likelihood is minus infinity at all "
            f"{loglikelihood.size} live points, so there is nothing to begin with. Use "
            "more live points, or a prior that is closer to the likelihood."
        )


def refuse_invalid(points: Points, which: str, advice: str = "") -> None:
    """Raise `InvalidLikelihoodError` if a likelihood or a prior is invalid.

    The message says `which` points they are, and ends with the `advice`.
    """
    loglikelihood, logprior = points.loglikelihood, points.logprior
    # Not `is_invalid`, which would be compiled for each number of points.
    is_infinite = np.isposinf(loglikelihood) | np.isposinf(logprior)
    bad = np.flatnonzero(np.isnan(loglikelihood) | is_infinite)
    if not bad.size:
        return
    positions = jax.tree.map(lambda x: x[bad], points.positions)
    what = "log-prior" if np.any(np.isposinf(logprior)) else "log-likelihood"
    raise InvalidLikelihoodError(
        f"run_nested: the {what} of {bad.size} of {loglikelihood.size} {which} "
        f"is NaN or plus infinity, the first{_at_row(positions, 0)}. The exception has "
        "all of them as `.positions`. Make the likelihood return minus infinity where "
        f"it cannot be computed, or use on_invalid='reject', which does that.{advice}",
        positions,
    )


def _at_row(positions: PyTree, row: Any) -> str:
    """Format one position, as in ` at x[0] = 1, x[1] = 2`."""
    values = [f"{name} = {column[row]:.6g}" for name, column in columns(positions)]
    return f" at {join_few(values)}"
