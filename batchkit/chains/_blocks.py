"""How draws are cut into blocks, after each of which a run can be saved and stopped.

Chains follow the clock where they may: a block takes about half a second, so that
progress is told and Ctrl-C is answered. This changes no bit as long as each chain keeps
its place, in the batch that is computed. It does under `Vmap`, `Sequential`, `Chunked`
and `Sharded`.

Lanes that never wait are another matter. Which lane takes a chain depends on which one
is free, hence on where blocks end; and what a lane computes may depend in the last bit
on which one it is, because XLA computes the rows of a batch in groups. There the blocks
end at multiples of a fixed number of draws, whatever the clock says, so that a run that
was killed makes the same blocks as one that was not. That number is large, because at
the end of a block lanes do wait for each other: for NUTS on Neal's funnel, 64 chains in
16 lanes make 2.3 times as many gradients as they need without blocks, 2.8 times in
blocks of 128 draws, 3.3 times in blocks of 32 and 14.7 times under `Vmap`.
"""

import math
from dataclasses import dataclass
from typing import Final, final

import jax
from jaxtyping import PyTree

from ..batchers import AbstractBatcher, Chunked, Sequential, Sharded, Vmap


# The most draws in a block; the places for draws that are not made cost some
# microseconds each.
_MOST: Final = 1024
_FIXED: Final = 128
# What the draws of one block may occupy.
_BYTES: Final = 64 * 2**20
# A loop of one turn is compiled as no loop, and rounds in its own way.
_LEAST: Final = 2


@final
@dataclass(frozen=True)
class Blocks:
    """How many draws are made at a time.

    **Arguments:**

    - `places`: the most draws for which the program has room.
    - `most`: the most draws that are made at once.
    - `is_fixed`: whether blocks end at multiples of `most`.
    """

    places: int
    most: int
    is_fixed: bool

    def first(self, hurried: bool) -> int:
        """How many draws to make in the first block, of which nothing is known.

        **Arguments:**

        - `hurried`: whether anybody waits for the end of a block.
        """
        return 1 if hurried and not self.is_fixed else self.most

    def next(self, made: int, in_time: int) -> int:
        """Return how many to make after a block of `made` draws.

        **Arguments:**

        - `made`: how many the last block had.
        - `in_time`: how many are made in the time that a block should take.
        """
        if self.is_fixed:
            return self.most
        return max(1, min(in_time, 4 * made, self.most))

    def count(self, at: int, limit: int, total: int) -> int:
        """How many draws to make after the first `at`, of `total` in all.

        Or how many transitions of a window of the warm-up, counted from its first.
        """
        if self.is_fixed:
            limit = self.most - at % self.most
        return min(limit, total - at)

    def is_whole(self, at: int, count: int) -> bool:
        """Whether a run goes on from the end of a block, or makes it anew.

        One that is cut short by the number of draws that were asked for ends where a
        longer run would not end it.
        """
        return not self.is_fixed or (at + count) % self.most == 0


def blocks_for(batcher: AbstractBatcher, draws: PyTree, block: int | None) -> Blocks:
    """How to cut the draws of chains.

    **Arguments:**

    - `batcher`: how chains are laid out.
    - `draws`: the shapes of one draw of all chains.
    - `block`: the most draws that the user wants at once, None for any number.
    """
    leaves = jax.tree.leaves(draws)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)
    fixed = not keeps_places(batcher)
    room = min(_BYTES // max(size, 1), _FIXED if fixed else _MOST)
    most = max(room, 1) if block is None else block
    return Blocks(max(most, _LEAST), most, fixed)


def keeps_places(batcher: AbstractBatcher) -> bool:
    """Whether a task always has the same place, however long the others take."""
    if isinstance(batcher, Chunked | Sharded):
        return keeps_places(batcher.inner)
    return isinstance(batcher, Vmap | Sequential)
