"""Selection of the parameters in a figure, their labels and their values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
from jaxtyping import Float, PyTree

from ..chains import ChainRun
from ..chains._summary import pooled_columns
from ..nested import NestedRun
from ..run._names import columns, leaves
from ..run._over_draws import over_draws
from ..shards import ShardRun


# The largest number of names in a message.
_MAX_NAMES: Final = 20


@final
class Parameter(NamedTuple):
    """One scalar parameter of a position.

    - `name`: its name.
    - `label`: the label of its axis.
    - `values`: its value at each point, or at each draw of all chains in turn.
    """

    name: str
    label: str
    values: Float[np.ndarray, " n"]


def weights_of(run: NestedRun | ChainRun | ShardRun) -> Float[np.ndarray, " n"]:
    """Return the weight of each point or draw; they sum to one."""
    if isinstance(run, NestedRun):
        return run.weights
    count = run.num_chains * run.num_samples
    return np.full(count, 1 / count)


def format_draws(run: ChainRun | ShardRun) -> str:
    """Return the number of chains, draws and shards in words."""
    words = f"{run.num_chains:,} chains of {run.num_samples:,} draws"
    if isinstance(run, ShardRun):
        words += f", combined from {len(run.used):,} shards"
    return words


def quantiles(
    values: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    of: Sequence[float],
) -> Float[np.ndarray, " k"]:
    """Compute quantiles of weighted values."""
    return np.quantile(values, of, weights=weights, method="inverted_cdf")


def parameters_of(
    run: Any,
    names: Sequence[str] | None,
    labels: Mapping[str, str] | None,
    most: int,
    caller: str,
    transform: Callable[[PyTree], PyTree] | None = None,
) -> list[Parameter]:
    """Select the parameters of a figure.

    **Arguments:**

    - `run`: a `NestedRun`, a `ChainRun` or a `ShardRun`.
    - `names`: the names of scalars or of whole arrays; None for all.
    - `labels`: axis labels that replace names.
    - `most`: the largest number of parameters without `names`.
    - `caller`: the public function, for messages.
    - `transform`: a function from one position to the parameters to show; None for
        those of the positions.

    **Raises:**

    `TypeError` if `run` is of another type; `ValueError` if there are too many
    parameters, if a name is unknown, or if a value with weight is not finite.
    """
    if not isinstance(run, NestedRun | ChainRun | ShardRun):
        raise TypeError(
            f"{caller}(run=...): run must be a NestedRun, a ChainRun or a ShardRun; "
            f"got {type(run).__name__}."
        )
    is_nested = isinstance(run, NestedRun)
    tree = run.dead.positions if is_nested else run.samples
    if transform is not None:
        tree = over_draws(transform, tree, caller, dims=1 if is_nested else 2)
    named = dict(columns(tree) if is_nested else pooled_columns(tree))
    arrays = {name: list(_scalar_names(name, named)) for name, _ in leaves(tree)}
    if names is None:
        _check_count(caller, list(named), most)
        names = list(named)
    chosen = [
        x for name in _as_list(names) for x in _resolve(caller, name, named, arrays)
    ]
    chosen = list(dict.fromkeys(chosen))
    if not chosen:
        raise ValueError(
            f"{caller}(names={names!r}): names must contain at least one parameter."
        )
    labels = dict(labels or {})
    for name in labels:
        _resolve(caller, name, named, arrays, "labels")
    weights = weights_of(run)
    return [
        Parameter(
            name, labels.get(name, name), _check_finite(caller, name, values, weights)
        )
        for name in chosen
        for values in [named[name].astype(np.float64)]
    ]


def _as_list(names: Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _scalar_names(array: str, named: Mapping[str, Any]) -> Iterator[str]:
    """Iterate over the names of the scalars in an array: `x[0]`, `x[1]`."""
    for name in named:
        if name == array or (name.startswith(f"{array}[") and name.endswith("]")):
            yield name


def _resolve(
    caller: str,
    name: str,
    named: Mapping[str, Any],
    arrays: Mapping[str, list[str]],
    argument: str = "names",
) -> list[str]:
    if name in named:
        return [name]
    if name in arrays:
        return arrays[name]
    raise ValueError(
        f"{caller}({argument}=...): there is no parameter {name!r}. The parameters are "
        f"{_format_names(list(named))}."
    )


def _check_count(caller: str, names: list[str], most: int) -> None:
    if len(names) > most:
        raise ValueError(
            f"{caller}(names=None): a figure shows at most {most} parameters, but the "
            f"run has {len(names)}: {_format_names(names)}. Choose some, such as "
            f"names={names[:3]!r}."
        )


def _format_names(names: list[str]) -> str:
    hidden = len(names) - _MAX_NAMES
    text = ", ".join(names[:_MAX_NAMES])
    return f"{text} and {hidden} more" if hidden > 0 else text


def _check_finite(
    caller: str, name: str, values: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    bad = ~np.isfinite(values) & (weights > 0)
    if bad.any():
        raise ValueError(
            f"{caller}: {np.sum(bad):,} of {len(bad):,} values of {name} are not "
            "finite. Choose other parameters with `names=`."
        )
    return values
