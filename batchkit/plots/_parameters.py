"""Selection of the parameters in a figure, their labels and their values."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
from jaxtyping import Float

from ..chains import ChainRun
from ..chains._draws import pooled_columns
from ..nested import NestedRun
from ..run._names import columns, join_few, leaves
from ..run._over_draws import Transform, transformed
from ..shards import ShardRun


# The largest number of names in a message.
_MAX_NAMES: Final = 20


@final
class Parameter(NamedTuple):
    """One scalar parameter of a position.

    - `label`: the label of its axis.
    - `values`: its value at each point, or at each draw of all chains in turn.
    """

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
    transform: Transform,
) -> list[Parameter]:
    """Select the parameters of a figure by the names of scalars or of whole arrays.

    Without names, more than `most` parameters are an error. `caller` is the public
    function, for messages.
    """
    if not isinstance(run, NestedRun | ChainRun | ShardRun):
        raise TypeError(
            f"{caller}(run=...): run must be a NestedRun, a ChainRun or a ShardRun; "
            f"got {type(run).__name__}."
        )
    if isinstance(run, NestedRun):
        tree = transformed(transform, run.dead.positions, caller, dims=1)
        named = {name: x.astype(np.float64) for name, x in columns(tree)}
    else:
        tree = transformed(transform, run.samples, caller)
        named = dict(pooled_columns(tree))
    # The scalars of each array, such as x[0] and x[1] of x, and each scalar itself.
    choices = {array: _scalars_of(array, named) for array, _ in leaves(tree)}
    choices |= {name: [name] for name in named}

    def choose(argument: str, chosen: Sequence[str]) -> list[str]:
        for name in chosen:
            if name not in choices:
                raise ValueError(
                    f"{caller}({argument}=...): there is no parameter {name!r}. The "
                    f"parameters are {join_few(list(named), _MAX_NAMES)}."
                )
        return list(dict.fromkeys(x for name in chosen for x in choices[name]))

    if names is None:
        names = list(named)
        if len(names) > most:
            raise ValueError(
                f"{caller}(names=None): a figure shows at most {most} parameters, but "
                f"the run has {len(names)}: {join_few(names, _MAX_NAMES)}. Choose "
                f"some, such as names={names[:3]!r}."
            )
    shown = choose("names", [names] if isinstance(names, str) else names)
    if not shown:
        raise ValueError(
            f"{caller}(names={names!r}): names must contain at least one parameter."
        )
    labels = dict(labels or {})
    choose("labels", list(labels))
    weights = weights_of(run)
    for name in shown:
        bad = ~np.isfinite(named[name]) & (weights > 0)
        if bad.any():
            raise ValueError(
                f"{caller}: {np.sum(bad):,} of {len(bad):,} values of {name} are not "
                "finite. Choose other parameters with `names=`."
            )
    return [Parameter(labels.get(name, name), named[name]) for name in shown]


def _scalars_of(array: str, names: Mapping[str, Any]) -> list[str]:
    begin = f"{array}["
    return [x for x in names if x == array or (x.startswith(begin) and x[-1] == "]")]
