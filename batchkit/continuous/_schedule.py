"""Who goes next: which lanes are held for company, and whose call is made.

All of it is decided from the program counters of the lanes, once a turn.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._kinds import Kind
from ._places import Places
from ._program import Block


# With patience, lanes are held before blocks off the inner loop until one in so many of
# those at work is. Measured on NUTS, where 5 and 8 are alike and 3 is too patient.
_SHARE = 8


@final
@dataclass(frozen=True, eq=False)
class Choice:
    """Which kind of call is made in a turn."""

    ready: Array  # whether any is
    kind: Array  # which, where one is
    credit: Array  # for each kind, what its lanes have waited by now
    count: Array  # how many lanes wait for this call


@final
@dataclass(frozen=True, eq=False)
class Schedule:
    """The rules, for one program.

    **Arguments:**

    - `finished`, `idle`: program counters of lanes that are done, and without a task.
    - `waiting`: for each kind of call, the program counters of lanes that wait for it.
    - `moving`: program counters of lanes that are never held.
    - `patient`: whether the others are.
    """

    finished: int
    idle: int
    waiting: Sequence[np.ndarray]
    moving: np.ndarray
    patient: bool

    def enough(self, pc: Array) -> Any:
        """How many lanes have to be at a block for it to run in this sweep."""
        if not self.patient:
            return 1
        at_work = jnp.sum(pc != self.idle)
        free = jnp.sum(pc > self.idle) + jnp.sum(jnp.isin(pc, self.moving))
        share = -(-at_work // _SHARE)
        # All that are held, wherever they are, go on as soon as they are a share.
        return jnp.where(at_work - free >= share, 1, share)

    def waits(self, pc: Array) -> list[Array]:
        """For each kind of call, which lanes wait for it."""
        return [jnp.isin(pc, places) for places in self.waiting]

    def choice(self, pc: Array, credit: Array, enough: Any) -> Choice:
        """The call that is made, if one is.

        Lanes on their way to a pause are waited for. Then the many go first, but the
        longer few have waited, the more they count.

        **Arguments:**

        - `pc`: the program counter of each lane.
        - `credit`: for each kind of call how many lanes have waited for it, added up
            over the calls of other kinds since its own last one.
        - `enough`: what `enough` says of these lanes.
        """
        waits = self.waits(pc)
        counts = jnp.stack([jnp.sum(each) for each in waits]).astype(jnp.int32)
        on_their_way = jnp.any(jnp.isin(pc, self.moving))
        on_their_way |= (enough <= 1) & jnp.any(pc <= self.finished)
        ready = ~on_their_way & jnp.any(counts > 0)
        first = jnp.argmax(counts + credit)
        passed_on = (credit + counts).at[first].set(0)
        return Choice(ready, first, jnp.where(ready, passed_on, credit), counts[first])


def schedule_of(
    places: Places, kinds: Sequence[Kind], held: set[Block], patient: bool
) -> Schedule:
    """The rules for a program in which lanes may be held before some blocks."""
    moving = [i for block, i in places.number.items() if block not in held]
    return Schedule(
        places.finished,
        places.idle,
        [np.array([places.waiting[p] for p, *_ in kind.pauses]) for kind in kinds],
        np.array(sorted([*moving, places.finished])),
        patient,
    )
