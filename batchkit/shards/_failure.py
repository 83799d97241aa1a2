"""Shards of which no try has succeeded."""

from collections.abc import Sequence
from typing import final


@final
class ShardFailure(RuntimeError):
    """No try of some shards has given draws to be trusted.

    ```python
    import batchkit as bk

    error = bk.ShardFailure("shard 3 failed", [3])
    assert error.shards == (3,)
    ```
    """

    def __init__(self, message: str, shards: Sequence[int]) -> None:
        """**Arguments:**

        - `message`: what happened and what to do; a text.
        - `shards`: the indices of the shards.
        """
        # Both are arguments of the exception, so that it can be pickled.
        super().__init__(message, tuple(shards))
        self.shards = tuple(shards)

    def __str__(self) -> str:
        return str(self.args[0])
