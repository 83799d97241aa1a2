"""Any program of loops and branches computes under lanes what it does under vmap."""

import jax
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

import batchkit as bk

from ..helpers import assert_same
from .programs import Program, Statement, arguments, programs


TASKS = 6
LANES = st.sampled_from([1, 2, TASKS, TASKS + 3])
SETTINGS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": list(HealthCheck),
}
few = settings(max_examples=8, **SETTINGS)
many = settings(max_examples=250, **SETTINGS)

VALUE: Statement = ("value",)
COUNT: Statement = ("count",)
SWAP: Statement = ("swap",)

# One for each way in which lanes could take each other's values.
CHOSEN: dict[str, Program] = {
    "swapped in a while": Program((("while", "cheap", (SWAP, VALUE, COUNT)),), 1),
    "swapped in a scan": Program((COUNT, ("scan", 3, False, (SWAP, VALUE))), 1),
    "tested by a call": Program(
        (("while", "call", (COUNT, ("gradient",), ("copy",))),), 1
    ),
    "backwards": Program(
        (("scan", 3, True, (("while", "cheap", (VALUE, ("draw",))),)), ("fold",)), 1
    ),
    "no turn at all": Program(
        (("scan", 0, False, (VALUE, COUNT)), ("while", "cheap", (VALUE,))), 1
    ),
    "in one branch": Program(
        (
            ("scan", 3, False, (COUNT, ("cond", (VALUE,)), ("draw",))),
            ("switch", (("jvp",), COUNT)),
        ),
        1,
    ),
    "three loops deep": Program(
        (
            (
                "while",
                "cheap",
                (("scan", 3, False, (("while", "cheap", (VALUE, SWAP, COUNT)),)),),
            ),
        ),
        1,
    ),
    "two functions": Program(
        (
            ("while", "cheap", (("other value",), ("value",), COUNT)),
            ("while", "call", (("gradient",), ("draw",))),
        ),
        2,
    ),
    "hidden in calls": Program(
        (
            ("jit", (("while", "cheap", (VALUE, COUNT)),)),
            ("remat", (("cond", (("gradient around",),)),)),
            ("own rule", (("while", "cheap", (VALUE, COUNT)),)),
        ),
        1,
    ),
    "what is the same": Program(
        (
            ("while", "cheap", (("value of the same",), ("literal",))),
            ("cond", (("value of the same",), ("unused",))),
        ),
        1,
    ),
    "no marks": Program(
        (
            ("while", "cheap", (SWAP, VALUE, ("scan", 3, True, (("draw",), COUNT)))),
            ("scan", 3, False, (("while", "cheap", (COUNT, ("look up",))),)),
        ),
        0,
    ),
    "no marks, tested by a loop": Program(
        (("while", "call", (("while", "cheap", (COUNT,)), ("gradient",))),), 0
    ),
}


def _check(program: Program, *lanes: int) -> None:
    args = arguments(TASKS)
    expected = jax.jit(jax.vmap(program.task))(*args)
    for count in lanes:
        actual = jax.jit(bk.Continuous(count)(program.task))(*args)
        assert_same(actual, expected, ulps=0)


@pytest.mark.parametrize("program", CHOSEN.values(), ids=CHOSEN)
def test_chosen_programs(program: Program) -> None:
    _check(program, 2, TASKS)


@pytest.mark.parametrize("lanes", [1, TASKS + 3])
def test_one_lane_and_too_many(lanes: int) -> None:
    _check(CHOSEN["backwards"], lanes)


@few
@given(programs(1, (1, 2)), LANES)
def test_marked_calls(program: Program, lanes: int) -> None:
    _check(program, lanes)


@few
@given(programs(1, (0,)), LANES)
def test_turns_of_loops(program: Program, lanes: int) -> None:
    _check(program, lanes)


@pytest.mark.slow
@many
@given(programs(2, (0, 1, 2)), LANES)
@example(CHOSEN["three loops deep"], 2)
def test_deep_programs(program: Program, lanes: int) -> None:
    _check(program, lanes)
