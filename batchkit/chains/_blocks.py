"""Lengths of blocks of draws, after each of which a run can be saved and stopped.

Where each chain keeps its place in the batch, under `Vmap`, `Sequential`, `Chunked` and
`Sharded`, the length of a block changes no bit. There a block takes about half a
second, so that progress is shown and Ctrl-C is answered.

Under `Continuous` the lane that takes a chain is the one that is idle, hence depends on
where blocks end; and what a lane computes may depend in the last bit on its number,
because XLA computes the rows of a batch in groups. There blocks end at multiples of a
fixed number of draws, whatever the clock says, so that a run that was killed makes the
same blocks as one that was not. That number is large, because lanes wait for each other
at the end of a block: for NUTS on Neal's funnel, 64 chains in 16 lanes make 2.3 times
as many gradients as they need without blocks, 2.8 times in blocks of 128 draws, 3.3
times in blocks of 32 and 14.7 times under `Vmap`.
"""

import math
from dataclasses import dataclass
from typing import Final, final

import jax
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Chunked, Sequential, Sharded, Vmap


# The most draws in a block: an unused place costs some microseconds.
_MOST: Final = 1024
_FIXED: Final = 128
# The most bytes of the draws of one block.
_BYTES: Final = 64 * 2**20
# XLA compiles a loop of one turn as no loop, which rounds differently.
_LEAST: Final = 2


@final
@dataclass(frozen=True)
class Blocks:
    """Lengths of the blocks of a run.

    - `places`: the most draws for which the program has room.
    - `most`: the most draws that are made at once.
    - `is_fixed`: whether blocks end at multiples of `most`.
    """

    places: int
    most: int
    is_fixed: bool

    def limit(self, made: int | None, per_block: int) -> int:
        """Return the most draws of the next block.

        The last one had `made` draws, None before the first; `per_block` draws take as
        long as a block should.
        """
        if self.is_fixed:
            return self.most
        # The first block shows how long a draw takes; growth is gradual, since the
        # next draws may take longer.
        return 1 if made is None else max(1, min(per_block, 4 * made, self.most))

    def count(self, at: int, limit: int, total: int) -> int:
        """Return how many draws follow the first `at`, of `total` in all."""
        if self.is_fixed:
            limit = self.most - at % self.most
        return min(limit, total - at)

    def is_whole(self, at: int, count: int) -> bool:
        """Return True if a run can go on from the end of a block.

        A fixed block that `num_samples` cuts short ends where a longer run would not
        end it, so a longer run makes it again.
        """
        return not self.is_fixed or (at + count) % self.most == 0


def blocks_for(batcher: AbstractBatcher, draws: PyTree, block: int | None) -> Blocks:
    """Return the blocks of chains, from the shapes of one draw of all of them."""
    leaves = jax.tree.leaves(draws)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    fixed = not keeps_places(batcher)
    room = min(_BYTES // max(size, 1), _FIXED if fixed else _MOST)
    most = max(room, 1) if block is None else block
    return Blocks(max(most, _LEAST), most, fixed)


def keeps_places(batcher: AbstractBatcher) -> bool:
    """Return True if a task's place in the batch never depends on other tasks."""
    if isinstance(batcher, Chunked | Sharded):
        return keeps_places(batcher.inner)
    return isinstance(batcher, Vmap | Sequential)
