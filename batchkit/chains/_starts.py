"""Chains that cannot start where they are asked to."""

from collections.abc import Sequence
from typing import Any, final

import jax
import numpy as np
from jaxtyping import PyTree

from ..run._names import columns, few


@final
class StartError(ValueError):
    """Chains would start where the log-density, or its gradient, is not finite.

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
        - `chains`: the indices of the chains.
        - `parameters`: the names of the numbers in question, if it is not all of them.
        """
        # All are arguments of the exception, so that it can be pickled.
        super().__init__(message, tuple(chains), tuple(parameters))
        self.chains = tuple(chains)
        self.parameters = tuple(parameters)

    def __str__(self) -> str:
        return str(self.args[0])


def check_positions(
    positions: PyTree, owner: str = "run_chains", argument: str = "positions"
) -> None:
    """Raise `StartError` if a start is not finite.

    **Arguments:**

    - `positions`: where the chains start, arrays of shape `(chains, ...)`.
    - `owner`: the function that the user called.
    - `argument`: its argument from which the positions come.
    """
    chains, names, total = _not_finite(positions)
    if chains:
        raise StartError(
            f"{owner}({argument}=...): {few(names)} is not finite at the start of "
            f"{_of_chains(chains, total)}. Start every chain at finite numbers.",
            chains,
            names,
        )


def check_states(states: Any) -> None:
    """Raises if the log-density or its gradient is not finite at a start.

    States that do not tell are taken as they are.
    """
    logdensity = getattr(states, "logdensity", None)
    if logdensity is not None and jax.tree.structure(logdensity).num_leaves == 1:
        chains, _, total = _not_finite(logdensity)
        if chains:
            found = [f"{x:g}" for x in np.asarray(logdensity)[chains]]
            raise StartError(
                "run_chains(positions=...): the log-density is not finite at the start "
                f"of {_of_chains(chains, total)} ({few(found)}). Start inside of the "
                "support, and not so far out that the log-density overflows; the "
                "exception has the indices as `.chains`.",
                chains,
            )
    gradient = getattr(states, "logdensity_grad", None)
    chains, names, total = _not_finite(gradient)
    if chains:
        raise StartError(
            "run_chains(positions=...): the log-density is finite at the start of "
            f"{_of_chains(chains, total)}, but its gradient with respect to "
            f"{few(names)} is not. Start elsewhere, or look for a `jnp.where` whose "
            "branch not taken divides by zero: its NaN enters the gradient.",
            chains,
            names,
        )


def _not_finite(tree: PyTree) -> tuple[list[int], list[str], int]:
    """The rows and the columns in which something is not finite, and how many rows."""
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


def _of_chains(chains: Sequence[int], total: int) -> str:
    what = "chain" if len(chains) == 1 else "chains"
    return f"{what} {few(list(map(str, chains)))} of {total}"
