"""The arguments of `run_chains`, refused before anything is traced for long."""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ..run._arguments import (
    check_count as check_count_of,
    check_scalar,
    in_short,
    kind_of,
    row_of,
)
from ._sampler import is_algorithm, is_api


_OF_API: Final = ("logdensity_fn", "rng_key", "positions")


@final
class Given(NamedTuple):
    """What a call gave, by name; `logdensity_fn` is None with an algorithm."""

    logdensity_fn: Any
    rng_key: Any
    positions: Any
    settings: dict[str, Any]


def given(sampler: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Given:
    """Says which argument is which: that depends on the first."""
    if is_api(sampler):
        names, what = _OF_API, "an API, with its log-density"
    elif is_algorithm(sampler):
        names, what = _OF_API[1:], "an algorithm, which has its log-density in it"
    else:
        raise TypeError(
            f"run_chains({in_short(sampler)}, ...): the first argument must be an API "
            "such as blackjax.nuts, or an algorithm with `init` and `step` such as "
            f"blackjax.nuts(logdensity_fn, ...); got {kind_of(sampler)}."
        )
    settings = dict(kwargs)
    taken = dict(zip(names, args, strict=False))
    for name in names[len(args) :]:
        if name in settings:
            taken[name] = settings.pop(name)
    if len(args) > len(names) or len(taken) < len(names):
        raise TypeError(
            f"run_chains: after {what}, come {', '.join(names)}; got {len(args)} "
            f"arguments and {', '.join(settings) or 'none'} by name."
        )
    logdensity_fn = taken.get("logdensity_fn")
    if is_api(sampler) and not callable(logdensity_fn):
        raise TypeError(
            f"run_chains(logdensity_fn={in_short(logdensity_fn)}): logdensity_fn must "
            "be a function from one position to a scalar; got "
            f"{kind_of(logdensity_fn)}."
        )
    return Given(logdensity_fn, taken["rng_key"], taken["positions"], settings)


def refuse_warmup(settings: Mapping[str, Any]) -> None:
    """Raises if a warm-up, or a setting of it, is asked of an algorithm."""
    for name, value in settings.items():
        raise TypeError(
            f"run_chains({name}={in_short(value)}): an algorithm has its parameters "
            f"already, and there is no warm-up that could use {name}. Leave it out, "
            "or pass the API with the log-density: `run_chains(blackjax.nuts, "
            "logdensity_fn, rng_key, positions)`."
        )


def check_count(name: str, value: object) -> int:
    """An int of at least 1, or an error."""
    remedy = {
        "num_warmup": " To sample without a warm-up pass an algorithm: "
        "`run_chains(blackjax.nuts(logdensity_fn, ...), rng_key, positions)`.",
        "thin": " 1 keeps every draw.",
    }
    return check_count_of("run_chains", name, value, remedy.get(name, ""))


def starts_from(positions: PyTree) -> PyTree:
    """The starts as arrays of JAX with a common leading axis, or an error."""
    leaves = jax.tree_util.tree_leaves_with_path(positions)
    if not leaves:
        raise ValueError(
            f"run_chains(positions={in_short(positions)}): there is no array in "
            "positions. Pass a pytree of arrays of shape (chains, ...)."
        )
    sizes: dict[str, int] = {}
    for path, leaf in leaves:
        name = _name(path)
        array = jnp.asarray(leaf) if _is_numeric(leaf) else None
        if array is None or jnp.issubdtype(array.dtype, jnp.complexfloating):
            raise TypeError(
                f"run_chains(positions=...): {name} must be an array of real numbers; "
                f"got {getattr(leaf, 'dtype', type(leaf).__name__)}."
            )
        if array.ndim == 0:
            raise ValueError(
                f"run_chains(positions=...): {name} is a scalar, without an axis for "
                "the chains, as in the start of a single chain. Give every array the "
                "shape (chains, ...), one row a chain; four chains or more, started "
                "far from each other."
            )
        sizes[name] = array.shape[0]
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} has {size}" for name, size in sizes.items())
        raise ValueError(
            "run_chains(positions=...): every array must have one row for each chain, "
            f"but {told}. Stack the starts along axis 0."
        )
    if 0 in sizes.values():
        raise ValueError(
            "run_chains(positions=...): there are no chains, because the leading axis "
            "has length 0. Pass one start for each chain, four or more."
        )
    return jax.tree.map(jnp.asarray, positions)


def check_logdensity(logdensity_fn: Callable[..., Any], positions: PyTree) -> Any:
    """The dtype of a log-density; raises if it has no gradient, or is no scalar."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(positions):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"run_chains(positions=...): {_name(path)} is of "
                f"{leaf.dtype}, but the sampler takes gradients, which need floating-"
                "point numbers. Pass it as such, or sample it with another algorithm."
            )
    row = row_of(positions)
    try:
        return check_scalar("run_chains", "logdensity_fn", logdensity_fn, row)
    except Exception as error:
        if not _is_one_start(logdensity_fn, positions):
            raise
        raise ValueError(
            "run_chains(positions=...): positions looks like the start of a single "
            f"chain, {in_short(positions)}: logdensity_fn takes the whole of it, and "
            f"not one row, {in_short(row)}. Give every array the shape (chains, ...), "
            "one row a chain; four chains or more, started far from each other."
        ) from error


def _is_one_start(logdensity_fn: Callable[..., Any], positions: PyTree) -> bool:
    """Return True if a log-density accepts all positions as a single one."""
    try:
        check_scalar("", "", logdensity_fn, positions)
    except Exception:
        return False
    return True


def _name(path: Any) -> str:
    """An array as the user would write it."""
    return f"positions{jax.tree_util.keystr(path)}"


def _is_numeric(leaf: Any) -> bool:
    if isinstance(leaf, bool | int | float):
        return True
    dtype = getattr(leaf, "dtype", None)
    if dtype is None:
        return False
    return jnp.issubdtype(dtype, jnp.number) or jnp.issubdtype(dtype, jnp.bool_)
