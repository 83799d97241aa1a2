"""Who goes next, on bare program counters: no program and no lanes."""

import jax.numpy as jnp
import numpy as np
import pytest

from batchkit.continuous._schedule import Schedule


# Blocks 0 (never held) and 1 (held), 2 is done, 3 is idle, 4 and 5 wait for calls of
# the first kind, 6 of the second.
MOVES, HELD, DONE, IDLE, FIRST, ALSO_FIRST, SECOND = range(7)


def schedule(patient: bool) -> Schedule:
    return Schedule(
        finished=DONE,
        idle=IDLE,
        waiting=[np.array([FIRST, ALSO_FIRST]), np.array([SECOND])],
        moving=np.array([MOVES, DONE]),
        patient=patient,
    )


def choose(pc: list[int], credit: list[int], patient: bool = False):
    rules = schedule(patient)
    where = jnp.array(pc, jnp.int32)
    owed = jnp.array(credit, jnp.int32)
    return rules.choice(where, owed, rules.enough(where))


def test_without_patience_one_lane_is_enough():
    assert schedule(False).enough(jnp.array([HELD] + [FIRST] * 31)) == 1


@pytest.mark.parametrize(
    ("held", "idle", "enough"),
    [(1, 0, 4), (3, 0, 4), (4, 0, 1), (32, 0, 1), (1, 24, 1), (1, 16, 2), (0, 0, 4)],
)
def test_lanes_are_held_up_to_an_eighth_of_those_at_work(held, idle, enough):
    pc = [HELD] * held + [IDLE] * idle + [FIRST] * (32 - held - idle)
    assert schedule(True).enough(jnp.array(pc)) == enough


def test_the_kind_that_most_lanes_wait_for_is_called():
    choice = choose([FIRST, ALSO_FIRST, SECOND, IDLE], [0, 0])
    assert choice.ready
    assert choice.kind == 0
    assert choice.count == 2


def test_who_has_waited_long_enough_goes_before_the_many():
    pc = [FIRST, FIRST, FIRST, SECOND]
    credit, kinds = [0, 0], []
    for _ in range(8):
        choice = choose(pc, credit)
        kinds.append(int(choice.kind))
        credit = choice.credit.tolist()
    assert kinds.count(1) == 2


def test_credit_is_lost_by_a_call_and_kept_without_one():
    assert choose([FIRST, SECOND, SECOND], [5, 1]).credit.tolist() == [0, 3]
    assert choose([FIRST, SECOND, MOVES], [5, 1]).credit.tolist() == [5, 1]


@pytest.mark.parametrize("on_its_way", [MOVES, DONE])
@pytest.mark.parametrize("patient", [False, True])
def test_lanes_on_their_way_are_waited_for(on_its_way, patient):
    assert not choose([FIRST] * 31 + [on_its_way], [0, 0], patient).ready


def test_lanes_that_are_held_are_not_waited_for():
    assert choose([FIRST] * 31 + [HELD], [0, 0], patient=True).ready
    assert not choose([FIRST] * 31 + [HELD], [0, 0], patient=False).ready
    assert not choose([FIRST] * 28 + [HELD] * 4, [0, 0], patient=True).ready


def test_nothing_is_called_if_nobody_waits():
    assert not choose([IDLE] * 4, [0, 0]).ready
