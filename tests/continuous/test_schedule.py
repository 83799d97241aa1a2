"""The schedule, on bare program counters."""

import jax.numpy as jnp
import numpy as np
import pytest

from batchkit.continuous._lane_loop import Schedule


# Lanes at a block that is never held, at a block that is, done, idle, at two pauses for
# the first kind of call, and at one for the second.
MOVING, HELD, DONE, IDLE, FIRST, ALSO_FIRST, SECOND = range(7)


def schedule(patient: bool) -> Schedule:
    return Schedule(
        returned_pc=DONE,
        idle_pc=IDLE,
        waiting_pcs=[np.array([FIRST, ALSO_FIRST]), np.array([SECOND])],
        moving_pcs=np.array([MOVING, DONE]),
        patient=patient,
    )


def choose(pc: list[int], credit: list[int], patient: bool = False):
    rules = schedule(patient)
    where = jnp.array(pc, jnp.int32)
    owed = jnp.array(credit, jnp.int32)
    return rules.choose_call(where, owed, rules.min_lanes(where))


def test_without_patience_no_lane_is_held():
    assert schedule(False).min_lanes(jnp.array([HELD] + [FIRST] * 31)) == 1


@pytest.mark.parametrize(
    ("held", "idle", "min_lanes"),
    [(1, 0, 4), (3, 0, 4), (4, 0, 1), (32, 0, 1), (1, 24, 1), (1, 16, 2), (0, 0, 4)],
)
def test_lanes_are_held_until_an_eighth_of_the_active_ones_is(held, idle, min_lanes):
    pc = [HELD] * held + [IDLE] * idle + [FIRST] * (32 - held - idle)
    assert schedule(True).min_lanes(jnp.array(pc)) == min_lanes


def test_call_with_most_waiting_lanes_is_made():
    choice = choose([FIRST, ALSO_FIRST, SECOND, IDLE], [0, 0])
    assert choice.ready
    assert choice.kind == 0


def test_starved_call_is_scheduled():
    pc = [FIRST, FIRST, FIRST, SECOND]
    credit, kinds = [0, 0], []
    for _ in range(8):
        choice = choose(pc, credit)
        kinds.append(int(choice.kind))
        credit = choice.credit.tolist()
    assert kinds.count(1) == 2


def test_credit_is_spent_by_a_call_and_kept_in_turns_without_one():
    assert choose([FIRST, SECOND, SECOND], [5, 1]).credit.tolist() == [0, 3]
    assert choose([FIRST, SECOND, MOVING], [5, 1]).credit.tolist() == [5, 1]


@pytest.mark.parametrize("moving", [MOVING, DONE])
@pytest.mark.parametrize("patient", [False, True])
def test_no_call_is_made_while_lanes_are_moving(moving, patient):
    assert not choose([FIRST] * 31 + [moving], [0, 0], patient).ready


def test_calls_do_not_wait_for_held_lanes():
    assert choose([FIRST] * 31 + [HELD], [0, 0], patient=True).ready
    assert not choose([FIRST] * 31 + [HELD], [0, 0], patient=False).ready
    assert not choose([FIRST] * 28 + [HELD] * 4, [0, 0], patient=True).ready


def test_no_call_is_made_for_idle_lanes():
    assert not choose([IDLE] * 4, [0, 0]).ready
