"""StartError, and the search for numbers that are not finite."""

from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from jaxtyping import PyTree

from ._names import columns


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


@final
class NotFinite(NamedTuple):
    """Where numbers of a pytree of arrays of shape `(rows, ...)` are not finite.

    - `rows`: the indices of rows with such numbers.
    - `names`: the names of columns with such numbers.
    - `total`: the number of rows.
    """

    rows: list[int]
    names: list[str]
    total: int


def not_finite(tree: PyTree) -> NotFinite:
    """Find the rows and the columns of arrays in which a number is not finite."""
    rows: set[int] = set()
    names: list[str] = []
    total = 0
    for name, column in columns(tree):
        total = len(column)
        bad = np.flatnonzero(~np.isfinite(column.astype(np.float64)))
        if bad.size:
            names.append(name)
            rows.update(map(int, bad))
    return NotFinite(sorted(rows), names, total)
