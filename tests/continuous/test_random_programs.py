"""Any program of loops and branches computes under lanes what it does under vmap."""

from typing import Any

import jax
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

import batchkit as bk

from ..helpers import assert_same
from .programs import OWN_RULES, SIMPLE, Program, Statement, arguments, programs


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


def _check_forward(program: Program, *lanes: int) -> None:
    """Values, `jvp`, and `linearize` applied forwards."""
    i, v, key = arguments(TASKS)
    direction = v[::-1] + 1

    def run(mapped: Any) -> Any:
        @jax.jit
        def moved(i: Any, v: Any, key: Any, direction: Any) -> Any:
            batched = lambda v: mapped(program.task)(i, v, key)
            out, linear = jax.linearize(batched, v)
            return jax.jvp(batched, (v,), (direction,)), out, linear(direction)

        return moved(i, v, key, direction)

    expected = run(jax.vmap)
    for count in lanes:
        assert_same(run(bk.Continuous(count)), expected, ulps=64)


RULES: dict[str, Program] = {
    # Of one kind of call, the first has a tangent and the second has none.
    "one evaluation": Program((("while", "cheap", (VALUE, ("own vjp",))),), 1),
    "around a call": Program((("while", "cheap", (("own jvp",), COUNT)),), 1),
    "around a loop": Program((("own rule", (("while", "cheap", (VALUE,)),)),), 1),
    "no marks": Program(
        (("while", "cheap", (("own jvp",), ("own vjp",), ("gradient",))),), 0
    ),
    "in branches": Program(
        (("scan", 3, True, (("cond", (("own vjp",), VALUE)), ("own jvp",))),), 2
    ),
}


@pytest.mark.parametrize("program", RULES.values(), ids=RULES)
def test_forward_mode_has_the_tangents_of_vmap(program: Program) -> None:
    _check_forward(program, 2)


@pytest.mark.slow
@many
@given(programs(1, (0, 1, 2), SIMPLE + OWN_RULES), LANES)
def test_forward_mode_of_any_program(program: Program, lanes: int) -> None:
    _check_forward(program, lanes)


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
