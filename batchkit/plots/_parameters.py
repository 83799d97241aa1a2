"""Which parameters a figure shows, and how they are called there."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, final

import numpy as np
from jaxtyping import Float

from ..chains import ChainRun
from ..chains._summary import pooled_columns
from ..nested import NestedRun
from ..run._names import columns, leaves


# So many names are listed in a message.
_LISTED: Final = 20


@final
class Parameter(NamedTuple):
    """One number of a position.

    - `name`: its name.
    - `label`: what stands at its axis.
    - `values`: its value at each point, or at each draw of all chains in turn.
    """

    name: str
    label: str
    values: Float[np.ndarray, " n"]


def weights_of(run: NestedRun | ChainRun) -> Float[np.ndarray, " n"]:
    """The weight of each point or draw; they sum to one."""
    if isinstance(run, NestedRun):
        return run.weights
    count = run.num_chains * run.num_samples
    return np.full(count, 1 / count)


def quantiles(
    values: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    of: Sequence[float],
) -> Float[np.ndarray, " k"]:
    """Quantiles of weighted values."""
    return np.quantile(values, of, weights=weights, method="inverted_cdf")


def parameters_of(
    run: Any,
    names: Sequence[str] | None,
    labels: Mapping[str, str] | None,
    most: int,
    caller: str,
) -> list[Parameter]:
    """The parameters to show.

    **Arguments:**

    - `run`: a `NestedRun` or a `ChainRun`.
    - `names`: which, by the name of a number or of a whole array; None for all.
    - `labels`: what stands at the axes in place of names.
    - `most`: how many there may be if nobody chose them.
    - `caller`: who asks, for messages.

    **Raises:**

    `TypeError` if `run` is something else; `ValueError` if there are too many, if there
    is none of a name, or if a value that has weight is not finite.
    """
    if not isinstance(run, NestedRun | ChainRun):
        raise TypeError(
            f"{caller}(run=...): run must be a NestedRun or a ChainRun; got "
            f"{type(run).__name__}."
        )
    tree = run.dead.positions if isinstance(run, NestedRun) else run.samples
    named = dict(columns(tree) if isinstance(run, NestedRun) else pooled_columns(tree))
    wholes = {name: list(_numbers(name, named)) for name, _ in leaves(tree)}
    if names is None:
        _check_count(caller, list(named), most)
        names = list(named)
    chosen = [
        x for name in _as_list(names) for x in _found(caller, name, named, wholes)
    ]
    chosen = list(dict.fromkeys(chosen))
    if not chosen:
        raise ValueError(f"{caller}(names={names!r}): names must hold a parameter.")
    labels = dict(labels or {})
    for name in labels:
        _found(caller, name, named, wholes, "labels")
    weights = weights_of(run)
    return [
        Parameter(name, labels.get(name, name), _checked(caller, name, values, weights))
        for name in chosen
        for values in [named[name].astype(np.float64)]
    ]


def _as_list(names: Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _numbers(whole: str, named: Mapping[str, Any]) -> Iterator[str]:
    for name in named:
        if name == whole or (name.startswith(f"{whole}[") and name.endswith("]")):
            yield name


def _found(
    caller: str,
    name: str,
    named: Mapping[str, Any],
    wholes: Mapping[str, list[str]],
    argument: str = "names",
) -> list[str]:
    if name in named:
        return [name]
    if name in wholes:
        return wholes[name]
    raise ValueError(
        f"{caller}({argument}=...): there is no parameter {name!r}. There are "
        f"{_listed(list(named))}."
    )


def _check_count(caller: str, names: list[str], most: int) -> None:
    if len(names) > most:
        raise ValueError(
            f"{caller}(names=None): a figure shows at most {most} parameters, and the "
            f"run has {len(names)}: {_listed(names)}. Choose some, such as "
            f"names={names[:3]!r}."
        )


def _listed(names: list[str]) -> str:
    hidden = len(names) - _LISTED
    text = ", ".join(names[:_LISTED])
    return f"{text} and {hidden} more" if hidden > 0 else text


def _checked(
    caller: str, name: str, values: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    bad = ~np.isfinite(values) & (weights > 0)
    if bad.any():
        raise ValueError(
            f"{caller}: {np.sum(bad):,} of {len(bad):,} values of {name} are not "
            "finite. Choose other parameters by `names=`."
        )
    return values
