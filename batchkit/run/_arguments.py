"""Checks of arguments and of starts that all kinds of run share."""

import contextlib
import functools
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, ParamSpec, TypeVar, final

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.errors import (
    ConcretizationTypeError,
    TracerArrayConversionError,
    TracerBoolConversionError,
)
from jaxtyping import PyTree

from .._util._checks import check_number, check_type
from .._util._formats import format_type, format_value
from ..batchers._abstract import check_batcher as check_batcher
from ._names import columns, join_few


_P = ParamSpec("_P")
_T = TypeVar("_T")

_BRANCHES: Final = (
    "Python's `if` cannot depend on a position; use `jnp.where` or `jax.lax.cond`."
)
REAL: Final = jnp.floating, jnp.integer, jnp.bool_
_DTYPE: Final = re.compile(r"\bb?float\d+")
_FLOATS: Final = (
    "floating-point numbers, since the sampler takes small steps or gradients"
)
_NUMPY: Final = (
    "It cannot call NumPy, SciPy or other code that is not of JAX. Use `jax.numpy` and "
    "`jax.scipy`, or `jax.pure_callback`, which has no gradient of its own: give it "
    "one by `jax.custom_vjp` if the sampler takes gradients."
)


def check_acceptance(owner: str, value: object) -> None:
    """Raise unless an acceptance rate to tune for is between 0 and 1."""
    meaning = "such as 0.8, or 0.95 if transitions diverge"
    check_number(owner, "target_acceptance", value, meaning, kind=float, below=1)


def check_key(rng_key: Any, owner: str, name: str = "rng_key") -> None:
    """Raise unless an argument is one key of JAX."""
    dtype, shape = getattr(rng_key, "dtype", None), getattr(rng_key, "shape", None)
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    rule = "a key of JAX, such as jax.random.key(0)"
    is_array = isinstance(rng_key, jax.Array | np.ndarray)
    swapped = "Arrays like this one are `positions`." if is_array else ""
    check_type(typed or dtype == jnp.uint32, owner, name, rng_key, rule, swapped)
    assert shape is not None
    if len(shape) != (0 if typed else 1):
        raise ValueError(
            f"{owner}({name}=...): {name} must be one key; got an array of shape "
            f"{shape}. The keys that are needed are made from it."
        )


def named_leaves(argument: str, tree: PyTree) -> Iterator[tuple[str, Any]]:
    """Yield each leaf of an argument, named as in `positions['a']`."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield f"{argument}{jax.tree_util.keystr(path)}", leaf


def common_length(
    owner: str, argument: str, tree: PyTree, axis: str, remedy: str, least: int = 1
) -> int:
    """Return the length of the leading axis, which all arrays of an argument share.

    `axis` has the items along it in words, such as `"chains"`, at `least` so many.
    """
    shapes = {name: np.shape(leaf) for name, leaf in named_leaves(argument, tree)}
    if not shapes:
        raise ValueError(
            f"{owner}({argument}=...): there is no array in {format_value(tree)}. Pass "
            f"a pytree of arrays of shape ({axis}, ...)."
        )
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) > 1 or min(lengths) < (least,):  # a scalar has `()`, which is less
        found = ", ".join(f"{name} has the shape {x}" for name, x in shapes.items())
        raise ValueError(
            f"{owner}({argument}=...): all arrays must have the same number of {axis} "
            f"along axis 0, at least {least}, but {found}. {remedy}"
        )
    return lengths.pop()[0]


def checked_starts(
    owner: str,
    positions: PyTree,
    axis: str = "chains",
    *,
    argument: str = "positions",
    floats_only: bool = True,
    least: int = 1,
    shards: Sequence[int] = (),
    remedy: str = "Stack the starts of the chains along axis 0, one row a chain; four "
    "chains or more, started far from each other.",
) -> PyTree:
    """Return starts as arrays of JAX; raise unless they are finite, in equal numbers.

    Without `floats_only` they may be integers or booleans. For `axis` and `least` see
    `common_length`, for `shards` see `locate_rows`.
    """
    kinds = REAL[:1] if floats_only else REAL
    for name, leaf in named_leaves("positions", positions):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not any(jnp.issubdtype(dtype, x) for x in kinds):
            rule = _FLOATS if floats_only else "real numbers"
            raise TypeError(
                f"{owner}({argument}=...): {name} must be an array of {rule}; got "
                f"{dtype or format_type(leaf)}. Convert it, as in `jnp.asarray(x, "
                f"float)`. {remedy}"
            )
    common_length(owner, argument, positions, axis, remedy, least)
    positions = jax.tree.map(jnp.asarray, positions)
    rows, names, total = not_finite(positions)
    if rows:
        where, rows = locate_rows(rows, total, axis, shards)
        raise StartError(
            f"{owner}({argument}=...): {join_few(names)} is not finite in {where}. "
            f"All starts must be finite. {remedy}",
            rows,
            names,
        )
    return positions


@contextlib.contextmanager
def refusing_mixed_dtypes(
    owner: str, functions: Mapping[str, Callable[[PyTree], Any]], positions: PyTree
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
        # Errors about anything else do not name two dtypes.
        if len(set(_DTYPE.findall(str(error)))) < 2:
            raise
        found = ", ".join(f"{what} {dtype}" for what, dtype in dtypes.items())
        raise TypeError(
            f"{owner}(positions={format_value(positions)}): a step of this algorithm "
            f"mixes dtypes: {found}, and random numbers are {default}. Make all of "
            f"them {default}, and the data in these functions: "
            f"`jax.tree.map(lambda x: x.astype('{default}'), positions)`. If "
            "`jax_enable_x64` was switched on after positions were drawn, switch it on "
            "before."
        ) from error


def check_not_traced(owner: str, *arguments: PyTree) -> None:
    """Raise `TypeError` inside `jax.jit`, `jax.vmap` and other transformations."""
    # Inside jit a constant is traced too, inside vmap and grad only the arguments are.
    leaves = [jnp.zeros(()), *jax.tree.leaves(arguments)]
    if any(isinstance(x, Tracer) for x in leaves):
        raise TypeError(
            f"{owner} was called inside `jax.jit`, `jax.vmap` or another "
            "transformation of JAX. It compiles its own programs and watches them from "
            "the host, so it cannot be traced. Call it outside, without `jax.jit`."
        )


def is_algorithm(value: object) -> bool:
    """Return True for an algorithm that is built, False for an API and for a class."""
    parts = [getattr(value, name, None) for name in ("init", "step")]
    return all(map(callable, parts)) and not isinstance(value, type)


def refusing_algorithms(call: str) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Refuse an algorithm in place of an API before Python misses the arguments.

    `call` has the arguments of a right call, for the message.
    """

    def decorated(run: Callable[_P, _T]) -> Callable[_P, _T]:
        owner = run.__name__

        @functools.wraps(run)
        def checked(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            first = args[0] if args else kwargs.get("api")
            if is_algorithm(first):
                others = ", ".join(map(format_value, args[1:]))
                raise TypeError(
                    f"{owner}({type(first).__name__}, {others}): the sampler is built "
                    "already. Pass its API, with the functions and settings that it "
                    f"was built with: `{owner}({call})`."
                )
            return run(*args, **kwargs)

        return checked

    return decorated


def row_of(positions: PyTree) -> PyTree:
    """Return the shapes and dtypes of one position, from those of arrays of many."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), positions)


@contextlib.contextmanager
def noting_position(owner: str, name: str, row: PyTree) -> Iterator[None]:
    """Add a note to what the body raises while it traces the function `name`."""
    try:
        yield
    except Exception as error:
        match error:
            case TracerBoolConversionError():
                note = f". {_BRANCHES}"
            case ConcretizationTypeError() | TracerArrayConversionError():
                note = f". {_NUMPY}"
            case _:
                position = format_value(row)
                note = (
                    f", a function of one argument, which is one position: {position}."
                )
        error.add_note(f"{owner} was tracing {name}{note}")
        raise


def check_scalar(
    owner: str, name: str, function: Callable[..., Any], row: PyTree
) -> np.dtype:
    """Return the dtype of a user's function; raise unless it is one real number."""
    with noting_position(owner, name, row):
        out = jax.eval_shape(function, row)
    dtype, shape = getattr(out, "dtype", None), getattr(out, "shape", None)
    if dtype is None or shape != ():
        raise TypeError(
            f"{owner}({name}=...): {name} must return one real number, a scalar, for "
            f"one position; got {format_value(out)}. Sum over data and dimensions, as "
            "in `jnp.sum(...)`."
        )
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{owner}({name}=...): {name} must return one real number, of a "
            f"floating-point dtype; got {format_value(out)}. Compute with floats, or "
            "convert the result, as in `jnp.asarray(value, float)`."
        )
    return dtype


@final
class StartError(ValueError):
    """A run would start where a position, a log-density or a gradient is not finite.

    ```python
    import blackjax
    import jax
    import jax.numpy as jnp
    import pytest
    import batchkit as bk

    starts = jnp.array([[1.0], [-1.0], [2.0], [0.0]])
    with pytest.raises(bk.StartError, match="chains 1, 3 of 4") as info:
        bk.run_chains(
            blackjax.nuts,
            lambda x: jnp.sum(jnp.log(x) - x),
            jax.random.key(0),
            starts,
        )
    assert info.value.chains == (1, 3)
    ```
    """

    def __init__(
        self, message: str, chains: Sequence[int], parameters: Sequence[str] = ()
    ) -> None:
        """**Arguments:**

        - `message`: what is wrong and what to do; a text.
        - `chains`: the indices of the chains, or of the live points.
        - `parameters`: the names of the numbers in question, if it is not all of them.
        """
        # All are arguments of the exception, so that it can be pickled.
        super().__init__(message, tuple(chains), tuple(parameters))
        self.chains = tuple(chains)
        self.parameters = tuple(parameters)

    def __str__(self) -> str:
        return str(self.args[0])


def not_finite(tree: PyTree) -> tuple[list[int], list[str], int]:
    """Find rows and columns with numbers that are not finite, and count all rows."""
    rows: set[int] = set()
    names: list[str] = []
    total = 0
    for name, column in columns(tree):
        total = len(column)
        bad = np.flatnonzero(~np.isfinite(column.astype(np.float64)))
        if bad.size:
            names.append(name)
            rows.update(map(int, bad))
    return sorted(rows), names, total


def locate_rows(
    rows: Sequence[int], total: int, axis: str = "chains", shards: Sequence[int] = ()
) -> tuple[str, list[int]]:
    """Return some of all rows in words, and the indices of their chains.

    Rows are chains, or what `axis` says, or the chains of each of some `shards`.
    """

    def listed(rows: Sequence[int]) -> str:
        word = axis if len(rows) > 1 else axis.removesuffix("s")
        return f"{word} {join_few(list(map(str, rows)))}"

    if not shards:
        return f"{listed(rows)} of {total}", list(rows)
    each = total // len(shards)
    where = [
        f"{listed([row % each for row in of_shard])} of shard {shards[place]}"
        for place, of_shard in itertools.groupby(rows, lambda row: row // each)
    ]
    return join_few(where), sorted({row % each for row in rows})
