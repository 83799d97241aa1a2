"""What can go wrong while choosing a layout."""

from collections.abc import Sequence
from typing import final

from ..batchers._bytes import in_words


@final
class BudgetError(ValueError):
    """Not even one lane fits the budget.

    ```python
    import jax.numpy as jnp
    import pytest
    import batchkit as bk

    def squares(x):
        return jnp.linalg.slogdet(jnp.sin(jnp.outer(x, x)))[1]

    with pytest.raises(bk.BudgetError, match="one lane needs"):
        bk.Auto("1 MB")(squares)(jnp.ones((10, 1000)))
    ```
    """

    def __init__(
        self, asked: str, needed: int, budget: int, around: int, largest: Sequence[str]
    ) -> None:
        """**Arguments:**

        - `asked`: who has the budget, as the user wrote it.
        - `needed`: the bytes of one lane.
        - `budget`: the bytes allowed.
        - `around`: how many lanes of other sites are under way around each lane.
        - `largest`: the largest arrays in it, each with the operation that makes it.
        """
        self.needed = needed
        self.budget = budget
        each = f", for each of the {around} lanes around it" if around > 1 else ""
        super().__init__(
            f"{asked}: one lane needs {in_words(needed)}, the budget is "
            f"{in_words(budget)}{each}. The largest arrays in it are "
            f"{', '.join(largest)}. Give a larger budget, or make a lane smaller: work "
            "through its data in blocks, or compute in float32."
        )
